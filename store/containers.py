"""Containers: the writable part of a stack, and what it was made from.

containers/<id>/config.json   the record (`Container`)
containers/<id>/upper, work   overlayfs's upper and work directories
containers/<id>/rootfs        an empty directory, the mount point inside the container's own mount namespace
containers/<id>/state.json    the runner's own notes, there from the beginning to the end
containers/<id>/lock          held by the runner for as long as the container runs; then, its exit code
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

from store import durable, locks
from store.digest import Digest
from store.errors import Corrupt, InUse, NotInStore
from store.listing import entries
from store.locks import Lock, exists
from store.removal import Doomed, each_of, remove_tree, removing

_ID = re.compile("[0-9a-f]{64}")
_SHOWN = re.compile("[0-9a-f]{12,64}")  # what listings show of an id, or more: no record needs to be read to find it


class Container(NamedTuple):
    """What `config.json` holds."""

    id: str  # 64 hex digits, as Docker's
    name: str  # unique in the store
    image: str  # the image's reference in full
    manifest: Digest  # the image's manifest
    stack: Digest  # the chainID of its settled stack
    command: tuple[str, ...]
    created: float  # seconds since 1970
    target: str = ""  # of `pullpipe mount`: the directory where the stack is shown
    exit_code: int | None = None  # None until the command has ended
    started: float = 0.0  # seconds since 1970; 0 where that is not known
    finished: float = 0.0
    out_of_memory: bool = False  # whether the kernel has killed something in it for that
    settings: str = "{}"  # JSON of the runner's

    @property
    def short_id(self) -> str:
        """The first 12 digits, as listings show them."""
        return self.id[:12]

    def to_json(self) -> bytes:
        """The document on disk."""
        fields = self._asdict()
        fields |= {"manifest": str(self.manifest), "stack": str(self.stack), "settings": json.loads(self.settings)}
        return json.dumps(fields, indent=1).encode()

    @classmethod
    def from_json(cls, data: bytes) -> Container:
        """Raises `ValueError`, `KeyError` or `TypeError` when it is not such a document."""
        fields: dict[str, Any] = json.loads(data)
        fields["manifest"] = Digest.parse(fields["manifest"])
        fields["stack"] = Digest.parse(fields["stack"])
        fields["command"] = tuple(fields["command"])
        fields["settings"] = json.dumps(fields.get("settings", {}))
        return cls(**fields)


class Containers:
    """The containers of the store at `root`."""

    def __init__(self, root: str, *, durable: bool) -> None:
        self._directory = os.path.join(root, "containers")
        self._staging = os.path.join(root, "staging")
        self._lock = os.path.join(root, "containers.lock")
        self._durable = durable

    def __iter__(self) -> Iterator[Container]:
        """Oldest first. Raises `Corrupt` when a record is damaged."""
        found, damaged = self.salvaged()
        for error in damaged.values():
            raise error
        return iter(found)

    def salvaged(self) -> tuple[list[Container], dict[str, Corrupt]]:
        """Those whose record can be read, oldest first; and the ids of the others."""
        found: list[Container] = []
        damaged: dict[str, Corrupt] = {}
        for container_id in self._ids():
            try:
                found.append(self.get(container_id))
            except NotInStore:
                continue  # being made or removed at this moment, or left half made by a crash: no container
            except Corrupt as error:
                damaged[container_id] = error
        return sorted(found, key=lambda container: container.created), damaged

    def get(self, container_id: str) -> Container:
        """The container with this id. Raises `NotInStore` or `Corrupt`."""
        path = os.path.join(self._directory, container_id, "config.json")
        try:
            with open(path, "rb") as file:
                return Container.from_json(file.read())
        except FileNotFoundError as error:
            raise NotInStore(f"no container {container_id}; `pullpipe ps` lists them") from error
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise Corrupt(f"{path} is damaged; `pullpipe rm {container_id}` removes the container") from error

    def find(self, wanted: str) -> Container:
        """The container with this name, or whose id starts so.

        Raises `NotInStore`; and `Corrupt` where the record is damaged, or that of another, which may be meant.
        """
        if _SHOWN.fullmatch(wanted):
            ids = [container_id for container_id in self._ids() if container_id.startswith(wanted)]
            if len(ids) == 1:
                return self.get(ids[0])
        found, damaged = self.salvaged()
        matches = [c for c in found if wanted and (c.name == wanted or c.id.startswith(wanted))]
        exact = [c for c in matches if wanted in (c.name, c.id)]
        if not exact:
            for error in damaged.values():
                raise error
        if len(exact or matches) != 1:
            what = "several containers match" if matches else "no container"
            raise NotInStore(f"{what} {wanted!r}; `pullpipe ps` lists them")
        return (exact or matches)[0]

    def create(
        self,
        *,
        image: str,
        manifest: Digest,
        stack: Digest,
        command: tuple[str, ...] = (),
        name: str = "",
        target: str = "",
        settings: str = "{}",
    ) -> tuple[Container, Lock]:
        """A new container with empty directories, and its lock, which the caller holds from the beginning: nobody takes
        it for one that has ended. Raises `InUse` when the name is taken."""
        container_id = os.urandom(32).hex()
        name = name or f"c-{container_id[:8]}"
        container = Container(
            container_id, name, image, manifest, stack, command, time.time(), target, settings=settings
        )
        with locks.held(self._lock):
            self._check_name(name)
            return container, self._make(container)

    def rename(self, container: Container, name: str) -> None:
        """Calls it so from here on. Raises `InUse` when the name is taken."""
        with locks.held(self._lock):
            self._check_name(name)
            self._amend(container, name=name)

    def amend(self, container: Container, **changes: Any) -> None:
        """Changes fields of the record, and leaves the others as they are by now. Raises `NotInStore`."""
        with locks.held(self._lock):
            self._amend(container, **changes)

    def _amend(self, container: Container, **changes: Any) -> None:
        self.update(self.get(container.id)._replace(**changes))

    def _check_name(self, name: str) -> None:
        if any(name == other.name for other in self):
            raise InUse(f"the container name {name!r} is taken; choose another, or `pullpipe rm {name}` first")

    def _make(self, container: Container) -> Lock:
        lock = Lock(self._lock_path(container.id))
        try:
            for directory in ("", "upper", "work", "rootfs"):
                os.mkdir(os.path.join(self.path(container), directory), 0o700)
            os.chmod(os.path.join(self.path(container), "upper"), 0o755)  # it stands for the root
            lock.acquire()
            self.update(container)
        except BaseException:
            remove_tree(self.path(container))  # in place: nobody takes it for a container, or sweeps it, meanwhile
            lock.release()
            raise
        return lock

    def path(self, container: Container) -> str:
        """The container's directory."""
        return os.path.join(self._directory, container.id)

    def update(self, container: Container) -> None:
        """Writes the record anew."""
        durable.write_file(
            os.path.join(self.path(container), "config.json"), container.to_json(), durable=self._durable
        )

    def lock(self, container: Container) -> Lock | None:
        """The lock of whoever runs it, if nobody does. Raises `NotInStore` when it has just been removed."""
        lock = Lock(self._lock_path(container.id))
        try:
            if not lock.try_acquire():
                if lock.is_held():
                    return None
                lock.acquire()  # somebody has only asked
            return lock
        except FileNotFoundError as error:
            raise NotInStore(f"no container {container.name!r}; `pullpipe ps` lists them") from error

    def _lock_path(self, container_id: str) -> str:
        return os.path.join(self._directory, container_id, "lock")

    def is_running(self, container: Container) -> bool:
        """Whether a runner holds its lock now."""
        return Lock(self._lock_path(container.id)).is_held()

    def wait(self, container: Container) -> bytes:
        """Waits until no runner holds its lock, and returns the note that the last one left in it, even if the
        container is removed by then. Raises `NotInStore` when it was removed before."""
        try:
            return Lock(self._lock_path(container.id)).wait_for_note()
        except FileNotFoundError as error:
            raise NotInStore(f"no container {container.name!r}; `pullpipe ps` lists them") from error

    def begun(self) -> list[str]:
        """The ids of those that run, and of those whose runner was killed before it could clean up."""
        try:
            ids = os.listdir(self._directory)
        except FileNotFoundError:
            return []  # somebody removed the directory; `verify` tells, and `repair` makes it anew
        return [one for one in ids if exists(os.path.join(self._directory, one, "state.json"))]

    def discard(self, container_id: str) -> bool:
        """Removes a container whose record is damaged, by its whole id; says whether there was one that did not run."""
        if not container_id.isalnum():
            return False
        lock = Lock(self._lock_path(container_id))
        try:
            if not lock.try_acquire():
                return False
        except (FileNotFoundError, NotADirectoryError):  # no such container, or it has just been removed
            return False
        self._remove(container_id, lock)
        return True

    def clean(self) -> None:
        """Removes what a process left that was killed while it made or removed a container.

        Goes on past what cannot be removed, as `trees.clean`.
        """
        if self._half_made():
            with locks.held(self._lock):
                each_of(partial(self.discard, container_id) for container_id in self._half_made())

    def leftovers(self) -> list[str]:
        """The paths of what `clean` would remove."""
        if not self._half_made():
            return []
        with locks.held(self._lock):  # nobody is making one
            return [os.path.join(self._directory, one) for one in self._half_made()]

    def strays(self) -> list[str]:
        """The paths of what is no container."""
        return [entry.path for entry in entries(self._directory) if not _is_containers(entry)]

    def _ids(self) -> list[str]:
        return [entry.name for entry in entries(self._directory) if _is_containers(entry)]

    def _half_made(self) -> list[str]:
        return [one for one in self._ids() if not exists(os.path.join(self._directory, one, "config.json"))]

    def remove(self, container: Container, held: Lock | None = None) -> None:
        """Removes it, whatever is in it; `held` is its lock, if the caller has it. Raises `InUse` when somebody else
        has, `NotInStore` when it is gone."""
        lock = held or self.lock(container)
        if lock is None:
            raise InUse(f"container {container.name} is running; `pullpipe stop {container.name}` ends it")
        self._remove(container.id, lock)

    def _remove(self, container_id: str, lock: Lock) -> None:
        """In one step for whoever looks: what goes file by file is half made to others, who would sweep it too."""
        hidden = os.path.join(self._staging, f"container-{container_id}")
        try:
            with removing() as doomed:
                doomed.append(Doomed(os.path.join(self._directory, container_id), hidden))
        finally:
            lock.release()


def _is_containers(entry: os.DirEntry[str]) -> bool:
    return bool(_ID.fullmatch(entry.name)) and entry.is_dir(follow_symlinks=False)
