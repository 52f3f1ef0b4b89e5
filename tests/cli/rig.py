"""What the tests of the commands share: running one and reading its answer, images, mounts, other programs' views."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

from tests.conftest import PROJECT, Cli
from tests.support.images import File, Image, Layer, write_layout
from tests.support.registry import Registry
from tests.support.tree import Snapshot, snapshot


def ok(cli: Cli, *args: str | Path, stdin: str = "") -> str:
    """The command succeeds; what it prints."""
    done = cli(*args, stdin=stdin)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def fails(cli: Cli, *args: str | Path, code: int = 1) -> str:
    """The command fails as every command does: nothing on stdout, one line on stderr, which is returned."""
    done = cli(*args)
    assert (done.returncode, done.stdout) == (code, ""), done.stderr
    [line] = done.stderr.splitlines()
    assert line.startswith("pullpipe: error: ")
    return line


def answer(cli: Cli, *args: str | Path) -> Any:
    """The JSON that the command prints."""
    return json.loads(ok(cli, *args))


def file_layer(name: str, data: bytes = b"") -> Layer:
    """A layer with one file."""
    return Layer([File(name, data or name.encode())])


def layout_of(directory: Path, *layers: Layer, **others: Image) -> Path:
    """An OCI layout with the image `image` of these layers, and others by their tags."""
    images = {"image": Image(layers, {"Cmd": ["/bin/sh"]})} if layers else {}
    write_layout(directory, {**images, **others})
    return directory


def document(layout: Path, digest: str) -> dict[str, Any]:
    """A manifest or config of a layout."""
    found: dict[str, Any] = json.loads((layout / "blobs" / digest.replace(":", "/")).read_bytes())
    return found


def digest_of(layout: Path, tag: str = "image") -> str:
    """What the layout's index gives for the tag."""
    for entry in json.loads((layout / "index.json").read_bytes())["manifests"]:
        if entry["annotations"]["org.opencontainers.image.ref.name"] == tag:
            return str(entry["digest"])
    raise KeyError(tag)


def layers_of(layout: Path, tag: str = "image") -> list[dict[str, Any]]:
    """The layers' descriptors."""
    layers: list[dict[str, Any]] = document(layout, digest_of(layout, tag))["layers"]
    return layers


@contextmanager
def mounted(cli: Cli, reference: str, target: Path, *options: str) -> Iterator[Path]:
    """The image's tree at `target` for the length of the block."""
    target.mkdir(exist_ok=True)
    assert ok(cli, "mount", *options, reference, target) == str(target)
    try:
        yield target
    finally:
        assert ok(cli, "umount", target) == str(target)


def mounted_tree(cli: Cli, reference: str, target: Path) -> Snapshot:
    with mounted(cli, reference, target):
        return snapshot(target)


def unpacked_tree(cli: Cli, reference: str, target: Path) -> Snapshot:
    assert ok(cli, "unpack", "--quiet", reference, target) == str(target)
    return snapshot(target)


def umoci_tree(layout: Path, tag: str, bundle: Path) -> Snapshot:
    """The tree that umoci, the other implementation, makes of an image."""
    command = ["umoci", "unpack", "--image", f"{layout}:{tag}", str(bundle)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return snapshot(bundle / "rootfs")


def without_times(tree: Snapshot, *paths: bytes) -> Snapshot:
    """The tree, with the times of these paths taken out of the comparison."""
    return {path: replace(node, mtime_ns=0) if path in paths else node for path, node in tree.items()}


class Log:
    """The requests that a registry's log has gained since this was made, by the repository's name."""

    _LINE = re.compile(r'"([A-Z]+) (/v2/\S*) HTTP/1\.1" \d+ \d+ "[^"]*" "([^"]*)"')

    def __init__(self, registry: Registry, repository: str) -> None:
        self._registry = registry
        self._repository = repository
        self._seen = len(registry.log)

    def requests(self, agent: str = "") -> list[tuple[str, str]]:
        """(method, path within the repository), sorted; of the clients whose User-Agent begins so."""
        # What is logged is logged after it was answered: a last request marks the end.
        end = f"/v2/{self._repository}/tags/end"
        connection = HTTPConnection("127.0.0.1", self._registry.port, timeout=10)
        connection.request("GET", end)
        connection.getresponse().read()
        connection.close()
        until(lambda: f'"GET {end} ' in self._registry.log[self._seen :])
        found = self._LINE.findall(self._registry.log[self._seen :])
        prefix = f"/v2/{self._repository}/"
        return sorted(
            (method, path.removeprefix(prefix))
            for method, path, client in found
            if path.startswith(prefix) and path != end and client.startswith(agent)
        )

    def blobs(self, agent: str = "") -> set[str]:
        """The digests of the blobs that were asked for."""
        return {path.removeprefix("blobs/") for _, path in self.requests(agent) if path.startswith("blobs/")}


@contextmanager
def started(root: Path, *args: str | Path, stderr: Path) -> Iterator[subprocess.Popen[str]]:
    """The command, running; what it says goes to the file `stderr`. It and its workers are killed after the block."""
    command = [sys.executable, "-m", "pullpipe", "--root", str(root), *map(str, args)]
    with (
        stderr.open("w") as errors,
        subprocess.Popen(
            command,
            cwd=PROJECT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            start_new_session=True,
        ) as process,
    ):
        try:
            yield process
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)


def until(condition: Callable[[], object], *, seconds: float = 20) -> None:
    """Looks again and again until it is so; fails when it takes too long."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)


def group_is_gone(process: subprocess.Popen[str]) -> bool:
    """Whether the process and all that it started have ended."""
    try:
        os.killpg(process.pid, 0)
    except ProcessLookupError:
        return True
    return False
