"""A container that nobody waits for: a process of ours stays with it, keeps what it prints, and records its end."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import NoReturn

from pullpipe import linux
from pullpipe.errors import PullpipeError, RunError
from pullpipe.runner import container, logs, process
from pullpipe.runner.container import Planned
from pullpipe.runner.process import Life
from pullpipe.runner.streams import Logged
from store import Container, StoreError


def start(planned: Planned) -> Container:
    """Starts what is planned, and returns when it has begun. Raises as `container.live` does."""
    told, telling = os.pipe()
    with container.preparing(planned):
        child = linux.fork()
    if child == 0:
        os.close(told)
        _stay(planned, telling)
    os.close(telling)
    planned.lock.release()  # the monitor holds it on
    with open(told, "rb") as file:
        said = file.read()
    if said != b"begun":
        raise process.failure(said) or RunError("the container's monitor was killed before the command began")
    return planned.container


class _Telling(Life):
    """Tells whoever started us that they need not wait any more."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def begun(self, withheld: int) -> None:
        self.tell(b"begun")

    def tell(self, what: bytes) -> None:
        if self.fd >= 0:
            with suppress(OSError):  # nobody hears it
                os.write(self.fd, what)
            os.close(self.fd)
            self.fd = -1


def _stay(planned: Planned, fd: int) -> NoReturn:
    telling = _Telling(fd)
    try:
        os.setsid()
        os.chdir("/")
        null = os.open("/dev/null", os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(null, stream)
        # Whoever waits for the end of a pipe that we were given should not wait for the container's.
        process.close_all_but(planned.lock.fileno(), fd)
        linux.call_this_process(f"pullpipe: monitor of {planned.container.name}")
        with container.preparing(planned):
            log = logs.Log(logs.path(planned.store, planned.container))
            streams = Logged(log, interactive=planned.options.interactive, terminal=planned.options.terminal)
        container.live(planned, streams, telling)
    except (PullpipeError, StoreError, OSError) as error:
        telling.tell(process.described(error))
    except SystemExit:  # somebody has told us to end
        pass
    except BaseException as error:
        telling.tell(process.described(RunError(f"a bug of pullpipe's: {type(error).__name__}: {error}")))
    finally:
        os._exit(0)
