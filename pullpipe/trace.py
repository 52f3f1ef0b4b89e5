"""Where the time of a pull goes: which stage of which layer was at work, and when.

The stages of a layer overlap. Each is timed by whoever does it, in the owner or in the worker, on CLOCK_MONOTONIC,
which all processes share; what a stage waits for the one before it does not count as work.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from time import monotonic
from typing import NamedTuple, TextIO

# In the order in which the bytes pass them. `recv` waits for the network, so it is busy as long as that is.
STAGES = ("resolve", "recv", "store", "read", "hash blob", "inflate", "hash tar", "parse", "write", "settle", "publish")
_GAP = 0.001  # seconds; shorter pauses are not told


class Span(NamedTuple):
    """A stage at work, but for pauses."""

    stage: str
    begun: float  # seconds
    ended: float
    busy: float  # seconds in between, without the pauses


class Times:
    """What the stages of one layer have been doing. Each stage is one thread's; the threads share this object."""

    def __init__(self, *, detailed: bool = False) -> None:
        self._gap = _GAP if detailed else math.inf  # without details: one span a stage
        self._spans: dict[str, list[Span]] = {}

    def add(self, stage: str, begun: float, ended: float, busy: float | None = None) -> None:
        """The stage has worked."""
        busy = ended - begun if busy is None else busy
        spans = self._spans.setdefault(stage, [])
        if spans and begun - spans[-1].ended < self._gap:
            last = spans[-1]
            spans[-1] = Span(stage, last.begun, ended, last.busy + busy)
        else:
            spans.append(Span(stage, begun, ended, busy))

    def since(self, stage: str, begun: float) -> float:
        """The stage has worked until now, which is returned."""
        now = monotonic()
        self.add(stage, begun, now)
        return now

    @property
    def spans(self) -> list[Span]:
        """All of them."""
        return [span for spans in self._spans.values() for span in spans]


class Trace:
    """A whole pull, as a file for Perfetto or chrome://tracing (Trace Event Format, "JSON Object Format")."""

    def __init__(self) -> None:
        self._rows: dict[str, list[Span]] = {"pull": []}

    def add(self, row: str, spans: Iterable[Span]) -> None:
        """Spans of a layer, or of the pull itself."""
        self._rows.setdefault(row, []).extend(spans)

    def write(self, file: TextIO) -> None:
        """Times become microseconds since the first span."""
        start = min((span.begun for spans in self._rows.values() for span in spans), default=0.0)
        events: list[dict[str, object]] = []
        for process, (row, spans) in enumerate(self._rows.items()):
            events.append({"ph": "M", "name": "process_name", "pid": process, "args": {"name": row}})
            for stage in {span.stage: None for span in spans}:
                thread = STAGES.index(stage)
                name = {"ph": "M", "name": "thread_name", "pid": process, "tid": thread, "args": {"name": stage}}
                events.append(name)
            events.extend(
                {
                    "ph": "X",
                    "name": span.stage,
                    "pid": process,
                    "tid": STAGES.index(span.stage),
                    "ts": round((span.begun - start) * 1e6),
                    "dur": round((span.ended - span.begun) * 1e6),
                    "args": {"busy_us": round(span.busy * 1e6)},
                }
                for span in spans
            )
        json.dump({"traceEvents": events, "displayTimeUnit": "ms"}, file)
