#!/usr/bin/env python3
"""Measures the layers of an image: pulls it into an empty store, and tells how long which stage of each was at work.

    layer_times.py [OPTION…] REF      the options of `pullpipe pull`

The stages work at the same time, so their sum is more than the layer takes. Milliseconds; `recv` is the network.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

STAGES = ("recv", "store", "read", "hash blob", "inflate", "hash tar", "parse", "write")


def main(*arguments: str) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        trace = Path(scratch, "trace.json")
        command = ["pullpipe", "--root", f"{scratch}/store", "pull", "--quiet", "--trace", str(trace), *arguments]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        events = json.loads(trace.read_text())["traceEvents"]
    layers = {
        event["pid"]: event["args"]["name"] for event in events if event["name"] == "process_name" and event["pid"]
    }
    times: dict[int, dict[str, list[tuple[int, int, int]]]] = defaultdict(lambda: defaultdict(list))
    for event in events:
        if event["ph"] == "X" and event["name"] in STAGES:
            span = event["ts"], event["ts"] + event["dur"], event["args"]["busy_us"]
            times[event["pid"]][event["name"]].append(span)
    print(f"{'':18}", *(f"{stage:>9}" for stage in STAGES), f"{'all':>9}")
    for pid, stages in sorted(times.items()):
        spans = [span for stage in stages.values() for span in stage]
        busy = [sum(time for _, _, time in stages[stage]) for stage in STAGES]
        whole = max(end for _, end, _ in spans) - min(begin for begin, _, _ in spans)
        print(f"{layers[pid]:18}", *(f"{time / 1000:9.1f}" for time in [*busy, whole]))


if __name__ == "__main__":
    main(*sys.argv[1:])
