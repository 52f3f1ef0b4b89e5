"""The files of an image on disk: a directory, or a tar archive of one, read without unpacking it first."""

from __future__ import annotations

import os
import posixpath
import tarfile
from collections.abc import AsyncGenerator
from typing import NamedTuple, Protocol

import aiofiles

from pullpipe.errors import InvalidDocument, TransferError
from pullpipe.oci import DOCUMENT_LIMIT

_PIECE = 1 << 20  # bytes: each read costs a hop to a thread
_LINKS_LIMIT = 8


class Extent(NamedTuple):
    """Where a file's bytes lie."""

    path: str
    offset: int
    size: int

    async def pieces(self, start: int = 0) -> AsyncGenerator[bytes, None]:
        """The bytes from `start` on. Raises `OSError`."""
        left = self.size - start
        async with aiofiles.open(self.path, "rb", 0) as file:
            await file.seek(self.offset + start)
            while left > 0 and (piece := await file.read(min(left, _PIECE))):
                left -= len(piece)
                yield piece

    def document(self) -> bytes:
        """All of a small file. Raises `InvalidDocument` when it is not small."""
        if self.size > DOCUMENT_LIMIT:
            raise InvalidDocument(f"{self.path}: a document of {self.size} bytes; {DOCUMENT_LIMIT} is the limit")
        with open(self.path, "rb") as file:
            file.seek(self.offset)
            return file.read(self.size)


class Files(Protocol):
    """Files by their names, which are relative and use slashes."""

    def find(self, name: str) -> Extent | None:
        """The regular file of this name."""


class Directory:
    """The files below a directory; names that lead out of it do not exist."""

    def __init__(self, path: str) -> None:
        self._path = os.path.realpath(path)

    def find(self, name: str) -> Extent | None:
        path = os.path.realpath(os.path.join(self._path, name))
        if os.path.commonpath([path, self._path]) != self._path or not os.path.isfile(path):
            return None
        return Extent(path, 0, os.path.getsize(path))


class Archive:
    """The members of an uncompressed tar archive, by one pass over its headers. Raises `TransferError`.

    `name` is what to call it in messages.
    """

    def __init__(self, path: str, name: str = "") -> None:
        self._path = path
        try:
            with tarfile.open(path, "r:") as archive:
                self._members = {posixpath.normpath(member.name): member for member in archive}
        except tarfile.TarError as error:
            raise TransferError(f"{name or path} is not a tar archive, or damaged: {error}") from error

    def find(self, name: str) -> Extent | None:
        name = posixpath.normpath(name)
        for _ in range(_LINKS_LIMIT):
            member = self._members.get(name)
            if member is None:
                return None
            if member.isreg():
                return Extent(self._path, member.offset_data, member.size)
            # `docker save` writes a layer that occurs twice as a link to the first one.
            target = member.linkname if member.islnk() else posixpath.join(posixpath.dirname(name), member.linkname)
            name = posixpath.normpath(target)
        return None
