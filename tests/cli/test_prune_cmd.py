"""`pullpipe prune` and `df`: what nothing needs goes, what anything needs stays, and what is said is so."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pullpipe import usage
from store import Digest, Store
from store.removal import remove_tree
from tests.cli.rig import answer, fails, file_layer, layers_of, layout_of, mounted_tree, ok, started, until
from tests.conftest import Cli
from tests.support.images import File, Hardlink, Layer, host_shell_layers
from tests.support.registry import Registry
from tests.support.tree import nest

pytestmark = pytest.mark.needs_root

DAY = 24 * 3600


def pruned(cli: Cli, *options: str) -> list[tuple[str, str]]:
    """(kind, name) of what it names."""
    return [(each["kind"], each["name"]) for each in answer(cli, "prune", "--format", "json", *options)]


def aged(path: Path, seconds: float) -> None:
    moment = time.time() - seconds
    os.utime(path, (moment, moment))


def content(root: Path) -> set[str]:
    """All that is in the store, but for locks."""
    return {str(path.relative_to(root)) for path in root.rglob("*") if path.suffix != ".lock"}


@contextmanager
def mounted_at(target: Path) -> Iterator[None]:
    """Something is mounted there, so it cannot be removed."""
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", target], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", target], check=True)


def blocks(path: Path) -> int:
    """Bytes on disk, as du has them."""
    done = subprocess.run(["du", "--block-size=1", "--summarize", path], capture_output=True, text=True, check=True)
    return int(done.stdout.split()[0])


@pytest.fixture
def partial(image: str, store_root: Path) -> Path:
    """What has arrived of a blob, today."""
    path = store_root / "ingest" / f"sha256-{Digest.of(b'whole').hex}"
    path.write_bytes(b"wh")
    return path


@pytest.fixture
def garbage(image: str, store_root: Path) -> set[tuple[str, str]]:
    """A blob that nothing needs, a layer that nothing needs, and what a killed pull left."""
    blob = Digest.of(b"orphan")
    (store_root / "blobs" / "sha256" / blob.hex).write_bytes(b"orphan")
    layer = store_root / "layers" / "sha256" / Digest.of(b"layer").hex
    some = next((store_root / "layers" / "sha256").iterdir())
    (layer / "fs").mkdir(parents=True)
    (layer / "layer.json").write_bytes((some / "layer.json").read_bytes())
    (store_root / "staging" / "layers-sha256-half").mkdir()
    return {("blob", str(blob)), ("layer", str(Digest.of(b"layer"))), ("leftover", "layers-sha256-half")}


@pytest.fixture
def container(cli: Cli, tmp_path: Path) -> str:
    """An image with a shell in it, and a container of it that has ended."""
    ok(cli, "load", "-q", "-t", "shell:1", layout_of(tmp_path / "shell", *host_shell_layers()))
    ok(cli, "run", "--name", "ended", "shell:1", "true")
    return "ended"


class TestPrune:
    def test_nothing_to_do(self, cli: Cli, image: str, store_root: Path) -> None:
        before = content(store_root)
        done = cli("prune")
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "0 B freed\n")
        assert content(store_root) == before

    def test_garbage_goes(
        self, cli: Cli, image: str, garbage: set[tuple[str, str]], store_root: Path, tmp_path: Path
    ) -> None:
        assert set(pruned(cli)) == garbage
        assert pruned(cli) == []
        assert not any("half" in name or Digest.of(b"orphan").hex in name for name in content(store_root))
        assert mounted_tree(cli, image, tmp_path / "m").keys() == {b".", b"lower", b"upper"}

    def test_a_dry_run_removes_nothing(
        self, cli: Cli, garbage: set[tuple[str, str]], partial: Path, store_root: Path
    ) -> None:
        aged(partial, 8 * DAY)
        before = content(store_root)
        done = cli("prune", "--dry-run", "--all")
        assert "would be freed" in done.stderr
        assert set(pruned(cli, "-n")) == garbage | {("partial", str(Digest.of(b"whole")))}
        assert content(store_root) == before

    def test_lines(self, cli: Cli, garbage: set[tuple[str, str]]) -> None:
        lines = ok(cli, "prune").splitlines()
        assert f"blob {Digest.of(b'orphan')} 6 B" in lines

    def test_partial_downloads(self, cli: Cli, partial: Path) -> None:
        """For a week a pull may go on with them."""
        aged(partial, 6 * DAY)
        assert pruned(cli) == []
        assert partial.exists()
        assert pruned(cli, "--filter", "until=5d") == [("partial", str(Digest.of(b"whole")))]
        assert not partial.exists()

    def test_one_that_is_being_fetched(self, cli: Cli, partial: Path, store_root: Path) -> None:
        aged(partial, 8 * DAY)
        with Store(str(store_root)).blobs.ingest(Digest.of(b"whole"), 5):
            assert pruned(cli) == []
        assert partial.exists()

    def test_ended_containers(self, cli: Cli, container: str, image: str) -> None:
        assert [name for kind, name in pruned(cli, "--all") if kind == "image"] == [image]
        assert pruned(cli, "--containers", "--filter", "until=1h") == []
        assert pruned(cli, "--containers") == [("container", container)]
        assert answer(cli, "ps", "--format", "json") == []
        assert {kind for kind, _ in pruned(cli, "--all")} == {"image", "layer", "blob"}
        assert answer(cli, "images", "--format", "json") == []

    def test_a_running_container(self, cli: Cli, container: str, store_root: Path, tmp_path: Path) -> None:
        ok(cli, "rm", container)
        with started(store_root, "run", "--name", "runs", "shell:1", "sleep", "60", stderr=tmp_path / "stderr"):
            until(lambda: any(c["status"] == "running" for c in answer(cli, "ps", "--format", "json")))
            assert pruned(cli, "--all", "--containers") == []

    def test_a_mounted_image(self, cli: Cli, image: str, tmp_path: Path) -> None:
        target = tmp_path / "m"
        target.mkdir()
        ok(cli, "mount", image, target)
        try:
            assert pruned(cli, "--all", "--containers") == []
            assert sorted(path.name for path in target.iterdir()) == ["lower", "upper"]
        finally:
            ok(cli, "umount", target)

    def test_what_cannot_be_removed(
        self, cli: Cli, container: str, garbage: set[tuple[str, str]], store_root: Path
    ) -> None:
        """All else goes, what has gone is told, and why the rest has not."""
        busy = store_root / "staging" / "layers-sha256-half" / "mount"
        busy.mkdir()
        with mounted_at(busy):
            done = cli("prune", "--containers", "--force", "--format", "json")
            assert done.returncode == 1
            assert "layers-sha256-half: device or resource busy" in done.stderr.splitlines()[-1]
            gone = {(each["kind"], each["name"]) for each in json.loads(done.stdout)}
            assert gone == {("container", container), *garbage} - {("leftover", "layers-sha256-half")}
        assert pruned(cli) == [("leftover", "layers-sha256-half")]

    def test_what_is_needed_again(self, cli: Cli, container: str, store_root: Path) -> None:
        """Between the look and the removal: it is not said to be gone."""
        [found] = Store(str(store_root)).containers
        wasted = usage.waste(Store(str(store_root)), usage.Wanted(containers=True))
        assert [each.name for each in wasted] == [container]
        lock = Store(str(store_root)).containers.lock(found)
        assert lock is not None
        assert usage.remove(Store(str(store_root)), wasted) == ([], [])
        lock.release()
        assert usage.remove(Store(str(store_root)), wasted) == (wasted, [])

    def test_images_by_age(self, cli: Cli, image: str, store_root: Path) -> None:
        assert pruned(cli, "--all", "--filter", "until=1h") == []
        [found] = answer(cli, "images", "--format", "json")
        aged(store_root / "blobs" / "sha256" / found["digest"].removeprefix("sha256:"), 2 * DAY)
        assert ("image", image) in pruned(cli, "--all", "--filter", "until=1d12h")

    def test_images_by_date(self, cli: Cli, image: str, store_root: Path) -> None:
        """Without a zone it is the local one."""
        [found] = answer(cli, "images", "--format", "json")
        path = store_root / "blobs" / "sha256" / found["digest"].removeprefix("sha256:")
        os.utime(path, (1_600_000_000, 1_600_000_000))  # 2020-09-13T12:26:40Z
        for date in ("2020-09-11", "2020-09-13T12:26:39Z", "2020-09-13T14:26:39+02:00"):
            assert pruned(cli, "--all", "--filter", f"until={date}") == []
        assert ("image", image) in pruned(cli, "--all", "--filter", "until=2020-09-13T14:26:41+02:00")

    @pytest.mark.parametrize("pattern", ["image:*", "docker.io/library/image:1", "*im?ge*"])
    def test_images_by_name(self, cli: Cli, image: str, layout: Path, pattern: str) -> None:
        ok(cli, "load", "-q", "-t", "example.com/other:1", layout)
        assert pruned(cli, "--all", "--filter", f"reference={pattern}") == [("image", image)]
        [left] = answer(cli, "images", "--format", "json")
        assert left["reference"] == "example.com/other:1"

    @pytest.mark.parametrize("text", ["until", "until=", "until=yesterday", "until=5", "label=a", "reference="])
    def test_filters_that_are_none(self, cli: Cli, image: str, text: str) -> None:
        line = fails(cli, "prune", "--all", "--filter", text)
        assert "until=AGE" in line
        assert len(answer(cli, "images", "--format", "json")) == 1


STRAYS = {
    "README",
    "blobs/README",
    "blobs/sha256/.big.tmp",
    f"blobs/sha256/{'0' * 64}/in",
    "containers/README",
    "containers/deadbeef/in",
    "ingest/junk",
    f"ingest/sha256-{'0' * 64}/in",
    "layers/README",
    f"layers/sha256/{'0' * 64}",
    "layers/sha256/junk/in",
    "stacks/sha256/junk",
    "variants/sha256/junk",
}


def test_what_is_not_the_stores(cli: Cli, container: str, store_root: Path) -> None:
    """It is in nobody's way, it is told of, and it stays."""
    for name in STRAYS:
        (store_root / name).parent.mkdir(exist_ok=True)
        (store_root / name).write_bytes(bytes(5000))
    names = {name.removesuffix("/in") for name in STRAYS}
    for words in ("verify", "verify --deep"):
        found = {each["name"]: each for each in answer(cli, *words.split(), "--format", "json")}
        assert found.keys() == names
        assert {each["state"] for each in found.values()} == {"leftover"}
    assert "8.19 kB" in found["README"]["problem"]
    strays = answer(cli, "df", "--format", "json")["strays"]
    assert (strays["count"], strays["unused"]) == (len(STRAYS), 0)
    assert strays["size"] >= 8192 * len(STRAYS)
    ok(cli, "run", "--rm", "shell:1", "true")
    ok(cli, "repair")
    assert pruned(cli, "--all") == []
    assert {kind for kind, _ in pruned(cli, "--all", "--containers")} == {"container", "image", "layer", "blob"}
    assert answer(cli, "ps", "--all", "--format", "json") == []
    assert content(store_root) >= STRAYS


