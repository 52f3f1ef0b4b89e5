"""What several commands share: opening the store, pulling, tables."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from typing import TYPE_CHECKING, Any, TypeVar

from pullpipe.cli import tell
from pullpipe.errors import BadArgument, PullpipeError
from pullpipe.platforms import Platform
from pullpipe.progress import FACES, PULL, Progress, Words, face
from store import Store, StoreError

if TYPE_CHECKING:
    from pullpipe.pipe.pull import Options

_T = TypeVar("_T")
_LONGEST = (1 << 31) - 1  # seconds until a signal, as Docker's
# Enough to keep the cores busy while some layers wait for the network; each takes about 25 MB.
_JOBS = min(len(os.sched_getaffinity(0)) + 2, 8)
_GRACE = 1.0  # seconds to clean up in
_DAY = 86400  # seconds to wait for a byte at most


def open_store(arguments: argparse.Namespace, *, as_root: bool = False) -> Store:
    """The store that --root names; who has become root by sudo may have it in a directory of their own.

    `as_root` is for what takes root's rights over the store's files, to make, read or remove those of any owner. This
    process has them from here on: who is not root, in a user namespace. Raises `NeedsRoot` where there is none.
    """
    sudo = os.environ.get("SUDO_UID", "")
    trusted = [int(sudo)] if sudo.isascii() and sudo.isdigit() else []
    store = Store(arguments.root, durable=getattr(arguments, "durability", "full") == "full", trusted=trusted)
    if as_root and os.geteuid() != 0:
        from pullpipe import rootless  # after the store has looked who may change it: inside, nobody can tell

        os.environ.setdefault("HOME", os.path.expanduser("~"))
        rootless.enter()
    if os.geteuid() == 0 and store.containers.begun():
        from pullpipe.runner import state

        state.tidy(store)
    return store


class OneByOne:
    """For what is done to several things, each in a `with` block of this: what goes wrong with one is told, and the
    others are done all the same, as with Docker. `code` is the exit code in the end; `failure` is the command's usual.
    """

    def __init__(self, arguments: argparse.Namespace, failure: int = 1) -> None:
        self.code = 0
        self._failure = failure
        self._debug = arguments.log_level == "debug"
        self._root: str = arguments.root

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        if not isinstance(error, PullpipeError | StoreError | OSError) or isinstance(error, BrokenPipeError):
            return False
        if not self._debug:  # which shows where the first came from
            self.code = tell(error, self._failure, self._root)
        return not self._debug


def add_pull_options(parser: argparse.ArgumentParser, *, policy: str) -> None:
    """What `pull`, and whatever pulls by the way, can be told; `policy` is the default for that."""
    parser.add_argument("--platform", metavar="OS/ARCH[/VARIANT]", help="instead of this machine's")
    add_registry_options(parser)
    parser.add_argument(
        "--trace",
        metavar="FILE",
        help="write when which stage of which layer worked, for https://ui.perfetto.dev or chrome://tracing",
    )
    add_unpack_options(parser)
    add_blobs_option(parser)
    name = "--policy" if policy == "always" else "--pull"
    parser.add_argument(
        name,
        dest="policy",
        choices=("always", "newer", "missing", "never"),
        default=policy,
        help="when to ask the registry; newer keeps the local image if there is no answer (default: %(default)s)",
    )


def add_registry_options(parser: argparse.ArgumentParser) -> None:
    """For whatever speaks to a registry."""
    parser.add_argument(
        "--creds", metavar="USER[:PASSWORD]", help="authenticate with these; a password that is left out is asked for"
    )
    add_authfile_option(parser, "look for credentials here, not in podman's and Docker's files")
    parser.add_argument("--plain-http", action="store_true", help="speak HTTP without TLS to the registry")
    parser.add_argument("--unix-socket", metavar="PATH", default="", help="the registry listens on this socket")
    parser.add_argument(
        "--retries",
        metavar="N",
        type=_count,
        default=5,
        help="attempts in vain before giving up (default: %(default)s)",
    )
    parser.add_argument(
        "--timeout", metavar="SECONDS", type=_seconds, default=30, help="without a byte (default: %(default)s)"
    )


def add_authfile_option(parser: argparse.ArgumentParser, what: str) -> None:
    """Which file credentials are in."""
    parser.add_argument("--authfile", metavar="FILE", help=f"{what} (REGISTRY_AUTH_FILE)")


def add_unpack_options(parser: argparse.ArgumentParser) -> None:
    """How layers get into the store, wherever they come from."""
    add_jobs_option(parser)
    limits = "of one layer; 0 is no limit (default: %(default)s)"
    parser.add_argument("--max-size", metavar="GIB", type=_count, default=64, help=f"unpacked size {limits}")
    parser.add_argument("--max-entries", metavar="N", type=_count, default=5_000_000, help=f"files {limits}")
    parser.add_argument("--max-ratio", metavar="N", type=_count, default=2_000, help=f"compression {limits}")
    add_owners_option(parser)
    parser.add_argument("--durability", choices=("full", "none"), default="full", help="none leaves out the flushes")
    add_progress_options(parser)


def add_blobs_option(parser: argparse.ArgumentParser) -> None:
    """For what comes from somewhere, and can be had from there again."""
    parser.add_argument("--discard-blobs", action="store_true", help="keep the unpacked layers only")


def add_owners_option(parser: argparse.ArgumentParser) -> None:
    """For who has no ids, or not enough, in /etc/subuid."""
    parser.add_argument(
        "--ignore-owners",
        action="store_true",
        help="without root: make files of owners whom you have no ids for your own, where that would be an error",
    )


def add_progress_options(parser: argparse.ArgumentParser) -> None:
    """For what takes its time."""
    parser.add_argument("--progress", choices=FACES, default="auto", help="what standard error shows of it")
    parser.add_argument("-q", "--quiet", action="store_true", help="show nothing but the result")


def add_jobs_option(parser: argparse.ArgumentParser) -> None:
    """How many layers to unpack at once."""
    parser.add_argument(
        "--jobs",
        metavar="N",
        type=_positive,
        default=_JOBS,
        help="layers in flight (default: two more than processors, 8 at most)",
    )


def _count(text: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number")
    return int(text)


def _positive(text: str) -> int:
    if _count(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of at least 1")
    return int(text)


def _seconds(text: str) -> float:
    with suppress(ValueError):
        if 0 < float(text) <= _DAY:
            return float(text)
    raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds, more than 0 and {_DAY} at most")


def seconds(text: str) -> int:
    """Until a signal: -1 is never."""
    if text != "-1" and _count(text) > _LONGEST:
        raise argparse.ArgumentTypeError(f"{text} seconds are more than {_LONGEST}; -1 is never")
    return int(text)


def pull_options(arguments: argparse.Namespace, platform: Platform) -> Options:
    """For whatever unpacks layers."""
    from pullpipe.pipe.pull import Options
    from pullpipe.pipe.worker import Limits

    return Options(
        platform,
        jobs=arguments.jobs,
        keep_blobs=not getattr(arguments, "discard_blobs", False),
        ignore_owners=arguments.ignore_owners,
        limits=Limits(arguments.max_size << 30, arguments.max_entries, arguments.max_ratio),
        all_platforms=getattr(arguments, "all_platforms", False),
    )


def platform_of(arguments: argparse.Namespace) -> Platform:
    """The platform that was asked for."""
    return Platform.parse(arguments.platform) if arguments.platform else Platform.of_this_machine()


@contextmanager
def reporting(arguments: argparse.Namespace, words: Words = PULL) -> Iterator[Progress]:
    """The face that was asked for, until the work is done; and then the trace."""
    progress = Progress() if arguments.quiet else face(arguments.progress, words)
    path = getattr(arguments, "trace", None)
    with open(path, "w", encoding="ascii") if path else nullcontext() as file:
        if file:
            from pullpipe.trace import Trace

            progress.trace = Trace()
        try:
            yield progress
        finally:
            progress.close()
            if file and progress.trace:
                progress.trace.write(file)


def variables(path: str) -> Iterator[str]:
    """Of a file that has NAME=VALUE, or NAME, in each line, or a comment behind #. As in Docker, quotes stay.

    Raises `BadArgument`, `OSError`.
    """
    with open(path, encoding="utf-8", errors="surrogateescape", newline="\n") as file:
        for number, line in enumerate(file, 1):
            text = line.rstrip("\r\n").lstrip()
            name = text.partition("=")[0]
            if not text or text.startswith("#"):
                continue
            if not name or any(character.isspace() for character in name):
                raise BadArgument(f"{path}, line {number}: {name!r} is no name of a variable")
            yield text


def run_until_signal(work: Coroutine[Any, Any, _T]) -> _T:
    """Runs the coroutine. A signal that is to end us cancels it, so that it can clean up; further ones are passed over
    for a second, and then one ends us where we are: who waits for a lock does not hear that it has been cancelled."""

    import asyncio  # 50 ms, which commands that wait for nothing should not pay

    signals: list[int] = []
    deaf_until = 0.0

    async def supervised() -> _T:
        task = asyncio.ensure_future(work)
        loop = asyncio.get_running_loop()

        def end(number: int, _frame: object) -> None:
            nonlocal deaf_until
            signals.append(number)
            if len(signals) == 1:
                deaf_until = time.monotonic() + _GRACE
                loop.call_soon_threadsafe(task.cancel)
            elif time.monotonic() > deaf_until:
                sys.exit(128 + number)

        with ending(end, signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            return await task

    try:
        return asyncio.run(supervised())
    except asyncio.CancelledError:
        sys.exit(128 + signals[0])


@contextmanager
def ending(handler: Callable[[int, object], None], *numbers: int) -> Iterator[None]:
    """Has these signals handled so, but for those that we have been started to ignore, as by nohup."""
    heeded = [number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]
    before = [signal.signal(number, handler) for number in heeded]
    try:
        yield
    finally:
        for number, handler_before in zip(heeded, before, strict=True):
            signal.signal(number, handler_before)


def print_json(value: object) -> None:
    """To standard output, for people and programs."""
    print(json.dumps(value, indent=2))


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Columns as wide as what stands in them."""
    lines = [header, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    for line in lines:
        print("  ".join(f"{cell:{width}}" for cell, width in zip(line, widths, strict=True)).rstrip())


def printable(text: str) -> str:
    """With all that is no text written as escapes: what images' authors choose must not steer a terminal."""
    return text if text.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
