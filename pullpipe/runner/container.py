"""A container's life, seen from outside: its record, its first process, its exit code, its end.

The mounts live in the container's own mount namespace, so the kernel takes them away with its last process: whatever
becomes of this one, nothing stays mounted. If it is killed, so is the container; what is left to do then, the next
command does (`state.tidy`).
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from pullpipe import interpreter, linux, stack
from pullpipe.errors import BadArgument, NeedsRoot, NotFound, RunError
from pullpipe.local import LocalImage
from pullpipe.runner import command, names, process, sandbox, seccomp, state
from pullpipe.runner.command import Command, Overrides
from pullpipe.runner.process import Entrance, Life
from pullpipe.runner.settings import STOP_TIMEOUT, Settings, plain, signal_name, walls_of
from pullpipe.runner.state import State
from pullpipe.runner.streams import Streams
from pullpipe.runner.walls import Bind, Port, Walls
from store import Container, InUse, Store
from store.locks import Lock
from store.removal import remove_tree

if TYPE_CHECKING:
    from pullpipe.runner.cgroups import Group
    from pullpipe.runner.limits import Limits

_CGROUPS = "cgroup"  # a directory to show the container its groups
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")  # Docker's rule


class Options(NamedTuple):
    """How to run."""

    overrides: Overrides = Overrides()
    name: str = ""
    hostname: str = ""
    labels: Mapping[str, str] = {}
    interactive: bool = False  # standard input goes to the command
    terminal: bool = False  # the command gets a terminal
    detached: bool = False  # nobody waits for its end
    remove: bool = False  # the container is removed when the command has ended
    stop_signal: str = ""  # instead of the image's
    stop_timeout: int = STOP_TIMEOUT  # seconds; -1: for ever
    walls: Walls = Walls()
    limits: Limits | None = None
    runtime: str = ""  # the path of an OCI runtime that is to build and run it


class Ended(NamedTuple):
    """How it ended."""

    exit_code: int  # the command's; 128+N when signal N ended it
    out_of_memory: bool = False  # whether the kernel has killed a process in it for that


class Planned(NamedTuple):
    """A new container, whose lock we hold, and what is to become of it."""

    store: Store
    image: LocalImage | None  # of a new one
    container: Container
    lock: Lock
    command: Command
    options: Options
    groups: Sequence[Group]  # that its limits take


def check_name(name: str) -> None:
    """Raises `BadArgument` for what cannot be a container's name."""
    if not _NAME.fullmatch(name):
        raise BadArgument(f"the name {name!r} is none: letters, digits, and then also _ . - are allowed")


def create(store: Store, image: LocalImage, options: Options) -> Planned:
    """A new container, for the image's command; nothing of it runs yet.

    Raises `RunError` for what cannot be started, `BadArgument`, `NeedsRoot`, `NotFound`, `StoreError`, `OSError`.
    """
    if os.geteuid() != 0:
        raise NeedsRoot("running a container takes root's rights; enter a user namespace first, or use sudo")
    if options.name:
        check_name(options.name)
    planned = command.plan(image.config, options.overrides, os.environ, terminal=options.terminal)
    settings = _settings(image, planned, options)
    options = _with_filter(store, options)
    if options.runtime:
        from pullpipe.runner import handover

        groups = handover.plan(options)
    else:
        groups = _plan_limits(options.limits)
    with store.shared():  # until the record stands, nothing else keeps the layers
        if image.chain_id not in store.stacks:
            raise NotFound(f"{image.record.reference} is not in the store any more: somebody has just removed it")
        container, lock = store.containers.create(
            image=image.record.reference,
            manifest=image.record.manifest,
            stack=image.chain_id,
            command=planned.argv,
            name=options.name,
            settings=settings.to_json(),
        )
    return Planned(store, image, container, lock, planned, options, groups)


