"""`pullpipe prune`"""

from __future__ import annotations

import argparse
import re
import sys
import time
from collections.abc import Sequence
from datetime import datetime

from pullpipe import usage
from pullpipe.cli.common import OneByOne, open_store, print_json
from pullpipe.errors import BadArgument
from pullpipe.progress import human_size

HELP = "remove what nothing needs: blobs and layers, partial downloads of last week, what a crash left"
JSON = {
    "a list, of all that is removed": {
        "kind": "container, image, layer, blob, partial or leftover",
        "name": "a container's name, a reference, a digest, or a file's name",
        "size": "bytes; an image's are those of its layers and blobs, which stand for themselves",
    }
}
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
_AGE = re.compile(r"([0-9]{1,9}[smhdw])+")


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-a", "--all", action="store_true", help="also images that no container uses")
    parser.add_argument("--containers", action="store_true", help="also containers that have ended")
    parser.add_argument(
        "--filter",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        help="until=AGE (10m, 36h, 7d) or until=DATE (2026-03-01, 2026-03-01T12:00:00Z): only images, containers and "
        "partial downloads that are older; reference=PATTERN: only such images",
    )
    parser.add_argument("-f", "--force", action="store_true", help="as Docker's; nothing is asked without it, either")
    parser.add_argument("-n", "--dry-run", action="store_true", help="only say what would be removed")
    parser.add_argument("--format", choices=("table", "json"), default="table", help="json for programs")


def run(arguments: argparse.Namespace) -> int:
    wanted = _wanted(arguments)
    store = open_store(arguments, as_root=True)
    found = usage.waste(store, wanted)
    failed: Sequence[Exception] = ()
    if not arguments.dry_run:
        found, failed = usage.remove(store, found)
    if arguments.format == "json":
        print_json([each._asdict() for each in found])
    else:
        for each in found:
            print(each.kind, each.name, *([human_size(each.size)] if each.size else []))
    done = "would be freed" if arguments.dry_run else "freed"
    print(f"{human_size(sum(each.size for each in found))} {done}", file=sys.stderr)
    each_failed = OneByOne(arguments)
    for error in failed:
        with each_failed:
            raise error
    return each_failed.code


def _wanted(arguments: argparse.Namespace) -> usage.Wanted:
    ages, references = [], []
    for text in arguments.filter:
        key, _, value = text.partition("=")
        age = _age(value) if key == "until" else None
        if age is not None:
            ages.append(age)
        elif key == "reference" and value:
            references.append(value)
        else:
            raise BadArgument(
                f"--filter {text!r} is none: until=AGE (10m, 36h, 7d), until=DATE (2026-03-01, 2026-03-01T12:00:00Z) "
                "and reference=PATTERN are"
            )
    return usage.Wanted(arguments.all, arguments.containers, max(ages, default=None), tuple(references))


def _age(text: str) -> float | None:
    """In seconds, or of what is from that date; None if it is neither."""
    if _AGE.fullmatch(text):
        return sum(int(part[:-1]) * _UNITS[part[-1]] for part in re.findall(r"[0-9]+[smhdw]", text))
    try:
        return time.time() - datetime.fromisoformat(text).timestamp()
    except ValueError:
        return None