@pytest.mark.parametrize("what", ["a layer", "a layer, by a link", "a blob", "a blob on its way"])
def test_what_has_the_name_of(what: str, cli: Cli, layout: Path, store_root: Path) -> None:
    """Whoever brings it tells what is in the way, which stays until somebody moves it; so does `verify`."""
    layer, digest = file_layer("lower"), layers_of(layout)[0]["digest"]
    place = store_root / {
        "a layer": f"layers/{layer.diff_id}",
        "a layer, by a link": f"layers/{layer.diff_id}",
        "a blob": f"blobs/{digest}",
        "a blob on its way": f"ingest/{digest.replace(':', '-')}",
    }[what].replace(":", "/")
    ok(cli, "images")
    if what == "a layer":
        place.write_text("mine")
    elif what == "a layer, by a link":
        place.symlink_to(store_root)
    else:
        place.mkdir()
        (place / "mine").touch()
    for _ in range(2):
        line = fails(cli, "load", "--quiet", "--tag", "image:1", layout)
        assert f"{place} is in the way" in line
        assert "move it elsewhere" in line
        found = {each["name"]: each["state"] for each in answer(cli, "verify", "--format", "json")}
        assert found[str(place.relative_to(store_root))] == "leftover"
    place.rename(store_root / "mine")
    ok(cli, "load", "--quiet", "--tag", "image:1", layout)
    assert {each["name"] for each in answer(cli, "verify", "--deep", "--format", "json")} == {"mine"}


