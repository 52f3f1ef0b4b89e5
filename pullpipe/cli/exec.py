"""`pullpipe exec CONTAINER COMMAND…`"""

from __future__ import annotations

import argparse
import os

from pullpipe.cli.common import open_store, variables
from pullpipe.runner import joining
from pullpipe.runner.joining import Asked

HELP = "run a further command in a running container"
FAILURE = 125  # as for `run`


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-d", "--detach", action="store_true", help="do not wait for its end, nor show its output")
    parser.add_argument("-i", "--interactive", action="store_true", help="give the command our standard input")
    parser.add_argument("-t", "--tty", action="store_true", help="give the command a terminal")
    parser.add_argument("-e", "--env", action="append", default=[], metavar="NAME[=VALUE]", help="set a variable")
    parser.add_argument("--env-file", action="append", default=[], metavar="FILE", help="set those that stand there")
    parser.add_argument("-w", "--workdir", default="", metavar="DIR", help="instead of the container's")
    parser.add_argument("-u", "--user", default="", metavar="USER[:GROUP]", help="instead of the container's")
    parser.add_argument("container", metavar="CONTAINER", help="a name, or the start of an id")
    parser.add_argument("command", metavar="COMMAND", help="with its arguments")
    parser.add_argument("arguments", metavar="…", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)


def run(arguments: argparse.Namespace) -> int:
    env = [variable for path in arguments.env_file for variable in variables(path)]
    store = open_store(arguments)  # not as root: the container's user namespace is joined, if it has one
    asked = Asked(
        argv=(arguments.command, *arguments.arguments),
        env=(*env, *arguments.env),
        working_dir=arguments.workdir,
        user=arguments.user,
        interactive=arguments.interactive,
        terminal=arguments.tty,
        detached=arguments.detach,
    )
    return joining.execute(store, store.containers.find(arguments.container), asked, os.environ)
