"""Which URL a registry's name leads to, and who is spared TLS."""

from __future__ import annotations

import pytest

from pullpipe.reference import Reference
from pullpipe.registry.hosts import Endpoint, is_loopback, origin

LOOPBACK = ["localhost", "localhost:5000", "127.0.0.1", "127.0.0.1:5000", "127.5.6.7:1", "[::1]", "[::1]:5000"]
ELSEWHERE = [
    "example.org",
    "example.org:5000",
    "localhost.example.org",
    "127.0.0.1.example.org:5000",
    "notlocalhost:5000",
    "10.0.0.1",
    "128.0.0.1:5000",
    "0.0.0.0:5000",
    "[2001:db8::1]:5000",
    "[fe80::1]",
    "docker.io",
]


def at(host: str, *, plain_http: bool = False) -> Endpoint:
    return origin(Reference.parse(f"{host}/a/b"), plain_http=plain_http)


@pytest.mark.parametrize("host", LOOPBACK)
def test_loopback_may_speak_http(host: str) -> None:
    """TLS is tried first even there."""
    assert is_loopback(host)
    assert at(host).schemes == ("https", "http")


@pytest.mark.parametrize("host", ELSEWHERE)
def test_elsewhere_there_is_no_way_around_tls(host: str) -> None:
    """No name that only looks like this machine's is taken for it."""
    assert not is_loopback(host)
    assert at(host).schemes == ("https",)


@pytest.mark.parametrize("host", [*LOOPBACK, "example.org:5000"])
def test_plain_http(host: str) -> None:
    """Where the user says so, TLS is not tried at all."""
    assert at(host, plain_http=True).schemes == ("http",)


def test_docker_hub() -> None:
    """docker.io is a web site; its registry has a name of its own."""
    assert at("docker.io").host == "registry-1.docker.io"
