"""Image references as Docker parses them: `alpine`, `ghcr.io/a/b:1`, `host:5000/c@sha256:…`, tag and digest both.

The grammar is distribution's `reference` package; the defaults (docker.io, library/, :latest) are Docker's.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from pullpipe.errors import InvalidReference
from store.digest import Digest
from store.errors import InvalidDigest

DEFAULT_REGISTRY = "docker.io"
_HUB_ALIASES = ("index.docker.io", "registry-1.docker.io")  # how its API is called, and was

_COMPONENT = r"[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*"
REPOSITORY = re.compile(rf"{_COMPONENT}(?:/{_COMPONENT})*")
TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_REGISTRY = re.compile(rf"(?:{_LABEL}(?:\.{_LABEL})*|\[([0-9A-Fa-f:.]+)\])(?::([0-9]{{1,5}}))?")
_IMAGE_ID = re.compile(r"[0-9a-f]{64}")
_NAME_LIMIT = 255  # of the whole name, registry included


class Reference(NamedTuple):
    """An image's name in full; `tag` is None only when there is a digest. Without a repository, a whole registry."""

    registry: str  # host, or host:port
    repository: str
    tag: str | None
    digest: Digest | None

    @classmethod
    def parse(cls, text: str) -> Reference:
        """Raises `InvalidReference`."""
        scheme, is_url, rest = text.partition("://")
        if is_url:  # as skopeo names images, or a browser the pages that tell of them
            raise InvalidReference(f"invalid image reference {text!r}: leave {scheme}:// out, as in {rest!r}")
        name, _, digest_text = text.partition("@")
        try:
            digest = Digest.parse(digest_text) if "@" in text else None
        except InvalidDigest as error:
            raise InvalidReference(f"invalid image reference {text!r}: {error}") from error
        tag = None
        if ":" in name.rpartition("/")[2]:
            name, _, tag = name.rpartition(":")
            if not TAG.fullmatch(tag):
                raise InvalidReference(f"invalid image reference {text!r}: {tag!r} is no valid tag")
        registry, repository = _split_registry(name)
        if not _is_host(registry):
            raise InvalidReference(f"invalid image reference {text!r}: {registry!r} is no valid host")
        if not REPOSITORY.fullmatch(repository):
            hint = "; names are lower case" if REPOSITORY.fullmatch(repository.lower()) else ""
            raise InvalidReference(f"invalid image reference {text!r}: {repository!r} is no valid name{hint}")
        if _IMAGE_ID.fullmatch(text):
            raise InvalidReference(f"invalid image reference {text!r}: 64 hex digits are an image's id, not a name")
        if len(registry) + 1 + len(repository) > _NAME_LIMIT:
            raise InvalidReference(f"invalid image reference: the name is longer than {_NAME_LIMIT} characters")
        return cls(registry, repository, tag or (None if digest else "latest"), digest)

    @property
    def name(self) -> str:
        """Registry and repository."""
        return f"{self.registry}/{self.repository}" if self.repository else self.registry

    @property
    def wanted(self) -> str:
        """What to ask the registry for: the digest if there is one, else the tag."""
        return str(self.digest or self.tag)

    def __str__(self) -> str:
        """The whole reference, as image records hold it."""
        tag = f":{self.tag}" if self.tag else ""
        digest = f"@{self.digest}" if self.digest else ""
        return f"{self.name}{tag}{digest}"


def _is_host(text: str) -> bool:
    """Whether a name, or an address in brackets, with or without a port, can be connected to."""
    parts = _REGISTRY.fullmatch(text)
    if parts is None or not 0 < int(parts[2] or 1) < 1 << 16:
        return False
    if parts[1] is None:
        return True
    from socket import AF_INET6, inet_pton  # takes 6 ms

    try:
        inet_pton(AF_INET6, parts[1])
    except OSError:
        return False
    return True


def _split_registry(name: str) -> tuple[str, str]:
    """Docker's rule: the part before the first slash is a host if it looks like one, else all is a name."""
    first, slash, rest = name.partition("/")
    if not slash or not ("." in first or ":" in first or first == "localhost" or first != first.lower()):
        registry, repository = DEFAULT_REGISTRY, name
    else:
        registry, repository = first, rest
    if registry in _HUB_ALIASES:
        registry = DEFAULT_REGISTRY
    if registry == DEFAULT_REGISTRY and "/" not in repository:
        repository = f"library/{repository}"
    return registry, repository