def test_what_a_crash_has_left(cli: Cli, image: str, store_root: Path) -> None:
    """Of a layer in the making, of a document on its way, of a container: all is told of, and goes."""
    left = {"staging/half", "ingest/incoming.1.2", f"containers/{'d' * 64}/upper/half"}
    for name in left:
        (store_root / name).parent.mkdir(parents=True, exist_ok=True)
        (store_root / name).write_bytes(bytes(5000))
    names = {"half", "incoming.1.2", "d" * 64}
    assert {os.path.basename(each["name"]) for each in answer(cli, "verify", "--format", "json")} == names
    total = answer(cli, "df", "--format", "json")["leftovers"]
    assert total["count"] == 3
    assert total["size"] == total["unused"] >= 3 * 8192
    assert set(pruned(cli, "--dry-run")) == {("leftover", name) for name in names}
    assert left <= content(store_root)
    assert set(pruned(cli)) == {("leftover", name) for name in names}
    assert not left & content(store_root)


def test_a_leftover_that_cannot_be_removed(
    cli: Cli, image: str, registry: Registry, layout: Path, store_root: Path
) -> None:
    """A pull notes it, `prune` fails because of it, and both remove all else that was left."""
    reference = registry.push(layout, "image", to="prune/stuck:1")
    stuck = store_root / "staging" / "stuck.removed"
    names = "staging/a", "staging/z", "ingest/incoming.1.2", f"containers/{'d' * 64}/upper"
    others = [store_root / name for name in names]

    def leave() -> None:
        for path in others:
            path.parent.mkdir(exist_ok=True)
            path.touch()

    (stuck / "mounted").mkdir(parents=True)
    with mounted_at(stuck / "mounted"):
        for _ in range(2):  # when there is something to pull, and when it is up to date
            leave()
            done = cli("pull", "--progress", "plain", reference)
            assert done.returncode == 0, done.stderr
            [line] = [line for line in done.stderr.splitlines() if str(stuck) in line]
            assert "device or resource busy" in line
            assert not any(path.exists() for path in others)
        leave()
        done = cli("prune")
        assert done.returncode == 1
        assert len(done.stdout.splitlines()) == len(others)
        assert f"{stuck}: device or resource busy" in done.stderr
    assert pruned(cli) == [("leftover", "stuck.removed")]


