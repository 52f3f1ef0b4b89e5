"""How `verify` and `repair` tell what they have found."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Sequence

from pullpipe import local
from pullpipe.cli.common import add_jobs_option, print_json, printable
from pullpipe.progress import FACES
from pullpipe.reference import Reference
from pullpipe.verify import Finding, State
from store import Store

FIELDS = {
    "state": "damaged, mended (by repair), unchecked, orphan (nothing leads to it), or leftover",
    "kind": "blob, layer, variant, stack, image, container, index or file",
    "name": "a digest, a reference, an id, or a path below the store's root",
    "problem": "in words",
    "users": "a list of the images, and of the containers as `container NAME`, that need it",
    "remedy": "in words; empty where there is none",
}
_WORDS: dict[State, str] = {
    "damaged": "damaged",
    "mended": "mended",
    "unchecked": "not checked",
    "orphan": "that nothing leads to",
    "leftover": "left over",
}


def add_options(parser: argparse.ArgumentParser) -> None:
    """What both commands can be told."""
    add_jobs_option(parser)
    parser.add_argument("--format", choices=("table", "json"), default="table", help="json for programs")
    parser.add_argument("--progress", choices=FACES, default="auto", help="what standard error shows of it")
    parser.add_argument("-q", "--quiet", action="store_true", help="show nothing but the result")
    parser.add_argument("references", metavar="REF", nargs="*", help="look at these images only")


def reference_of(store: Store, text: str) -> str:
    """Of an image that may be there or not: the store may be so damaged that it cannot be asked for names."""
    record = local.by_id(store, text)
    return record.reference if record else str(Reference.parse(text))


def tell(findings: Sequence[Finding], arguments: argparse.Namespace) -> int:
    """Prints them, and their count on standard error; returns the exit code."""
    if arguments.format == "json":
        print_json([finding._asdict() for finding in findings])
    else:
        for finding in findings:
            print(printable(str(finding)))
    counts = Counter(finding.state for finding in findings)
    if not arguments.quiet:
        told = [f"{counts[state]} {word}" for state, word in _WORDS.items() if counts[state]]
        print(", ".join(told if counts["damaged"] else ["whole", *told]), file=sys.stderr)
    return 1 if counts["damaged"] else 0
