"""Copies between a container and the host.

What has to do with the container's tree is done by a process of its own that has nothing else: in the container's mount
namespace, or, when it does not run, in one where its stack is mounted, with the container's root for its own. Symlinks
lead it nowhere else, whenever they are put there (CVE-2018-15664); it imports nothing and asks nobody for names
(CVE-2019-14271), is in no namespace in which the container could see it, and may do to files what root may, and nothing
more. Between it and us goes a tar stream.
"""

from __future__ import annotations

import json
import os
import posixpath
import socket
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import IO, Any, NamedTuple, NoReturn, TypeAlias

from pullpipe import linux, rootless, stack
from pullpipe.errors import BadArgument, LayerError, NotRunning, PullpipeError
from pullpipe.pipe.tarstream import TarStream
from pullpipe.runner import capabilities, copies, ending, joining, places, process, sandbox
from pullpipe.runner.command import Identity
from pullpipe.runner.copies import Receiver, Rules
from pullpipe.runner.walls import Rights
from store import Container, InUse, Store, StoreError

_PIECE = 1 << 20  # bytes
_MESSAGE_LIMIT = 64 << 10  # bytes
_CALLED = "t"  # whatever is copied, in the archive between us
_KERNELS = ("proc", "sys", "dev")  # in a root: not files of the container's
_LINKS = 40  # symlinks on the way, as the kernel allows
_RIGHTS = Rights(capabilities.mask("CHOWN", "DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER", "FSETID"))


class What(NamedTuple):
    """What is copied, as the side that has it says."""

    name: str  # the last of its path; empty for a root
    directory: bool
    contents: bool  # of the directory, and not itself


# Of either side.


def _what(path: str, status: os.stat_result) -> What:
    """`path` is as the user has written it."""
    name = posixpath.basename(posixpath.normpath(path))
    contents = path.endswith("/.") or name in ("", ".", "..", "/")
    if path.endswith(("/", "/.")) and not stat.S_ISDIR(status.st_mode):
        raise BadArgument(f"{path} is no directory")
    return What("" if name in (".", "..", "/") else name, stat.S_ISDIR(status.st_mode), contents)


def _target(what: What, path: str, there: os.stat_result | None) -> tuple[str, bytes]:
    """(directory, name there) of what is to be made; `there` is what the path leads to already. Docker's rules."""
    if there is not None and stat.S_ISDIR(there.st_mode):
        return path, b"" if what.directory and what.contents else os.fsencode(what.name)
    if there is not None and what.directory:
        raise BadArgument(f"{path} is a file, and a directory cannot be copied there")
    if not what.directory and path.endswith(("/", "/.")):
        raise BadArgument(f"there is no directory {path}; make it first")
    parent, _, name = path.rstrip("/").rpartition("/")
    return parent or ("/" if path.startswith("/") else "."), os.fsencode(name)


# Ours.


def take_out(store: Store, container: Container, source: str, target: str, *, follow: bool, archive: bool) -> None:
    """Copies a path of the container to one of ours, by Docker's rules. With `archive` owners and all modes are kept;
    without, all becomes ours, and nothing setuid. Raises `BadArgument`, `KernelRefused`, `StoreError`, `OSError`."""
    with _agent(store, container, lambda agent: agent.send(source, _CALLED, follow=follow), "rb") as (told, data):
        what = What(**told())
        directory, name = _target(what, target, os.stat(target) if os.path.exists(target) else None)
        if not os.path.isdir(directory):
            raise BadArgument(f"there is no directory {directory}; make it first")
        rules = Rules() if archive else Rules((os.geteuid(), os.getegid()), 0o777)
        top = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        if archive:
            _know_owners()
        try:
            Receiver(lambda names: copies.enter(top, names), name, rules).receive(TarStream(lambda: data.read(_PIECE)))
        except LayerError:
            told()  # why the archive has ended too early
            raise
        finally:
            os.close(top)
        told()


def show(store: Store, container: Container, source: str, *, follow: bool) -> Iterator[bytes]:
    """A path of the container as a tar archive. Raises as `take_out` does."""
    with _agent(store, container, lambda agent: agent.send(source, "", follow=follow), "rb") as (told, data):
        told()
        while piece := data.read(_PIECE):
            yield piece
        told()


