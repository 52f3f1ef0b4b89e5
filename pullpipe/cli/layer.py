"""`pullpipe layer add REF DIR|TAR|-` and `pullpipe layer drop REF N`"""

from __future__ import annotations

import argparse
import os
import posixpath
from contextlib import ExitStack

from pullpipe import local
from pullpipe.cli import add_global_options
from pullpipe.cli.changing import (
    add_compression_option,
    add_name_option,
    add_note_options,
    epoch,
    make,
    may_be,
    new_name,
    note_of,
    opened,
)
from pullpipe.cli.common import add_unpack_options, open_store, printable
from pullpipe.errors import BadArgument, LayerError
from pullpipe.local import LocalImage
from pullpipe.look.chosen import Chosen
from pullpipe.reference import Reference
from store import Store

HELP = "add a layer to an image, or take one away"
_IDS = 2**32 - 1  # the kernel's; the last one says: leave it as it is


def configure(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", metavar="add|drop", required=True)
    text = "put the files of a directory, or of a tar archive, on top of the image's"
    add = actions.add_parser("add", help=text, description=text)
    add_global_options(add, top=False)
    add_name_option(add)
    add.add_argument("--at", metavar="PATH", default="", help="where in the image a directory's files go (default: /)")
    add.add_argument("--owner", metavar="UID[:GID]", help="whose a directory's files are there (default: as they are)")
    add_compression_option(add)
    add_note_options(add)
    add_unpack_options(add)
    add.add_argument("reference", metavar="REF")
    add.add_argument("path", metavar="DIR|TAR|-", help="an archive may be compressed; - is standard input")
    add.epilog = "An empty file called .wh.NAME takes NAME of the layers below away."
    text = "leave one of the image's layers out"
    drop = actions.add_parser("drop", help=text, description=text)
    add_global_options(drop, top=False)
    add_name_option(drop)
    add_unpack_options(drop)
    drop.add_argument("reference", metavar="REF", help="or REF#N in one word")
    text = "which one: 1 is the lowest; `pullpipe layers REF` lists them"
    drop.add_argument("number", metavar="N", type=int, nargs="?", help=text)


def run(arguments: argparse.Namespace) -> int:
    if arguments.action == "add":
        reference = Chosen.image(arguments.reference)
    else:
        reference, number = Chosen.parse(arguments.reference)
        if (number is None) == (arguments.number is None):
            raise BadArgument(f"which layer to leave out is to be said once: {reference}#N, or {reference} N")
        arguments.number = number or arguments.number
    store = open_store(arguments, as_root=True)
    image = local.find(store, reference)
    name = new_name(arguments.tag or local.only_name(store, reference))
    (_add if arguments.action == "add" else _drop)(store, image, name, arguments)
    return 0


def _add(store: Store, image: LocalImage, name: Reference, arguments: argparse.Namespace) -> None:
    from pullpipe.change import archive, layer
    from pullpipe.change.record import draft_of

    over = may_be(store, name, arguments, image.record)
    path, at = arguments.path, posixpath.normpath("/" + arguments.at).strip("/")
    with ExitStack() as owned:
        if os.path.isdir(path):
            _check_place(store, image, at)
            rules = archive.Rules(at, _owner(arguments.owner), epoch(), marks=True)
            made = layer.packed(archive.pieces(path, rules), arguments.compression or "gzip", store.root)
        elif at or arguments.owner:
            raise BadArgument(f"--at and --owner are for directories, and {path} is none; leave them away")
        else:
            file = owned.enter_context(opened(path))
            limit = arguments.max_size << 30
            made = layer.adopted(file.read, path, arguments.compression, store.root, limit)
        new = owned.enter_context(made)
        note = note_of(arguments, "pullpipe layer add" + (printable(f" --at /{at}") if at else ""))
        make(store, draft_of(store, image).with_layer(new, note), name, over, arguments, made_of=path)


def _check_place(store: Store, image: LocalImage, at: str) -> None:
    """Raises `BadArgument` where a directory would come to stand in place of something else."""
    from pullpipe.look.view import View

    names = at.split("/") if at else []
    if any(name.startswith(".wh.") for name in names):
        raise BadArgument(f"--at /{at}: in a layer such a name means that another file is removed; name another place")
    found = View.of(store, image).among({"/".join(names[: count + 1]) for count in range(len(names))})
    for entry in found.values():
        if not entry.is_directory and not entry.target:
            raise BadArgument(
                f"--at /{at}: {entry.absolute} is no directory in {image.record.reference}; name another place"
            )


def _owner(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    uid, _, gid = text.partition(":")
    numbers = uid, gid or uid
    if not all(number.isascii() and number.isdigit() and int(number) < _IDS for number in numbers):
        raise BadArgument(f"--owner {text} is none: numbers below {_IDS} are wanted, UID or UID:GID")
    return int(uid), int(gid or uid)


def _drop(store: Store, image: LocalImage, name: Reference, arguments: argparse.Namespace) -> None:
    from pullpipe.change.record import draft_of

    over = may_be(store, name, arguments, image.record)
    draft = draft_of(store, image).without_layer(arguments.number)
    try:
        make(store, draft, name, over, arguments)
    except LayerError as error:
        names = [(str(blob.digest), str(diff_id)) for blob, diff_id in image.layers]
        needing = [number for number, both in enumerate(names, 1) if error.layer in both]
        if not needing:
            raise
        raise BadArgument(
            f"layer {arguments.number} cannot be left out: layer {needing[-1]} needs it ({error.reason}); "
            "leave that one out first"
        ) from error