@pytest.mark.parametrize("place", ["image", "container", "leftover", "stray"])
def test_deeper_than_a_path_can_name(cli: Cli, container: str, store_root: Path, tmp_path: Path, place: str) -> None:
    """It is measured and told of, and goes with all else, but for what is nobody's."""
    [upper] = (store_root / "containers").glob("*/upper")
    top = {
        "image": tmp_path / "files",
        "container": upper,
        "leftover": store_root / "staging" / "half",
        "stray": store_root / "stray",
    }[place]
    top.mkdir(exist_ok=True)
    os.close(nest(top, "d" * 200, 30))
    try:
        if place == "image":
            ok(cli, "layer", "add", "-q", "shell:1", top, "-t", "deep:1")
        kind = {"image": "layers", "container": "containers"}.get(place, f"{place}s")
        assert answer(cli, "df", "--format", "json")[kind]["size"] >= blocks(top)
        verified = {"leftover": "staging/half", "stray": "stray"}
        found = answer(cli, "verify", "--format", "json")
        assert [each["name"] for each in found] == ([verified[place]] if place in verified else [])
        assert {kind for kind, _ in pruned(cli, "--all", "--containers")} >= {"container", "image", "layer", "blob"}
        assert not {"container", "layer"} & {kind for kind, _ in pruned(cli, "--all", "--containers")}
        assert [path.name for path in (store_root / "staging").iterdir()] == []
    finally:
        remove_tree(str(top))


