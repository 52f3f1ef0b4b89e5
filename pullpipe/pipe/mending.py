"""What can be done about damage in a store: to fetch a blob again, and to put a tree in the place of another."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, ExitStack
from typing import Any, TypeAlias

from pullpipe import stack
from pullpipe.errors import NotFound, PullpipeError, Unreachable
from pullpipe.pipe.complete import arrive
from pullpipe.progress import Progress
from pullpipe.reference import Reference
from pullpipe.transports import Source
from pullpipe.verify import Key, Survey
from store import Container, Ingest, InUse, NotInStore, Staging, Store

# Where an image came from, by its reference. Raises `PullpipeError`.
Connect: TypeAlias = Callable[[Reference], AbstractAsyncContextManager[Source]]


class Mending:
    """For the store of one survey. An async context manager; closing it ends its connections.

    Without `connect` nothing can be fetched.
    """

    def __init__(self, store: Store, connect: Connect | None, progress: Progress) -> None:
        self._store = store
        self._connect = connect
        self._progress = progress
        self._sources: dict[str, Source] = {}  # by registry and repository
        self._down: dict[str, Unreachable] = {}  # by registry
        self._opened = AsyncExitStack()

    async def __aenter__(self) -> Mending:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._opened.aclose()

    async def replace_blob(self, survey: Survey, key: Key) -> str:
        """Puts the right blob in the place of a wrong one, or where there is none, and removes one that nobody needs.

        Says what it did. Raises `PullpipeError`, `StoreError` or `OSError`.
        """
        if key not in survey.users:
            self._store.blobs.remove(key[1])
            return "it has been removed"
        ingest, source = await self.fetch(survey, key)
        with ingest:
            await asyncio.to_thread(self._store.flush)
            with self._store.shared():
                self._store.publish([ingest], [], flushed=True)
        return f"it has been fetched again from {source}"

    async def fetch(self, survey: Survey, key: Key) -> tuple[Ingest, str]:
        """The blob, proven and not yet published, and where it is from: one of the images that need it knows."""
        digest = key[1]
        blob = survey.blobs[digest]
        places = {reference.name: reference for reference in survey.references(key)}
        failure: PullpipeError = NotFound("no image that was pulled needs it, so nobody is known to have it")
        for name, reference in places.items():
            try:
                source = await self._source(reference)
                if blob is None:
                    document = await source.document(str(digest))
                    return self._store.blobs.document(digest, document.data), name
                return await arrive(source, self._store, blob, self._progress), name
            except Unreachable as error:
                failure = self._down[reference.registry] = error
            except PullpipeError as error:
                failure = error
        raise failure

    async def _source(self, reference: Reference) -> Source:
        if self._connect is None:
            raise NotFound("it has to be fetched, and --no-fetch forbids that")
        if reference.registry in self._down:  # once is enough to wait for it
            raise self._down[reference.registry]
        if reference.name not in self._sources:
            self._sources[reference.name] = await self._opened.enter_async_context(self._connect(reference))
        return self._sources[reference.name]

    async def replace_tree(self, survey: Survey, key: Key, made: Staging[Any]) -> str:
        """Puts what has been made in the place of the tree that is there. Raises `InUse`, `StoreError` or `OSError`."""
        trees = survey.trees[key[0]]
        place = os.path.relpath(trees.files(key[1]), self._store.root)
        await asyncio.to_thread(self._store.flush)
        with self._store.exclusive(), ExitStack() as held:
            for container in self._store.containers:
                if key == ("stack", container.stack) or place in self._store.stacks.info(container.stack).lower:
                    self._hold(container, held)
            self._store.publish([], [made], flushed=True)
        return "it has been made anew"

    def _hold(self, container: Container, held: ExitStack) -> None:
        """Keeps the container from starting. What stands on a tree sees that very tree, which is about to go."""
        try:
            lock = self._store.containers.lock(container)
        except NotInStore:
            return  # it has just been removed
        if lock:
            held.callback(lock.release)
        if stack.is_mounted(container) or lock is None:
            what = f"`pullpipe umount {container.target}`" if container.target else "end its command"
            raise InUse(f"container {container.name} stands on it; {what} and repair again")


def not_mended(why: Exception) -> str:
    """What to say of damage that stays."""
    reason = (why.strerror or str(why)).lower() if isinstance(why, OSError) else str(why)
    return f"not mended: {reason}"
