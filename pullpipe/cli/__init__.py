"""The command line. Only this folder prints and parses argv.

One command, one file: a module of this package with `HELP` (one line), `configure(parser)` and `run(arguments)`, which
returns the exit code. Only the module of the command that was asked for is imported: a short
command should not wait for the others.
"""

from __future__ import annotations

import argparse
import errno
import gc
import importlib
import io
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from types import FrameType, ModuleType
from typing import Any, NoReturn

from pullpipe import __version__
from pullpipe.environment import default_root
from pullpipe.errors import PullpipeError, RunError
from store import StoreError

# In the order that help shows them. A module is named as its command, but for words that Python keeps for itself.
COMMANDS = (
    "pull",
    "run",
    "images",
    "inspect",
    "tag",
    "layer",
    "config",
    "commit",
    "squash",
    "import",
    "export",
    "history",
    "layers",
    "ls",
    "cat",
    "diff",
    "tree",
    "explain",
    "ps",
    "exec",
    "logs",
    "cp",
    "start",
    "stop",
    "restart",
    "kill",
    "wait",
    "rename",
    "rm",
    "rmi",
    "prune",
    "df",
    "load",
    "save",
    "push",
    "serve",
    "mount",
    "umount",
    "unpack",
    "bundle",
    "unshare",
    "verify",
    "repair",
    "login",
    "logout",
    "demo",
    "completion",
)
DESCRIPTION = "Pull container images while unpacking them, stack their layers, run a command in them."

_STDOUT = "standard output"
_REMEDIES = {
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "free some of your quota",
    errno.EACCES: "use sudo",
    errno.EPERM: "use sudo",
    errno.EIO: "check the disk",
}
_REMEDIES_OF_STORES = {
    **_REMEDIES,
    errno.ENOSPC: "free some space, or name another place with --root",
    errno.EDQUOT: "free some of your quota, or name another place with --root",
    errno.EROFS: "name a writable place with --root",
    errno.EACCES: "use sudo, or name a place of your own with --root",
    errno.EPERM: "use sudo, or name a place of your own with --root",
}


class _Output(io.FileIO):
    """Standard output. What it does not take is said of it, and not of the store."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError as error:
            error.filename = _STDOUT
            raise


class _Formatter(argparse.RawDescriptionHelpFormatter):
    """As wide as the terminal. Argparse makes one for every option; left to itself, it imports shutil to measure."""

    def __init__(self, prog: str, **options: Any) -> None:
        super().__init__(prog, width=_columns() - 2, **options)


class _Parser(argparse.ArgumentParser):
    """Options have their whole names only: that of none may be taken for another's, with a value that must not show."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"formatter_class": _Formatter, "allow_abbrev": False, **options})


def _columns() -> int:
    try:
        return int(os.environ.get("COLUMNS") or os.get_terminal_size(sys.stdout.fileno()).columns)
    except (OSError, ValueError):
        return 80


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns the exit code: 0; 1 for a failure; 2 for usage; `run` has the command's own."""
    parser = _Parser(
        prog="pullpipe",
        description=DESCRIPTION,
        epilog="`pullpipe COMMAND --help` tells more of a command.",
        add_help=False,
    )
    add_global_options(parser, top=True)
    parser.add_argument("-h", "--help", action="store_true", help="show this and exit")
    parser.add_argument("command", nargs="?", help="see below")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    known = parser.parse_args(argv)
    if known.help or known.command is None:
        return _show_help(parser, asked=known.help)
    if known.command not in COMMANDS:
        parser.error(f"there is no command {known.command!r}; `pullpipe --help` lists them")
    module = module_of(known.command)
    command_parser = _Parser(prog=f"pullpipe {known.command}", description=module.HELP)
    add_global_options(command_parser, top=False)
    module.configure(command_parser)
    arguments, unknown = command_parser.parse_known_args(known.arguments, argparse.Namespace(**_globals(known)))
    if unknown:
        command_parser.error(f"unrecognized arguments: {' '.join(map(_without_value, unknown))}")
    if (creds := getattr(arguments, "creds", None)) and ":" in creds:
        from pullpipe.linux import hide_argument

        hide_argument(creds, shown=creds.index(":") + 1)
    gc.enable()  # until now nothing was to be collected
    return _guarded(module, arguments)


