"""`python -m benchmarks`: measurements, each against real peers in the same run."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from benchmarks import compare, contenders, extract, floor, images, scale, start
from benchmarks.report import Report


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    commands = parser.add_subparsers(title="benchmarks", metavar="BENCHMARK", required=True)

    def add(name: str, about: str, run: Callable[[argparse.Namespace], Report | None]) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=about, description=about)
        sub.set_defaults(run=run)
        return sub

    def add_report(name: str, about: str, run: Callable[[argparse.Namespace], Report]) -> argparse.ArgumentParser:
        sub = add(name, about, run)
        sub.add_argument("--json", action="store_true", help="JSON instead of a table")
        sub.add_argument("--output", metavar="FILE", type=Path, help="write the JSON there, too")
        sub.add_argument("--against", metavar="FILE", type=Path, help="compare with an earlier one")
        sub.add_argument("--plot", metavar="FILE", type=Path, help="draw it (.png, .svg); wants the extra `bench`")
        return sub

    add("list", "what there is to measure, and who is installed", lambda _: _list())
    sub = add("images", "build images into the cache", lambda arguments: _build(arguments.images, arguments.cache))
    _add_images(sub, list(images.PROFILES))
    all_kinds = ["mixed", "small-files", "large-layer"]
    for name, about, work, default, runs in (
        ("pull", "cold pulls from a registry on loopback, beside peers", compare.pull, all_kinds, 3),
        ("apply", "the layers of an OCI layout, without a network, beside peers", compare.apply, all_kinds, 3),
        ("slow", "cold pulls where each connection is limited, beside peers", compare.slow, ["large-layer"], 1),
    ):
        sub = add_report(
            name,
            about,
            lambda given, work=work: work(given.images, given.only, given.runs, given.cache),  # type: ignore[misc]
        )
        _add_images(sub, default)
        _add_contenders(sub, runs)
    about = "start-up of a container, beside peers"
    sub = add_report("run", about, lambda given: start.run(given.only, given.runs, given.cache))
    _add_cache(sub)
    _add_contenders(sub, 20)
    sub = add_report("extract", "one layer of small files, beside tar programs", _extract)
    sub.add_argument("--files", type=int, default=20_000)
    sub.add_argument("--runs", type=int, default=5)
    sub.add_argument("--directory", default="/dev/shm" if os.path.isdir("/dev/shm") else None, help="a tmpfs")
    sub = add_report("floor", "what each stage costs alone", lambda given: floor.floor(given.image, given.cache))
    sub.add_argument("image", nargs="?", default="mixed", choices=images.names())
    _add_cache(sub)
    sub = add_report("scale", "cost as the work grows", _scale)
    sub.add_argument("dimensions", nargs="*", metavar="DIMENSION", help=f"of {', '.join(scale.DIMENSIONS)}")
    sub.add_argument("--steps", type=int, default=4, help="at most so many of each dimension (default: all)")
    _add_cache(sub)

    arguments = parser.parse_args()
    try:
        report = arguments.run(arguments)
    except KeyError as error:
        parser.error(f"there is no {error}; `python -m benchmarks list` tells what there is")
    if report is not None:
        _show(report, arguments)


def _add_cache(parser: argparse.ArgumentParser) -> None:
    where = Path(tempfile.gettempdir(), "pullpipe-bench")
    parser.add_argument("--cache", type=Path, default=where, help="where images are kept (default: %(default)s)")


def _add_images(parser: argparse.ArgumentParser, default: list[str]) -> None:
    parser.add_argument("images", nargs="*", metavar="IMAGE", default=default, help=f"default: {' '.join(default)}")
    _add_cache(parser)


def _add_contenders(parser: argparse.ArgumentParser, runs: int) -> None:
    parser.add_argument("--only", action="append", default=[], metavar="NAME", help="measure this one; repeatable")
    parser.add_argument("--runs", type=int, default=runs, help="of each, behind one that does not count")


def _list() -> None:
    for name, about in images.names().items():
        print(f"image      {name:12} {about}")
    for contender in contenders.ALL:
        print(f"contender  {contender.name:18} {contender.version if contender.is_here else 'not installed'}")


def _build(names: list[str], cache: Path) -> None:
    for name in names:
        print(images.provide(name, cache))


def _extract(arguments: argparse.Namespace) -> Report:
    return extract.extract(files=arguments.files, runs=arguments.runs, directory=arguments.directory)


def _scale(arguments: argparse.Namespace) -> Report:
    return scale.scale(arguments.dimensions or list(scale.DIMENSIONS), arguments.cache, arguments.steps)


def _show(report: Report, arguments: argparse.Namespace) -> None:
    if arguments.against:
        report.against(arguments.against)
    print(report.json() if arguments.json else report.text())
    if arguments.output:
        arguments.output.write_text(report.json())
    if arguments.plot:
        report.plot(arguments.plot)
    sys.stdout.flush()


if __name__ == "__main__":
    main()
