"""`pullpipe df`"""

from __future__ import annotations

import argparse

from pullpipe import usage
from pullpipe.cli.common import open_store, print_json, print_table
from pullpipe.progress import human_size

HELP = "tell what takes how much room in the store"

_KINDS = ("blobs", "layers", "containers", "partials", "leftovers", "strays")
JSON = {
    "an object with": {
        "images": "a list",
        "images.reference": "the image's name in full",
        "images.blobs": "bytes of its layers, compressed, as far as they are kept",
        "images.unpacked": "bytes that its layers take on disk",
        "images.shared": "of those, bytes of layers that other images have, too",
        "images.unique": "of those, bytes of layers that no other image has",
        **{
            field: text
            for kind in _KINDS
            for field, text in (
                (f"{kind}.count", "how many"),
                (f"{kind}.size", "bytes"),
                (f"{kind}.unused", "bytes of those that nothing needs, or that have ended"),
            )
        },
    }
}


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-v", "--verbose", action="store_true", help="tell it of each image, too")
    parser.add_argument("--format", choices=("table", "json"), default="table", help="json for programs")


def run(arguments: argparse.Namespace) -> int:
    found = usage.measure(open_store(arguments, as_root=True))
    totals = {kind: getattr(found, kind) for kind in _KINDS}
    if arguments.format == "json":
        images = [{**image._asdict(), "shared": image.unpacked - image.unique} for image in found.images]
        print_json({"images": images, **{kind: _described(total) for kind, total in totals.items()}})
        return 0
    if arguments.verbose:
        rows = [
            (
                image.reference,
                *map(human_size, (image.blobs, image.unpacked, image.unpacked - image.unique, image.unique)),
            )
            for image in found.images
        ]
        print_table(("IMAGE", "BLOBS", "UNPACKED", "SHARED", "UNIQUE"), rows)
        print()
    rows = [
        (kind, str(total.entries), human_size(total.size), human_size(total.unused)) for kind, total in totals.items()
    ]
    print_table(("KIND", "COUNT", "SIZE", "UNUSED"), rows)
    return 0


def _described(total: usage.Total) -> dict[str, int]:
    return {"count": total.entries, "size": total.size, "unused": total.unused}
