"""Start-up: from the shell to the end of `true` in an image that is there, and back; others do the same in turn."""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

from benchmarks import contenders, images, measure, places
from benchmarks.measure import Run
from benchmarks.registry import Registry
from benchmarks.report import Report

Command = Callable[[], Sequence[str]]


class Tool(NamedTuple):
    """A program that starts something in a directory. `place` has `bundle/rootfs`, and `bundle/config.json`."""

    name: str
    program: str  # that it takes
    command: Callable[[str, Path], list[str]]  # reference, place


def _runtime(program: str) -> Tool:
    """Of OCI; a container's id is there once."""
    return Tool(
        program,
        program,
        lambda _, place: [
            *(program, "--root", f"{place}/{program}", "run", "--bundle", f"{place}/bundle"),
            f"pullpipe-bench-{time.monotonic_ns()}",
        ],
    )


BWRAP = ["bwrap", "--unshare-all", "--die-with-parent", "--new-session", "--cap-drop", "ALL"]
UNSHARE = ["unshare", "--mount", "--uts", "--ipc", "--pid", "--fork", "--kill-child", "chroot"]
TOOLS = (
    Tool(
        "pullpipe, runc",
        "runc",
        lambda reference, place: contenders.command(place, "run", "--rm", "--runtime=runc", reference, "true"),
    ),
    _runtime("runc"),
    _runtime("crun"),
    Tool(
        "bwrap",
        "bwrap",
        lambda _, place: [
            *(*BWRAP, "--bind", f"{place}/bundle/rootfs", "/"),
            *("--proc", "/proc", "--dev", "/dev", "/bin/true"),
        ],
    ),
    Tool("unshare + chroot", "unshare", lambda _, place: [*UNSHARE, f"{place}/bundle/rootfs", "/bin/true"]),
)


def names() -> list[str]:
    """All who can be measured."""
    return [one.name for one in contenders.ALL if one.run] + [tool.name for tool in TOOLS]


def run(chosen: Sequence[str], runs: int, cache: Path) -> Report:
    """The benchmark. Who is not installed, or does not start, is named with the reason. Raises `KeyError`."""
    for name in chosen:
        if name not in names():
            raise KeyError(name)
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # a program that is installed is compiled
    conditions = f"`true` in a local image, medians of {runs}, in turn, {places.kind()}"
    report = Report("run", conditions, ("contender", "wall ms", "least ms", "CPU ms", "of pullpipe"), labels=1)
    found: dict[str, list[Run]] = {}
    layout = images.provide(images.BUSYBOX, cache)
    with Registry() as registry, places.fresh() as place, ExitStack() as services:
        reference = registry.push(layout, "bench/busybox:1")
        commands: dict[str, Command] = {}
        for name in chosen or names():
            with _told(report, name):
                commands[name] = _prepared(name, reference, place, services, report)
        for turn in range(runs + 1):  # the first of each is not counted
            for name, command in list(commands.items()):
                with _told(report, name, commands):
                    took = measure.run([command()])
                    found.setdefault(name, []).extend([took] if turn else [])
    medians = {name: statistics.median(one.wall for one in found[name]) for name in commands}
    for name, wall in medians.items():
        ratio = round(wall / medians["pullpipe"], 2) if "pullpipe" in medians else ""
        cpu = statistics.median(one.cpu for one in found[name])
        report.add(name, *(round(each * 1e3, 1) for each in (wall, min(one.wall for one in found[name]), cpu)), ratio)
    return report


def _prepared(name: str, reference: str, place: Path, services: ExitStack, report: Report) -> Command:
    """Its command, when its image, or its bundle, is there."""
    for contender in contenders.ALL:
        if contender.name == name:
            if not contender.is_here:
                raise measure.Failed(f"{' or '.join(contender.programs)} is not installed")
            report.versions[name] = contender.version
            services.enter_context(contender.service(place))
            assert contender.pull
            assert contender.run
            measure.run(contender.pull(reference, place))
            made = contender.run
            return lambda: made(reference, place)
    tool = next(one for one in TOOLS if one.name == name)
    if not shutil.which(tool.program):
        raise measure.Failed(f"{tool.program} is not installed")
    version = subprocess.run([tool.program, "--version"], capture_output=True, text=True).stdout.partition("\n")[0]
    report.versions[name] = (version.split() or ["?"])[-1]
    if not (place / "bundle").exists():
        measure.run([contenders.command(place, "pull", "-q", "--plain-http", reference)])
        measure.run([contenders.command(place, "bundle", "-q", reference, f"{place}/bundle", "true")])
    return lambda: tool.command(reference, place)


@contextmanager
def _told(report: Report, name: str, commands: dict[str, Command] | None = None) -> Iterator[None]:
    """What keeps it from being measured goes into the report, and it is not tried again."""
    try:
        yield
    except (measure.Failed, RuntimeError, OSError) as error:
        report.notes.append(f"{name} is left out: {' '.join(str(error).split())[-300:]}")
        (commands or {}).pop(name, None)
