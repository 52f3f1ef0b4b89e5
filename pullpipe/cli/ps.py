"""`pullpipe ps`"""

from __future__ import annotations

import argparse
import time

from pullpipe import stack
from pullpipe.cli.common import open_store, print_json, print_table
from store import Container, Store

HELP = "list the containers, running and ended"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-a", "--all", action="store_true", help="for Docker's users: all are listed anyway")
    parser.add_argument("-q", "--quiet", action="store_true", help="show the ids only")
    parser.add_argument("--format", choices=("table", "json"), default="table")


def run(arguments: argparse.Namespace) -> int:
    """--format json has: id, name, image, command (a list), created (seconds since 1970), status, exit_code,
    out_of_memory."""
    store = open_store(arguments)
    containers = list(store.containers)
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
                }
                for container in containers
            ]
        )
    elif arguments.quiet:
        for container in containers:
            print(container.short_id)
    else:
        rows = [
            (
                container.short_id,
                container.name,
                container.image,
                _shortened(" ".join(container.command)),
                time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(container.created)),
                _status(store, container),
            )
            for container in containers
        ]
        print_table(("CONTAINER", "NAME", "IMAGE", "COMMAND", "CREATED", "STATUS"), rows)
    return 0


def _status(store: Store, container: Container) -> str:
    if container.target:
        return f"mounted at {container.target}" if stack.is_mounted(container) else "unmounted"
    if store.containers.is_running(container):
        return "running"
    return "killed" if container.exit_code is None else f"exited ({container.exit_code})"


def _shortened(text: str) -> str:
    text = "".join(character if character.isprintable() else "?" for character in text)
    return text if len(text) <= 40 else text[:39] + "…"
