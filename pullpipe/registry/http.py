"""HTTP as registries need it: each host's TLS, Unix sockets, proxies, redirects that carry no secrets.

aiohttp's errors become `TransferError`s here, those that may go better next time marked as `transient`.
"""

from __future__ import annotations

import os
import re
import socket
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, nullcontext
from typing import Self

import aiohttp
from yarl import URL

from pullpipe import __version__
from pullpipe.errors import TransferError, UnexpectedAnswer, Unreachable
from pullpipe.registry import socks
from pullpipe.registry.hosts import Endpoint, Tls
from pullpipe.registry.proxies import SOCKS, Proxies
from pullpipe.registry.tls import context

_BUFFER = 512 << 10  # bytes that may wait in the process; aiohttp's 64 KiB stop and start the socket all the time
_HEADER = 64 << 10  # bytes of one header's line: signed URLs are longer than aiohttp's 8190
_REDIRECTS = (301, 302, 303, 307, 308)
_REDIRECTS_LIMIT = 10
_ENDPOINT = Endpoint("", "", "")


class Http:
    """Connections, kept for further requests. An async context manager; closing it ends them.

    `timeout` is how many seconds a connection may take to come about, and how many may pass without a byte.
    """

    def __init__(self, proxies: Proxies, timeout: float) -> None:
        self._proxies = proxies
        self._timeout = timeout
        self._closing = AsyncExitStack()
        self._sessions: dict[tuple[str | None, int], aiohttp.ClientSession] = {}
        self._contexts: dict[Tls, ssl.SSLContext | bool] = {}
        self._schemes: dict[tuple[object, ...], str] = {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._closing.aclose()

    async def base(self, endpoint: Endpoint) -> str:
        """`scheme://host`, by the first scheme at which something answers. Raises `TransferError`."""
        scheme = self._schemes.get(_speaker(endpoint)) or await self._find_scheme(endpoint)
        return f"{scheme}://{endpoint.host}"

    async def _find_scheme(self, endpoint: Endpoint) -> str:
        """The last one is taken where no other is answered; it is kept only when a request has been."""
        *others, last = endpoint.schemes
        for scheme in others:
            try:
                url = _parsed(f"{scheme}://{endpoint.host}{endpoint.path}/")
                async with self._send("GET", url, {}, None, endpoint):
                    self._schemes[_speaker(endpoint)] = scheme
                    return scheme
            except (aiohttp.ClientError, TimeoutError) as error:
                if isinstance(error.__cause__, ssl.SSLCertVerificationError) or _alert(error):  # it speaks TLS
                    raise _translated(error, endpoint.host) from error
        return last

    @asynccontextmanager
    async def request(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        data: object = None,
        endpoint: Endpoint = _ENDPOINT,
        patience: float = 0.0,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """One request by the endpoint's rules; redirects are followed when it is a GET or a HEAD.

        `data` may be iterated again, for a connection that ended before it was used. The answer may keep us waiting for
        `patience` seconds, if that is more than the timeout.
        To another host than the first go neither the Authorization, nor the endpoint's own headers and certificate.
        Raises `TransferError`, also while the answer is read in the block.
        """
        at = first = _parsed(url)
        sent = dict(headers or {})
        try:
            for _ in range(_REDIRECTS_LIMIT):
                async with self._send(method, at, sent, data, endpoint, patience) as response:
                    self._schemes.setdefault(_speaker(endpoint), at.scheme)
                    target = response.headers.get("Location")
                    if response.status not in _REDIRECTS or target is None or method not in ("GET", "HEAD"):
                        yield response
                        return
                at = _redirected(at, target)
                if at.origin() != first.origin():
                    sent.pop("Authorization", None)
                    endpoint = endpoint.elsewhere
        except (aiohttp.ClientError, TimeoutError) as error:  # not OSError: a full disk is not the registry's fault
            raise _translated(error, endpoint.socket or _name(at)) from error
        raise UnexpectedAnswer(f"{_name(first)} redirects in a circle; tell its owner")

    @asynccontextmanager
    async def _send(
        self,
        method: str,
        url: URL,
        headers: Mapping[str, str],
        data: object,
        endpoint: Endpoint,
        patience: float = 0.0,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        proxy = None if endpoint.socket else self._proxies.choose(url.scheme, url.host or "", url.port or 0)
        through_socks = proxy is not None and proxy.startswith(SOCKS)
        try:
            with socks.errors() if through_socks else nullcontext():
                answer = await self._session(endpoint, proxy if through_socks else None).request(
                    method,
                    url,
                    headers={**endpoint.headers, **headers},
                    data=data,
                    ssl=self._context(endpoint.tls),
                    proxy=None if through_socks else proxy,
                    allow_redirects=False,
                    timeout=self._limits(patience),
                )
        except UnicodeError as error:  # by DNS's rules it can be no host's: a part of it is empty, or too long
            raise _no_host(_name(url)) from error
        async with answer as response:
            yield response

    def _limits(self, patience: float) -> aiohttp.ClientTimeout:
        return aiohttp.ClientTimeout(total=None, sock_connect=self._timeout, sock_read=max(self._timeout, patience))

    def _session(self, endpoint: Endpoint, socks_proxy: str | None) -> aiohttp.ClientSession:
        key = endpoint.socket or socks_proxy, endpoint.connections
        if key not in self._sessions:
            connector: aiohttp.BaseConnector
            if endpoint.socket:
                connector = aiohttp.UnixConnector(endpoint.socket, limit=endpoint.connections)
            elif socks_proxy:
                connector = socks.connector(socks_proxy, endpoint.connections)
            else:
                connector = aiohttp.TCPConnector(limit=0, limit_per_host=endpoint.connections)
            self._sessions[key] = session = aiohttp.ClientSession(
                connector=connector,
                # Blobs are wanted as they are: whatever a server may call their encoding, the digest is of the bytes.
                headers={"User-Agent": f"pullpipe/{__version__}", "Accept-Encoding": "identity"},
                auto_decompress=False,
                read_bufsize=_BUFFER,
                max_line_size=_HEADER,
                max_field_size=_HEADER,
                cookie_jar=aiohttp.DummyCookieJar(),
            )
            self._closing.push_async_callback(session.close)
        return self._sessions[key]

    def _context(self, tls: Tls) -> ssl.SSLContext | bool:
        if tls not in self._contexts:
            self._contexts[tls] = True if tls == Tls() else context(tls)  # True is aiohttp's own, made once
        return self._contexts[tls]


def _speaker(endpoint: Endpoint) -> tuple[object, ...]:
    """Of whom it is known by which scheme to speak."""
    return endpoint.host, endpoint.schemes, endpoint.tls, endpoint.socket


def _parsed(text: str) -> URL:
    """The URL, which has a scheme. Raises `Unreachable` when there can be no such host or port."""
    try:
        url = URL(text, encoded=True)
        if not url.host:
            raise ValueError("it has none")
    except ValueError as error:
        raise _no_host(re.split("[/?#]", text)[2].rpartition("@")[2]) from error
    return url


def _name(url: URL) -> str:
    """Host and port, as the user or a redirect gave them."""
    return (url.host or "") if url.explicit_port is None else f"{url.host}:{url.explicit_port}"


def _redirected(url: URL, target: str) -> URL:
    """Where the answer sends us. Raises `UnexpectedAnswer`."""
    try:
        found = url.join(URL(target, encoded=True))
        usable = found.scheme in ("http", "https") and found.host and found.port
    except ValueError as error:
        raise UnexpectedAnswer(f"{_name(url)} redirects to what is no URL; tell its owner") from error
    if not usable:
        raise UnexpectedAnswer(f"{_name(url)} redirects to what is no place on the web; tell its owner")
    return found.with_user(None) if found.user else found


def _translated(error: Exception, host: str) -> TransferError:
    if isinstance(error, aiohttp.ClientProxyConnectionError | aiohttp.ClientHttpProxyError):
        return _proxy_error(error, host)
    if isinstance(error, socks.SocksError):
        return _no_proxy(host, str(error), again=error.transient)
    reason = getattr(error, "os_error", None)
    if isinstance(error, aiohttp.ClientConnectorDNSError) or isinstance(reason, socket.gaierror):
        return _no_host(host, again=getattr(reason, "errno", None) == socket.EAI_AGAIN)
    if isinstance(error.__cause__, ssl.SSLCertVerificationError):
        return Unreachable(
            f"the certificate of {host} is not trusted: {error.__cause__}; "
            "docs/registries.md tells how to name its authority"
        )
    if alert := _alert(error):
        return Unreachable(
            f"{host} refuses our TLS: {alert}; "
            "if it wants a client's certificate, docs/registries.md tells how to name one"
        )
    if isinstance(error, aiohttp.ClientSSLError) or isinstance(error.__cause__, ssl.SSLError):
        return Unreachable(f"{host} does not speak TLS; if it is meant to be plain HTTP, give --plain-http")
    if isinstance(error, aiohttp.ClientConnectorError):
        code = error.os_error.errno  # asyncio puts words of its own into strerror
        reason = os.strerror(code) if code else str(error.os_error)
        return Unreachable(f"cannot connect to {host}: {reason.lower()}; is it running there?", transient=True)
    if isinstance(error, TimeoutError):
        return Unreachable(f"{host} did not answer in time; try again", transient=True)
    if isinstance(error, aiohttp.ClientResponseError):
        return UnexpectedAnswer(
            f"what answers at {host} does not speak HTTP: no registry, or one over TLS; "
            "check host, port and --plain-http"
        )
    if isinstance(error, aiohttp.ClientPayloadError):
        return TransferError(
            f"{host} broke off in the middle of an answer; try again to continue from there", transient=True
        )
    reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return TransferError(f"the connection to {host} failed: {reason.lower()}; try again", transient=True)


def _proxy_error(error: aiohttp.ClientProxyConnectionError | aiohttp.ClientHttpProxyError, host: str) -> TransferError:
    """Without the proxy's URL, which may hold a password."""
    if isinstance(error, aiohttp.ClientHttpProxyError):
        refused = f"answered {error.status} {error.message}"
        return Unreachable(
            f"the proxy on the way to {host} {refused}; check HTTPS_PROXY", transient=error.status >= 500
        )
    code = error.os_error.errno
    return _no_proxy(host, os.strerror(code).lower() if code else "no such host", again=True)


def _no_proxy(host: str, reason: str, *, again: bool = False) -> Unreachable:
    return Unreachable(
        f"cannot connect by the proxy on the way to {host}: {reason}; "
        "check HTTPS_PROXY, HTTP_PROXY, ALL_PROXY and NO_PROXY",
        transient=again,
    )


def _no_host(host: str, *, again: bool = False) -> Unreachable:
    return Unreachable(f"no such host: {host}; check the name and the network's DNS", transient=again)


def _alert(error: Exception) -> str:
    """Why the other side does not want to speak TLS with us, if it says so by TLS; else empty."""
    words = getattr(error.__cause__, "reason", None) or ""  # as `TLSV13_ALERT_CERTIFICATE_REQUIRED`
    return str(words).partition("_ALERT_")[2].replace("_", " ").lower()
