"""`pullpipe tree [REF…]`"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence

from pullpipe.cli.common import open_store, print_json, print_table
from pullpipe.look.chosen import Chosen
from pullpipe.look.family import Member, family
from pullpipe.progress import human_size

HELP = "show which images are built on which, and how much of them is shared"
JSON = {
    "a list, of each image that is built on no other": {
        "images": "its names; none where several images go on from here, each in its way",
        "layers": "those that it has on top of what it is built on, the lowest first",
        "layers.number": "1 is the lowest of all",
        "layers.diff_id": "of its tar archive",
        "layers.size": "bytes of its files",
        "own": "bytes of the files of all its layers that no other image has",
        "shared": "the same, of those that others have",
        "children": "what is built on it: a list of the same",
    }
}
_BAR = 24  # characters that the largest image takes
_PLAIN = str.maketrans({"├": "|", "└": "`", "─": "-", "│": "|", "█": "#", "░": ".", "…": "."})


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-l", "--layers", action="store_true", help="show each layer, too")
    parser.add_argument("--format", choices=("table", "json"), default="table", help="json for programs")
    parser.add_argument("references", metavar="REF", nargs="*", help="these, and what shares a layer with them")
    parser.epilog = (
        "What is drawn below an image has all its layers, and more on top: LAYERS is how many, ADDS their unpacked "
        "size. Of all the image's layers, OWN are those that no other image has, full in the bar; SHARED the others. "
        "Behind = stands another name of the image."
    )


def run(arguments: argparse.Namespace) -> int:
    store = open_store(arguments)
    wanted = [Chosen.parse(text).find(store).record.reference for text in arguments.references]
    members = family(store, wanted)
    if arguments.format == "json":
        print_json([_as_json(member) for member in members])
        return 0
    largest = max((one.own + one.shared for member in members for one in _all(member)), default=0)
    rows = [row for member in members for row in _rows(member, "", "", largest, layers=arguments.layers)]
    if not _takes(rows):
        rows = [tuple(cell.translate(_PLAIN) for cell in row) for row in rows]
    rows.insert(0, ("IMAGE", "LAYERS", "ADDS", "OWN", "SHARED", ""))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    header, *rest = ((row[0], *map(str.rjust, row[1:5], widths[1:5]), row[5]) for row in rows)
    print_table(header, rest)
    return 0


def _rows(member: Member, stem: str, below: str, largest: int, *, layers: bool) -> Iterator[tuple[str, ...]]:
    """The member, after `stem`, and all that is built on it, after `below` and lines of its own."""
    added = human_size(sum(size for _, _, size in member.layers))
    count = f"+{len(member.layers)}" if stem else str(len(member.layers))
    line = "│ " if member.children else "  "
    if member.images:
        name, *others = member.images
        yield stem + name, count, added, human_size(member.own), human_size(member.shared), _bar(member, largest)
        for other in others:
            yield f"{below}{line}= {other}", "", "", "", "", ""
    else:
        yield f"{stem}…", count, added, "", "", ""
    if layers:
        for number, diff_id, size in member.layers:
            yield f"{below}{line} {number} {diff_id.short}", "", human_size(size), "", "", ""
    for place, child in enumerate(member.children, 1):
        corner, line = ("└─ ", "   ") if place == len(member.children) else ("├─ ", "│  ")
        yield from _rows(child, below + corner, below + line, largest, layers=layers)


def _bar(member: Member, largest: int) -> str:
    own, total = (round(_BAR * size / (largest or 1)) for size in (member.own, member.own + member.shared))
    return "█" * own + "░" * (total - own)


def _all(member: Member) -> Iterator[Member]:
    yield member
    for child in member.children:
        yield from _all(child)


def _takes(rows: Sequence[Sequence[str]]) -> bool:
    """Whether standard output's encoding has these characters."""
    try:
        "".join(cell for row in rows for cell in row).encode(sys.stdout.encoding)
    except UnicodeEncodeError:
        return False
    return True


def _as_json(member: Member) -> dict[str, object]:
    return {
        "images": member.images,
        "layers": [
            {"number": number, "diff_id": str(diff_id), "size": size} for number, diff_id, size in member.layers
        ],
        "own": member.own,
        "shared": member.shared,
        "children": [_as_json(child) for child in member.children],
    }