def put_in(store: Store, container: Container, source: str, target: str, *, follow: bool, archive: bool) -> None:
    """Copies a path of ours to one of the container, by Docker's rules. With `archive` owners are kept; without, all
    becomes root's. Raises as `take_out` does."""
    way, name = _split(os.path.realpath(source) if follow or source.endswith("/") else os.path.abspath(source))
    try:
        what = _what(source, os.lstat(os.path.join(way, name)))
        parent = os.open(way, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise BadArgument(f"there is no {source}") from error
    try:
        _give(store, container, copies.pieces(parent, name, _CALLED), what, target, archive)
    finally:
        os.close(parent)


def unpack(store: Store, container: Container, archive: Iterable[bytes], target: str) -> None:
    """Makes what a tar archive has in a directory of the container, with its owners. Raises as `take_out` does."""
    _give(store, container, archive, None, target, archive=True)


def _give(
    store: Store, container: Container, tar: Iterable[bytes], what: What | None, target: str, archive: bool
) -> None:
    with _agent(store, container, lambda agent: agent.receive(what, target, archive), "wb") as (told, data):
        told()  # there is a place for it
        if what is not None and archive:
            _know_owners()
        with suppress(BrokenPipeError):  # why, it tells
            for piece in tar:
                _write(data.fileno(), piece)
        data.close()
        told()


def _know_owners() -> None:
    """Has owners have the same numbers for us as in containers: without root, in a user namespace like theirs."""
    if os.geteuid() != 0:
        rootless.enter()


Told: TypeAlias = Callable[[], dict[str, Any]]


@contextmanager
def _agent(
    store: Store, container: Container, work: Callable[[_Agent], None], mode: str
) -> Iterator[tuple[Told, IO[bytes]]]:
    """Has an agent do the work. Gives what the next thing is that it tells, and our end of a pipe to it or from it."""
    ours, theirs = process.open_channel()
    reading, writing = os.pipe()
    mine, its = (writing, reading) if mode == "wb" else (reading, writing)
    pid = linux.fork_tied()
    if pid == 0:
        os.close(mine)
        _become_agent(store, container, work, theirs, its)
    theirs.close()
    os.close(its)

    def told() -> dict[str, Any]:
        said: dict[str, Any] = json.loads(ours.recv(_MESSAGE_LIMIT) or b'{"why": "the process that copies was killed"}')
        if "why" in said:
            raise BadArgument(said["why"])
        return said

    try:
        with ours, open(mine, mode, 0) as data:
            yield told, data
    finally:
        os.waitpid(pid, 0)


# The agent's.


def _become_agent(
    store: Store, container: Container, work: Callable[[_Agent], None], channel: socket.socket, data: int
) -> NoReturn:
    def tell(said: dict[str, object]) -> None:
        with suppress(OSError):  # nobody hears it
            channel.sendall(json.dumps(said).encode())

    try:
        _enter(store, container, channel.fileno(), data)
        work(_Agent(tell, data))
        os.close(data)
        tell({})
    except OSError as error:
        if not isinstance(error, BrokenPipeError):  # whoever reads has seen enough
            where = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else ""
            reason = (error.strerror or "refused").lower()
            tell({"why": f"{where or 'a file'} in the container cannot be copied: {reason}"})
    except LayerError as error:
        tell({"why": str(error).replace("the layer's archive", "the archive")})
    except (PullpipeError, StoreError) as error:
        tell({"why": str(error)})
    except BaseException as error:
        tell({"why": f"a bug of pullpipe's: {type(error).__name__}: {error}"})
    finally:
        os._exit(0)


def _enter(store: Store, container: Container, *kept: int) -> None:
    """To where the container's tree is our root."""
    process.close_all_but(*kept)
    os.umask(0)
    lock = store.containers.lock(container)
    if lock is None:
        try:
            with ending.first_of(store, container) as first:
                joining.enter_tree(first)
                withheld = first.state.withheld
        except NotRunning as error:
            raise InUse(f"container {container.name} is just ending; try again") from error
    else:  # nobody begins to run it as long as we hold that
        withheld = _mount(store, container)
    sandbox.give_up_rights(Identity(0, 0, (0,), "/"), _RIGHTS, withheld)


def _mount(store: Store, container: Container) -> int:
    if stack.is_mounted(container):
        raise InUse(f"{container.name} is mounted at {container.target}; copy from there")
    if os.geteuid() != 0:
        rootless.enter()
    linux.unshare(linux.CLONE_NEWNS)
    in_chroot = not linux.keep_mounts_here()
    rootfs = os.path.join(store.containers.path(container), "rootfs")
    stack.mount(stack.build(store, container), rootfs, flags=linux.MS_NODEV | linux.MS_NOSUID)
    sandbox.change_root(rootfs, in_chroot=in_chroot)
    return 0


class _Agent:
    """In the container's tree, where every path is resolved by ourselves: no link of /proc is magic."""

    def __init__(self, tell: Callable[[dict[str, object]], None], data: int) -> None:
        self._tell = tell
        self._data = data

    def send(self, path: str, called: str, *, follow: bool) -> None:
        """Tells what is at the path, and writes it; in the archive it is `called` so, or else by its name."""
        wanted = path
        whole = "/" + path.lstrip("/")
        for _ in range(_LINKS):
            parent, name = _split(whole)
            directory = _find(parent, wanted)
            try:
                status = os.lstat(name, dir_fd=directory)
            except FileNotFoundError as error:
                raise BadArgument(f"there is no {wanted} in the container") from error
            if not stat.S_ISLNK(status.st_mode) or not (follow or path.endswith(("/", "/."))):
                break
            whole = posixpath.join(parent, os.readlink(name, dir_fd=directory))
            os.close(directory)
        else:
            raise BadArgument(f"the symlinks at {wanted} lead in circles")
        what = _what(path, status)
        self._tell(what._asdict())
        hollow = () if what.name else _KERNELS
        for piece in copies.pieces(directory, name, called or what.name or ".", hollow):
            _write(self._data, piece)

    def receive(self, what: What | None, path: str, archive: bool) -> None:
        """Makes what it reads at the path; without `what`, all of it below the path."""
        there = None
        with suppress(FileNotFoundError):
            place = places.find("/" + path.lstrip("/"), directory=True, make=False)
            there = os.fstat(place)
            os.close(place)
        name: bytes | None = None
        if what is not None:
            directory, name = _target(what, "/" + path.lstrip("/"), there)
        elif there is None or not stat.S_ISDIR(there.st_mode):
            raise BadArgument(f"there is no directory {path} in the container")
        else:
            directory = "/" + path.lstrip("/")
        os.close(_find(directory, directory))
        self._tell({})

        def find(names: tuple[bytes, ...]) -> int:
            return places.find("/".join((directory, *map(os.fsdecode, names))), directory=True)

        rules = Rules() if archive else Rules((0, 0))
        Receiver(find, name, rules).receive(TarStream(lambda: os.read(self._data, _PIECE)))
        while os.read(self._data, _PIECE):
            pass  # what comes behind the archive's end


def _split(path: str) -> tuple[str, str]:
    """The directory to look into, and the name there."""
    parent, _, name = path.rstrip("/").removesuffix("/.").rstrip("/").rpartition("/")
    return (parent or "/", name) if name not in ("", ".", "..") else (path, ".")


def _find(directory: str, wanted: str) -> int:
    try:
        found = places.find(directory, directory=True, make=False)
    except FileNotFoundError as error:
        raise BadArgument(f"there is no {wanted} in the container") from error
    except OSError as error:
        reason = (error.strerror or "refused").lower()
        raise BadArgument(f"{wanted} in the container cannot be reached: {reason}") from error
    if not stat.S_ISDIR(os.fstat(found).st_mode):
        os.close(found)
        raise BadArgument(f"there is no {wanted} in the container: {directory} is no directory")
    return found


def _write(fd: int, data: bytes) -> None:
    while data:
        data = data[os.write(fd, data) :]
