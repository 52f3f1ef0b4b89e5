"""What the commands share that make an image of another one."""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, BinaryIO

from pullpipe.cli.common import pull_options, reporting, run_until_signal
from pullpipe.errors import BadArgument, LayerError, RunError
from pullpipe.progress import MAKE
from pullpipe.reference import Reference
from store import ImageRecord, InUse, Over, Store

if TYPE_CHECKING:
    from pullpipe.change.draft import Changes, Draft, Note


_TEXTS = "env", "unset_env", "label", "unset_label", "entrypoint", "cmd", "workdir", "user", "message", "author"
_USER = re.compile(r"[^:\s]+(:[^:\s]+)?")
_SPACE = re.compile(r"\s")
_JSON = re.compile(r"\[(\S|\s*[\"\]])")  # not the shell's [, behind which a space has to stand


def add_name_option(parser: argparse.ArgumentParser) -> None:
    """What to call the new image."""
    parser.add_argument("-t", "--tag", metavar="NEW", help="call the new image so (default: as the old one)")
    add_replace_option(parser)


def add_replace_option(parser: argparse.ArgumentParser) -> None:
    """For a name that may be taken."""
    parser.add_argument("--replace", action="store_true", help="NEW may be another image's name, which that loses")


def add_note_options(parser: argparse.ArgumentParser) -> None:
    """What the image's history says of it."""
    parser.add_argument("-m", "--message", default="", help="a comment for the image's history")
    parser.add_argument("--author", default="", help="who made it, for the history")


def add_compression_option(parser: argparse.ArgumentParser) -> None:
    """Of a new layer."""
    parser.add_argument("--compression", choices=("gzip", "zstd", "none"), help="of the new layer (default: gzip)")


def add_config_options(parser: argparse.ArgumentParser) -> None:
    """What an image's config says of the command."""

    def several(name: str, metavar: str, text: str) -> None:
        parser.add_argument(name, action="append", default=[], metavar=metavar, help=text)

    several("--env", "NAME=VALUE", "set a variable")
    several("--unset-env", "NAME", "take a variable away")
    several("--label", "NAME=VALUE", "set a label")
    several("--unset-label", "NAME", "take a label away")
    words = "a JSON list, or words as a shell splits them; empty for none"
    parser.add_argument("--entrypoint", metavar="WORDS", help=f"the program: {words}")
    parser.add_argument("--cmd", metavar="WORDS", help=f"the command, or the program's arguments: {words}")
    parser.add_argument("--workdir", metavar="DIR", help="where the command starts; empty for /")
    parser.add_argument("--user", metavar="USER[:GROUP]", help="who runs it; empty for root")
    parser.add_argument("--stop-signal", metavar="SIGNAL", help="what asks it to end; empty for SIGTERM")


def changes_of(arguments: argparse.Namespace) -> Changes:
    """What these options say. Raises `BadArgument`."""
    from pullpipe.change.draft import Changes

    _check_text(arguments)
    if arguments.workdir and not arguments.workdir.startswith("/"):
        raise BadArgument(f"--workdir {arguments.workdir} has to be an absolute path")
    if arguments.user and not _USER.fullmatch(arguments.user):
        raise BadArgument(f"--user {arguments.user} is none: USER or USER:GROUP")
    if spaced := [name for name in (text.partition("=")[0] for text in arguments.env) if _SPACE.search(name)]:
        raise BadArgument(f"--env {spaced[0]!r} is no name of a variable: it has a space in it")
    _check_signal(arguments.stop_signal)
    return Changes(
        env={**_pairs("--env", arguments.env), **dict.fromkeys(arguments.unset_env)},
        labels={**_pairs("--label", arguments.label), **dict.fromkeys(arguments.unset_label)},
        entrypoint=_words("--entrypoint", arguments.entrypoint),
        cmd=_words("--cmd", arguments.cmd),
        working_dir=arguments.workdir,
        user=arguments.user,
        stop_signal=arguments.stop_signal,
    )


