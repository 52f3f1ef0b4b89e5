"""Signals that tell a command to end, whatever it is at."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.cli.rig import answer, file_layer, layout_of, ok
from tests.conftest import PROJECT, Cli
from tests.support.processes import is_waited_for, until

pytestmark = pytest.mark.needs_root
NUMBERS = [signal.SIGTERM, signal.SIGHUP, signal.SIGINT]


def start(root: Path, *words: str | Path, through: tuple[str, ...] = ()) -> subprocess.Popen[bytes]:
    """With no signal ignored, as they may be by whoever has started these tests."""
    program = [sys.executable, "-m", "pullpipe", "--root", str(root), *map(str, words)]
    command = ["env", "--default-signal", *through, *program]
    return subprocess.Popen(command, cwd=PROJECT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


@contextmanager
def held(lock: Path) -> Iterator[None]:
    """As by a `prune` that has been stopped."""
    with lock.open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@pytest.mark.parametrize("number", NUMBERS)
def test_what_is_half_done(cli: Cli, store_root: Path, tmp_path: Path, number: signal.Signals) -> None:
    """An export that nobody reads: where it had the image mounted goes."""
    ok(cli, "load", "-q", "-t", "large:1", layout_of(tmp_path / "layout", file_layer("large", os.urandom(1 << 20))))
    with start(store_root, "export", "large:1") as exporting:
        assert exporting.stdout is not None
        assert exporting.stderr is not None
        assert exporting.stdout.read(1)
        assert os.listdir(store_root / "staging")
        exporting.send_signal(number)
        assert exporting.wait() == 128 + number
        assert exporting.stderr.read() == b""
    assert os.listdir(store_root / "staging") == []


@pytest.mark.parametrize("number", NUMBERS)
def test_who_waits_for_a_lock(cli: Cli, image: str, layout: Path, store_root: Path, number: signal.Signals) -> None:
    """A pull takes its time to clean up; but then who wants it to end need not wait for others."""
    with held(store_root / "use.lock"), start(store_root, "load", "-q", "-t", "other:1", layout) as loading:
        until(lambda: is_waited_for(store_root / "use.lock"), "nobody waits")

        def ended() -> bool:
            loading.send_signal(number)
            return loading.poll() is not None

        until(ended, "it does not end")
        assert loading.stderr is not None
        assert (loading.returncode, loading.stderr.read()) == (128 + number, b"")
    assert os.listdir(store_root / "staging") == []
    assert [one["reference"] for one in answer(cli, "images", "--format", "json")] == [image]
    ok(cli, "load", "-q", "-t", "other:1", layout)


def test_what_is_to_be_ignored(cli: Cli, image: str, layout: Path, store_root: Path) -> None:
    """A pull by nohup outlives its terminal."""
    through = ("sh", "-c", 'trap "" HUP && exec "$@"', "sh")
    lock = store_root / "use.lock"
    with held(lock):
        loading = start(store_root, "load", "-q", "-t", "other:1", layout, through=through)
        until(lambda: is_waited_for(lock), "nobody waits")
        loading.send_signal(signal.SIGHUP)
    with loading:
        assert loading.wait() == 0
    assert len(answer(cli, "images", "--format", "json")) == 2
