"""`pullpipe ps`"""

from __future__ import annotations

import argparse
import re
import time

from pullpipe import stack
from pullpipe.cli.common import open_store, print_json, print_table
from pullpipe.errors import BadArgument
from pullpipe.runner import state
from pullpipe.runner.settings import Settings
from store import Container, Store

HELP = "list the containers, running and ended"
JSON = {
    "a list, of each container": {
        "id": "in full",
        "name": "its own",
        "image": "its image's name in full",
        "command": "a list of words",
        "created": "seconds since 1970",
        "status": "running, exited (CODE), killed, mounted at DIR, or unmounted",
        "exit_code": "null as long as there is none",
        "out_of_memory": "whether the kernel has killed something in it for that",
        "labels": "an object",
    }
}
_UNITS = (("week", 604800), ("day", 86400), ("hour", 3600), ("minute", 60), ("second", 1))


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-a", "--all", action="store_true", help="for Docker's users: all are listed anyway")
    parser.add_argument(
        "-f",
        "--filter",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        help="only those with label=KEY[=VALUE], name=PATTERN, or status=running|exited|killed",
    )
    parser.add_argument("-q", "--quiet", action="store_true", help="show the ids only")
    parser.add_argument("--no-trunc", action="store_true", help="show ids and commands in full")
    parser.add_argument("--format", choices=("table", "json"), default="table", help="json for programs")


def run(arguments: argparse.Namespace) -> int:
    store = open_store(arguments)
    containers = [one for one in store.containers if all(_matches(store, one, text) for text in arguments.filter)]
    if arguments.format == "json":
        print_json(
            [
                {
                    "id": container.id,
                    "name": container.name,
                    "image": container.image,
                    "command": list(container.command),
                    "created": container.created,
                    "status": _status(store, container),
                    "exit_code": container.exit_code,
                    "out_of_memory": container.out_of_memory,
                    "labels": Settings.of(container).labels,
                }
                for container in containers
            ]
        )
    elif arguments.quiet:
        for container in containers:
            print(container.id if arguments.no_trunc else container.short_id)
    else:
        rows = [
            (
                container.id if arguments.no_trunc else container.short_id,
                container.name,
                container.image,
                _shortened(" ".join(container.command), 40 if not arguments.no_trunc else None),
                time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(container.created)),
                _status_in_words(store, container),
            )
            for container in containers
        ]
        print_table(("CONTAINER", "NAME", "IMAGE", "COMMAND", "CREATED", "STATUS"), rows)
    return 0


def _matches(store: Store, container: Container, text: str) -> bool:
    key, _, value = text.partition("=")
    if key == "label":
        name, equals, wanted = value.partition("=")
        labels = Settings.of(container).labels
        return labels.get(name) == wanted if equals else name in labels
    if key == "name":
        try:
            return re.search(value, container.name) is not None
        except re.error as error:
            raise BadArgument(f"--filter {text}: {value!r} is no regular expression: {error}") from error
    if key == "status" and value in ("running", "exited", "killed"):
        return _status(store, container).split()[0] == value
    raise BadArgument(f"--filter {text} is none: label=KEY[=VALUE], name=PATTERN and status=running|exited|killed are")


def _status(store: Store, container: Container) -> str:
    if container.target:
        return f"mounted at {container.target}" if stack.is_mounted(container) else "unmounted"
    if store.containers.is_running(container):
        return "running"
    return "killed" if container.exit_code is None else f"exited ({container.exit_code})"


def _status_in_words(store: Store, container: Container) -> str:
    """With how long it has been so, where that is known."""
    status = _status(store, container)
    if status == "running":
        found = state.read(store, container)
        return f"up {_words(time.time() - found.started)}" if found and found.started else "starting"
    return f"{status} {_words(time.time() - container.finished)} ago" if container.finished else status


def _words(seconds: float) -> str:
    for unit, length in _UNITS:
        if (count := int(seconds // length)) >= (2 if length > 1 else 0):
            return f"{count} {unit}{'' if count == 1 else 's'}"
    return "0 seconds"


def _shortened(text: str, length: int | None) -> str:
    text = "".join(character if character.isprintable() else "?" for character in text)
    return text if length is None or len(text) <= length else text[: length - 1] + "…"
