"""Blobs on their way in: a file in the store's `ingest/` each, hashed while it grows.

An upload lives in this process only. What is left of it when the process is killed is a file that `Store.clean`
removes.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import threading
from http import HTTPStatus
from time import monotonic

from aiohttp import StreamReader

from pullpipe.registry.server.refusals import Refused
from store import Digest, Ingest, Store
from store.digest import new_hash

_WRITE = 1 << 20  # bytes: each write costs a hop to a thread
_STALLED = 60.0  # seconds without a byte after which a client is told off
_FORGOTTEN = 3600.0  # seconds without a request after which an upload may go
_LIMIT = 256  # uploads at a time; each is an open file


class Upload:
    """One blob on its way in. Its methods may be called from several requests, of which one is served at a time."""

    def __init__(self, ingest: Ingest) -> None:
        self.size = 0  # bytes that have arrived
        self.busy = asyncio.Lock()  # held by the request that brings bytes, or ends the upload
        self.touched = monotonic()
        self._ingest = ingest
        self._hash = new_hash("sha256")
        # Threads go on when the task that waits for them is cancelled, so the file is closed between their writes only.
        self._file = threading.Lock()
        self._open = True

    async def receive(self, content: StreamReader) -> int:
        """Appends the body of a request; returns its bytes. What came before the connection broke stays.

        Raises `Refused` when the client stalls, `OSError` when a write fails.
        """
        before, pieces, waiting = self.size, list[bytes](), 0
        try:
            while piece := await read(content):
                pieces.append(piece)
                waiting += len(piece)
                if waiting >= _WRITE:
                    self.touched = monotonic()
                    await asyncio.to_thread(self._append, b"".join(pieces))
                    pieces, waiting = [], 0
        finally:
            await asyncio.to_thread(self._append, b"".join(pieces))
            self.touched = monotonic()
        return self.size - before

    def _append(self, data: bytes) -> None:
        with self._file:
            if not self._open:
                raise _unknown()
            left = memoryview(data)
            while left:
                left = left[os.write(self._ingest.fileno(), left) :]
            self._hash.update(data)
            self.size += len(data)

    def commit(self, store: Store, digest: Digest) -> None:
        """Makes it a blob of the store, leased until a manifest needs it. Blocks.

        Raises `Refused` when it does not have this digest.
        """
        with self._file:
            if not self._open:
                raise _unknown()
            found = self._digest(digest.algorithm)
            if found != digest:
                raise Refused(
                    HTTPStatus.BAD_REQUEST, "DIGEST_INVALID", f"the {self.size} bytes that came have the digest {found}"
                )
            store.blobs.name(self._ingest, digest)
            store.flush()
            with store.shared():
                store.publish([self._ingest], [], flushed=True)
                store.leases.grant(digest)

    def _digest(self, algorithm: str) -> Digest:
        digest_hash = self._hash
        if algorithm != "sha256":  # which one it will be is told last
            digest_hash = new_hash(algorithm)
            at = 0
            while data := os.pread(self._ingest.fileno(), _WRITE, at):
                digest_hash.update(data)
                at += len(data)
        return Digest(algorithm, digest_hash.hexdigest())

    def close(self) -> None:
        """Forgets it; nothing is left of it but the blob, if it became one. Blocks until a write has ended."""
        with self._file:
            if self._open:
                self._open = False
                self._ingest.close()


class Uploads:
    """The uploads of all clients, by their repository and a name that cannot be guessed."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._all: dict[tuple[str, str], Upload] = {}

    async def start(self, repository: str) -> tuple[str, Upload]:
        """A new one, and its name. Raises `Refused` when there are too many."""
        for key, upload in list(self._all.items()):
            if monotonic() - upload.touched > _FORGOTTEN and not upload.busy.locked():
                await self.end(*key)
        if len(self._all) >= _LIMIT:
            raise Refused(HTTPStatus.TOO_MANY_REQUESTS, "TOOMANYREQUESTS", f"{_LIMIT} uploads are under way; try again")
        name = secrets.token_hex(16)
        upload = Upload(await asyncio.to_thread(self._store.blobs.incoming))
        self._all[repository, name] = upload
        return name, upload

    def find(self, repository: str, name: str) -> Upload:
        """Raises `Refused`."""
        try:
            return self._all[repository, name]
        except KeyError:
            raise _unknown() from None

    async def end(self, repository: str, name: str) -> None:
        """Forgets it. Nothing happens when somebody else has ended it."""
        if upload := self._all.pop((repository, name), None):
            await asyncio.to_thread(upload.close)

    async def close(self) -> None:
        """Forgets them all."""
        for key in list(self._all):
            await self.end(*key)


async def read(content: StreamReader) -> bytes:
    """What has come of a request's body; empty at its end. Raises `Refused` when nothing comes for a minute."""
    try:
        async with asyncio.timeout(_STALLED):
            return await content.readany()
    except TimeoutError:
        message = f"nothing has come for {_STALLED:.0f} seconds; go on from where this ended"
        raise Refused(HTTPStatus.REQUEST_TIMEOUT, "BLOB_UPLOAD_INVALID", message) from None


def _unknown() -> Refused:
    return Refused(HTTPStatus.NOT_FOUND, "BLOB_UPLOAD_UNKNOWN", "no such upload: it has ended, or was left for an hour")