class TestDf:
    def test_an_empty_store(self, cli: Cli) -> None:
        found = answer(cli, "df", "--format", "json")
        nothing = {"count": 0, "size": 0, "unused": 0}
        assert found.pop("images") == []
        assert found == dict.fromkeys(("blobs", "layers", "containers", "partials", "leftovers", "strays"), nothing)

    def test_what_images_share(self, cli: Cli, store_root: Path, tmp_path: Path) -> None:
        """By the blocks that it takes on disk, which of many small files are far more than these have bytes."""
        base, one, two = (
            Layer([*(File(f"{name}{number}", os.urandom(20)) for number in range(count)), Hardlink("link", f"{name}0")])
            for name, count in (("base", 100), ("one", 20), ("two", 3))
        )
        for name, upper in (("one", one), ("two", two)):
            ok(cli, "load", "-q", "-t", f"{name}:1", layout_of(tmp_path / name, base, upper))
        found = answer(cli, "df", "--format", "json")
        rows = {row["reference"]: (row["unpacked"], row["shared"], row["unique"]) for row in found["images"]}
        on_disk = [blocks(store_root / "layers" / layer.diff_id.replace(":", "/")) for layer in (base, one, two)]
        assert on_disk[0] >= 100 * 4096
        assert rows["docker.io/library/one:1"] == (on_disk[0] + on_disk[1], on_disk[0], on_disk[1])
        assert rows["docker.io/library/two:1"] == (on_disk[0] + on_disk[2], on_disk[0], on_disk[2])
        compressed = [layer["size"] for layer in layers_of(tmp_path / "one")]
        assert found["images"][0]["blobs"] == sum(compressed)
        assert (found["layers"]["count"], found["layers"]["size"], found["layers"]["unused"]) == (3, sum(on_disk), 0)
        wasted = answer(cli, "prune", "--dry-run", "--all", "--format", "json")
        assert sum(each["size"] for each in wasted if each["kind"] == "layer") == sum(on_disk)

    def test_what_nothing_needs(self, cli: Cli, garbage: set[tuple[str, str]], partial: Path, store_root: Path) -> None:
        found = answer(cli, "df", "--format", "json")
        assert found["blobs"]["unused"] == len(b"orphan")
        blobs = list((store_root / "blobs" / "sha256").iterdir())
        assert found["blobs"]["count"] == len(blobs)
        assert found["blobs"]["size"] == sum(path.stat().st_size for path in blobs)
        assert found["partials"] == {"count": 1, "size": 2, "unused": 2}
        assert found["leftovers"]["count"] == 1

    def test_a_table(self, cli: Cli, image: str) -> None:
        lines = ok(cli, "df", "--verbose").splitlines()
        assert lines[0].split() == ["IMAGE", "BLOBS", "UNPACKED", "SHARED", "UNIQUE"]
        assert lines[1].startswith(image)
        assert [line.split()[0] for line in lines[3:]] == [
            *("KIND", "blobs", "layers", "containers", "partials", "leftovers", "strays")
        ]

    def test_a_container(self, cli: Cli, container: str) -> None:
        found = answer(cli, "df", "--format", "json")["containers"]
        assert found["count"] == 1
        assert found["size"] == found["unused"] > 0
