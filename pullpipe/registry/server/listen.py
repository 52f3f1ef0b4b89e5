"""Where the registry listens: addresses, Unix sockets, TLS. What goes wrong is a `BadArgument`, one line."""

from __future__ import annotations

import os
import socket
import ssl
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from aiohttp import web

from pullpipe.errors import BadArgument


def parse_address(text: str) -> tuple[str, int]:
    """`HOST:PORT`, `[::1]:PORT`. Raises `BadArgument`."""
    host, colon, port = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        colon = ""  # an IPv6 address, of which the port cannot be told
    if not (colon and host and port.isascii() and port.isdigit() and int(port[:6]) < 1 << 16):
        raise BadArgument(f"{text!r} is no address: HOST:PORT, as 127.0.0.1:5000 or [::1]:5000")
    return host, int(port)


def tls_context(certificate: str, key: str) -> ssl.SSLContext:
    """For a server with this certificate, its chain behind it, and its key: PEM files. Raises `BadArgument`."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    for path in (certificate, key):
        try:
            with open(path, "rb"):
                pass
        except OSError as error:
            raise BadArgument(f"cannot read {path}: {(error.strerror or str(error)).lower()}; check it") from error
    try:
        context.load_cert_chain(certificate, key, password=lambda: b"")
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise BadArgument(f"the key in {key} is not that of the certificate in {certificate}") from error
        raise BadArgument(
            f"{certificate} is no certificate, or {key} is no key without a password, both in PEM form"
            f" ({error.reason or 'unreadable'})"
        ) from error
    return context


@asynccontextmanager
async def listening(
    runner: web.AppRunner, host: str, port: int, unix: str, tls: ssl.SSLContext | None
) -> AsyncIterator[str]:
    """Listens, and yields the address. The runner stops it; a Unix socket is removed here."""
    if not unix:
        try:
            await web.TCPSite(runner, host, port, ssl_context=tls).start()
        except (OSError, UnicodeError) as error:
            raise BadArgument(f"cannot listen on {host}:{port}: {_reason(error)}; choose another address") from error
        bound_host, bound_port = runner.addresses[0][:2]
        yield f"[{bound_host}]:{bound_port}" if ":" in bound_host else f"{bound_host}:{bound_port}"
        return
    bound = _bind(unix)
    ours = os.stat(unix)
    try:
        await web.SockSite(runner, bound, ssl_context=tls).start()
        yield unix
    finally:
        with suppress(FileNotFoundError):
            if os.path.samestat(ours, os.stat(unix, follow_symlinks=False)):
                os.unlink(unix)


def _bind(path: str) -> socket.socket:
    """A socket at this path, for its owner only; one that nobody listens on any more is replaced."""
    with suppress(FileNotFoundError):
        if not stat.S_ISSOCK(os.stat(path, follow_symlinks=False).st_mode):
            raise BadArgument(f"{path} is there, and no socket; choose another path")
        with socket.socket(socket.AF_UNIX) as probe:
            try:
                probe.connect(path)
            except ConnectionRefusedError:
                os.unlink(path)
            except OSError as error:
                raise BadArgument(f"cannot use {path}: {_reason(error)}; choose another path") from error
            else:
                raise BadArgument(f"somebody listens on {path} already; choose another path")
    bound = socket.socket(socket.AF_UNIX)
    before = os.umask(0o177)
    try:
        bound.bind(path)
    except OSError as error:
        bound.close()
        raise BadArgument(f"cannot listen on {path}: {_reason(error)}; choose another path") from error
    finally:
        os.umask(before)
    return bound


def _reason(error: Exception) -> str:
    """The cause alone: asyncio puts the address into the message, too."""
    if isinstance(error, socket.gaierror) or not isinstance(error, OSError) or not error.errno:
        return (getattr(error, "strerror", None) or str(error)).lower()
    return os.strerror(error.errno).lower()
