"""`pullpipe layers REF`"""

from __future__ import annotations

import argparse

from pullpipe import local
from pullpipe.cli.common import open_store, print_json, print_table
from pullpipe.look import layers
from pullpipe.look.chosen import Chosen
from pullpipe.look.layers import LayerFacts
from pullpipe.progress import human_size

HELP = "list an image's layers, the lowest first, and which other images share them"
JSON = {
    "a list, of each layer": {
        "number": "1 is the lowest",
        "digest": "of its blob",
        "diff_id": "of its tar archive",
        "media_type": "of its blob",
        "size": "bytes, compressed",
        "unpacked_size": "bytes of its files; null, as the next two, where the layer's tree is missing",
        "entries": "how many its archive has",
        "whiteouts": "how many of those take a name of the layers below away",
        "shared_with": "references of the other images that have it",
    }
}
_NAMES = 2  # of images that share a layer, in the table


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--no-trunc", action="store_true", help="show whole digests, and all images that share a layer")
    parser.add_argument("--format", choices=("table", "json"), default="table", help="json for programs")
    parser.add_argument("reference", metavar="REF")


def run(arguments: argparse.Namespace) -> int:
    store = open_store(arguments)
    found = layers.layers(store, local.find(store, Chosen.image(arguments.reference)))
    if arguments.format == "json":
        print_json([as_json(layer) for layer in found])
    else:
        header = ("LAYER", "DIGEST", "DIFFID", "SIZE", "UNPACKED", "ENTRIES", "WHITEOUTS", "SHARED WITH")
        print_table(header, [_row(layer, whole=arguments.no_trunc) for layer in found])
    return 0


def as_json(layer: LayerFacts) -> dict[str, object]:
    """With digests as text."""
    return {**layer._asdict(), "digest": str(layer.digest), "diff_id": str(layer.diff_id)}


def _row(layer: LayerFacts, *, whole: bool) -> tuple[str, ...]:
    named = layer.shared_with if whole else layer.shared_with[:_NAMES]
    more = len(layer.shared_with) - len(named)
    return (
        str(layer.number),
        str(layer.digest) if whole else layer.digest.short,
        str(layer.diff_id) if whole else layer.diff_id.short,
        human_size(layer.size),
        "-" if layer.unpacked_size is None else human_size(layer.unpacked_size),
        "-" if layer.entries is None else str(layer.entries),
        "-" if layer.whiteouts is None else str(layer.whiteouts),
        ", ".join(named) + (f" and {more} more" if more else ""),
    )
