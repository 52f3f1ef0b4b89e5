"""From an image's name to the places that answer for it: the registry itself, and mirrors of it."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from contextlib import suppress
from types import MappingProxyType
from typing import NamedTuple

from pullpipe.reference import DEFAULT_REGISTRY, Reference

_DOCKER_HUB = "registry-1.docker.io"


class Tls(NamedTuple):
    """How to prove who a host is, and who we are. Paths of PEM files."""

    verify: bool = True
    ca: tuple[str, ...] = ()  # trusted besides the system's
    certificate: str = ""  # the client's own
    key: str = ""  # of that certificate, where it is in another file


class Endpoint(NamedTuple):
    """A place that answers for one repository: a registry, or a mirror of it."""

    registry: str  # whose credentials it takes; "docker.io" for Docker Hub, whose host has another name
    host: str  # host, or host:port
    repository: str  # what the repository is called there
    schemes: tuple[str, ...] = ("https",)  # to be tried in this order
    path: str = "/v2"  # where the API begins
    namespace: str = ""  # of a mirror: the registry that it is to speak for, which some need to be told
    tags: bool = True  # whether to believe it what a tag names; blobs and manifests by digest prove themselves
    tls: Tls = Tls()
    headers: Mapping[str, str] = MappingProxyType({})  # for each request
    socket: str = ""  # of a Unix socket to connect to, in place of the host
    connections: int = 16  # at most, at a time


def origin(reference: Reference, *, plain_http: bool = False, unix_socket: str = "") -> Endpoint:
    """The registry that the reference names.

    It speaks HTTPS, or HTTP when the user says so. A registry on loopback or behind a Unix socket may speak either, as
    with Docker: what never leaves the machine needs no TLS.
    """
    host = _DOCKER_HUB if reference.registry == DEFAULT_REGISTRY else reference.registry
    schemes: tuple[str, ...] = ("https",)
    if plain_http or unix_socket:
        schemes = ("http",)
    elif is_loopback(host):
        schemes = ("https", "http")
    return Endpoint(reference.registry, host, reference.repository, schemes, socket=unix_socket)


def is_loopback(host: str) -> bool:
    """Whether the host, with or without a port, is this machine."""
    name = host.rpartition("]")[0].lstrip("[") if host.startswith("[") else host.partition(":")[0]
    if name == "localhost":
        return True
    for family, loopback in ((socket.AF_INET, b"\x7f"), (socket.AF_INET6, bytes(15) + b"\1")):
        with suppress(OSError):  # no such address
            return socket.inet_pton(family, name).startswith(loopback)
    return False
