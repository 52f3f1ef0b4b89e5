"""The options of `run` that limit what a container takes. Names and meanings are Docker's."""

from __future__ import annotations

import argparse
import math
import re
from typing import TYPE_CHECKING

from pullpipe.cli.walls import size_of
from pullpipe.errors import BadArgument

if TYPE_CHECKING:
    from pullpipe.runner.limits import Limits


def add_limit_options(parser: argparse.ArgumentParser) -> None:
    """All of them."""

    def limit(*names: str, metavar: str, text: str) -> None:
        parser.add_argument(*names, default="", metavar=metavar, help=text)

    limit("-m", "--memory", metavar="BYTES", text="no more memory than that, such as 64m or 1.5g")
    limit("--memory-swap", metavar="BYTES", text="memory and swap together; -1 is no limit (default: twice --memory)")
    limit("--memory-reservation", metavar="BYTES", text="beyond that, memory is taken away first when it runs short")
    limit("--cpus", metavar="NUMBER", text="no more processor time than that of so many, such as 1.5")
    limit("-c", "--cpu-shares", metavar="N", text="its part of the time when others want it, too; 1024 is the usual")
    limit("--cpuset-cpus", metavar="LIST", text="only these processors, such as 0-2,4")
    limit("--pids-limit", metavar="N", text="no more processes and threads than that; -1 is no limit")


def limits_of(arguments: argparse.Namespace) -> Limits | None:
    """What these options say, if they say anything. Raises `BadArgument`."""
    names = ("memory", "memory_swap", "memory_reservation", "cpus", "cpu_shares", "cpuset_cpus", "pids_limit")
    if not any(getattr(arguments, name) for name in names):
        return None
    from pullpipe.runner.limits import Limits

    swap = arguments.memory_swap
    limits = Limits(
        memory=_bytes("--memory", arguments.memory),
        memory_swap=-1 if swap == "-1" else _bytes("--memory-swap", swap),
        memory_reservation=_bytes("--memory-reservation", arguments.memory_reservation),
        cpus=_processors(arguments.cpus),
        cpu_shares=_number("--cpu-shares", arguments.cpu_shares),
        cpuset=_list(arguments.cpuset_cpus),
        pids=None if arguments.pids_limit == "-1" else _number("--pids-limit", arguments.pids_limit),
    )
    return None if limits == Limits() else limits


# As with Docker, 0 is as if the option were not there.


def _bytes(option: str, text: str) -> int | None:
    return size_of(option, text) if text.strip("0") else None


def _number(option: str, text: str) -> int | None:
    if text and not (text.isascii() and text.isdigit() and len(text) < 10):
        raise BadArgument(f"{option} {text} is no whole number")
    return int(text or 0) or None


def _processors(text: str) -> float | None:
    try:
        number = float(text or 0)
    except ValueError:
        number = math.nan
    if not 0 <= number < math.inf:
        raise BadArgument(f"--cpus {text} is no number of processors, such as 1.5")
    return number or None


def _list(text: str) -> str:
    if text and not re.fullmatch(r"[0-9]{1,6}(-[0-9]{1,6})?(,[0-9]{1,6}(-[0-9]{1,6})?)*", text):
        raise BadArgument(f"--cpuset-cpus {text} is no list of processors, such as 0-2,4")
    return text
