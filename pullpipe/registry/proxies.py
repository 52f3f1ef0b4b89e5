"""Which proxy, if any, a request goes through, by the usual variables (as curl and Go's net/http read them)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple
from urllib.parse import urlsplit

from pullpipe.errors import BadConfiguration
from pullpipe.registry.hosts import is_loopback


class Proxies(NamedTuple):
    """URLs of proxies, with user and password where they need them; empty for none."""

    http: str = ""
    https: str = ""
    spared: tuple[str, ...] = ()  # hosts, domains, addresses, networks, each perhaps with a port; or `*`

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> Proxies:
        """HTTP_PROXY, HTTPS_PROXY, ALL_PROXY, NO_PROXY; in small letters they win. Raises `BadConfiguration`."""

        def value(name: str) -> str:
            return environment.get(name.lower()) or environment.get(name) or ""

        return cls(
            http=_url("HTTP_PROXY", value("HTTP_PROXY") or value("ALL_PROXY")),
            https=_url("HTTPS_PROXY", value("HTTPS_PROXY") or value("ALL_PROXY")),
            spared=tuple(filter(None, (word.strip().lower() for word in value("NO_PROXY").split(",")))),
        )

    def __repr__(self) -> str:
        return f"Proxies({len(self.spared)} spared)"

    def choose(self, scheme: str, host: str, port: int) -> str | None:
        """The proxy's URL for a request to the host; None for a direct one, as always on loopback."""
        proxy = self.https if scheme == "https" else self.http
        if not proxy or is_loopback(f"[{host}]" if ":" in host else host):
            return None
        host = host.lower().rstrip(".")
        return None if any(_matches(word, host, port) for word in self.spared) else proxy


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


def _url(name: str, text: str) -> str:
    if not text:
        return ""
    url = text if "://" in text else f"http://{text}"
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable:
        raise BadConfiguration(
            f"{name} names no proxy that can be used: it takes http://HOST:PORT or https://HOST:PORT"
        )
    return url
