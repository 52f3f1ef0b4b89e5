"""Which proxy a request goes through."""

from __future__ import annotations

import pytest

from pullpipe.errors import BadConfiguration
from pullpipe.registry.proxies import Proxies

PROXY, OTHER = "http://proxy:3128", "https://user:word@secure:443"


@pytest.mark.parametrize(
    ("environment", "http", "https"),
    [
        ({}, None, None),
        ({"HTTP_PROXY": PROXY}, PROXY, None),
        ({"HTTPS_PROXY": PROXY}, None, PROXY),
        ({"http_proxy": PROXY, "HTTP_PROXY": OTHER}, PROXY, None),
        ({"https_proxy": "", "HTTPS_PROXY": OTHER}, None, OTHER),
        ({"ALL_PROXY": PROXY}, PROXY, PROXY),
        ({"all_proxy": PROXY, "HTTPS_PROXY": OTHER}, PROXY, OTHER),
        ({"HTTPS_PROXY": "proxy:3128"}, None, PROXY),
        ({"ALL_PROXY": "socks5h://proxy"}, "socks5h://proxy", "socks5h://proxy"),
        ({"HTTP_PROXY": f" {PROXY}\n", "https_proxy": " ", "HTTPS_PROXY": "\t", "ALL_PROXY": OTHER}, PROXY, OTHER),
    ],
)
def test_variables(environment: dict[str, str], http: str | None, https: str | None) -> None:
    """The scheme's own before the general one, small letters before large ones; a bare host is an HTTP proxy."""
    proxies = Proxies.of(environment)
    assert (proxies.choose("http", "example.org", 80), proxies.choose("https", "example.org", 443)) == (http, https)


@pytest.mark.parametrize(
    ("no_proxy", "host", "port", "spared"),
    [
        ("example.org", "example.org", 443, True),
        ("example.org", "EXAMPLE.org.", 443, True),
        ("example.org", "a.example.org", 443, True),
        (".example.org", "a.example.org", 443, True),
        ("*.example.org", "a.example.org", 443, True),
        ("example.org", "badexample.org", 443, False),
        ("example.org:5000", "example.org", 5000, True),
        ("example.org:5000", "example.org", 443, False),
        ("a, b ,example.org", "example.org", 443, True),
        ("*", "example.org", 443, True),
        ("", "example.org", 443, False),
        (",", "example.org", 443, False),
        ("10.1.2.3", "10.1.2.3", 443, True),
        ("10.1.2.3:80", "10.1.2.3", 443, False),
        ("10.0.0.0/8", "10.1.2.3", 443, True),
        ("10.0.0.0/8", "11.1.2.3", 443, False),
        ("10.0.0.0/8", "example.org", 443, False),
        ("fd00::/8", "fd12::1", 443, True),
        ("fd12::1", "fd12::1", 443, True),
        ("[fd12::1]:443", "fd12::1", 443, True),
        ("[fd12::1]:80", "fd12::1", 443, False),
        ("10.0.0.0/nonsense", "10.1.2.3", 443, False),
    ],
)
def test_no_proxy(no_proxy: str, host: str, port: int, spared: bool) -> None:
    """Names with all below them, addresses, networks; each perhaps with a port."""
    proxies = Proxies.of({"HTTPS_PROXY": PROXY, "NO_PROXY": no_proxy})
    assert proxies.choose("https", host, port) == (None if spared else PROXY)


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "::1"])
def test_loopback_never_goes_through_a_proxy(host: str) -> None:
    assert Proxies.of({"ALL_PROXY": PROXY}).choose("http", host, 80) is None


@pytest.mark.parametrize(
    "value",
    [
        "http://",
        "http://u:secret@host:x",
        "://secret",
        "http://[secret",
        "http://secret@a..b:1",
        "socks4://secret@host:1",
    ],
)
@pytest.mark.parametrize("name", ["http_proxy", "HTTP_PROXY", "ALL_PROXY"])
def test_what_is_no_proxy(name: str, value: str) -> None:
    """The variable that counts is named, its value is not repeated: it may hold a password."""
    with pytest.raises(BadConfiguration, match=f"{name} names no proxy that can be used; .*socks5://") as caught:
        Proxies.of({name: value}).choose("http", "example.org", 80)
    assert "secret" not in str(caught.value)


def test_what_is_no_proxy_and_not_needed() -> None:
    """It stands in nobody's way who needs none."""
    proxies = Proxies.of({"ALL_PROXY": "socks4://host:1", "HTTPS_PROXY": PROXY, "NO_PROXY": "example.org"})
    assert proxies.choose("http", "127.0.0.1", 5000) is None
    assert proxies.choose("http", "example.org", 80) is None
    assert proxies.choose("https", "example.com", 443) == PROXY


def test_shown_without_passwords() -> None:
    assert "word" not in repr(Proxies.of({"ALL_PROXY": OTHER}))
