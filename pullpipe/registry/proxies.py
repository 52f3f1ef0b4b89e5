"""Which proxy, if any, a request goes through, by the usual variables (as curl and Go's net/http read them)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple
from urllib.parse import urlsplit

from pullpipe.errors import BadConfiguration
from pullpipe.registry.hosts import is_loopback

SOCKS = ("socks5", "socks5h")  # schemes; both leave names to the proxy, as in Go (to curl only the second does)


class _Variable(NamedTuple):
    """Of the environment, with its value: a proxy, with user and password where it needs them; empty for none."""

    name: str = ""
    value: str = ""


class Proxies(NamedTuple):
    """Of each scheme's requests."""

    http: _Variable = _Variable()
    https: _Variable = _Variable()
    spared: tuple[str, ...] = ()  # hosts, domains, addresses, networks, each perhaps with a port; or `*`

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> Proxies:
        """HTTP_PROXY, HTTPS_PROXY, ALL_PROXY, NO_PROXY; in small letters they win."""

        def first(*names: str) -> _Variable:
            tried = [spelled for name in names for spelled in (name.lower(), name)]
            given = (_Variable(name, environment.get(name, "").strip()) for name in tried)
            return next((variable for variable in given if variable.value), _Variable())

        return cls(
            http=first("HTTP_PROXY", "ALL_PROXY"),
            https=first("HTTPS_PROXY", "ALL_PROXY"),
            spared=tuple(filter(None, (word.strip().lower() for word in first("NO_PROXY").value.split(",")))),
        )

    def __repr__(self) -> str:
        return f"Proxies({len(self.spared)} spared)"

    def choose(self, scheme: str, host: str, port: int) -> str | None:
        """The proxy's URL for a request to the host; None for a direct one, as always on loopback.

        Raises `BadConfiguration` when the variable that counts names no proxy that can be used.
        """
        proxy = self.https if scheme == "https" else self.http
        if not proxy.value or is_loopback(f"[{host}]" if ":" in host else host):
            return None
        host = host.lower().rstrip(".")
        return None if any(_matches(word, host, port) for word in self.spared) else _url(proxy)


def _matches(word: str, host: str, port: int) -> bool:
    """Whether NO_PROXY's word means this host."""
    if word == "*":
        return True
    if "/" in word:
        return _is_within(word, host)
    name, _, number = word.rpartition(":")
    if number.isdigit() and (name.endswith("]") or (name and ":" not in name)):
        if number != str(port):
            return False
        word = name
    word = word.strip("[]").removeprefix("*").lstrip(".")
    return host == word or host.endswith(f".{word}")


def _is_within(word: str, host: str) -> bool:
    from ipaddress import ip_address, ip_network

    try:
        return ip_address(host) in ip_network(word, strict=False)
    except ValueError:
        return False


def _url(proxy: _Variable) -> str:
    url = proxy.value if "://" in proxy.value else f"http://{proxy.value}"
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https", *SOCKS) and bool(parts.hostname) and parts.port != 0
        (parts.hostname or "").encode("idna")
    except ValueError:  # of that, too: a part of it is empty, or too long for DNS
        usable = False
    if not usable:
        raise BadConfiguration(
            f"{proxy.name} names no proxy that can be used; give it http://HOST:PORT, https://HOST:PORT or "
            "socks5://HOST:PORT, or the registry's host to NO_PROXY"
        )
    return url
