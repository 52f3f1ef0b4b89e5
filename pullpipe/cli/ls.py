"""`pullpipe ls REF[#LAYER] [PATH]`"""

from __future__ import annotations

import argparse
import stat
from collections.abc import Iterator

from pullpipe.cli.common import open_store, print_json, printable
from pullpipe.cli.entries import FIELDS, as_json, device, is_device, moment
from pullpipe.look.chosen import Chosen
from pullpipe.look.view import Entry, View

_REST = 28  # characters of a line before the name, but for owner and size
HELP = "list what is in an image, and which layer each file comes from; or in one layer, as `tar --list` does"

JSON = {
    "a list, of each file": {**FIELDS, "link": "the name that the same file has earlier in the list; null for none"},
}


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--depth", metavar="N", type=int, default=-1, help="so many directories deep; 1 is the top level"
    )
    parser.add_argument("--format", choices=("table", "json"), default="table", help="json for programs")
    parser.add_argument("reference", metavar="REF[#LAYER]", help="#1 is the lowest layer, alone, with its whiteouts")
    parser.add_argument("path", metavar="PATH", nargs="?", default="/", help="only this, and what is in it")
    parser.epilog = (
        "The first column is the number of the layer that a file comes from. Of one layer alone, a whiteout hides a "
        "name of the layers below, and an opaque directory all that they have in it. Times are UTC."
    )


def run(arguments: argparse.Namespace) -> int:
    chosen = Chosen.parse(arguments.reference)
    store = open_store(arguments, as_root=True)
    view = View.of(store, chosen.find(store), chosen.layer)
    entries = view.walk(view.find(arguments.path), depth=arguments.depth)
    if chosen.layer is not None:
        entries = (entry for entry in entries if entry.described or entry.opaque)
    if arguments.format == "json":
        print_json([{**as_json(entry), "link": first} for entry, first in _linked(entries)])
        return 0
    width = 15
    for entry, first in _linked(entries):
        facts = _facts(entry, first, width)
        width = max(width, len(facts) - _REST)  # as tar does: nobody waits for the widest
        if chosen.layer is None:
            print(f"{entry.layer or '-':>3} {facts} {_name(entry, first)}")
            continue
        blank = len(facts) - 10
        if entry.is_whiteout:
            print(f"whiteout  {'':{blank}} {printable(entry.path)}")
            continue
        if entry.described:
            print(f"{facts} {_name(entry, first)}")
        if entry.opaque:
            print(f"opaque    {'':{blank}} {_name(entry, None)}")
    return 0


def _facts(entry: Entry, first: str | None, width: int) -> str:
    """Mode, owner, size and time; owner and size are `width` wide at least."""
    status = entry.status
    mode = stat.filemode(status.st_mode)
    owner = f"{status.st_uid}/{status.st_gid}"
    size = device(entry) if is_device(entry) else str(status.st_size if stat.S_ISREG(status.st_mode) else 0)
    time = moment(entry, "%Y-%m-%d %H:%M")
    return f"{f'h{mode[1:]}' if first else mode} {owner} {size:>{width - len(owner) - 1}} {time:>16}"


def _linked(entries: Iterator[Entry]) -> Iterator[tuple[Entry, str | None]]:
    """Each entry, with the name that the same file had before in the list."""
    names: dict[tuple[int, int], str] = {}
    for entry in entries:
        status, first = entry.status, None
        if status.st_nlink > 1 and not entry.is_directory:
            known = names.setdefault((status.st_dev, status.st_ino), entry.absolute)
            first = known if known != entry.absolute else None
        yield entry, first


def _name(entry: Entry, first: str | None) -> str:
    name = printable(entry.path or ".")
    if entry.is_directory:
        return f"{name}/"
    if entry.target:
        return f"{name} -> {printable(entry.target)}"
    return f"{name} link to {printable(first.lstrip('/'))}" if first else name
