"""What has arrived when a connection breaks, or a pull is killed, is not fetched again."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.cli.rig import group_is_gone, layers_of, layout_of, started, until
from tests.conftest import Cli
from tests.registry.faults.rig import SHORT, Breaks, Outcome, Pull, Pushed
from tests.support import faults
from tests.support.faulty_proxy import Fault, FaultProxy, Rule
from tests.support.images import File, Layer
from tests.support.registry import Registry

pytestmark = pytest.mark.needs_root

BREAKS: dict[str, Callable[[int], Fault]] = {
    "cut": faults.cut,
    "cut between chunks": lambda after: faults.cut(after, "chunked"),
    "cut without a length": lambda after: faults.cut(after, "close"),
    "reset": faults.reset,
    "silent": faults.stall,
}


class TestContinued:
    @pytest.mark.parametrize("name", BREAKS)
    def test_no_byte_comes_twice(
        self, registry: Registry, image: Pushed, pull: Pull, arrives: Outcome, name: str
    ) -> None:
        """Broken three times, more often than it may fail in vain: each time it goes on where it was."""
        fault = BREAKS[name]
        cuts = [1_000_000, 500_001, 200_000]
        with FaultProxy(registry, *(Rule(fault(cut), image.long) for cut in cuts)) as proxy:
            arrives(pull(proxy, "--retries=1", *(SHORT if name == "silent" else ())))
            assert proxy.ranges(image.long) == ["", "bytes=1000000-", "bytes=1500001-", "bytes=1700001-"]
            assert proxy.sent(image.long) == image.size

    def test_in_the_last_byte(self, registry: Registry, image: Pushed, pull: Pull, arrives: Outcome) -> None:
        with FaultProxy(registry, Rule(faults.cut(image.size - 1), image.long)) as proxy:
            arrives(pull(proxy))
            assert proxy.ranges(image.long)[1:] == [f"bytes={image.size - 1}-"]

    def test_little_by_little_is_in_vain(self, registry: Registry, image: Pushed, pull: Pull, breaks: Breaks) -> None:
        """A few bytes each time are no progress: it would never end."""
        with FaultProxy(registry, Rule(faults.cut(10), image.long, times=None)) as proxy:
            assert "(tried 3 times)" in breaks(pull(proxy))
            assert proxy.ranges(image.long) == ["", "bytes=10-", "bytes=20-"]

    @pytest.mark.parametrize("fault", [faults.ignore_range(), faults.refuse_range()], ids=lambda one: str(one.name))
    def test_without_ranges(
        self, registry: Registry, image: Pushed, pull: Pull, arrives: Outcome, fault: Fault
    ) -> None:
        """All of it is sent again then, and what is here already is passed over."""
        rules = Rule(faults.cut(1_000_000), image.long), Rule(fault, image.long, times=None)
        with FaultProxy(registry, *rules) as proxy:
            arrives(pull(proxy))
            assert proxy.ranges(image.long)[:2] == ["", "bytes=1000000-"]
            assert proxy.sent(image.long) == 1_000_000 + image.size

    def test_at_a_storage_service(self, registry: Registry, image: Pushed, pull: Pull, arrives: Outcome) -> None:
        """Where it breaks off at the place it was redirected to, the registry is asked again: such URLs expire."""
        rules = (
            Rule(faults.redirect("http://{storage}{path}"), image.long, times=None),
            Rule(faults.reset(1_000_000), image.long, at="storage"),
        )
        with FaultProxy(registry, *rules) as proxy:
            arrives(pull(proxy))
            asked = [(one.at, one.headers.get("range", "")) for one in proxy.of(image.long)]
            rest = "bytes=1000000-"
            assert asked == [("registry", ""), ("storage", ""), ("registry", rest), ("storage", rest)]
            assert proxy.sent(image.long) == image.size


class TestLarge:
    """A large blob from a slow registry, which comes in windows, several at a time."""

    DATA = random.Random(3).randbytes(40 << 20)
    WINDOW = 4 << 20
    OPTIONS = ("--plain-http", "--durability=none")
    SLOW = faults.drip(0.02, 1 << 20)

    @pytest.fixture
    def layer(self, registry: Registry, tmp_path: Path) -> dict[str, Any]:
        """Of faults/large:1."""
        layout = layout_of(tmp_path / "large", Layer([File("large", self.DATA)], compression=None))
        registry.push(layout, "image", to="faults/large:1")
        [layer] = layers_of(layout)
        return layer

    def check(self, store_root: Path) -> None:
        [tree] = (store_root / "layers" / "sha256").iterdir()
        assert (tree / "fs" / "large").read_bytes() == self.DATA

    def test_windows_that_break(self, registry: Registry, cli: Cli, layer: dict[str, Any], store_root: Path) -> None:
        """They are continued, and no other is."""
        rules = (
            Rule(self.SLOW, layer["digest"]),
            Rule(faults.cut(1_000_000), layer["digest"], skip=1),
            Rule(faults.reset(2_000_000), layer["digest"], skip=2),
        )
        with FaultProxy(registry, *rules) as proxy:
            done = cli("pull", *self.OPTIONS, f"{proxy.host}/faults/large:1")
            assert done.returncode == 0, done.stderr
            assert proxy.sent(layer["digest"]) == layer["size"]
            assert len(proxy.of(layer["digest"])) > 10
        self.check(store_root)

    @pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
    def test_a_window_that_is_not_whole(
        self, registry: Registry, cli: Cli, layer: dict[str, Any], store_root: Path, tmp_path: Path, number: int
    ) -> None:
        """What has come of the one whose turn it is survives the process."""

        def size() -> int:
            return sum(path.stat().st_size for path in store_root.glob(f"ingest/*{layer['digest'][7:]}"))

        half = Rule(faults.stall(self.WINDOW // 2), layer["digest"], times=None)
        with FaultProxy(registry, Rule(self.SLOW, layer["digest"]), half) as proxy:
            name = f"{proxy.host}/faults/large:1"
            with started(store_root, "pull", *self.OPTIONS, name, stderr=tmp_path / "said") as process:
                until(lambda: size() > self.WINDOW)
                process.send_signal(number)
                process.wait()
                until(lambda: group_is_gone(process))
            present = size()
            proxy.rules.clear()
            proxy.exchanges.clear()
            done = cli("pull", *self.OPTIONS, name)
            assert done.returncode == 0, done.stderr
            assert proxy.sent(layer["digest"]) == layer["size"] - present
        self.check(store_root)


class TestPartial:
    """What a killed pull leaves of a blob."""

    @pytest.fixture
    def left(self, registry: Registry, image: Pushed, store_root: Path, tmp_path: Path) -> Path:
        """The partial blob of a pull that was killed in the middle of the long layer."""
        with FaultProxy(registry, Rule(faults.stall(1_500_000), image.long)) as proxy:
            options = ["--plain-http", "--durability=none"]
            with started(store_root, "pull", *options, image.reference(proxy), stderr=tmp_path / "said") as process:
                until(lambda: [path for path in store_root.glob(f"ingest/*{image.long[7:]}") if path.stat().st_size])
                until(lambda: proxy.of(image.layers[2]))
                os.kill(process.pid, signal.SIGKILL)
                process.wait()
                until(lambda: group_is_gone(process))
        [path] = store_root.glob(f"ingest/*{image.long[7:]}")
        assert 0 < path.stat().st_size < image.size
        return path

    def test_is_continued(self, registry: Registry, image: Pushed, pull: Pull, arrives: Outcome, left: Path) -> None:
        present = left.stat().st_size
        with FaultProxy(registry) as proxy:
            arrives(pull(proxy))
            assert proxy.ranges(image.long) == [f"bytes={present}-"]
            assert proxy.sent(image.long) == image.size - present

    def test_is_continued_for_another_image(
        self, registry: Registry, image: Pushed, other: Pushed, pull: Pull, arrives: Outcome, left: Path
    ) -> None:
        """A blob belongs to no image."""
        present = left.stat().st_size
        with FaultProxy(registry) as proxy:
            arrives(pull(proxy, image=other), other)
            assert proxy.ranges(image.long) == [f"bytes={present}-"]

    @pytest.mark.parametrize("at", [0, 700_000])
    def test_that_was_damaged(
        self, registry: Registry, image: Pushed, pull: Pull, arrives: Outcome, left: Path, at: int
    ) -> None:
        """That is found out in the same run, and costs that blob only."""
        present = left.stat().st_size
        with left.open("r+b") as file:
            file.seek(at)
            file.write(bytes(100))
        with FaultProxy(registry) as proxy:
            arrives(pull(proxy))
            assert proxy.ranges(image.long) == [f"bytes={present}-", ""]
            assert all(len(proxy.of(digest)) <= 1 for digest in image.layers[1:])

    def test_that_is_longer_than_the_blob(
        self, registry: Registry, image: Pushed, pull: Pull, arrives: Outcome, left: Path
    ) -> None:
        with left.open("r+b") as file:
            file.truncate(image.size + 10)
        with FaultProxy(registry) as proxy:
            arrives(pull(proxy))
            assert proxy.ranges(image.long) == [""]

    def test_that_is_as_long_and_wrong(
        self, registry: Registry, image: Pushed, pull: Pull, arrives: Outcome, left: Path
    ) -> None:
        """As a file system may leave it that lost power: the length is there and the bytes are not."""
        with left.open("r+b") as file:
            file.truncate(image.size)
        with FaultProxy(registry) as proxy:
            arrives(pull(proxy))
            assert proxy.ranges(image.long) == [""]

    def test_of_a_registry_without_ranges(
        self, registry: Registry, image: Pushed, pull: Pull, arrives: Outcome, left: Path
    ) -> None:
        with FaultProxy(registry, Rule(faults.ignore_range(), "/blobs/", times=None)) as proxy:
            arrives(pull(proxy))
            assert len(proxy.of(image.long)) == 1
