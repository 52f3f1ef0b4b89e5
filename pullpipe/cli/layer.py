"""`pullpipe layer add REF DIR|TAR|-` and `pullpipe layer drop REF N`"""

from __future__ import annotations

import argparse
import os
import posixpath
import sys

from pullpipe import local
from pullpipe.cli.changing import (
    add_compression_option,
    add_making_options,
    add_name_option,
    check_free,
    epoch,
    make,
    new_name,
    note_of,
)
from pullpipe.cli.common import open_store
from pullpipe.errors import BadArgument
from pullpipe.reference import Reference
from store import Store

HELP = "add a layer to an image, or take one away"


def configure(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", metavar="add|drop", required=True)
    text = "put the files of a directory, or of a tar archive, on top of the image's"
    add = actions.add_parser("add", help=text, description=text)
    add_name_option(add)
    add.add_argument("--at", metavar="PATH", default="", help="where in the image a directory's files go (default: /)")
    add.add_argument("--owner", metavar="UID[:GID]", help="whose a directory's files are there (default: as they are)")
    add_compression_option(add)
    add_making_options(add)
    add.add_argument("reference", metavar="REF")
    add.add_argument("path", metavar="DIR|TAR|-", help="an archive may be compressed; - is standard input")
    add.epilog = "An empty file called .wh.NAME takes NAME of the layers below away."
    text = "leave one of the image's layers out"
    drop = actions.add_parser("drop", help=text, description=text)
    add_name_option(drop)
    add_making_options(drop)
    drop.add_argument("reference", metavar="REF")
    drop.add_argument("number", metavar="N", type=int, help="1 is the lowest; `pullpipe layers REF` lists them")


def run(arguments: argparse.Namespace) -> int:
    reference = Reference.parse(arguments.reference)
    name = new_name(arguments.tag or arguments.reference)
    store = open_store(arguments, as_root=True)
    check_free(store, name, arguments, old=reference)
    if arguments.action == "add":
        return _add(store, reference, name, arguments)
    from pullpipe.change.record import draft_of

    draft = draft_of(store, local.find(store, reference))
    make(store, draft.without_layer(arguments.number), name, arguments)
    return 0


def _add(store: Store, reference: Reference, name: Reference, arguments: argparse.Namespace) -> int:
    from pullpipe.change import archive, layer
    from pullpipe.change.record import draft_of

    draft = draft_of(store, local.find(store, reference))
    path, at = arguments.path, posixpath.normpath("/" + arguments.at).strip("/")
    if path != "-" and not os.path.exists(path):
        raise BadArgument(f"there is no {path}: a directory or a tar archive is wanted")
    if os.path.isdir(path):
        rules = archive.Rules(at, _owner(arguments.owner), epoch())
        made = layer.packed(archive.pieces(path, rules), arguments.compression or "gzip", store.root)
    elif at or arguments.owner:
        raise BadArgument(f"--at and --owner are for directories, and {path} is an archive; leave them away")
    else:
        file = sys.stdin.buffer if path == "-" else open(path, "rb")
        made = layer.adopted(file.read, path, arguments.compression, store.root)
    with made as new:
        note = note_of(arguments, "pullpipe layer add" + (f" --at /{at}" if at else ""))
        make(store, draft.with_layer(new, note), name, arguments)
    return 0


def _owner(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    uid, _, gid = text.partition(":")
    if not all(number.isascii() and number.isdigit() for number in (uid, gid or uid)):
        raise BadArgument(f"--owner {text} is none: numbers are wanted, UID or UID:GID")
    return int(uid), int(gid or uid)
