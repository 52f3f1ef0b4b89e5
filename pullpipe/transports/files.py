"""The files of an image on disk: a directory, or a tar archive of one, read without unpacking it first."""

from __future__ import annotations

import os
import posixpath
from collections.abc import AsyncGenerator
from typing import NamedTuple, Protocol

import aiofiles

from pullpipe.errors import BadArgument, InvalidDocument, LayerError
from pullpipe.oci import DOCUMENT_LIMIT
from pullpipe.pipe import tarstream
from pullpipe.pipe.tarstream import Entry, TarStream

_PIECE = 1 << 20  # bytes: each read costs a hop to a thread
_LINKS_LIMIT = 8
_HEADERS = 1 << 16  # bytes of an archive at a time
_HEADERS_LIMIT = 64 << 20  # bytes of its headers and names, of which the names stay in memory


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
        try:
            path = os.path.realpath(os.path.join(self._path, name))
        except ValueError:  # no file can be called so
            return None
        if os.path.commonpath([path, self._path]) != self._path or not os.path.isfile(path):
            return None
        return Extent(path, 0, os.path.getsize(path))


class Archive:
    """The members of an uncompressed tar archive, by one pass over its headers. Raises `BadArgument`.

    `name` is what to call it in messages.
    """

    def __init__(self, path: str, name: str = "") -> None:
        self._path = path
        self._members: dict[str, Extent | str | None] = {}  # str: what a link leads to; None: neither file nor link
        size = 0
        try:
            with open(path, "rb", 0) as file:
                end = file.seek(0, os.SEEK_END)
                file.seek(0)

                def pass_over(count: int) -> int:
                    at = file.tell()
                    return file.seek(min(at + count, end)) - at

                for entry in TarStream(lambda: file.read(_HEADERS), pass_over):
                    size += len(entry.name) + len(entry.linkname) + tarstream.BLOCK
                    if size > _HEADERS_LIMIT:
                        raise LayerError(f"the names in it come to more than {_HEADERS_LIMIT} bytes")
                    if entry.sparse:
                        member = os.fsdecode(entry.name)
                        raise BadArgument(f"{name or path} leaves out holes of {member!r}; make it without --sparse")
                    self._add(entry)
        except LayerError as error:
            reason = str(error).replace("the layer's archive", "the archive")
            raise BadArgument(f"{name or path} is not a tar archive, or damaged: {reason}") from error
        if not self._members:
            raise BadArgument(f"{name or path} is not a tar archive, or damaged: there is nothing in it")

    def _add(self, entry: Entry) -> None:
        """Of two members of one name, the later one counts."""
        name = posixpath.normpath(os.fsdecode(entry.name))
        target = os.fsdecode(entry.linkname)
        if entry.kind == tarstream.REGULAR:
            self._members[name] = Extent(self._path, entry.offset + tarstream.BLOCK, entry.size)
        elif entry.kind == tarstream.HARDLINK:
            self._members[name] = posixpath.normpath(target)
        elif entry.kind == tarstream.SYMLINK:
            self._members[name] = posixpath.normpath(posixpath.join(posixpath.dirname(name), target))
        else:
            self._members[name] = None

    def find(self, name: str) -> Extent | None:
        name = posixpath.normpath(name)
        for _ in range(_LINKS_LIMIT):
            # `docker save` writes a layer that occurs twice as a link to the first one.
            member = self._members.get(name)
            if not isinstance(member, str):
                return member
            name = member
        return None
