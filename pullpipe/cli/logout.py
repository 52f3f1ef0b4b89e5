"""`pullpipe logout [REGISTRY]`"""

from __future__ import annotations

import argparse
import os
import sys

from pullpipe.cli.common import add_authfile_option
from pullpipe.cli.registries import registry_of, whole_registry
from pullpipe.environment import hosts, token_cache
from pullpipe.errors import BadArgument, Blocked
from pullpipe.reference import DEFAULT_REGISTRY

HELP = "forget what `login` keeps for a registry"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-a", "--all", action="store_true", help="of all registries")
    add_authfile_option(parser, "forget what this file has")
    parser.add_argument("registry", metavar="REGISTRY", nargs="?", help=f"default: {DEFAULT_REGISTRY}")


def run(arguments: argparse.Namespace) -> int:
    if arguments.all and arguments.registry:
        raise BadArgument(f"--all forgets all registries, not only {arguments.registry}; give one of the two")
    registry = registry_of(arguments.registry or DEFAULT_REGISTRY)
    names = dict.fromkeys([registry, *([] if arguments.all else _elsewhere(registry))])

    from pullpipe.registry import logins
    from pullpipe.registry.credentials import AuthFile, containers_auth_files, docker_auth_files

    files = [arguments.authfile] if arguments.authfile else containers_auth_files(os.environ)
    helpers = [] if arguments.authfile else hosts().credential_helpers
    others = [] if arguments.authfile else docker_auth_files(os.environ)
    if arguments.all:
        erased = sorted({one for path in files for one in logins.erase_all(path)})
    else:
        erased = [
            name
            for name in names
            if [
                *(path for path in files if logins.erase(path, name)),
                *(helper for helper in helpers if logins.erase_in(helper, name)),
            ]
        ]
    for one in erased:
        token_cache().forget(one)
        print(f"logged out of {one}")
    left = [path for path in others if not arguments.all and AuthFile(path).names(registry)]
    if left and erased:
        print(f"pullpipe: warning: {left[0]} has a login, too: `docker logout {registry}`", file=sys.stderr)
    elif left:
        raise BadArgument(f"only Docker is logged in to {registry}, by {left[0]}: `docker logout {registry}`")
    elif not erased and not arguments.all:
        raise BadArgument(f"not logged in to {registry}; `pullpipe logout --help` tells of --authfile")
    return 0


def _elsewhere(registry: str) -> list[str]:
    """What `login` logs in to in the registry's place, unless that is blocked."""
    try:
        return [whole_registry(registry).registry]
    except Blocked:
        return []
