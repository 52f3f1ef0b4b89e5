"""SOCKS proxies, by aiohttp-socks, which is imported by nobody but who has one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import unquote, urlsplit

import aiohttp

_PORT = 1080  # where the URL has none
_FORBIDDEN = 2  # the reply (RFC 1928) to what its rules do not allow


class SocksError(aiohttp.ClientError):
    """The proxy cannot be reached, or does not connect us; its text has neither its user nor its password."""

    def __init__(self, why: str, *, transient: bool) -> None:
        super().__init__(why)
        self.transient = transient


def connector(url: str, connections: int) -> aiohttp.BaseConnector:
    """Connections through the proxy at `url`, as many to one host. Use it within `errors`."""
    from aiohttp_socks import ProxyConnector

    parts = urlsplit(url)
    return ProxyConnector(
        host=parts.hostname or "",
        port=parts.port or _PORT,
        username=unquote(parts.username or ""),
        password=unquote(parts.password or ""),
        rdns=True,
        limit=0,
        limit_per_host=connections,
    )


@contextmanager
def errors() -> Iterator[None]:
    """What aiohttp-socks says of the proxy in the block becomes a `SocksError`."""
    from aiohttp_socks import ProxyConnectionError, ProxyError, ProxyTimeoutError

    try:
        yield
    except ProxyTimeoutError as error:
        raise SocksError("no answer in time", transient=True) from error
    except ProxyConnectionError as error:
        code = getattr(error.__cause__, "errno", None) or 0  # less than 0 for what DNS says
        raise SocksError(os.strerror(code).lower() if code > 0 else "no such host", transient=True) from error
    except ProxyError as error:
        transient = error.error_code not in (None, _FORBIDDEN)
        raise SocksError(f"it says: {str(error).lower()}", transient=transient) from error
    except EOFError as error:  # which aiohttp-socks does not expect
        raise SocksError("it broke off", transient=True) from error
