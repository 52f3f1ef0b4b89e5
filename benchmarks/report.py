"""What a benchmark found: a table, JSON, a plot, and how it compares with an earlier one."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

Cell = str | float | int


@dataclass
class Report:
    """Rows under columns; the first ones name what was measured."""

    benchmark: str
    conditions: str
    columns: Sequence[str]
    labels: int = 1  # so many columns name a row; the next one has its figure
    rows: list[list[Cell]] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    stages: dict[str, float] = field(default_factory=dict)  # seconds of work by stage, where that was measured
    stages_of: str = ""  # the image
    machine: str = field(default_factory=lambda: f"Linux {os.uname().release}, {os.cpu_count()} cores")

    def add(self, *cells: Cell) -> None:
        """A row."""
        self.rows.append(list(cells))

    def text(self) -> str:
        """For people."""
        lines = [list(self.columns), *([_show(cell) for cell in row] for row in self.rows)]
        widths = [max(len(line[column]) for line in lines) for column in range(len(self.columns))]
        table = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines]
        versions = [", ".join(f"{name}: {version}" for name, version in self.versions.items())] if self.versions else []
        return "\n".join([f"{self.benchmark}: {self.conditions}; {self.machine}", *versions, *table, *self.notes])

    def json(self) -> str:
        """For programs, and for `against`."""
        return json.dumps(asdict(self), indent=1, ensure_ascii=False)

    def against(self, earlier: Path) -> None:
        """Adds how the first figure of each row compares with that of the same row in an earlier report."""
        before = {tuple(row[: self.labels]): row[self.labels] for row in json.loads(earlier.read_text())["rows"]}
        self.columns = [*self.columns, "now/then"]
        for row in self.rows:
            was = before.get(tuple(row[: self.labels]))
            row.append(round(float(row[self.labels]) / was, 2) if was else "new")

    def plot(self, path: Path) -> None:
        """A bar for each row's first figure; beside it, where they were measured, one for each stage."""
        import matplotlib as mpl

        mpl.use("Agg")
        from matplotlib import pyplot

        figure, axes = pyplot.subplots(
            1, 2 if self.stages else 1, figsize=(12, 0.5 * len(self.rows) + 2), squeeze=False
        )
        column = self.labels
        names = [" ".join(str(cell) for cell in row[:column]) for row in self.rows]
        bars = axes[0][0].barh(names, [float(row[column]) for row in self.rows])
        axes[0][0].bar_label(bars, padding=3)
        axes[0][0].set_xlabel(self.columns[column])
        axes[0][0].invert_yaxis()
        if self.stages:
            bars = axes[0][1].barh(list(self.stages), list(self.stages.values()))
            axes[0][1].bar_label(bars, fmt="%.2f", padding=3)
            axes[0][1].set_xlabel(f"pullpipe, {self.stages_of}: seconds of work by stage, all layers together")
            axes[0][1].invert_yaxis()
        for each in axes[0]:
            each.margins(x=0.15)
        figure.suptitle(f"{self.benchmark}: {self.conditions}", fontsize=9)
        figure.tight_layout()
        figure.savefig(path)


def _show(cell: Cell) -> str:
    return cell if isinstance(cell, str) else f"{cell:g}"
