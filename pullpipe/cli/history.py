"""`pullpipe history REF`"""

from __future__ import annotations

import argparse

from pullpipe import local
from pullpipe.cli.common import open_store, print_json, print_table, printable
from pullpipe.look import layers
from pullpipe.look.chosen import Chosen
from pullpipe.look.layers import Step
from pullpipe.progress import human_size

HELP = "tell the steps that an image was made in, the last one first"
JSON = {
    "a list, of each step": {
        "created": "most often RFC 3339; empty where its author does not say, as with the next three",
        "created_by": "the command",
        "author": "who",
        "comment": "why",
        "empty_layer": "whether it made no layer; if so, the next three are null",
        "layer": "the layer's number; 1 is the lowest",
        "digest": "of the layer's blob",
        "diff_id": "of its tar archive",
        "size": "bytes of the layer's files; 0 without a layer, null where its tree is missing",
    }
}
_WIDTH = 45  # as Docker's


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--no-trunc", action="store_true", help="shorten nothing")
    parser.add_argument("--format", choices=("table", "json"), default="table", help="json for programs")
    parser.add_argument("reference", metavar="REF")


def run(arguments: argparse.Namespace) -> int:
    store = open_store(arguments)
    steps = layers.history(store, local.find(store, Chosen.image(arguments.reference)))[::-1]
    if arguments.format == "json":
        print_json([_as_json(step) for step in steps])
    else:
        rows = [_row(step, whole=arguments.no_trunc) for step in steps]
        print_table(("LAYER", "CREATED", "CREATED BY", "SIZE", "COMMENT"), rows)
    return 0


def _as_json(step: Step) -> dict[str, object]:
    layer = step.layer
    return {
        **step._asdict(),
        "empty_layer": layer is None,
        "layer": layer.number if layer else None,
        "digest": str(layer.digest) if layer else None,
        "diff_id": str(layer.diff_id) if layer else None,
        "size": layer.unpacked_size if layer else 0,
    }


def _row(step: Step, *, whole: bool) -> tuple[str, ...]:
    size = step.layer.unpacked_size if step.layer else 0
    command = printable(step.created_by if whole else " ".join(step.created_by.split()))
    return (
        str(step.layer.number) if step.layer else "-",
        printable(step.created if whole else step.created[:10]) or "-",
        command if whole or len(command) <= _WIDTH else f"{command[: _WIDTH - 1]}…",
        "-" if size is None else human_size(size),
        printable(step.comment),
    )
