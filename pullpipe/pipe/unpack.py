"""The owner's side of the unpack worker: starts it, gives it layers, hears what became of them."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from pullpipe import modules
from pullpipe.errors import KernelRefused, WorkerDied
from pullpipe.pipe.worker import LAYER_ERRORS, Job, Result

_LINE_LIMIT = 64 << 20  # bytes of one message; a layer's list of implied directories may be long


class Worker:
    """One worker program. A context manager: at its end no process of it is left."""

    def __init__(self) -> None:
        self._killed = False
        self._control, self._theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Has it get ready, which takes as long as Python's start; at the latest the first job does so."""
        if self._process is not None:
            return
        with self._theirs as theirs:
            # The modules come from where ours come from, whatever the directory we stand in holds.
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "pullpipe.pipe.worker", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                env=modules.environment(),
                process_group=0,  # what a terminal sends its group is for the owner to decide
            )

    async def unpack(
        self, job: Job, blob: int, directory: str, channel: Channel, report: Callable[[int], None]
    ) -> Result:
        """Unpacks the blob in the open file `blob` into the empty directory at `directory`.

        The caller says through the channel how much of the blob is there; `report` hears how many bytes of the
        tar stream have been unpacked. Raises `LayerError` for what the archive is to blame for, `OSError` for the
        machine, `KernelRefused`, and `WorkerDied` when the process ended without a word. Cancelled, it ends the worker
        and all its jobs.
        """
        self.start()
        try:
            self._send(job, blob, directory, channel)
            try:
                return await _hear(channel, directory, report)
            except asyncio.CancelledError:
                self.kill()
                raise
            finally:
                # Ends once the job's process has ended: until then it may still write below `directory`.
                await asyncio.shield(channel.drain())
        except WorkerDied:
            if self._killed:  # for another layer's sake, whose error is the one to tell: we are about to be cancelled
                await asyncio.get_running_loop().create_future()
            if refused := self._refused():
                raise _kernel_refused(refused) from None
            raise

    def _send(self, job: Job, blob: int, directory: str, channel: Channel) -> None:
        directory_fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            with channel.theirs:
                message = json.dumps(job._asdict()).encode()
                socket.send_fds(self._control, [message], [channel.theirs.fileno(), blob, directory_fd])
        except OSError as error:
            raise WorkerDied("the unpack worker ended early; try again, with --log-level debug for more") from error
        finally:
            os.close(directory_fd)

    def _refused(self) -> str:
        """What kept the worker from beginning, if it has said so."""
        with contextlib.suppress(OSError):
            with contextlib.suppress(ConnectionResetError):  # told once, of the jobs that it has not read
                return self._control.recv(64 << 10, socket.MSG_DONTWAIT).decode()
            return self._control.recv(64 << 10, socket.MSG_DONTWAIT).decode()
        return ""

    def kill(self) -> None:
        """Ends the worker, and the kernel every job with it; by the end of the block none of them is left."""
        self._killed = True
        with contextlib.suppress(OSError):  # it has ended
            self._control.shutdown(socket.SHUT_RDWR)

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self._control.close()
        self._theirs.close()
        if self._process is not None:
            self._process.wait()


class Channel:
    """The stream socket of one job; `theirs` goes to the job."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, theirs: socket.socket) -> None:
        self.theirs = theirs
        self._reader = reader
        self._writer = writer

    async def available(self, count: int) -> None:
        """Says that the first `count` bytes of the blob are in its file."""
        try:
            self._writer.write(b"%d\n" % count)
            await self._writer.drain()
        except ConnectionError:
            pass  # the job has ended; why, `unpack` says

    async def hear(self) -> dict[str, Any] | None:
        """The job's next message; None when it has ended."""
        try:
            try:
                line = await self._reader.readline()
            except ConnectionError:  # it ended with words of ours unread; its own last ones have come all the same
                self._reader.set_exception(None)  # type: ignore[arg-type]
                self._reader.feed_eof()
                line = await self._reader.readline()
        except ValueError:  # longer than any that a sound worker sends
            return None
        return json.loads(line) if line.endswith(b"\n") else None

    async def drain(self) -> None:
        """Waits for the end of the job's process."""
        with contextlib.suppress(ConnectionError):
            while await self._reader.read(1 << 16):
                pass

    async def close(self) -> None:
        """Closes both ends, as far as they are ours."""
        self.theirs.close()
        self._writer.close()
        with contextlib.suppress(ConnectionError):
            await self._writer.wait_closed()


@asynccontextmanager
async def channel() -> AsyncIterator[Channel]:
    """A new channel, for one job."""
    ours, theirs = socket.socketpair()
    try:
        reader, writer = await asyncio.open_connection(sock=ours, limit=_LINE_LIMIT)
    except BaseException:
        ours.close()
        theirs.close()
        raise
    opened = Channel(reader, writer, theirs)
    try:
        yield opened
    finally:
        await asyncio.shield(opened.close())


async def _hear(channel: Channel, directory: str, report: Callable[[int], None]) -> Result:
    while (message := await channel.hear()) is not None:
        if "unpacked" in message:
            report(message["unpacked"])
        elif "done" in message:
            return Result(**message["done"])
        elif message["failed"] in LAYER_ERRORS:
            raise LAYER_ERRORS[message["failed"]](message["why"])
        elif message["failed"] == "system":
            code = message["errno"] or errno.EIO
            raise OSError(code, os.strerror(code), directory)
        elif message["failed"] == "kernel":
            raise _kernel_refused(message["why"])
        else:
            raise WorkerDied(f"the unpack worker failed; this is a bug of pullpipe's: {message['why']}")
    raise WorkerDied("an unpack process ended without a word (killed, or out of memory?); try again")


def _kernel_refused(why: str) -> KernelRefused:
    remedy = "" if ";" in why else "; unpacking takes root's rights, in a container CAP_SYS_ADMIN, too"
    return KernelRefused(f"{why}{remedy}")
