"""Contenders side by side: each pulls, applies or runs the same image, in turn, each on a fresh file system."""

from __future__ import annotations

import json
import statistics
import subprocess
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from benchmarks import contenders, images, measure, places, trees
from benchmarks.contenders import Contender
from benchmarks.measure import Run
from benchmarks.registry import Registry
from benchmarks.report import Report
from benchmarks.throttle import Throttle
from pullpipe.trace import STAGES

LAYER_COLUMNS = ("image", "contender", "wall s", "of the fastest peer", "CPU s", "most RSS MB", "durability", "tree")


def pull(image_names: Sequence[str], chosen: Sequence[str], runs: int, cache: Path) -> Report:
    """Cold pulls from a registry on loopback."""
    able = [contender for contender in contenders.installed(chosen) if contender.pull]
    report = _report("pull", f"from docker-registry on loopback, medians of {runs}, in turn, {places.kind()}", able)
    with Registry() as registry:
        for image in image_names:
            reference = registry.push(images.provide(image, cache), f"bench/{image}:1")

            def commands(contender: Contender, place: Path, reference: str = reference) -> contenders.Commands:
                assert contender.pull
                return contender.pull(reference, place)

            _layers(report, image, reference, able, runs, commands, others={registry.pid})
            if not report.stages:
                report.stages, report.stages_of = _stages("pull", "--plain-http", reference), image
    return report


def slow(image_names: Sequence[str], chosen: Sequence[str], runs: int, cache: Path) -> Report:
    """Cold pulls over a link that gives each connection 100 Mbit/s, and has 50 ms of delay."""
    able = [contender for contender in contenders.installed(chosen) if contender.pull]
    conditions = f"100 Mbit/s a connection, 50 ms of delay, medians of {runs}, in turn, {places.kind()}"
    report = _report("slow", conditions, able)
    with Registry() as registry:
        for image in image_names:
            name = f"bench/{image}:1"
            registry.push(images.provide(image, cache), name)
            with Throttle(registry.host, rate=100e6 / 8, delay=0.05) as link:
                reference = f"{link.host}/{name}"

                def commands(contender: Contender, place: Path, reference: str = reference) -> contenders.Commands:
                    assert contender.pull
                    return contender.pull(reference, place)

                _layers(report, image, reference, able, runs, commands, others={registry.pid})
    return report


def apply(image_names: Sequence[str], chosen: Sequence[str], runs: int, cache: Path) -> Report:
    """Layers of an OCI layout, without a network."""
    able = [contender for contender in contenders.installed(chosen) if contender.apply]
    report = _report("apply", f"from an OCI layout, medians of {runs}, in turn, {places.kind()}", able)
    for image in image_names:
        layout = images.provide(image, cache)

        def commands(contender: Contender, place: Path, layout: Path = layout) -> contenders.Commands:
            assert contender.apply
            return contender.apply(layout, place)

        _layers(report, image, "localhost/bench:1", able, runs, commands)
        if not report.stages:
            report.stages, report.stages_of = _stages("load", str(layout)), image
    return report


def _report(benchmark: str, conditions: str, able: Sequence[Contender]) -> Report:
    report = Report(benchmark, conditions, LAYER_COLUMNS, labels=2)
    report.versions = {contender.name: contender.version for contender in able}
    return report


def _layers(
    report: Report,
    image: str,
    reference: str,
    able: Sequence[Contender],
    runs: int,
    commands: Callable[[Contender, Path], contenders.Commands],
    others: Collection[int] = (),
) -> None:
    """Adds a row for each contender; the first run of each is for the page cache and for comparing the trees."""
    found: dict[str, list[Run]] = {contender.name: [] for contender in able}
    differences: dict[str, str] = {}
    ours: trees.Tree | None = None
    for turn in range(runs + 1):
        for contender in [one for one in able if one.name in found]:
            with places.fresh() as place, contender.service(place):
                try:
                    found[contender.name].append(measure.run(commands(contender, place), others=others))
                except measure.Failed as error:
                    report.notes.append(f"{image}, {contender.name} failed: {error}")
                    del found[contender.name]
                    continue
                if turn:
                    continue
                with contender.tree(place, reference) as root:
                    tree = trees.read(root) if root else None
                ours = ours or tree
                differences[contender.name] = "not stacked" if tree is None else trees.difference(ours or {}, tree)
    walls = {name: statistics.median(run.wall for run in measured[1:]) for name, measured in found.items()}
    peers = [wall for name, wall in walls.items() if not name.startswith("pullpipe")]
    for name, measured in found.items():
        contender = next(one for one in able if one.name == name)
        difference = differences[name]
        if difference and difference != "not stacked":
            report.notes.append(f"{image}, {name}: {difference}")
        report.add(
            image,
            name,
            round(walls[name], 2),
            round(walls[name] / min(peers), 2) if peers else "",
            round(statistics.median(run.cpu for run in measured[1:]), 2),
            round(max(run.rss for run in measured[1:]) / 1e6),
            contender.durability,
            "differs" if difference and difference != "not stacked" else difference or "same",
        )


def _stages(*arguments: str) -> dict[str, float]:
    """Seconds of work by stage, as `--progress json` tells them, of one more run."""
    with places.fresh() as place:
        command = contenders.command(place, arguments[0], "--progress", "json", *arguments[1:])
        done = subprocess.run(command, check=True, capture_output=True, text=True)
    stages: dict[str, float] = {}
    for line in done.stderr.splitlines():
        event = json.loads(line)
        told = event.get("stages", {}) if event["event"] == "finished" else {}
        if event["event"] == "stage":
            told = {event["stage"]: event["seconds"]}
        for stage, seconds in told.items():
            stages[stage] = round(stages.get(stage, 0.0) + seconds, 3)
    return {stage: stages[stage] for stage in STAGES if stage in stages}
