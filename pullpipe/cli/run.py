"""`pullpipe run IMAGE [COMMAND…]`"""

from __future__ import annotations

import argparse

from pullpipe import local
from pullpipe.cli.common import add_pull_options, open_store, require_root
from pullpipe.cli.provide import provide
from pullpipe.reference import Reference
from pullpipe.runner import container
from pullpipe.runner.command import Overrides

HELP = "run a command in an image, pulling it first if it is not here"
FAILURE = 125  # as Docker: what failed is pullpipe, not the command


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rm", action="store_true", help="remove the container when the command has ended")
    parser.add_argument("-i", "--interactive", action="store_true", help="give the command our standard input")
    parser.add_argument("-t", "--tty", action="store_true", help="give the command a terminal")
    parser.add_argument("--name", default="", help="call the container so")
    parser.add_argument("--hostname", default="", metavar="NAME", help="the container's host name")
    parser.add_argument("-e", "--env", action="append", default=[], metavar="NAME[=VALUE]", help="set a variable")
    parser.add_argument("-w", "--workdir", default="", metavar="DIR", help="instead of the image's WorkingDir")
    parser.add_argument("-u", "--user", default="", metavar="USER[:GROUP]", help="instead of the image's User")
    parser.add_argument("--entrypoint", metavar="PROGRAM", help="instead of the image's Entrypoint and Cmd")
    add_pull_options(parser, policy="missing")
    parser.add_argument("reference", metavar="IMAGE")
    parser.add_argument("command", metavar="COMMAND", nargs=argparse.REMAINDER, help="instead of the image's Cmd")


def run(arguments: argparse.Namespace) -> int:
    require_root("running a container")
    reference = Reference.parse(arguments.reference)
    store = open_store(arguments)
    image = local.load(store, provide(store, reference, arguments))
    overrides = Overrides(
        arguments=tuple(arguments.command),
        entrypoint=arguments.entrypoint,
        env=tuple(arguments.env),
        working_dir=arguments.workdir,
        user=arguments.user,
    )
    options = container.Options(
        overrides=overrides,
        name=arguments.name,
        hostname=arguments.hostname,
        interactive=arguments.interactive,
        terminal=arguments.tty,
        remove=arguments.rm,
    )
    return container.run(store, image, options)
