"""A blob that arrives with another digest is fetched once more, from its start."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from tests.conftest import Cli
from tests.registry.faults.rig import Breaks, Outcome, Pull, Pushed
from tests.support import faults
from tests.support.faulty_proxy import FaultProxy, Rule
from tests.support.registry import Registry

pytestmark = pytest.mark.needs_root


class TestWrongBytes:
    @pytest.mark.parametrize("at", [0, 1_234_567, 2**40])
    def test_once(
        self, registry: Registry, image: Pushed, pull: Pull, arrives: Outcome, store_root: Path, at: int
    ) -> None:
        """In the archive's header, in the middle, in its last byte: that blob is fetched once more, from its start."""
        with FaultProxy(registry, Rule(faults.corrupt(at), image.long)) as proxy:
            done = pull(proxy)
            arrives(done)
            assert image.long.removeprefix("sha256:")[:12] in done.stderr
            assert proxy.ranges(image.long) == ["", ""]
            assert [len(proxy.of(digest)) for digest in (image.config, *image.layers[1:])] == [1, 1, 1]

    def test_once_in_zstd(self, registry: Registry, image: Pushed, pull: Pull, arrives: Outcome) -> None:
        with FaultProxy(registry, Rule(faults.corrupt(50_000), image.layers[1])) as proxy:
            arrives(pull(proxy))
            assert [len(proxy.of(digest)) for digest in (image.config, *image.layers)] == [1, 1, 2, 1]

    def test_once_in_the_config(self, registry: Registry, image: Pushed, pull: Pull, arrives: Outcome) -> None:
        """Which is a blob as the others are."""
        with FaultProxy(registry, Rule(faults.corrupt(100), image.config)) as proxy:
            arrives(pull(proxy))
            assert [len(proxy.of(digest)) for digest in (image.config, *image.layers)] == [2, 1, 1, 1]

    def test_in_what_was_continued(self, registry: Registry, image: Pushed, pull: Pull, arrives: Outcome) -> None:
        """Nobody knows which part was wrong, so all of it comes again."""
        rules = Rule(faults.cut(1_000_000), image.long), Rule(faults.corrupt(5), image.long)
        with FaultProxy(registry, *rules) as proxy:
            arrives(pull(proxy))
            assert proxy.ranges(image.long) == ["", "bytes=1000000-", ""]

    @pytest.mark.parametrize("place", ["layer", "config"])
    def test_twice(
        self,
        registry: Registry,
        image: Pushed,
        pull: Pull,
        arrives: Outcome,
        breaks: Breaks,
        store_root: Path,
        place: str,
    ) -> None:
        """The line names the blob; nothing of it is kept, and the other layers are."""
        digest = image.place(place)
        with FaultProxy(registry, Rule(faults.corrupt(100), digest, times=None)) as proxy:
            done = pull(proxy)
            line = breaks(done)
            assert digest in line
            assert f"(fetched again: from {proxy.host}); " in line
            assert "; fetching it again" in done.stderr
            assert len(proxy.of(digest)) == 2
            assert not [path for path in store_root.rglob(f"*{digest[7:]}*") if path.is_file()]
            proxy.rules.clear()
            arrives(pull(proxy))
            assert proxy.ranges(digest) == ["", "", ""]

    def test_at_the_mirror_and_at_the_registry(
        self, registry: Registry, image: Pushed, cli: Cli, breaks: Breaks
    ) -> None:
        """The line names both."""
        rule = Rule(faults.corrupt(100), image.long)
        with FaultProxy(registry, rule) as mirror, FaultProxy(registry, replace(rule)) as proxy:
            settings = Path(os.environ["XDG_CONFIG_HOME"], "pullpipe", "registries.conf")
            settings.parent.mkdir()
            settings.write_text(
                f'[[registry]]\nlocation = "{proxy.host}"\n[[registry.mirror]]\nlocation = "{mirror.host}"\n'
            )
            line = breaks(cli("pull", "--durability=none", image.reference(proxy)))
            assert f"(fetched again: from {mirror.host}, then from {proxy.host}); " in line
