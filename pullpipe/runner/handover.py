"""A container that an OCI runtime builds and runs, such as runc or crun: ours are the stack, its record and its end.

The runtime runs in mount and PID namespaces of its own, as the first process there. So whatever becomes of it or of us,
the kernel ends the container and takes the mounts away.
"""

from __future__ import annotations

import json
import os
import re
import socket
from collections.abc import Sequence
from typing import TYPE_CHECKING, NoReturn

from pullpipe import linux, stack
from pullpipe.errors import CommandNotExecutable, CommandNotFound, PullpipeError, RunError
from pullpipe.runner import cgroups, names, process, signals, spec, terminal
from pullpipe.runner.streams import Streams
from store import Container, StoreError

if TYPE_CHECKING:
    from pullpipe.runner.cgroups import Group
    from pullpipe.runner.container import Options, Planned

_CONFIG_MODE = 0o600  # it holds the environment
_SIGNALS = 128  # exit codes from here on tell of one


def plan(options: Options) -> Sequence[Group]:
    """The group that the runtime is to make for the limits; none with v1, where a runtime knows each hierarchy's place.

    Left to itself under v2, crun goes to the top, past what limits us, and without root it ignores limits. Raises
    `RunError` for what cannot be handed over.
    """
    walls = options.walls
    of_network = any(name.startswith("net.") for name, _ in walls.sysctls)
    for what, asked in {
        "--pid host": walls.host_pids,
        "--init": walls.init,
        "--sysctl of a private network": of_network and walls.network.kind == "private",
        "--detach with --tty": options.detached and options.terminal,
    }.items():
        if asked:
            raise RunError(f"{what} cannot be handed over to a runtime; leave it away, or --runtime")
    groups = cgroups.plan(options.limits) if options.limits else []
    return () if any(group.hierarchy.controllers for group in groups) else groups


def places(container: Container) -> tuple[str, ...]:
    """Where the runtime may have made control groups of its choice, which it removes itself unless it is killed."""
    return tuple(cgroups.places(_id(container)))


def become(planned: Planned, streams: Streams, channel: socket.socket) -> NoReturn:
    """In the first process of a PID namespace: becomes the runtime."""
    try:
        signals.reset()
        os.setsid()
        if streams.terminal:  # the runtime wants one of its own, which it relays to the container's
            master, slave = os.openpty()
            socket.send_fds(channel, [b"t"], [master])
            channel.recv(1)  # until the terminal has its size
            terminal.become_controlling(slave)
        else:
            process.take(streams.given)
        process.close_all_but(channel.fileno())
        linux.unshare(linux.CLONE_NEWNS)
        if not linux.keep_mounts_here():
            raise RunError("a runtime cannot build a container in a chroot; leave --runtime away")
        linux.mount("proc", "/proc", "proc", linux.MS_NOSUID | linux.MS_NODEV | linux.MS_NOEXEC)
        _prepare(planned)
        options = ["--root", _path(planned, "runtime"), "--log", _path(planned, "log.json"), "--log-format", "json"]
        files = ["--bundle", _path(planned, "bundle"), "--pid-file", _path(planned, "pid")]
        runtime = planned.options.runtime
        os.execv(runtime, [os.path.basename(runtime), *options, "run", *files, _id(planned.container)])
    except (PullpipeError, StoreError, OSError) as error:
        process.report(channel, error)
    except BaseException as error:
        process.report(channel, RunError(f"a bug of pullpipe's: {type(error).__name__}: {error}"))
    finally:
        os._exit(RunError.exit_code)


def _prepare(planned: Planned) -> None:
    """Mounts the stack, and writes the configuration."""
    store, image, options = planned.store, planned.image, planned.options
    assert image is not None
    rootfs = _path(planned, "rootfs")
    stack.mount(stack.build(store, planned.container), rootfs, flags=linux.MS_NODEV)
    hostname = options.hostname or planned.container.short_id
    command = planned.command._replace(env={"HOSTNAME": hostname, **planned.command.env})
    document = spec.document(
        command,
        spec.look_inside(rootfs, command),
        options.walls,
        rootfs=rootfs,
        hostname=hostname,
        terminal=terminal.our_size() if options.terminal else None,
        files=names.write_files(_path(planned), hostname, options.walls.network),
        limits=options.limits,
        cgroup=cgroups.path(planned.groups[0], planned.container.id) if planned.groups else "",
        annotations=spec.image_annotations(image.config, store.blobs.read(image.manifest.config.digest)),
    )
    for directory in ("bundle", "runtime"):
        os.mkdir(_path(planned, directory), 0o700)
    config = os.open(_path(planned, "bundle", "config.json"), os.O_WRONLY | os.O_CREAT | os.O_EXCL, _CONFIG_MODE)
    with open(config, "w", encoding="ascii") as file:
        json.dump(document, file, indent=1)


def failure(planned: Planned, exit_code: int) -> RunError | None:
    """Why the runtime has not started the command, if it has not, as far as its log tells."""
    if exit_code >= _SIGNALS or os.path.exists(_path(planned, "pid")):  # which it writes when the command runs
        return None
    name = os.path.basename(planned.options.runtime)
    try:
        with open(_path(planned, "log.json"), encoding="utf-8", errors="replace") as file:
            said = [json.loads(line) for line in file]
        why = str(next(line["msg"] for line in reversed(said) if line["level"] in ("error", "fatal")))
    except (OSError, ValueError, KeyError, TypeError, StopIteration):
        return RunError(f"{name} has not started the command, and does not tell why")
    text = f"{name} has not started the command: {why}"
    if re.search(r"exec", why) and re.search(r"not found in \$PATH|no such file or directory", why, re.IGNORECASE):
        return CommandNotFound(text)
    if re.search(r"exec", why) and re.search(r"permission denied|exec format error", why, re.IGNORECASE):
        return CommandNotExecutable(text)
    return RunError(text)


def _id(container: Container) -> str:
    """What the runtime calls it, and its control groups."""
    return f"pullpipe-{container.id}"


def _path(planned: Planned, *names: str) -> str:
    return os.path.join(planned.store.containers.path(planned.container), *names)
