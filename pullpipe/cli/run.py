"""`pullpipe run IMAGE [COMMAND…]`"""

from __future__ import annotations

import argparse
import os
import sys

from pullpipe import local
from pullpipe.cli import refused
from pullpipe.cli.common import add_pull_options, open_store, seconds, variables
from pullpipe.cli.limits import add_limit_options, limits_of
from pullpipe.cli.provide import provide
from pullpipe.cli.walls import absolute, add_wall_options, is_plain, walls_of
from pullpipe.errors import BadArgument
from pullpipe.local import LocalImage
from pullpipe.look.chosen import Chosen
from pullpipe.reference import Reference
from pullpipe.runner import container
from pullpipe.runner.command import Overrides
from pullpipe.runner.settings import STOP_TIMEOUT
from pullpipe.runner.streams import Ours
from pullpipe.runner.walls import Walls
from store import Store

HELP = "run a command in an image, pulling it first if it is not here"
_HOSTNAME_LIMIT = 64  # bytes, the kernel's
FAILURE = 125  # as Docker: what failed is pullpipe, not the command


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rm", action="store_true", help="remove the container when the command has ended")
    parser.add_argument("-d", "--detach", action="store_true", help="do not wait for its end; print the container's id")
    parser.add_argument("-i", "--interactive", action="store_true", help="give the command our standard input")
    parser.add_argument("-t", "--tty", action="store_true", help="give the command a terminal")
    parser.add_argument("--cidfile", default="", metavar="FILE", help="write the container's id to this new file")
    parser.add_argument("--name", default="", help="call the container so")
    parser.add_argument(
        "-l", "--label", action="append", default=[], metavar="KEY[=VALUE]", help="what `inspect` shows and `ps` finds"
    )
    parser.add_argument("--stop-signal", metavar="SIGNAL", default="", help="what `stop` sends, instead of the image's")
    parser.add_argument(
        "--stop-timeout",
        metavar="SECONDS",
        type=seconds,
        default=STOP_TIMEOUT,
        help="until `stop` sends SIGKILL; -1 is never (default: %(default)s)",
    )
    parser.add_argument("--hostname", default="", metavar="NAME", help="the container's host name")
    parser.add_argument("-e", "--env", action="append", default=[], metavar="NAME[=VALUE]", help="set a variable")
    parser.add_argument("-w", "--workdir", default="", metavar="DIR", help="instead of the image's WorkingDir")
    parser.add_argument("-u", "--user", default="", metavar="USER[:GROUP]", help="instead of the image's User")
    parser.add_argument("--entrypoint", metavar="PROGRAM", help="instead of the image's Entrypoint and Cmd")
    parser.add_argument("--env-file", action="append", default=[], metavar="FILE", help="set those that stand there")
    parser.add_argument(
        "--group-add", action="append", default=[], metavar="GROUP", help="be a member of this one, too; name or number"
    )
    parser.add_argument("--runtime", metavar="PROGRAM", help="have runc, crun or their like build and run it")
    parser.add_argument("--explain", action="store_true", help="run nothing: print the shell commands that would do it")
    add_wall_options(parser)
    add_limit_options(parser)
    add_pull_options(parser, policy="missing")
    refused.add_options(parser)
    parser.add_argument("reference", metavar="IMAGE")
    parser.add_argument("command", metavar="COMMAND", nargs=argparse.REMAINDER, help="instead of the image's Cmd")


def run(arguments: argparse.Namespace) -> int:
    refused.check(arguments)
    name = Chosen.image(arguments.reference)
    hostname = arguments.hostname
    if hostname and not (is_plain(hostname) and len(os.fsencode(hostname)) <= _HOSTNAME_LIMIT):
        raise BadArgument(f"--hostname {hostname!r} is none: letters, digits, - and ., {_HOSTNAME_LIMIT} at most")
    walls, limits = walls_of(arguments), limits_of(arguments)
    env = [variable for path in arguments.env_file for variable in variables(path)]
    store = open_store(arguments, as_root=True)
    image = local.load(store, local.by_id(store, name) or provide(store, Reference.parse(name), arguments))
    overrides = Overrides(
        arguments=tuple(arguments.command),
        entrypoint=arguments.entrypoint,
        env=(*env, *arguments.env),
        working_dir=arguments.workdir,
        user=arguments.user,
        groups=tuple(arguments.group_add),
    )
    if arguments.explain:
        from pullpipe.cli.explain import explain

        asked = {
            "mounts, devices, other capabilities, a network": walls != Walls(),
            "limits": limits is not None,
            "a terminal of its own": arguments.tty,
            "the background": arguments.detach,
            "another runtime": arguments.runtime is not None,
        }
        left_out = [words for words, is_asked in asked.items() if is_asked]
        http = arguments.plain_http
        return explain(store, image, overrides, hostname=arguments.hostname, plain_http=http, left_out=left_out)
    options = container.Options(
        overrides=overrides,
        name=arguments.name,
        hostname=arguments.hostname,
        labels={key: value for key, _, value in (label.partition("=") for label in arguments.label)},
        interactive=arguments.interactive,
        terminal=arguments.tty,
        detached=arguments.detach,
        remove=arguments.rm,
        stop_signal=arguments.stop_signal,
        stop_timeout=arguments.stop_timeout,
        walls=walls,
        limits=limits,
        runtime=_program(arguments.runtime),
    )
    streams = None if arguments.detach else Ours(interactive=options.interactive, terminal=options.terminal)
    if arguments.cidfile:
        planned = _create_with_id_file(store, image, options, arguments.cidfile)
    else:
        planned = container.create(store, image, options)
    if streams is None:
        from pullpipe.runner import monitor

        print(monitor.start(planned).id)
        return 0
    ended = container.live(planned, streams)
    if ended.out_of_memory:
        print(
            f"pullpipe: the container ran out of memory, and the kernel killed a process in it; --memory is "
            f"{arguments.memory}",
            file=sys.stderr,
        )
    return ended.exit_code


def _create_with_id_file(store: Store, image: LocalImage, options: container.Options, path: str) -> container.Planned:
    """A new container, whose id stands in a new file; without the one there is no other."""
    try:
        file = open(path, "x", encoding="ascii")
    except FileExistsError as error:
        raise BadArgument(
            f"--cidfile {path} is there already, with another's id; remove it, or name another"
        ) from error
    try:
        planned = container.create(store, image, options)
        try:
            with file:
                file.write(planned.container.id)
        except BaseException as error:
            store.containers.remove(planned.container, planned.lock)
            if not isinstance(error, OSError):
                raise
            raise BadArgument(f"--cidfile {path} cannot be written: {error.strerror}; name another place") from error
    except BaseException:
        os.unlink(path)
        raise
    return planned


def _program(name: str | None) -> str:
    """Where a runtime is."""
    if name is None:
        return ""
    import shutil

    found = shutil.which(name)
    if found is None:
        raise BadArgument(f"there is no program {name!r} for --runtime here; install it, or give its path")
    return absolute(f"--runtime {name}", found)
