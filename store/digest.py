"""Digests: what everything in the store is named by (OCI image-spec, descriptor.md, "Digests").

A `Digest` that exists is valid, so it is safe as part of a path: only registered algorithms, only lower-case
hexadecimal, only the right length.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from store.errors import InvalidDigest

if TYPE_CHECKING:
    from hashlib import _Hash

_HEX_LENGTH = {"sha256": 64, "sha512": 128}
_HEX_DIGITS = frozenset("0123456789abcdef")


class Digest(NamedTuple):
    """`algorithm:hex`, for example `sha256:e3b0…`."""

    algorithm: str
    hex: str

    @classmethod
    def parse(cls, text: str) -> Digest:
        """Raises `InvalidDigest` for anything but sha256 or sha512 with all its lower-case hex digits."""
        algorithm, _, digits = text.partition(":")
        if digits and algorithm not in _HEX_LENGTH:
            raise InvalidDigest(f"invalid digest {text[:200]!r}: the algorithms are sha256 and sha512")
        if len(digits) != _HEX_LENGTH.get(algorithm, -1) or not _HEX_DIGITS.issuperset(digits):
            raise InvalidDigest(f"invalid digest {text[:200]!r}: expected sha256:<64 hex> or sha512:<128 hex>")
        return cls(algorithm, digits)

    @classmethod
    def of(cls, data: bytes, algorithm: str = "sha256") -> Digest:
        """The digest of `data`."""
        hasher = new_hash(algorithm)
        hasher.update(data)
        return cls(algorithm, hasher.hexdigest())

    def matches(self, data: bytes) -> bool:
        """Whether `data` has this digest."""
        return Digest.of(data, self.algorithm) == self

    @property
    def short(self) -> str:
        """The first 12 hex digits, as listings show them."""
        return self.hex[:12]

    def __str__(self) -> str:
        return f"{self.algorithm}:{self.hex}"


def new_hash(algorithm: str) -> _Hash:
    """A fresh hash object; its `update` releases the GIL for buffers above 2 KiB."""
    import hashlib  # here, because commands that hash nothing should not load OpenSSL

    return hashlib.new(algorithm, usedforsecurity=True)
