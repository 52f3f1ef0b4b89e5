"""Measurements, each against real peers in the same run: `python -m benchmarks`."""
