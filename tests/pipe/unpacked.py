"""One layer's way into a directory, by the worker process that a pull uses, and what became of it."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import os
import tempfile
from base64 import b64decode
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pullpipe.errors import LayerError
from pullpipe.pipe.tarstream import TarStream
from pullpipe.pipe.unpack import Worker, channel
from pullpipe.pipe.whiteouts import OverlayTree, set_trusted
from pullpipe.pipe.worker import Job, Result
from tests.pipe.blocks import pieces
from tests.support.images import Entry, Layer
from tests.support.tree import Snapshot, difference, snapshot

VICTIM = b"precious"


@dataclass(frozen=True)
class Unpacked:
    """A layer's directory."""

    root: Path
    tree: Snapshot
    result: Result

    def opaque(self) -> set[bytes]:
        """The directories that hide what the layers below have in them, but for the root."""
        return {os.fsencode(path) for path, name, _ in self.result.trusted if name == "trusted.overlay.opaque"}

    def whiteouts(self) -> set[bytes]:
        """The 0:0 character devices."""
        return {path for path, node in self.tree.items() if node.device == (0, 0)}

    def names(self) -> set[bytes]:
        """All paths but the root's and the whiteouts'."""
        return self.tree.keys() - {b"."} - self.whiteouts()

    def content(self, path: str) -> bytes:
        """A file's."""
        return (self.root / path).read_bytes()


def tar(*entries: Entry | bytes) -> bytes:
    """A layer's archive: entries, and blocks made by hand."""
    parts = [entry if isinstance(entry, bytes) else Layer([entry]).tar[: -_end(entry)] for entry in entries]
    return b"".join(parts) + bytes(1024)


def _end(entry: Entry) -> int:
    """How many bytes of zeros tarfile adds at the end: at least two blocks, up to a whole record."""
    data = Layer([entry]).tar
    used = len(data.rstrip(b"\0"))
    return len(data) - (used + -used % 512)


class Jail:
    """A directory to unpack into, with neighbours that nothing may touch."""

    def __init__(self, tmp_path: Path, worker: Worker) -> None:
        self.top = tmp_path
        self.root = self.top / "root"
        self.victim = self.top / "victim"
        self._worker = worker
        for name in ("root", "root-evil", "victim"):
            (self.top / name).mkdir(parents=True)
        (self.victim / "file").write_bytes(VICTIM)
        (self.top / "root-evil" / "file").write_bytes(VICTIM)

    def another(self) -> Jail:
        """One beside this one."""
        return Jail(self.top.with_name("another"), self._worker)

    def unpack(self, *entries: Entry | bytes) -> Unpacked:
        """The layer with these entries."""
        return self.unpack_blob(gzip.compress(tar(*entries), 1, mtime=0), tar(*entries))

    def unpack_blob(self, blob: bytes, archive: bytes) -> Unpacked:
        """The layer of this blob, whose digests are checked."""
        with self._untouched():
            result = asyncio.run(self._work(blob))
            set_trusted(str(self.root), ((path, name, b64decode(value)) for path, name, value in result.trusted))
        if result.unresolved:  # as when the lowest layer of an image is settled
            raise LayerError(result.unresolved[0])
        assert result.blob == hashlib.sha256(blob).hexdigest()
        assert result.diff == hashlib.sha256(archive).hexdigest()
        return Unpacked(self.root, snapshot(self.root), result)

    def fail(self, *entries: Entry | bytes) -> str:
        """The message of the `LayerError` that unpacking these gives."""
        try:
            self.unpack(*entries)
        except LayerError as error:
            return str(error)
        raise AssertionError("it was unpacked")

    def unpack_without_walls(self, *entries: Entry | bytes) -> Unpacked:
        """The same without a worker and so without its chroot: nothing but the tree's own care keeps it inside."""
        root = os.open(self.root, os.O_RDONLY | os.O_DIRECTORY)
        before = os.open(".", os.O_RDONLY | os.O_DIRECTORY)
        mask = os.umask(0)
        try:
            with self._untouched():
                tree = OverlayTree(root)
                stream = TarStream(pieces(tar(*entries), 4096))
                for entry in stream:
                    tree.apply(entry, stream)
                tree.finish()
                if tree.unresolved:
                    raise LayerError(tree.unresolved[0])
        finally:
            os.umask(mask)
            os.fchdir(before)
            os.close(before)
            os.close(root)
        trusted = [(os.fsdecode(b"/".join(path)), os.fsdecode(name), "") for path, name, _ in tree.trusted]
        seen = {"trusted": trusted, "warnings": tree.warnings}
        nothing: dict[str, Any] = dict.fromkeys(Result._fields)
        return Unpacked(self.root, snapshot(self.root), Result(**{**nothing, **seen}))

    @contextmanager
    def _untouched(self) -> Iterator[None]:
        before = self._outside()
        try:
            yield
        finally:
            after = self._outside()
            assert before.keys() == after.keys()
            assert [difference(before[name], after[name]) for name in before if before[name] != after[name]] == []

    def _outside(self) -> dict[str, Snapshot]:
        """All around the root; the root itself is not looked at, for that would leave a trace in its access times."""
        return {name: snapshot(self.top / name) if name != "root" else {} for name in sorted(os.listdir(self.top))}

    async def _work(self, blob: bytes) -> Result:
        with tempfile.TemporaryFile() as file:
            file.write(blob)
            file.flush()
            async with channel() as words:
                await words.available(len(blob))
                job = Job("overlay", len(blob), "sha256", "sha256")
                return await self._worker.unpack(job, file.fileno(), str(self.root), words, _nothing)


def _nothing(_: int) -> None:
    pass


Way = Callable[..., Unpacked]
