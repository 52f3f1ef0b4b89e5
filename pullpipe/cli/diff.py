"""`pullpipe diff CONTAINER`, `pullpipe diff REF1 REF2`, `pullpipe diff REF#LAYER`"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from pullpipe import local
from pullpipe.cli.common import open_store, print_json, printable
from pullpipe.cli.entries import as_json
from pullpipe.errors import BadArgument
from pullpipe.look import changes
from pullpipe.look.changes import Change
from pullpipe.look.chosen import Chosen
from pullpipe.look.view import View
from store import NotInStore, Store

HELP = "tell what a container has changed, or one layer in those below it, or what differs between two images"

JSON = {
    "a list, of each path that differs": {
        "kind": "A, C or D",
        "path": "absolute",
        "what": "of what is changed, not in a container: a list of type, content, target, device, mode, owner, time, "
        "attributes",
        "before": "what it was, not in a container, as `ls` has it without link; null for what is added",
        "after": "what it is, in the same way; null for what is deleted",
    }
}


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--format", choices=("table", "json"), default="table", help="json for programs")
    parser.add_argument(
        "first",
        metavar="CONTAINER|REF|REF#LAYER",
        help="a container; or an image to start from; or one layer, 1 is the lowest",
    )
    parser.add_argument("second", metavar="REF", nargs="?", help="the image to compare it with")
    parser.epilog = "A is added, C changed, with what of it, D deleted, with all that was in it."


def run(arguments: argparse.Namespace) -> int:
    store = open_store(arguments, as_root=True)
    if arguments.second is None and "#" not in arguments.first:
        return _of_container(store, arguments)
    found = _changes(store, arguments)
    if arguments.format == "json":
        print_json(
            [
                {
                    "kind": change.kind,
                    "path": change.path,
                    "what": change.what,
                    "before": change.before and as_json(change.before),
                    "after": change.after and as_json(change.after),
                }
                for change in found
            ]
        )
        return 0
    for change in found:
        entry = change.after or change.before
        slash = "/" if entry and entry.is_directory and entry.path else ""
        what = f"  ({', '.join(change.what)})" if change.what else ""
        print(f"{change.kind} {printable(change.path)}{slash}{what}")
    return 0


def _of_container(store: Store, arguments: argparse.Namespace) -> int:
    try:
        wanted = store.containers.find(arguments.first)
    except NotInStore as no_container:
        raise BadArgument(
            f"{no_container}; and to compare an image, name another one, or one of its layers: {arguments.first}#1"
        ) from no_container
    from pullpipe.runner.changes import changes as changed_by

    found = changed_by(store, wanted)
    if arguments.format == "json":
        print_json([{"kind": kind, "path": path, "what": [], "before": None, "after": None} for kind, path in found])
    else:
        for kind, path in found:
            print(kind, printable(path))
    return 0


def _changes(store: Store, arguments: argparse.Namespace) -> Iterator[Change]:
    first = Chosen.parse(arguments.first)
    if arguments.second is None:
        assert first.layer is not None
        return changes.of_layer(store, first.find(store), first.layer)
    images = [local.find(store, Chosen.image(text)) for text in (arguments.first, arguments.second)]
    return changes.changes(*(View.of(store, image) for image in images))
