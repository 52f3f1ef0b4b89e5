"""What the commands share that make an image of another one."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pullpipe.cli.common import add_unpack_options, pull_options, reporting, run_until_signal
from pullpipe.errors import BadArgument
from pullpipe.progress import MAKE
from pullpipe.reference import Reference
from store import InUse, Store

if TYPE_CHECKING:
    from pullpipe.change.draft import Changes, Draft, Note


def add_name_option(parser: argparse.ArgumentParser) -> None:
    """What to call the new image."""
    parser.add_argument("-t", "--tag", metavar="NEW", help="call the new image so (default: as the old one)")
    add_replace_option(parser)


def add_replace_option(parser: argparse.ArgumentParser) -> None:
    """For a name that may be taken."""
    parser.add_argument("--replace", action="store_true", help="NEW may be another image's name, which that loses")


def add_making_options(parser: argparse.ArgumentParser) -> None:
    """For all of them."""
    parser.add_argument("-m", "--message", default="", help="a comment for the image's history")
    parser.add_argument("--author", default="", help="who made it, for the history")
    add_unpack_options(parser)


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

    if arguments.workdir and not arguments.workdir.startswith("/"):
        raise BadArgument(f"--workdir {arguments.workdir} has to be an absolute path")
    return Changes(
        env={**_pairs("--env", arguments.env), **dict.fromkeys(arguments.unset_env)},
        labels={**_pairs("--label", arguments.label), **dict.fromkeys(arguments.unset_label)},
        entrypoint=_words("--entrypoint", arguments.entrypoint),
        cmd=_words("--cmd", arguments.cmd),
        working_dir=arguments.workdir,
        user=arguments.user,
        stop_signal=arguments.stop_signal,
    )


def _pairs(option: str, texts: Sequence[str]) -> dict[str, str]:
    for text in texts:
        if not text.partition("=")[0] or "=" not in text:
            raise BadArgument(f"{option} {text} is none: NAME=VALUE")
    return dict(text.split("=", 1) for text in texts)


def _words(option: str, text: str | None) -> list[str] | None:
    if text is None:
        return None
    try:
        found = json.loads(text) if text.startswith("[") else shlex.split(text)
    except ValueError as error:
        raise BadArgument(f"{option} {text} cannot be read: {error}") from error
    if not all(isinstance(word, str) for word in found):
        raise BadArgument(f"{option} {text}: a list of words, each in quotes, is wanted")
    return list(found)


def epoch() -> int | None:
    """SOURCE_DATE_EPOCH: what is made is to be as old as that, and no file younger. Raises `BadArgument`."""
    text = os.environ.get("SOURCE_DATE_EPOCH")
    if not text:
        return None
    if not (text.isascii() and text.isdigit() and len(text) < 12):
        raise BadArgument(f"SOURCE_DATE_EPOCH is {text!r}, and has to be a number of seconds since 1970")
    return int(text)


def note_of(arguments: argparse.Namespace, by: str) -> Note:
    """For the image's history: that `by` has made it."""
    from pullpipe.change.draft import Note

    made = epoch()
    return Note(time.time() if made is None else made, by, arguments.message, arguments.author)


def new_name(text: str) -> Reference:
    """A name for an image that is made here. Raises `InvalidReference`, `BadArgument`."""
    reference = Reference.parse(text)
    if reference.digest:
        raise BadArgument(f"{text} is a name by digest, which only an image's bytes can give; choose a tag with --tag")
    return reference


def check_free(store: Store, name: Reference, arguments: argparse.Namespace, old: Reference | None = None) -> None:
    """Raises `InUse` when the name is another image's than `old`, unless it may be taken from that."""
    if name != old and not arguments.replace and store.images.get(str(name)) is not None:
        raise InUse(f"{name} is another image's name; choose another one, or say --replace")


def make(store: Store, draft: Draft, reference: Reference, arguments: argparse.Namespace) -> None:
    """Has the image in the store, and prints its name."""
    from pullpipe.change.record import record

    options = pull_options(arguments, draft.platform)
    with reporting(arguments, MAKE) as progress:
        run_until_signal(record(store, draft, reference, options, progress))
    print(reference)
