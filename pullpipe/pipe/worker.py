"""The unpack worker: a program of its own, started early, spoken to over a socket.

    python -m pullpipe.pipe.worker FD      FD: a SOCK_SEQPACKET socket to its owner

Each message on that socket is one layer: a `Job` as JSON, with three descriptors: the job's own stream socket, the
blob's file, the directory to unpack into. The worker forks for each, with everything already imported, and goes on
listening; so layers are unpacked in processes of their own (two extracting threads in one process hold each other up on
the GIL), and none costs the start of an interpreter. It ends when its owner closes the socket or dies, and all jobs
with it: it is the first process of a PID namespace. It has a network namespace of its own, too, with nothing in it. If
the kernel refuses it those, it says so in a message, and ends.

On a job's socket, lines both ways. From the owner: how many bytes of the blob are in its file so far, in decimal; the
owner closes it to give the job up. To the owner: JSON, any number of {"unpacked": bytes of the tar stream so far}, then
one {"done": Result} or {"failed": kind, …}.

Within a job three threads share the work, each of which is mostly outside the GIL: one reads the blob, hashes it and
inflates it; one hashes what comes out; the main one parses and writes. Before it reads the first byte of the blob, the
job locks itself in (`lock_in`).
"""

from __future__ import annotations

import base64
import errno
import json
import os
import queue
import signal
import socket
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from time import monotonic
from typing import Any, NamedTuple

from pullpipe import linux
from pullpipe.errors import KernelRefused, LayerError, LayerTooLarge, UnmappableOwner
from pullpipe.pipe.below import NOTHING, Path
from pullpipe.pipe.directory import Tree
from pullpipe.pipe.inflate import inflate
from pullpipe.pipe.tarstream import Entry, TarStream
from pullpipe.pipe.whiteouts import FlatTree, NoTree, OverlayTree
from pullpipe.trace import Span, Times
from store.digest import new_hash

READ = 1 << 20  # bytes of the blob at a time
_QUEUED = 3  # pieces between two threads: 3 MiB, enough to ride out each other's pauses
_RATIO_FROM = 1 << 30  # bytes of tar stream from which on the ratio counts
_ANSWER_LIMIT = 8 << 20  # characters of paths; JSON may take six bytes for one
_REPORT = 8 << 20  # bytes of tar stream between two reports

# What it takes to make any entry (capabilities(7)): CHOWN, DAC_OVERRIDE, FOWNER, FSETID, MKNOD, SETFCAP. Not SYS_ADMIN,
# so the owner sets overlayfs's `trusted` attributes afterwards.
_CAPABILITIES = 1 << 0 | 1 << 1 | 1 << 3 | 1 << 4 | 1 << 27 | 1 << 31

MESSAGE_LIMIT = 128 << 10  # bytes of a job's description: 500 directories and more
LAYER_ERRORS = {"limit": LayerTooLarge, "owner": UnmappableOwner, "layer": LayerError}
_FORMS: dict[str, type[Tree]] = {"overlay": OverlayTree, "flat": FlatTree, "none": NoTree}


class Limits(NamedTuple):
    """What a layer may come to; 0 is no limit. A bomb costs time until then, and never memory."""

    size: int = 64 << 30  # bytes of the tar stream; the largest layers in use have some tens of GB
    entries: int = 5_000_000
    ratio: int = (
        2_000  # bytes of the tar stream for each byte of the blob, once the stream is past a GiB; zeros have 1030
    )


class Job(NamedTuple):
    """What the owner wants of a layer."""

    form: str  # "overlay", "flat", or "none": nothing is written
    size: int  # of the blob in bytes, as its descriptor says
    blob_algorithm: str
    diff_algorithm: str
    below: tuple[str, ...] = ()  # of a layer that cannot be unpacked without its parents: their trees, topmost first
    mount_point: str = ""  # an empty directory to mount those at, in passing
    limits: Limits = Limits()
    detailed: bool = False  # whether to tell all spans of work, or one a stage
    ignore_owners: bool = False  # those that the user namespace does not have


