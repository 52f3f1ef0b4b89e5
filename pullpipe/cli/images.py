"""`pullpipe images`"""

from __future__ import annotations

import argparse

from pullpipe import local
from pullpipe.cli.common import OneByOne, open_store, print_json, print_table
from pullpipe.progress import human_size

HELP = "list the images in the store"
JSON = {
    "a list, of each image": {
        "reference": "its name in full",
        "digest": "of its manifest",
        "platform": "such as linux/arm64/v8",
        "layers": "how many",
        "size": "bytes of its layers, compressed",
        "created": "RFC 3339; empty where its author does not say",
    }
}


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-q", "--quiet", action="store_true", help="show the names only, of damaged images, too")
    parser.add_argument("--format", choices=("table", "json"), default="table", help="json for programs")


def run(arguments: argparse.Namespace) -> int:
    store = open_store(arguments)
    records = sorted(store.images)
    if arguments.quiet:
        for record in records:
            print(record.reference)
        return 0
    each = OneByOne(arguments)
    found = []
    for record in records:
        with each:
            image = local.load(store, record)
            found.append(
                {
                    "reference": record.reference,
                    "digest": str(record.manifest),
                    "platform": str(local.platform_of(record)),
                    "layers": len(image.manifest.layers),
                    "size": image.size,
                    "created": image.config.created,
                }
            )
    if arguments.format == "json":
        print_json(found)
    else:
        rows = [
            (
                str(entry["reference"]),
                str(entry["digest"]).partition(":")[2][:12],
                str(entry["platform"]),
                str(entry["layers"]),
                human_size(int(str(entry["size"]))),
                str(entry["created"])[:10],
            )
            for entry in found
        ]
        print_table(("IMAGE", "DIGEST", "PLATFORM", "LAYERS", "SIZE", "CREATED"), rows)
    return each.code
