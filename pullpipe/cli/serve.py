"""`pullpipe serve`"""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from pullpipe.cli.common import open_store
from pullpipe.errors import BadArgument

if TYPE_CHECKING:
    from store import Store

HELP = "serve the store's images as a registry, until Ctrl-C; prints the address"


def configure(parser: argparse.ArgumentParser) -> None:
    place = parser.add_mutually_exclusive_group()
    place.add_argument(
        "--listen",
        metavar="HOST:PORT",
        default="127.0.0.1:5000",
        help="port 0 takes a free one (default: %(default)s)",
    )
    place.add_argument("--unix", metavar="PATH", default="", help="listen on a Unix socket, which only you can use")
    parser.add_argument("--writable", action="store_true", help="take pushes, too")
    parser.add_argument("--users", metavar="FILE", help="let only these in: lines USER:HASH, as `htpasswd -nB` writes")
    parser.add_argument("--tls-cert", metavar="FILE", help="speak TLS with this certificate (PEM), its chain behind it")
    parser.add_argument("--tls-key", metavar="FILE", help="and its key (PEM)")


def run(arguments: argparse.Namespace) -> int:
    """One line on standard output, the address, once requests are answered."""
    import asyncio

    if bool(arguments.tls_cert) != bool(arguments.tls_key):
        raise BadArgument("--tls-cert and --tls-key go together")
    store = open_store(arguments)
    asyncio.run(_serve(arguments, store))
    return 0


async def _serve(arguments: argparse.Namespace, store: Store) -> None:
    import asyncio
    import resource
    import signal

    from pullpipe.registry.hosts import is_loopback
    from pullpipe.registry.server import serve
    from pullpipe.registry.server.access import Users
    from pullpipe.registry.server.listen import parse_address, tls_context

    loop, ended = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, ended.set)
    loop.set_exception_handler(lambda _, context: _say(f"error: {context.get('exception') or context['message']}"))

    # Every client that takes its time keeps two files open.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))

    host, port = ("", 0) if arguments.unix else parse_address(arguments.listen)
    private = bool(arguments.unix) or is_loopback(host)
    users = Users.read(arguments.users) if arguments.users else None
    tls = tls_context(arguments.tls_cert, arguments.tls_key) if arguments.tls_cert else None
    if arguments.writable and not (private or users):
        raise BadArgument(
            f"whoever reaches {arguments.listen} could push there; name who may with --users FILE, "
            "or --listen on 127.0.0.1"
        )
    if users and not (private or tls):
        _say("warning: passwords travel unencrypted; give --tls-cert and --tls-key")
    if arguments.writable:
        await asyncio.to_thread(store.blobs.clean)
    async with serve(
        store.root,
        host=host,
        port=port,
        unix=arguments.unix,
        tls=tls,
        users=users,
        writable=store if arguments.writable else None,
        on_request=(lambda method, path: _say(f"{method} {path}")) if arguments.log_level == "debug" else None,
        on_error=lambda text: _say(f"error: {text}"),
    ) as address:
        print(address, flush=True)
        await ended.wait()


def _say(text: str) -> None:
    printable = "".join(character if character.isprintable() else "?" for character in text)  # clients choose paths
    print(f"pullpipe: {printable}", file=sys.stderr, flush=True)
