"""`pullpipe logs CONTAINER`"""

from __future__ import annotations

import argparse
import re
import sys
import time

from pullpipe.cli.common import open_store
from pullpipe.errors import BadArgument
from pullpipe.runner import logs

HELP = "show what a container that was started with -d has printed"

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_AGE = re.compile(r"([0-9]{1,9}[smhd])+")


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-f", "--follow", action="store_true", help="go on until the container ends")
    parser.add_argument("-n", "--tail", metavar="N", default="all", help="only the last lines (default: %(default)s)")
    parser.add_argument("-t", "--timestamps", action="store_true", help="put before each line when it was printed")
    parser.add_argument("--since", metavar="TIME", default="", help="only from then on: 10m, 1h30m, or by RFC 3339")
    parser.add_argument("container", metavar="CONTAINER", help="a name, or the start of an id")


def run(arguments: argparse.Namespace) -> int:
    """What came from its standard output goes to ours, and errors to errors."""
    tail, since = _tail(arguments.tail), _since(arguments.since)
    store = open_store(arguments)
    container = store.containers.find(arguments.container)
    outputs = {"stdout": sys.stdout.buffer, "stderr": sys.stderr.buffer}
    begun: set[str] = set()  # streams, in whose middle of a line we are
    last = sys.stdout.buffer

    def flush() -> None:
        last.flush()

    try:
        for entry in logs.read(store, container, tail=tail, follow=flush if arguments.follow else None):
            if entry.moment < since or entry.stream not in outputs:
                continue
            if outputs[entry.stream] is not last:
                flush()  # both may lead to one terminal, and lines stay in their order
                last = outputs[entry.stream]
            if arguments.timestamps and entry.stream not in begun:
                last.write(f"{entry.moment} ".encode())
            last.write(entry.text)
            (begun.discard if entry.text.endswith(b"\n") else begun.add)(entry.stream)
        flush()
    except FileNotFoundError as error:
        raise BadArgument(f"container {container.name} has no log: only those that `run -d` starts have one") from error
    return 0


def _tail(text: str) -> int | None:
    if text == "all":
        return None
    if not (text.isascii() and text.isdigit()):
        raise BadArgument(f"--tail {text} is no number of lines")
    return int(text)


def _since(text: str) -> str:
    """The moment, as the log has it."""
    if not text:
        return ""
    if _AGE.fullmatch(text):
        ago = sum(int(part[:-1]) * _UNITS[part[-1]] for part in re.findall("[0-9]+[smhd]", text))
        return logs.stamp(time.time_ns() - ago * 10**9)
    from datetime import datetime

    try:
        return logs.stamp(int(datetime.fromisoformat(text).timestamp() * 10**9))
    except (ValueError, OverflowError) as error:
        raise BadArgument(f"--since {text} is no time: 10m, 1h30m, or 2026-01-31T12:00:00Z") from error
