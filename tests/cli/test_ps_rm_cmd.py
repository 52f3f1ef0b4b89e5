"""`pullpipe ps` and `rm`: the containers there are, and the end of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from store import Digest, Store
from tests.cli.rig import answer, fails, file_layer, layout_of, mounted, ok
from tests.conftest import Cli

FIELDS = {"id", "name", "image", "command", "created", "status", "exit_code", "out_of_memory", "labels"}


@pytest.fixture
def kept(cli: Cli, image: str, tmp_path: Path) -> str:
    """A container that a writable mount left; its name."""
    with mounted(cli, image, tmp_path / "kept", "--rw") as target:
        (target / "written").touch()
    [container] = answer(cli, "ps", "--format", "json")
    return str(container["name"])


def test_none(cli: Cli) -> None:
    """An empty listing, for people and for programs."""
    assert ok(cli, "ps").split() == ["CONTAINER", "NAME", "IMAGE", "COMMAND", "CREATED", "STATUS"]
    assert answer(cli, "ps", "--format", "json") == []
    assert ok(cli, "ps", "--quiet") == ""


@pytest.mark.needs_root
class TestPs:
    def test_json(self, cli: Cli, image: str, kept: str) -> None:
        """The documented fields, and their types."""
        [container] = answer(cli, "ps", "--format", "json")
        assert set(container) == FIELDS
        assert (container["name"], container["image"], container["command"]) == (kept, image, [])
        assert len(container["id"]) == 64
        assert isinstance(container["created"], float)
        assert (container["status"], container["exit_code"]) == ("exited (0)", 0)

    def test_table(self, cli: Cli, image: str, kept: str) -> None:
        header, row = ok(cli, "ps", "--all").splitlines()
        [container] = answer(cli, "ps", "--format", "json")
        assert header.split() == ["CONTAINER", "NAME", "IMAGE", "COMMAND", "CREATED", "STATUS"]
        assert row.split()[:3] == [container["id"][:12], kept, image]
        assert row.endswith("exited (0)")

    def test_quiet(self, cli: Cli, kept: str) -> None:
        """Ids that rm takes."""
        short = ok(cli, "ps", "-q")
        assert len(short) == 12
        assert ok(cli, "rm", short) == kept

    def test_mounted(self, cli: Cli, image: str, tmp_path: Path) -> None:
        with mounted(cli, image, tmp_path / "m") as target:
            [container] = answer(cli, "ps", "--format", "json")
            assert container["status"] == f"mounted at {target}"


@pytest.mark.needs_root
class TestRm:
    def test_takes_it_from_the_disk(self, cli: Cli, image: str, kept: str, store_root: Path) -> None:
        """And leaves the image."""
        assert ok(cli, "rm", kept) == kept
        assert answer(cli, "ps", "--format", "json") == []
        assert list((store_root / "containers").iterdir()) == []
        assert [one["reference"] for one in answer(cli, "images", "--format", "json")] == [image]

    def test_several(self, cli: Cli, image: str, tmp_path: Path) -> None:
        """Each is told by its name."""
        for name in ("a", "b"):
            with mounted(cli, image, tmp_path / name, "--rw") as target:
                (target / "written").touch()
        names = [container["name"] for container in answer(cli, "ps", "--format", "json")]
        assert ok(cli, "rm", *names).split() == names
        assert answer(cli, "ps", "--format", "json") == []

    def test_one_by_one(self, cli: Cli, image: str, kept: str, tmp_path: Path) -> None:
        """One that cannot be removed is told of, and the others go."""
        with mounted(cli, image, tmp_path / "m"):
            [other] = {container["name"] for container in answer(cli, "ps", "--format", "json")} - {kept}
            done = cli("rm", other, "nope", kept)
            assert (done.returncode, done.stdout) == (1, f"{kept}\n")
            assert [line.split(";")[0] for line in done.stderr.splitlines()] == [
                f"pullpipe: error: {other} is mounted at {tmp_path}/m",
                "pullpipe: error: no container 'nope'",
            ]

    def test_mounted_is_refused(self, cli: Cli, image: str, tmp_path: Path) -> None:
        """The error names the command that helps; the mount stays as it is."""
        with mounted(cli, image, tmp_path / "m") as target:
            [container] = answer(cli, "ps", "--format", "json")
            assert f"pullpipe umount {target}" in fails(cli, "rm", container["name"])
            assert (target / "lower").read_text() == "lower"

    def test_running_is_refused(self, cli: Cli, kept: str, store_root: Path) -> None:
        """As long as its runner holds the lock."""
        store = Store(str(store_root))
        lock = store.containers.lock(store.containers.find(kept))
        assert lock
        assert answer(cli, "ps", "--format", "json")[0]["status"] == "running"
        assert "running" in fails(cli, "rm", kept)
        lock.release()
        ok(cli, "rm", kept)

    def test_no_such(self, cli: Cli, kept: str) -> None:
        """Nor by a name that could be a path."""
        for wanted in ("nothing", "../containers", "."):
            assert "pullpipe ps" in fails(cli, "rm", wanted)
        assert len(answer(cli, "ps", "--format", "json")) == 1

    def test_damaged_record(self, cli: Cli, kept: str, store_root: Path) -> None:
        """What the error of every other command says must help: rm by the id removes it."""
        [container] = (store_root / "containers").iterdir()
        (container / "config.json").write_text("{")
        assert f"pullpipe rm {container.name}" in fails(cli, "ps")
        done = cli("rm", container.name)
        assert done.returncode == 0, done.stderr
        assert not container.exists()
        assert answer(cli, "ps", "--format", "json") == []

    def test_the_last_to_need_a_layer(self, cli: Cli, layout: Path, store_root: Path, tmp_path: Path) -> None:
        """Its image's name has gone to another image: its layers go with the container."""
        ok(cli, "load", "-q", "-t", "moving:1", layout)
        with mounted(cli, "moving:1", tmp_path / "m", "--rw") as target:
            (target / "written").touch()
        other = layout_of(tmp_path / "other", file_layer("other"))
        ok(cli, "load", "-q", "-t", "moving:1", other)
        assert len(list((store_root / "layers" / "sha256").iterdir())) == 3
        ok(cli, "rm", ok(cli, "ps", "-q"))
        left = [path.name for path in (store_root / "layers" / "sha256").iterdir()]
        assert left == [Digest.parse(file_layer("other").diff_id).hex]
