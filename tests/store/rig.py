"""What the store's tests bring into a store, and programs that use it from other processes.

Those programs import this module too, so it imports nothing slow.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from store import Digest, ImageRecord, LayerInfo, Store

PROJECT = Path(__file__).parents[2]

# Every call that changes a directory or opens a file, as the interpreter announces it before it happens.
STEPS = ("open", "os.chmod", "os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.truncate", "fcntl.flock")

_DIES = f"""
import ctypes, os, signal, sys
from store import *
from store.gc import Marks, sweep
from store.trees import clean
from tests.store.rig import *
left = int(sys.argv[2])
def count(event, arguments):
    global left
    if event in {STEPS!r}:
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
"""

_HOLDS = """
import sys
from store import *
from tests.store.rig import *
store = Store(sys.argv[1], durable=False)
"""


def killed_at_every_step(program: str, root: Path) -> Iterator[int]:
    """Runs `program` again and again on the store at `root`, each time killed one step later.

    A step is a call that opens a file or changes a directory. Yields after each kill the number of steps that were
    made; ends when the program has come to its end. `ROOT` is the path of the store.
    """
    for steps in range(1000):
        text = f"{_DIES}\nROOT = sys.argv[1]\nsys.addaudithook(count)\n{program}"
        done = subprocess.run(
            [sys.executable, "-c", text, str(root), str(steps + 1)], cwd=PROJECT, capture_output=True, text=True
        )
        if done.returncode == 0:
            assert steps > 0, "the program made no step at all"
            return
        assert done.returncode == -9, done.stderr
        yield steps
    raise AssertionError("the program makes more steps than anybody expects")


@contextmanager
def another_process(program: str, root: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that has run `program` on the store at `root`, and then waits; killed at the end of the block."""
    text = f"{_HOLDS}\n{program}\nprint('ready', flush=True)\nsys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", text, str(root)], cwd=PROJECT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            yield process
        finally:
            process.kill()


def at_once(program: str, root: Path, count: int) -> list[subprocess.CompletedProcess[str]]:
    """`program` in so many processes, which all begin it at the same moment; `number` tells them apart."""
    text = f"{_HOLDS}\nnumber = int(sys.argv[2])\nprint(flush=True)\nsys.stdin.read()\n{program}"
    running = [
        subprocess.Popen(
            [sys.executable, "-c", text, str(root), str(number)],
            cwd=PROJECT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(count)
    ]
    for process in running:
        assert process.stdout is not None
        process.stdout.readline()
    for process in running:
        assert process.stdin is not None
        process.stdin.close()
        process.stdin = None
    done = []
    for process in running:
        out, err = process.communicate(timeout=60)
        done.append(subprocess.CompletedProcess(process.args, process.returncode, out, err))
    return done


def put_blob(store: Store, data: bytes) -> Digest:
    """Brings a blob in as a pull does."""
    digest = Digest.of(data)
    with store.blobs.ingest(digest, len(data)) as ingest, open(ingest.fileno(), "ab", closefd=False) as file:
        file.write(data)
        file.flush()
        store.publish([ingest], [])
    return digest


def layer_info(diff_id: Digest) -> LayerInfo:
    """A record; which lists of paths it has is the layers' business, not the store's."""
    fields: dict[str, Any] = dict.fromkeys(LayerInfo._fields, ())
    fields |= {"diff_id": diff_id, "size": 3, "entries": 2, "whiteouts": 1, "opaque_root": False}
    fields |= {"owners_ignored": False}
    return LayerInfo(**{**fields, "implied": ("", "etc")})


def put_layer(store: Store, name: str) -> Digest:
    """Brings a layer in whose tree is one directory with one file, both called `name`."""
    diff_id = Digest.of(name.encode())
    lock = store.layers.lock(diff_id)
    assert lock.try_acquire()
    staging = store.layers.stage(diff_id)
    directory = Path(staging.files, name)
    directory.mkdir()
    (directory / name).write_text(name)
    staging.describe(layer_info(diff_id))
    store.publish([], [staging])
    lock.release(remove=True)
    return diff_id


def image_record(reference: str, manifest: Digest | None = None, *, variant: str = "") -> ImageRecord:
    digest = manifest or Digest.of(reference.encode())
    return ImageRecord(
        reference=reference,
        manifest=digest,
        media_type="application/vnd.oci.image.manifest.v1+json",
        size=123,
        resolved=Digest.of(b"index of " + reference.encode()),
        os="linux",
        architecture="arm",
        variant=variant,
    )


def everything(root: Path) -> list[str]:
    """Every path in the store, for a look at what is there."""
    return sorted(str(path.relative_to(root)) for path in root.rglob("*"))
