"""What the tests of the runner share: starting containers, and reading what they answer."""

from __future__ import annotations

import importlib.util
import json
import re
import select
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from tests.conftest import PROJECT, Cli
from tests.support.images import Image, Layer, host_shell_layers, write_layout
from tests.support.processes import PATIENCE
from tests.support.terminals import Terminal

BASE = host_shell_layers()

Run = Callable[..., subprocess.CompletedProcess[str]]


def pullpipe(root: Path, *arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    """The command, on this store."""
    command = [sys.executable, "-m", "pullpipe", "--root", str(root), *arguments]
    return subprocess.run(command, cwd=PROJECT, input=stdin, capture_output=True, encoding="utf-8", timeout=60)


def out(done: subprocess.CompletedProcess[str]) -> str:
    """What the command printed, without the last newline, when it went well."""
    assert done.returncode == 0, done.stderr
    return done.stdout.removesuffix("\n")


def error(done: subprocess.CompletedProcess[str], code: int) -> str:
    """The one line that says what went wrong."""
    assert done.returncode == code, (done.stdout, done.stderr)
    assert done.stderr.startswith("pullpipe: error: "), done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert "bug" not in done.stderr, done.stderr
    return done.stderr


@contextmanager
def started(
    root: Path, *arguments: str, stdin: int = subprocess.DEVNULL, pass_fds: tuple[int, ...] = ()
) -> Iterator[subprocess.Popen[bytes]]:
    """`pullpipe run` on its own; killed at the end if it still runs."""
    command = [sys.executable, "-m", "pullpipe", "--root", str(root), "run", *arguments]
    with subprocess.Popen(
        command,
        cwd=PROJECT,
        stdin=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        bufsize=0,  # so that `line` sees whether there is more
        pass_fds=pass_fds,
        start_new_session=True,
    ) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()


def line(process: subprocess.Popen[bytes]) -> str:
    """The next line that the command prints; nothing may be buffered."""
    assert process.stdout is not None
    assert select.select([process.stdout], [], [], PATIENCE)[0], "it prints nothing"
    return process.stdout.readline().decode().rstrip("\n")


def terminal_of(root: Path, *arguments: str, command: str = "run") -> Terminal:
    """`pullpipe COMMAND` behind a terminal."""
    return Terminal([sys.executable, "-m", "pullpipe", "--root", str(root), command, *arguments])


def containers(cli: Cli) -> list[dict[str, object]]:
    found: list[dict[str, object]] = json.loads(out(cli("ps", "--format=json")))
    return found


def filled(directory: Path, *layers: Layer) -> Path:
    """A store with the shell, and these layers on it, as `test`."""
    write_layout(directory / "layout", {"t": Image([*BASE, *layers])})
    out(pullpipe(directory / "root", "load", "-q", "--durability=none", "-t", "test", str(directory / "layout")))
    return directory / "root"


def emptied(root: Path) -> None:
    """Removes all containers of a store, and sees to it that nothing of them is left."""
    if names := out(pullpipe(root, "ps", "-q")).split():
        out(pullpipe(root, "rm", "-f", *names))
    assert list((root / "containers").iterdir()) == []
    assert str(root) not in Path("/proc/self/mountinfo").read_text(), "mounts were left behind"


def status(text: str) -> dict[str, str]:
    return dict(row.split(":\t", 1) for row in text.split("\n") if ":\t" in row)


@cache
def host_python() -> tuple[str, ...]:
    """Options with which this machine's Python, as `python`, runs in any container: what it needs is bound into it."""
    program = Path(sys._base_executable).resolve()  # type: ignore[attr-defined]
    ctypes_module = importlib.util.find_spec("_ctypes")
    binaries = [program, *([Path(ctypes_module.origin)] if ctypes_module and ctypes_module.origin else [])]
    listings = [subprocess.run(["ldd", one], capture_output=True, text=True).stdout for one in binaries]
    libraries = {found for listing in listings for found in re.findall(r"(/\S+) \(0x", listing)}
    modules = sysconfig.get_path("stdlib")
    places = {str(program): "/bin/python", modules: modules, **{one: one for one in libraries}}
    return (*(f"-v={source}:{target}:ro" for source, target in places.items()), f"-e=PYTHONHOME={sys.base_prefix}")