class Result(NamedTuple):
    """What a layer turned out to be. Digests are those of the bytes read; to compare them is the owner's part."""

    blob: str  # hex digest of the blob as it came
    diff: str  # hex digest of the tar stream
    size: int  # bytes of file content
    entries: int
    whiteouts: int
    opaque_root: bool
    owners_ignored: bool
    trusted: list[tuple[str, str, str]]  # attributes for `whiteouts.set_trusted`; the values in base64
    implied: list[str]
    presumed: list[str]
    emptied: list[str]
    hiding: list[str]
    unresolved: list[str]
    brought_up: list[str]
    warnings: list[str]
    spans: list[Span]  # which stages worked when; JSON makes lists of them

    def trusted_attributes(self) -> list[tuple[str, str, bytes]]:
        """As `whiteouts.set_trusted` takes them."""
        return [(path, name, base64.b64decode(value)) for path, name, value in self.trusted]


def serve(control: socket.socket) -> None:
    """Takes jobs until the owner closes the socket."""
    new_hash("sha256")  # loads OpenSSL once, for all jobs
    linux.unshare(linux.CLONE_NEWNET | linux.CLONE_NEWIPC)  # there is nobody to talk to but the owner
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel reaps: nobody asks for exit codes, sockets tell all
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to all of a terminal's group; the owner decides
    while True:
        message, descriptors, _, _ = socket.recv_fds(control, MESSAGE_LIMIT, 3)
        if not message:
            return
        if os.fork() == 0:
            control.close()
            fields = json.loads(message)
            _run_job(Job(**{**fields, "limits": Limits(*fields["limits"])}), *descriptors)
        for fd in descriptors:
            os.close(fd)


def _run_job(job: Job, channel_fd: int, blob_fd: int, directory_fd: int) -> None:
    """The whole life of a job's process."""
    channel = socket.socket(fileno=channel_fd)
    try:
        os.umask(0)
        blob_hash, diff_hash = new_hash(job.blob_algorithm), new_hash(job.diff_algorithm)
        directory = os.readlink(f"/proc/self/fd/{directory_fd}")  # as long as it is of our mount namespace
        os.close(directory_fd)
        linux.unshare(linux.CLONE_NEWNS)
        private = linux.keep_mounts_here()
        below = _open_below(job) if job.below else NOTHING
        tree = _FORMS[job.form](lock_in(directory, private=private), below)
        tree.ignore_owners = job.ignore_owners
        times = Times(detailed=job.detailed)
        blob = _Arriving(blob_fd, job.size, channel, blob_hash.update, times)
        _unpack(blob, tree, diff_hash.update, job, lambda count: _tell(channel, {"unpacked": count}), times)
        result = _result(tree, blob_hash.hexdigest(), diff_hash.hexdigest(), times)
        if sum(map(len, (*result.implied, *result.presumed, *result.hiding, *result.emptied))) > _ANSWER_LIMIT:
            raise LayerError("the directories that it leaves open have too many names in all")
        _tell(channel, {"done": result._asdict()})
    except LayerError as error:
        kind = next(kind for kind, known in LAYER_ERRORS.items() if isinstance(error, known))
        _tell(channel, {"failed": kind, "why": str(error)})
    except OSError as error:
        _tell(channel, {"failed": "system", "errno": error.errno, "why": str(error)})
    except KernelRefused as error:
        _tell(channel, {"failed": "kernel", "why": str(error)})
    except BaseException as error:  # a bug: the owner reports it, with where it happened
        frame = error.__traceback__
        while frame is not None and frame.tb_next is not None:
            frame = frame.tb_next
        where = f"{frame.tb_frame.f_code.co_filename}:{frame.tb_lineno}" if frame else "?"
        _tell(channel, {"failed": "bug", "why": f"{type(error).__name__}: {error} ({where})"})
    finally:
        os._exit(0)  # threads may still wait on the socket


