"""`pullpipe start CONTAINER…`"""

from __future__ import annotations

import argparse

from pullpipe.cli.common import OneByOne, open_store
from pullpipe.errors import BadArgument
from store import Container, Store

HELP = "run the commands of containers that have ended once more, in the trees that they have left"
FAILURE = 125  # as for `run`


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-a", "--attach", action="store_true", help="wait for its end, as `run` does; of one container")
    parser.add_argument("-i", "--interactive", action="store_true", help="the same, and give it our standard input")
    parser.add_argument("containers", metavar="CONTAINER", nargs="+", help="a name, or the start of an id")


def run(arguments: argparse.Namespace) -> int:
    """Without -a nobody waits for them, and what they print goes to their logs. One that runs is left alone."""
    attach = arguments.attach or arguments.interactive
    if attach and len(arguments.containers) > 1:
        raise BadArgument("only one container at a time can have our streams; leave -a and -i away, or the others")
    store = open_store(arguments, as_root=True)
    if attach:
        return _attached(store, store.containers.find(arguments.containers[0]), interactive=arguments.interactive)
    each = OneByOne(arguments, FAILURE)
    for wanted in arguments.containers:
        with each:
            container = store.containers.find(wanted)
            start(store, container)
            print(container.name)
    return each.code


def start(store: Store, container: Container) -> None:
    """Unless it runs."""
    from pullpipe.runner import monitor
    from pullpipe.runner.container import plan_again

    if not store.containers.is_running(container):
        monitor.start(plan_again(store, container))


def _attached(store: Store, container: Container, *, interactive: bool) -> int:
    from pullpipe.runner.container import live, plan_again
    from pullpipe.runner.settings import Settings
    from pullpipe.runner.streams import Ours

    streams = Ours(interactive=interactive, terminal=Settings.of(container).terminal)
    return live(plan_again(store, container), streams).exit_code
