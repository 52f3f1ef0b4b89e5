"""What a pull costs as the work grows, a unit of it: layers, entries, bytes of one layer, pulls at the same time.

Time for each unit has to stay flat, and so has memory.
"""

from __future__ import annotations

import shlex
from pathlib import Path

from benchmarks import contenders, images, measure, places
from benchmarks.images import Layer
from benchmarks.measure import Run
from benchmarks.registry import Registry
from benchmarks.report import Report

LAYERS = (1, 10, 100, 500)
ENTRIES = (1_000, 10_000, 100_000, 300_000)
MEGABYTES = (10, 100, 1000, 4000)
PULLS = (1, 4, 16)


def scale(dimensions: list[str], cache: Path, largest: int) -> Report:
    """Measures along these dimensions, at most so many steps of each."""
    report = Report(
        "scale",
        f"cold pulls from docker-registry on loopback, flushed, {places.kind()}",
        ("what", "count", "seconds", "unit", "ms a unit", "most RSS MB"),
        labels=2,
    )
    with Registry() as registry:
        for dimension in dimensions:
            for count in _STEPS[dimension][:largest]:
                reference = registry.push(_image(dimension, count, cache), f"bench/{dimension}-{count}:1")
                _measure(report, dimension, count, reference, registry)
    return report


_STEPS = {"layers": LAYERS, "entries": ENTRIES, "megabytes": MEGABYTES, "pulls": PULLS}
DIMENSIONS = tuple(_STEPS)


def _image(dimension: str, count: int, cache: Path) -> Path:
    layers = {
        "layers": tuple(Layer(1000 + number, 20, 4_000) for number in range(count)),
        "entries": (Layer(2000, count, 2_000),),
        "megabytes": (Layer(3000, max(count // 50, 1), min(count, 50) * 1_000_000),),
        "pulls": tuple(Layer(4000 + number, 2_000, 8_000) for number in range(4)),
    }[dimension]
    layout = cache / f"scale-{dimension}-{count}"
    if not (layout / "index.json").exists():
        images.build_synthetic(layout, layers)
    return layout


def _measure(report: Report, dimension: str, count: int, reference: str, registry: Registry) -> None:
    with places.fresh() as place:
        if dimension == "pulls":
            script = "".join(f"{_pull(place / f'{number}', reference)} & " for number in range(count)) + "wait"
            run = measure.run([["sh", "-ec", script]], others={registry.pid})
        else:
            run = measure.run([["sh", "-ec", _pull(place / "0", reference)]], others={registry.pid})
    report.add(dimension, count, round(run.wall, 2), *_unit(dimension, count, run), round(run.rss / 1e6))


def _unit(dimension: str, count: int, run: Run) -> tuple[str, float]:
    names = {"layers": "layer", "entries": "1000 entries", "megabytes": "MB", "pulls": "pull"}
    units = count / 1000 if dimension == "entries" else count
    return names[dimension], round(run.wall / units * 1e3, 2)


def _pull(root: Path, reference: str) -> str:
    return shlex.join(contenders.command(root, "pull", "-q", "--plain-http", reference))
