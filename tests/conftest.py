"""What all tests share: the real registry, the shared images, the command line, a store that is cleaned up."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NoReturn, Protocol

import pytest

from tests.support.registry import Registry

PROJECT = Path(__file__).parents[1]
IN_CI = os.environ.get("CI") == "true"
# A minute or more each: they begin first, so that no core has to wait for one of them in the end.
LONG = ("tests/torture/", "tests/cli/test_soak.py", "tests/pipe/test_differential.py")


def require(tool: str) -> str:
    """The path of a Debian tool. Without it the test is skipped, in CI it fails."""
    path = shutil.which(tool)
    if path is None:
        leave_out(f"{tool} is not installed")
    return path


def pytest_configure(config: pytest.Config) -> None:
    # A shell that starts us in the background has it ignored, and so would every command that we start.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    config.addinivalue_line("markers", "needs_root: the test needs root; in CI it fails without")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: not item.nodeid.startswith(LONG))


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("needs_root") and os.geteuid() != 0:
        leave_out("needs root")


@pytest.fixture(autouse=True)
def _nothing_of_the_user(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever runs the tests may be logged in somewhere, and have tokens from there."""
    monkeypatch.delenv("REGISTRY_AUTH_FILE", raising=False)  # docker-registry takes it for one of its own settings
    monkeypatch.delenv("CONTAINERS_REGISTRIES_CONF", raising=False)
    directory = tmp_path_factory.mktemp("user")
    for variable in ("XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_RUNTIME_DIR", "DOCKER_CONFIG"):
        (directory / variable).mkdir(mode=0o700)
        monkeypatch.setenv(variable, str(directory / variable))
    (directory / "DOCKER_CONFIG" / "config.json").write_text("{}")  # podman insists on one where that is set


@pytest.fixture(scope="session")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    """A real, anonymous, empty registry for the whole session: choose a repository name of your own."""
    require("docker-registry")
    require("skopeo")
    with Registry(tmp_path_factory.mktemp("registry")) as running:
        yield running


@pytest.fixture(scope="session")
def shared_images() -> Path:
    """The directory of OCI layouts that lies beside the project, or where PULLPIPE_TEST_IMAGES says."""
    if given := os.environ.get("PULLPIPE_TEST_IMAGES"):
        assert Path(given).is_dir(), f"PULLPIPE_TEST_IMAGES is no directory: {given}"
        return Path(given)
    beside = PROJECT.parent / "shared" / "images"
    if not beside.is_dir():
        pytest.skip("left out what needs a real image: no PULLPIPE_TEST_IMAGES and no ../shared/images")
    return beside


@pytest.fixture
def store_root(tmp_path: Path) -> Iterator[Path]:
    """The root for a store, not yet made. A test that leaves a mount under its `tmp_path` fails."""
    root = tmp_path / "root"
    yield root
    left = _mounts_under(tmp_path)
    for mount in reversed(left):
        subprocess.run(["umount", "--lazy", mount], check=True)
    for directory, _, _ in os.walk(root):
        os.chmod(directory, 0o700)  # without root, nothing is deleted from a directory of mode 0
    if root.exists():
        shutil.rmtree(root)
    if left:
        pytest.fail(f"mounts were left behind: {', '.join(map(str, left))}")


class Cli(Protocol):
    """`python -m pullpipe --root ROOT` with these arguments.

    `env` is added to the environment, `stdin` is what the command can read, `timeout` is in seconds: after
    it, TimeoutExpired is raised and the command with all its workers is killed.
    """

    def __call__(
        self,
        *args: str | Path,
        stdin: str = "",
        env: Mapping[str, str] | None = None,
        timeout: float = 60,
    ) -> subprocess.CompletedProcess[str]: ...


@pytest.fixture
def cli(store_root: Path) -> Cli:
    """Run pullpipe as a user does, on `store_root`."""

    def run(
        *args: str | Path,
        stdin: str = "",
        env: Mapping[str, str] | None = None,
        timeout: float = 60,
    ) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "pullpipe", "--root", str(store_root), *map(str, args)]
        with subprocess.Popen(
            command,
            cwd=PROJECT,
            env={**os.environ, **(env or {})},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            errors="backslashreplace",
            start_new_session=True,
        ) as process:
            try:
                out, err = process.communicate(stdin, timeout)
            except BaseException:
                # Its workers too: they would keep the pipes, and so this test, open.
                os.killpg(process.pid, signal.SIGKILL)
                raise
        return subprocess.CompletedProcess(command, process.returncode, out, err)

    return run


def leave_out(reason: str) -> NoReturn:
    """Skips the test; in CI it fails."""
    if IN_CI:
        pytest.fail(f"{reason}, and nothing is left out in CI")
    pytest.skip(reason)


def _mounts_under(directory: Path) -> list[Path]:
    """The mount points under `directory`, in the order they were mounted."""
    table = Path("/proc/self/mountinfo").read_text(errors="surrogateescape")
    points = [
        Path(re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), line.split()[4]))
        for line in table.splitlines()
    ]
    return [point for point in points if directory in point.parents]
