"""Coverage-guided fuzzing, by atheris, of what reads a registry's bytes first.

    python -m tests.fuzz_atheris tarstream|inflate --runs N [--seconds S]

Bytes are read, or refused by `LayerError`; anything else is a find: its bytes go to a file, its trace to the terminal,
and the exit code is not 0. `make fuzz` runs it; pytest does not. Without atheris, which has wheels for few machines, it
says so and ends well.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

LONGEST = 64 << 10  # bytes of an input
MEMORY = 2048  # MiB; a zstd window alone may take 128


def main() -> None:
    """Runs one target."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz_atheris", description="Fuzz by coverage.")
    parser.add_argument("target", choices=sorted(TARGETS))
    parser.add_argument("--runs", type=int, default=1_000_000, help="how many inputs to try")
    parser.add_argument("--seconds", type=int, default=60, help="how long to try them")
    arguments = parser.parse_args()
    try:
        atheris: Any = importlib.import_module("atheris")
    except ImportError:
        print("atheris is not installed (pip install atheris; it has no wheel for every machine): nothing is fuzzed")
        return
    # What is imported in here is watched for coverage; so nothing of ours may have been imported before.
    with atheris.instrument_imports(include=["pullpipe.pipe.tarstream", "pullpipe.pipe.inflate"]):
        importlib.import_module("pullpipe.pipe.tarstream")
        importlib.import_module("pullpipe.pipe.inflate")
    from tests.pipe.mutants import archives, streams

    with tempfile.TemporaryDirectory(prefix="pullpipe-atheris-") as corpus:
        for number, seed in enumerate((archives() if arguments.target == "tarstream" else streams()).values()):
            (Path(corpus) / str(number)).write_bytes(seed)
        options = [
            f"-runs={arguments.runs}",
            f"-max_total_time={arguments.seconds}",
            f"-max_len={LONGEST}",
            f"-rss_limit_mb={MEMORY}",
            "-timeout=20",
            "-print_final_stats=1",
        ]
        # libFuzzer ends its process without a word to Python; so it gets one of its own.
        child = os.fork()
        if child == 0:
            atheris.Setup([sys.argv[0], *options, corpus], TARGETS[arguments.target]())
            atheris.Fuzz()
            os._exit(0)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    sys.exit(code)


def _tarstream() -> Callable[[bytes], None]:
    def target(data: bytes) -> None:
        from tests.pipe.test_fuzz_bytes import parsed

        parsed(data, 4096)

    return target


def _inflate() -> Callable[[bytes], None]:
    def target(data: bytes) -> None:
        from pullpipe.errors import LayerError
        from pullpipe.pipe.inflate import PIECE, inflate
        from tests.pipe.blocks import pieces

        with suppress(LayerError):
            for count, piece in enumerate(inflate(pieces(data, 4096))):
                assert 0 < len(piece) <= PIECE
                if count == 40:  # a bomb of 10 MiB is enough
                    break

    return target


TARGETS: dict[str, Callable[[], Callable[[bytes], None]]] = {"tarstream": _tarstream, "inflate": _inflate}

if __name__ == "__main__":
    main()