def _check_text(arguments: argparse.Namespace) -> None:
    """Raises `BadArgument` for bytes that are no UTF-8, as an image's config is."""
    for name in _TEXTS:
        value = getattr(arguments, name, None) or []
        for text in [value] if isinstance(value, str) else value:
            if any("\ud800" <= character <= "\udfff" for character in text):
                raise BadArgument(
                    f"--{name.replace('_', '-')} {text!r} is not UTF-8, which an image's config has to be"
                )


def _check_signal(text: str | None) -> None:
    from pullpipe.runner.settings import signal_number

    try:
        signal_number(text or "TERM")
    except RunError as error:
        raise BadArgument(f"--stop-signal {text}: {error}") from error


def _pairs(option: str, texts: Sequence[str]) -> dict[str, str]:
    for text in texts:
        if not text.partition("=")[0] or "=" not in text:
            raise BadArgument(f"{option} {text} is none: NAME=VALUE")
    return dict(text.split("=", 1) for text in texts)


def _words(option: str, text: str | None) -> list[str] | None:
    if text is None:
        return None
    try:
        found = json.loads(text) if _JSON.match(text) else shlex.split(text)
    except ValueError as error:
        raise BadArgument(f"{option} {text} cannot be read: {error}") from error
    if not all(isinstance(word, str) for word in found):
        raise BadArgument(f"{option} {text}: a list of words, each in quotes, is wanted")
    return list(found)


def epoch() -> int | None:
    """SOURCE_DATE_EPOCH: what is made is to be as old as that, and no file of a tree younger. Raises `BadArgument`."""
    text = os.environ.get("SOURCE_DATE_EPOCH")
    if not text:
        return None
    if not (text.isascii() and text.isdigit() and len(text) < 12):
        raise BadArgument(f"SOURCE_DATE_EPOCH is {text!r}, and has to be a number of seconds since 1970")
    return int(text)


def note_of(arguments: argparse.Namespace, by: str) -> Note:
    """For the image's history: that `by` has made it."""
    from pullpipe.change.draft import Note

    _check_text(arguments)
    made = epoch()
    return Note(time.time() if made is None else made, by, arguments.message, arguments.author)


@contextmanager
def opened(path: str) -> Iterator[BinaryIO]:
    """A tar archive that the user names, which may be a pipe; - is standard input. Raises `BadArgument`, `OSError`."""
    if path == "-":
        yield sys.stdin.buffer
        return
    if os.path.isdir(path) or not os.path.exists(path):
        what = "is a directory" if os.path.isdir(path) else "is not there"
        raise BadArgument(f"{path} {what}; name a tar archive, or - for standard input")
    with open(path, "rb") as file:
        yield file


def new_name(text: str) -> Reference:
    """A name for an image that is made here. Raises `InvalidReference`, `BadArgument`."""
    reference = Reference.parse(text)
    if reference.digest:
        raise BadArgument(f"{text} is a name by digest, which only an image's bytes can give; choose a tag with --tag")
    return reference


def may_be(store: Store, name: Reference, arguments: argparse.Namespace, old: ImageRecord | None = None) -> Over:
    """What the name may be until the new image has it: `old`, which is changed, or nothing, or by --replace anything.

    Raises `InUse` when it is another image's.
    """
    if old is not None and old.reference == str(name):
        return old.manifest
    if arguments.replace:
        return "anything"
    if store.images.get(str(name)) is not None:
        raise InUse(f"{name} is another image's name; choose another one, or say --replace")
    return "nothing"


def make(
    store: Store, draft: Draft, name: Reference, over: Over, arguments: argparse.Namespace, made_of: str = ""
) -> None:
    """Has the image in the store, and prints its name, which may be `over` until then.

    Raises `BadArgument` for what the layer was `made_of`, the user's own, and which cannot be one.
    """
    from pullpipe.change.record import record

    options = pull_options(arguments, draft.platform)._replace(over=over)
    with reporting(arguments, MAKE) as progress:
        try:
            made = run_until_signal(record(store, draft, name, options, progress))
        except LayerError as error:
            if not made_of:
                raise
            raise BadArgument(f"{made_of} cannot be a layer: {error.reason}") from error
        if over not in ("nothing", "anything", made.manifest):
            progress.note(f"{name} is the changed image from now on; to pull it would bring the registry's back")
    print(name)
