"""From a registry's name to the URL where it answers."""

from __future__ import annotations

import socket
from contextlib import suppress

from pullpipe.reference import DEFAULT_REGISTRY

_DOCKER_HUB = "registry-1.docker.io"


def candidates(registry: str, *, plain_http: bool) -> list[str]:
    """The base URLs to try, best first.

    HTTPS, or HTTP when the user says so. A registry on loopback may speak either, as with Docker: what never leaves the
    machine needs no TLS.
    """
    host = _DOCKER_HUB if registry == DEFAULT_REGISTRY else registry
    if plain_http:
        return [f"http://{host}"]
    if is_loopback(host):
        return [f"https://{host}", f"http://{host}"]
    return [f"https://{host}"]


def is_loopback(host: str) -> bool:
    """Whether the host, with or without a port, is this machine."""
    name = host.rpartition("]")[0].lstrip("[") if host.startswith("[") else host.partition(":")[0]
    if name == "localhost":
        return True
    for family, loopback in ((socket.AF_INET, b"\x7f"), (socket.AF_INET6, bytes(15) + b"\1")):
        with suppress(OSError):  # no such address
            return socket.inet_pton(family, name).startswith(loopback)
    return False