def lock_in(path: str, *, private: bool) -> int:
    """Makes the directory all that this process can reach, and returns it, open, as its root. In a new mount namespace;
    nothing of another one may be open.

    What is left to code that takes the process over is to write below that directory. It has no other root to go to,
    and no capability to leave this one or to mount. It must be able to make device nodes; so that it cannot open them,
    the directory is mounted `nodev`, where that can be done (`private`: outside a chroot).
    """
    if private:
        linux.mount(path, path, "", linux.MS_BIND)
        linux.remount(path, linux.MS_NODEV | linux.MS_NOSUID | linux.MS_NOEXEC)
    root = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    os.fchdir(root)
    os.chroot(".")
    linux.import_nothing_more()
    linux.no_new_privileges()
    linux.drop_bounding_capabilities(_CAPABILITIES)
    linux.set_capabilities(_CAPABILITIES)
    return root


def _open_below(job: Job) -> int:
    """The root of the layers below, stacked. The mount has no place any more when this returns, and ends with us."""
    from pullpipe import stack  # here, for hardly any layer needs it

    stack.mount_layers(job.below, job.mount_point)
    below = os.open(job.mount_point, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    linux.umount(job.mount_point, linux.MNT_DETACH)
    return below


def _tell(channel: socket.socket, message: dict[str, Any]) -> None:
    try:
        channel.sendall(json.dumps(message).encode() + b"\n")
    except (BrokenPipeError, ConnectionResetError):
        os._exit(1)  # the owner gave the job up


def _unpack(
    blob: _Arriving,
    tree: Tree,
    hash_diff: Callable[[bytes], None],
    job: Job,
    report: Callable[[int], None],
    times: Times,
) -> None:
    inflated = _Pipe()
    hashed = _Pipe()
    hashing = threading.Thread(target=lambda: _hash(hashed, hash_diff, times), daemon=True)
    hashing.start()
    threading.Thread(target=lambda: _inflate(blob, inflated, hashed, times), daemon=True).start()

    limits = job.limits
    by_ratio = max(_RATIO_FROM, job.size * limits.ratio) if limits.ratio else sys.maxsize
    unpacked = _Extraction(inflated.get, min(limits.size or sys.maxsize, by_ratio), report, times)
    stream = TarStream(unpacked.read)
    for entry in stream:
        unpacked.apply(tree, entry, stream)
        if limits.entries and tree.entries > limits.entries:
            raise LayerTooLarge(f"it has more than {limits.entries} entries; --max-entries allows more")
    while unpacked.read():
        pass  # what follows the archive's end counts for the digest, and for nothing else
    began = monotonic()
    tree.finish()
    times.since("write", began)
    hashing.join()


def _result(tree: Tree, blob: str, diff: str, times: Times) -> Result:
    return Result(
        blob=blob,
        diff=diff,
        size=tree.size,
        entries=tree.entries,
        whiteouts=tree.whiteouts,
        opaque_root=tree.opaque_root,
        owners_ignored=tree.owners_ignored,
        trusted=[
            (os.fsdecode(b"/".join(path)), os.fsdecode(name), base64.b64encode(value).decode())
            for path, name, value in tree.trusted
        ],
        unresolved=tree.unresolved,
        brought_up=_texts(set(tree.brought_up)),
        implied=_texts(tree.implied),
        presumed=_texts(tree.presumed),
        emptied=_texts(tree.emptied),
        hiding=_texts(tree.hiding),
        warnings=tree.warnings,
        spans=times.spans,
    )


def _texts(paths: set[Path]) -> list[str]:
    return sorted(os.fsdecode(b"/".join(path)) for path in paths)


class _Arriving:
    """The blob's file, which may still be growing; `read` waits for the owner's word that more is there."""

    def __init__(self, fd: int, size: int, channel: socket.socket, seen: Callable[[bytes], None], times: Times) -> None:
        self._fd = fd
        self._size = size
        self._words = channel.makefile("rb")
        self._seen = seen
        self._times = times
        self._at = 0
        self._available = 0
        self.until = 0.0  # when the last read ended

    def read(self) -> bytes:
        if self._at == self._size:
            return b""
        while self._at >= self._available:
            word = self._words.readline()
            if not word:
                os._exit(1)  # the owner gave the job up
            self._available = int(word)
        began = monotonic()
        data = os.pread(self._fd, min(READ, self._available - self._at), self._at)
        began = self._times.since("read", began)
        if not data:
            raise OSError(errno.EIO, f"the blob's file ends at byte {self._at}, before its {self._available} bytes")
        self._seen(data)
        self.until = self._times.since("hash blob", began)
        self._at += len(data)
        return data


class _Pipe:
    """Pieces from one thread to another; the last one is empty, or the exception that ended them."""

    def __init__(self) -> None:
        self._pieces: queue.Queue[bytes | BaseException] = queue.Queue(_QUEUED)

    def put(self, piece: bytes | BaseException) -> None:
        self._pieces.put(piece)

    def get(self) -> bytes:
        piece = self._pieces.get()
        if isinstance(piece, BaseException):
            raise piece
        return piece


def _inflate(blob: _Arriving, inflated: _Pipe, hashed: _Pipe, times: Times) -> None:
    try:
        began = monotonic()
        for piece in inflate(blob.read):
            times.since("inflate", max(began, blob.until))
            hashed.put(piece)
            inflated.put(piece)
            began = monotonic()
        while blob.read():
            pass  # nothing, unless a decoder stopped early: the blob's digest counts every byte
        end: bytes | BaseException = b""
    except BaseException as error:
        end = error
    hashed.put(b"")
    inflated.put(end)


def _hash(pieces: _Pipe, update: Callable[[bytes], None], times: Times) -> None:
    while piece := pieces.get():
        began = monotonic()
        update(piece)
        times.since("hash tar", began)


class _Extraction:
    """What the extractor reads, counted up to a limit, and the time that it takes: to parse, and to write.

    It reports the count now and then; so it also finds out that the owner has gone.
    """

    def __init__(self, read: Callable[[], bytes], limit: int, report: Callable[[int], None], times: Times) -> None:
        self._read = read
        self._limit = limit
        self._report = report
        self._times = times
        self._count = 0
        self._next = _REPORT
        self._ended = False
        self._began = self._since = monotonic()  # of the piece, of an entry's application
        self._applying = False
        self._written = 0.0  # seconds of this piece

    def read(self) -> bytes:
        self.tell()
        if self._ended:
            return b""
        piece = self._read()
        self._began = self._since = monotonic()
        self._ended = not piece
        self._count += len(piece)
        if self._count > self._limit:
            raise LayerTooLarge(f"it unpacks to more than {self._limit} bytes; --max-size and --max-ratio allow more")
        if self._count >= self._next:
            self._report(self._count)
            self._next = self._count + _REPORT
        return piece

    def apply(self, tree: Tree, entry: Entry, stream: TarStream) -> None:
        """The tree's part."""
        self._since, self._applying = monotonic(), True
        tree.apply(entry, stream)
        self._written += monotonic() - self._since
        self._applying = False

    def tell(self) -> None:
        """Hands on the times of the piece."""
        now = monotonic()
        if self._applying:
            self._written += now - self._since
        self._times.add("parse", self._began, now, now - self._began - self._written)
        self._times.add("write", self._began, now, self._written)
        self._written = 0.0


if __name__ == "__main__":
    with socket.socket(fileno=int(sys.argv[1])) as owner:
        try:
            if (first := linux.fork_first()) == 0:
                serve(owner)
                os._exit(0)
        except KernelRefused as error:
            with suppress(OSError):
                owner.send(str(error).encode())
            os._exit(1)
    os.waitpid(first, 0)
