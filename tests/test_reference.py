"""Image references: what Docker's grammar takes, what it makes of them, and what it refuses."""

from __future__ import annotations

import pytest

from pullpipe.errors import InvalidReference, PullpipeError
from pullpipe.reference import Reference
from store import Digest

SHA256 = "sha256:" + "0123456789abcdef" * 4
SHA512 = "sha512:" + "0123456789abcdef" * 8


@pytest.mark.parametrize(
    ("text", "whole"),
    [
        # Docker's defaults: the hub, its library, the tag latest.
        ("alpine", "docker.io/library/alpine:latest"),
        ("alpine:3.20", "docker.io/library/alpine:3.20"),
        ("library/alpine", "docker.io/library/alpine:latest"),
        ("user/name", "docker.io/user/name:latest"),
        ("docker.io/alpine", "docker.io/library/alpine:latest"),
        ("docker.io/user/name:1", "docker.io/user/name:1"),
        ("index.docker.io/alpine", "docker.io/library/alpine:latest"),
        ("index.docker.io/user/name:1", "docker.io/user/name:1"),
        ("docker.io/library/alpine", "docker.io/library/alpine:latest"),
        # Docker takes this one for another registry, and so has images under two names.
        ("registry-1.docker.io/alpine", "docker.io/library/alpine:latest"),
        ("registry-1.docker.io/user/name:1", "docker.io/user/name:1"),
        ("docker.io", "docker.io/library/docker.io:latest"),
        ("localhost", "docker.io/library/localhost:latest"),
        ("test.com:8080", "docker.io/library/test.com:8080"),
        # What looks like a host before the first slash is one.
        ("localhost/a", "localhost/a:latest"),
        ("localhost:5000/a/b/c:1", "localhost:5000/a/b/c:1"),
        ("127.0.0.1:5000/a", "127.0.0.1:5000/a:latest"),
        ("host:80/a:80", "host:80/a:80"),
        ("ghcr.io/a/b:1", "ghcr.io/a/b:1"),
        ("a.b/c", "a.b/c:latest"),
        ("Host/a", "Host/a:latest"),
        ("xn--n3h.com/a", "xn--n3h.com/a:latest"),
        ("a.b:65535/c", "a.b:65535/c:latest"),
        ("a" * 63 + ".b/c", "a" * 63 + ".b/c:latest"),
        ("[::1]:5000/a", "[::1]:5000/a:latest"),
        ("[2001:db8::1]/a/b", "[2001:db8::1]/a/b:latest"),
        # Digests, with and without a tag.
        (f"alpine@{SHA256}", f"docker.io/library/alpine@{SHA256}"),
        (f"alpine:3.20@{SHA256}", f"docker.io/library/alpine:3.20@{SHA256}"),
        (f"localhost:5000/a@{SHA512}", f"localhost:5000/a@{SHA512}"),
        # Separators within a name.
        ("a_b", "docker.io/library/a_b:latest"),
        ("a__b", "docker.io/library/a__b:latest"),
        ("a.b-c", "docker.io/library/a.b-c:latest"),
        ("a---b", "docker.io/library/a---b:latest"),
        ("0/1", "docker.io/0/1:latest"),
        # Tags.
        ("a:_", "docker.io/library/a:_"),
        ("a:V1.0-rc_1", "docker.io/library/a:V1.0-rc_1"),
        ("a:" + "t" * 128, "docker.io/library/a:" + "t" * 128),
        ("a:sha256", "docker.io/library/a:sha256"),
        # The longest name, and hex digits that are no digest because they have a tag.
        ("a.b/" + "c" * 251, "a.b/" + "c" * 251 + ":latest"),
        ("a" * 64 + ":1", "docker.io/library/" + "a" * 64 + ":1"),
        ("a" * 63, "docker.io/library/" + "a" * 63 + ":latest"),
    ],
)
def test_good(text: str, whole: str) -> None:
    """The whole reference; and that says the same when it is parsed again."""
    reference = Reference.parse(text)
    assert str(reference) == whole
    assert Reference.parse(whole) == reference


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        ":1",
        "/",
        "/a",
        "a/",
        "a//b",
        "a.b//c",
        "a:",
        "a:1:2",
        "a: 1",
        "a:-1",
        "a:.1",
        "a:é",
        "a:" + "t" * 129,
        "a:1\n",
        "a\n",
        " a",
        "a b",
        "A",
        "Alpine:1",
        "a.b/C",
        "user/Name",
        "-a",
        "a-",
        "_a",
        "a_",
        ".a",
        "a.",
        "a..b",
        "a___b",
        "a._b",
        "a.-b",
        "ä",
        "a/b$^/c",
        "a*",
        "http://a.b/c",
        "https://a.b/c:1",
        "docker://a",
        "host:port/a",
        "host:/a",
        "-host.com/a",
        "host-.com/a",
        "host..com/a",
        "a_b.com/c",
        "[::1/a",
        "::1/a",
        "[fe80::1%eth0]/a",
        "[::1]5000/a",
        # What no connection can be made to.
        "a.b:0/c",
        "a.b:65536/c",
        "a" * 64 + ".b/c",
        "[1.2.3.4]/a",
        "[::1:::]/a",
        "a@",
        "@",
        f"@{SHA256}",
        f"a@{SHA256}@{SHA256}",
        "a@sha256",
        "a@sha256:",
        "a@sha256:abc",
        f"a@{SHA256.upper()}",
        f"a@{SHA256}0",
        f"a@{SHA256[:-1]}",
        "a@md5:" + "0" * 32,
        f"a:@{SHA256}",
        "a.b/" + "c" * 252,
        # Docker takes this for an image's id, never for a name.
        "a" * 64,
        "../../etc/passwd",
        "a.b/../c",
        "a\0b",
    ],
)
def test_bad(text: str) -> None:
    """One error, which shows what was not understood."""
    with pytest.raises(InvalidReference, match="invalid image reference") as caught:
        Reference.parse(text)
    assert isinstance(caught.value, PullpipeError)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["docker://a.b/c:1", "https://a.b/c:1", "http://a.b/c:1"])
def test_urls(text: str) -> None:
    """What to do about it."""
    with pytest.raises(InvalidReference, match=f"leave {text.partition('a')[0]} out, as in 'a.b/c:1'"):
        Reference.parse(text)


def test_parts() -> None:
    reference = Reference.parse(f"localhost:5000/a/b:1@{SHA256}")
    assert tuple(reference) == ("localhost:5000", "a/b", "1", Digest.parse(SHA256))
    assert reference.name == "localhost:5000/a/b"


def test_a_digest_is_wanted_before_a_tag() -> None:
    """The tag is then only for people."""
    assert Reference.parse(f"a:1@{SHA256}").wanted == SHA256
    assert Reference.parse(f"a@{SHA256}").tag is None
    assert Reference.parse("a:1").wanted == "1"


def test_upper_case_is_explained() -> None:
    """The mistake that people make most."""
    with pytest.raises(InvalidReference, match="lower case"):
        Reference.parse("Alpine")
