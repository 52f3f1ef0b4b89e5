"""Digests: what is one, and that nothing else becomes part of a path."""

from __future__ import annotations

import hashlib

import pytest

from store import Digest, InvalidDigest, StoreError
from store.digest import new_hash

A = "a" * 64


@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
def test_of_is_what_hashlib_says(algorithm: str) -> None:
    """Both registered algorithms, from bytes to text and back."""
    digest = Digest.of(b"data", algorithm)
    assert str(digest) == f"{algorithm}:{hashlib.new(algorithm, b'data').hexdigest()}"
    assert Digest.parse(str(digest)) == digest
    assert new_hash(algorithm).name == algorithm


def test_matches_the_very_bytes_only() -> None:
    digest = Digest.of(b"data", "sha512")
    assert digest.matches(b"data")
    assert not digest.matches(b"data ")
    assert not Digest("sha256", digest.hex[:64]).matches(b"data")


def test_short_is_what_listings_show() -> None:
    assert Digest.parse("sha256:0123456789abcdef" + "0" * 48).short == "0123456789ab"


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":",
        A,
        f":{A}",
        f"sha256{A}",
        "sha256:",
        f"sha256:{A[1:]}",
        f"sha256:{A}a",
        f"sha512:{A}",
        f"sha256:{A}{A}",
        f"sha256:{A.upper()}",
        f"SHA256:{A}",
        f"sha256:{A[1:]}g",
        f"sha256:{A}\n",
        f"sha256:{A[1:]}\n",
        f" sha256:{A}",
        f"sha256: {A[1:]}",
        f"sha256::{A[1:]}",
        f"md5:{A[:32]}",
        f"sha384:{A}{A[:32]}",
        f"sha256+b64:{A}",
        "sha256:" + "../" * 21 + "x",
        "sha256:" + "/" * 64,
        "sha256:" + "٣" * 64,
        "sha256:" + "\0" * 64,
    ],
)
def test_what_is_no_digest(text: str) -> None:
    """An error of the store, and a ValueError for whoever parses."""
    with pytest.raises(InvalidDigest) as caught:
        Digest.parse(text)
    assert isinstance(caught.value, StoreError)
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize("text", [f"blake3:{A}", f"sha384:{A}{A[:32]}", "md5:" + A[:32], "multihash+base58:QmRZxt2b1"])
def test_an_algorithm_that_is_not_registered(text: str) -> None:
    """It may well be a digest; the error says what is supported."""
    with pytest.raises(InvalidDigest, match=r"algorithms are sha256 and sha512"):
        Digest.parse(text)


def test_the_error_does_not_repeat_a_megabyte() -> None:
    """It is shown to a user, and the text may come from a hostile registry."""
    with pytest.raises(InvalidDigest) as caught:
        Digest.parse("sha256:" + "x" * 1_000_000)
    assert len(str(caught.value)) < 500