def _without_value(word: str) -> str:
    """Of an option: its value may be a secret."""
    if word.startswith("--"):
        return word.partition("=")[0]
    return word[:2] if word.startswith("-") else word


def program() -> NoReturn:
    """The command as a program. It ends at once: to take a Python apart costs 6 ms, and nothing is left to be done."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) == signal.SIG_DFL:
            signal.signal(number, _end)
    by_line = bool(sys.stdout.line_buffering)
    buffer = io.BufferedWriter(_Output(sys.stdout.fileno(), "wb", closefd=False))
    sys.stdout = io.TextIOWrapper(buffer, sys.stdout.encoding, sys.stdout.errors, line_buffering=by_line)
    try:
        code = main()
    except SystemExit as end:  # argparse's, and a signal's
        code = end.code if isinstance(end.code, int) else 1
    except KeyboardInterrupt:  # before the command had begun
        code = 130
    with suppress(BrokenPipeError):
        sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _end(number: int, _frame: FrameType | None) -> NoReturn:
    """By an exception, as Ctrl-C does, so that what is half done is cleaned up, which no further signal cuts short."""
    signal.signal(number, signal.SIG_IGN)
    sys.exit(128 + number)


def module_of(command: str) -> ModuleType:
    """The command's module, imported."""
    return importlib.import_module(f"pullpipe.cli.{command}{'_' if command == 'import' else ''}")


def add_global_options(parser: argparse.ArgumentParser, *, top: bool) -> None:
    """Before the command or behind it; what stands behind wins."""
    unset = None if top else argparse.SUPPRESS
    parser.add_argument("--root", metavar="DIR", default=unset, help=f"the store (PULLPIPE_ROOT; {default_root()})")
    parser.add_argument(
        "--log-level", choices=("error", "debug"), default=unset or "error", help="debug shows tracebacks"
    )
    if top:
        parser.add_argument("--version", action="version", version=f"pullpipe {__version__}")


def _globals(known: argparse.Namespace) -> dict[str, str]:
    return {"root": known.root or default_root(), "log_level": known.log_level}


def _show_help(parser: argparse.ArgumentParser, *, asked: bool) -> int:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {module_of(name).HELP}" for name in COMMANDS]
    text = f"{parser.format_help()}\ncommands:\n" + "\n".join(lines)
    print(text, file=sys.stdout if asked else sys.stderr)
    return 0 if asked else 2


def _guarded(module: ModuleType, arguments: argparse.Namespace) -> int:
    """The command; what goes wrong in it becomes one line and an exit code."""
    try:
        code: int = module.run(arguments)
        sys.stdout.flush()
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # whoever read our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except (PullpipeError, StoreError, OSError) as error:
        if arguments.log_level == "debug":
            raise
        return tell(error, getattr(module, "FAILURE", 1), arguments.root)
    except Exception as error:
        if arguments.log_level == "debug":
            raise
        what = _one_line(PullpipeError(f"this is a bug: {type(error).__name__}: {error}"), arguments.root)
        print(f"pullpipe: error: {what}; report it with what --log-level debug shows", file=sys.stderr)
        return getattr(module, "FAILURE", 1)
    return code


def tell(error: Exception, failure: int, root: str) -> int:
    """Says in one line what has gone wrong. Returns the exit code for it: `failure`, unless the error has its own."""
    print(f"pullpipe: error: {_one_line(error, root)}", file=sys.stderr)
    return error.exit_code if isinstance(error, RunError) else failure


def _is_of_store(place: str, root: str) -> bool:
    """Whether the place, unless it is nowhere, is in the store, or on the way to it."""
    return not place or (os.path.isabs(place) and os.path.commonpath((place, root)) in (place, root))


def _one_line(error: Exception, root: str) -> str:
    if isinstance(error, OSError) and not isinstance(error, StoreError):
        reason = (error.strerror or str(error)).lower()
        if error.filename == _STDOUT:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what is still in its buffer
            return f"cannot write to {_STDOUT}: {reason}; send it to another place"
        place = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else ""
        remedies = _REMEDIES_OF_STORES if _is_of_store(place, os.path.abspath(root)) else _REMEDIES
        remedy = remedies.get(error.errno or 0, "check it, and try again")
        text = f"cannot use {place or 'the store'}: {reason}; {remedy}"
    else:
        text = str(error)
    # What a registry says may be in it, and must not reach a terminal as anything but text.
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in " ".join(text.split()))
