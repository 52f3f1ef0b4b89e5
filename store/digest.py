"""Digests: what everything in the store is named by (OCI image-spec, descriptor.md, "Digests").

A `Digest` that exists is valid, so it is safe as part of a path: only registered algorithms, only lower-case
hexadecimal, only the right length.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, NamedTuple

from store.errors import InvalidDigest

if TYPE_CHECKING:
    from hashlib import _Hash

_HEX_LENGTH = {"sha256": 64, "sha512": 128}
_HEX_DIGITS = frozenset("0123456789abcdef")
_SMALL = 64 << 10  # bytes, which Python's own SHA-256 has hashed before OpenSSL is loaded


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
        hasher = _own_sha256() if algorithm == "sha256" and len(data) <= _SMALL else new_hash(algorithm)
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
    import hashlib  # here, because commands that hash nothing large should not load OpenSSL

    return hashlib.new(algorithm, usedforsecurity=True)


def _own_sha256() -> _Hash:
    """What hashlib has without OpenSSL, which takes 2 ms to load; CPython has called it so since 3.12, and before."""
    if sys.version_info >= (3, 12):
        from _sha2 import sha256
    else:
        from _sha256 import sha256
    return sha256()  # type: ignore[no-any-return]