def plan_again(store: Store, container: Container) -> Planned:
    """An ended container, whose command is to run once more, in the tree that it has left.

    Raises `InUse` when it runs, `BadArgument` for what has no command, and as `create` does.
    """
    settings = Settings.of(container)
    if not settings.walls or container.target:
        raise BadArgument(
            f"container {container.name} has no command that could be started; `pullpipe run` makes others"
        )
    if settings.runtime:
        raise BadArgument(
            f"container {container.name} was handed over to {settings.runtime}, which takes new ones only"
        )
    options = Options(
        hostname=settings.hostname,
        interactive=settings.interactive,
        terminal=settings.terminal,
        remove=settings.remove,
        walls=walls_of(settings.walls),
        limits=_limits_of(settings),
    )
    options, groups = _with_filter(store, options), _plan_limits(options.limits)
    again = Command(container.command, settings.env, settings.working_dir, settings.user, tuple(settings.groups))
    lock = store.containers.lock(container)
    if lock is None:
        raise InUse(f"container {container.name} is running")
    lock.leave(b"")
    store.containers.amend(container, exit_code=None, out_of_memory=False, started=0.0, finished=0.0)
    remove_tree(os.path.join(store.containers.path(container), _CGROUPS))
    return Planned(store, None, container, lock, again, options, groups)


def _with_filter(store: Store, options: Options) -> Options:
    rights = options.walls.rights
    program = seccomp.program(options.walls.seccomp, rights.capabilities, os.path.join(store.root, "cache"))
    return options._replace(walls=options.walls._replace(rights=rights._replace(filter=program)))


def _limits_of(settings: Settings) -> Limits | None:
    if not settings.limits:
        return None
    from pullpipe.runner.limits import Limits

    return Limits(**settings.limits)


def _plan_limits(limits: Limits | None) -> Sequence[Group]:
    if limits is None:
        return ()
    from pullpipe.runner import cgroups

    return cgroups.plan(limits)


def _settings(image: LocalImage, planned: Command, options: Options) -> Settings:
    walls = options.walls
    return Settings(
        env=planned.env,
        working_dir=planned.working_dir,
        user=planned.user,
        groups=planned.groups,
        hostname=options.hostname,
        labels=options.labels,
        interactive=options.interactive,
        terminal=options.terminal,
        runtime=options.runtime,
        remove=options.remove,
        stop_signal=_stop_signal(image, options),
        stop_timeout=options.stop_timeout,
        network=walls.network.kind,
        ports=_bindings(walls.network.ports),
        read_only=walls.read_only,
        limits={name: value for name, value in (options.limits._asdict() if options.limits else {}).items() if value},
        mounts=tuple(
            {"Type": "bind", "Source": one.source, "Destination": one.target, "RW": not one.read_only}
            if isinstance(one, Bind)
            else {
                "Type": "tmpfs",
                "Source": "",
                "Destination": one.target,
                "RW": not one.attributes & linux.ATTR_RDONLY,
            }
            for one in walls.mounts
        ),
        walls=plain(walls),
    )


def _bindings(ports: Sequence[Port]) -> dict[str, list[dict[str, str]]]:
    found: dict[str, list[dict[str, str]]] = {}
    for port in ports:
        binding = {"HostIp": port.address, "HostPort": str(port.outside)}
        found.setdefault(f"{port.inside}/{port.protocol}", []).append(binding)
    return found


def _stop_signal(image: LocalImage, options: Options) -> str:
    if options.stop_signal:
        return signal_name(options.stop_signal)
    try:
        return signal_name(image.config.stop_signal or "SIGTERM")
    except RunError as error:
        raise RunError(f"{error}, which the image names; say which to stop it with: --stop-signal") from error


def live(planned: Planned, streams: Streams, life: Life | None = None) -> Ended:
    """From the container's first process to its end, which is recorded.

    Raises `RunError` when the command cannot be started, `KernelRefused`, `StoreError`, `OSError`.
    """
    ended = Ended(RunError.exit_code)
    begun = _Begun(planned, life or Life())
    try:
        state.write(planned.store, planned.container, begun.state)
        with _connected(planned) as connected:
            ended = (_hand_over if connected.options.runtime else _start)(connected, streams, begun)
    except RunError as error:
        ended = Ended(error.exit_code)
        raise
    finally:
        _end(planned, ended, begun.state)
    streams.deliver()  # however long it takes, the container is not waited for
    return ended


@contextlib.contextmanager
def preparing(planned: Planned) -> Iterator[None]:
    """For what is needed before `live`: if the block fails, the container has ended with that."""
    try:
        yield
    except BaseException:
        _end(planned, Ended(RunError.exit_code), State())
        raise


