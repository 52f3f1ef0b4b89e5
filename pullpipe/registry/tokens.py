"""Tokens that registries gave, kept on disk for the next run until they expire."""

from __future__ import annotations


class TokenCache:
    """The tokens in the file `path`, which only its owner can read; with an empty path, none is kept."""

    def __init__(self, path: str = "") -> None:
        self._path = path

    def get(self, registry: str, repository: str, *, authenticated: bool) -> str | None:
        """A token for pulling from the repository that is still good for a while, or None."""
        return None

    def put(self, registry: str, repository: str, token: str, seconds: float, *, authenticated: bool) -> None:
        """Keeps a token that expires in so many seconds. What cannot be written is not kept."""

    def forget(self, registry: str, repository: str = "") -> None:
        """Forgets the registry's tokens, or those of one repository."""
