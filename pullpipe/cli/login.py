"""`pullpipe login [REGISTRY]`"""

from __future__ import annotations

import argparse
import os
import sys

from pullpipe.cli.common import add_authfile_option, run_until_signal
from pullpipe.cli.registries import ask_password, registry_of, whole_registry
from pullpipe.environment import token_cache
from pullpipe.errors import BadArgument, Unauthorized
from pullpipe.reference import DEFAULT_REGISTRY

_TIMEOUT = 30  # seconds without a byte

HELP = "keep a user's name and password for a registry, where podman and skopeo find them, too"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-u", "--username", metavar="USER", help="is asked for when it is not given, as the password is"
    )
    parser.add_argument("-p", "--password", help=argparse.SUPPRESS)  # Docker's, to be refused
    parser.add_argument("--password-stdin", action="store_true", help="read the password from standard input")
    add_authfile_option(parser, "keep them in this file")
    parser.add_argument("--plain-http", action="store_true", help="speak HTTP without TLS to the registry")
    parser.add_argument(
        "registry", metavar="REGISTRY", nargs="?", default=DEFAULT_REGISTRY, help="default: %(default)s"
    )


def run(arguments: argparse.Namespace) -> int:
    if arguments.password is not None:
        raise BadArgument("all can see a password in a command line; give --password-stdin, and the password there")
    endpoint = whole_registry(registry_of(arguments.registry), plain_http=arguments.plain_http)
    registry = endpoint.registry
    path = _file(arguments, registry)
    user, password = _account(arguments, registry)

    from pullpipe.registry import logins
    from pullpipe.registry.auth import check
    from pullpipe.registry.credentials import Credentials
    from pullpipe.registry.http import Http
    from pullpipe.registry.proxies import Proxies

    credentials = Credentials(user, password)

    async def checked() -> bool:
        async with Http(Proxies.of(os.environ), _TIMEOUT) as http:
            return await check(http, endpoint, credentials)

    if not run_until_signal(checked()):
        print(f"pullpipe: warning: {registry} lets anybody in; it did not check them", file=sys.stderr)
    place = logins.store(path, registry, credentials)
    token_cache().forget(registry)
    print(f"logged in to {registry} as {user}")
    print(f"the password is kept by {place}", file=sys.stderr)
    return 0


def _file(arguments: argparse.Namespace, registry: str) -> str:
    """The file to log in to: the one that has a login for the registry already, or one that outlives the session."""
    from pullpipe.registry.credentials import AuthFile, containers_auth_files

    if arguments.authfile:
        return str(arguments.authfile)
    *others, last = containers_auth_files(os.environ)
    return next((path for path in others if AuthFile(path).names(registry)), last)


def _account(arguments: argparse.Namespace, registry: str) -> tuple[str, str]:
    """User and password."""
    user = arguments.username or ""
    if not user and (arguments.password_stdin or not sys.stdin.isatty()):
        raise BadArgument("there is no terminal to ask for a user on; give --username USER --password-stdin")
    if not user:
        print(f"user at {registry}: ", end="", file=sys.stderr, flush=True)
        user = sys.stdin.readline().strip()
    if not user or ":" in user:
        raise BadArgument(f"{user!r} is no name of a user")
    if arguments.password_stdin:
        password = sys.stdin.buffer.read().decode(errors="surrogateescape").removesuffix("\n").removesuffix("\r")
    else:
        password = ask_password(user, registry, "give --password-stdin, and the password there")
    if not password:
        raise Unauthorized(f"no password was given for {user!r}")
    return user, password