def _end(planned: Planned, ended: Ended, begun: State) -> None:
    """Writes down how it has ended, or removes it, if that is wanted. Where there is no room to write, a new one that
    has not begun is removed, too."""
    store, container, lock = planned.store, planned.container, planned.lock
    remove = planned.options.remove
    try:
        state.forget(store, container, begun)
        try:
            lock.leave(str(ended.exit_code).encode())
            if not remove:
                moments = {"started": begun.started, "finished": time.time()}
                store.containers.amend(container, **ended._asdict(), **moments)
        except OSError:
            if not remove and (begun.started or planned.image is None):
                raise
            remove = True
        if remove:
            store.containers.remove(container, lock)
    finally:
        lock.release()


@contextlib.contextmanager
def _connected(planned: Planned) -> Iterator[Planned]:
    """The plan, with the network as it is; while the block runs, it leads somewhere."""
    options = planned.options
    if options.walls.network.kind != "private":
        yield planned
        return
    from pullpipe.runner import private

    with private.entered(options.walls.network, planned.store.containers.path(planned.container)) as network:
        yield planned._replace(options=options._replace(walls=options.walls._replace(network=network)))


class _Begun(Life):
    """Writes down what other commands need to know of a running container."""

    def __init__(self, planned: Planned, life: Life) -> None:
        walls = planned.options.walls
        limited: tuple[str, ...] = ()
        if planned.groups:
            from pullpipe.runner import cgroups

            limited = tuple(cgroups.directory(group, planned.container.id) for group in planned.groups)
        if planned.options.runtime:
            from pullpipe.runner import handover

            limited += handover.places(planned.container)
        self.state = State(
            cgroups=limited,
            init=walls.init,
            host_pids=walls.host_pids,
            runtime=os.path.basename(planned.options.runtime),
        )
        self.pid = 0
        self._planned, self._life = planned, life

    def begun(self, withheld: int) -> None:
        rights, born = self._planned.options.walls.rights, state.born(self.pid)
        begun = self.state._replace(pid=self.pid, born=born, started=time.time(), rights=rights, withheld=withheld)
        state.write(self._planned.store, self._planned.container, begun)
        self.state = begun  # without room for that, nothing has begun
        self._life.begun(withheld)

    def ended(self) -> None:
        if self.state.host_pids:
            linux.end_children()
        self._life.ended()


def _start(planned: Planned, streams: Streams, begun: _Begun) -> Ended:
    interpreter.check()
    container, groups, limited, walls = planned.container, planned.groups, begun.state.cgroups, planned.options.walls
    hostname = planned.options.hostname or container.short_id
    own = planned.store.containers.path(container)
    if groups:
        from pullpipe.runner import cgroups

        cgroups.make(groups, container.id)
    shown = cgroups.shown(groups, container.id, os.path.join(own, _CGROUPS)) if groups else []
    plan = sandbox.Plan(
        stack=stack.build(planned.store, container),
        rootfs=os.path.join(own, "rootfs"),
        hostname=hostname,
        files=names.write_files(own, hostname, walls.network),
        walls=walls._replace(mounts=(*shown, *walls.mounts)),
    )

    def enter() -> int:
        if limited:
            cgroups.join(limited, 0)
        return sandbox.enter(plan)

    entrance = Entrance(enter, walls.rights, read_only=walls.read_only, init=walls.init)
    wanted = planned.command._replace(env={"HOSTNAME": hostname, **planned.command.env})
    ours, theirs = process.open_channel()
    if walls.host_pids:
        linux.adopt_orphans()  # nothing but us ends them
        begun.pid = linux.fork_tied()
    else:
        begun.pid = linux.fork_first()
    if begun.pid == 0:
        ours.close()
        process.become(wanted, streams, theirs, entrance)
    theirs.close()
    exit_code = process.oversee(begun.pid, ours, streams, begun)
    return Ended(exit_code, bool(limited) and cgroups.out_of_memory(limited))


def _hand_over(planned: Planned, streams: Streams, begun: _Begun) -> Ended:
    from pullpipe.runner import handover

    ours, theirs = process.open_channel()
    begun.pid = linux.fork_first()
    if begun.pid == 0:
        ours.close()
        handover.become(planned, streams, theirs)
    theirs.close()
    exit_code = process.oversee(begun.pid, ours, streams, begun)
    if failed := handover.failure(planned, exit_code):
        raise failed
    return Ended(exit_code)
