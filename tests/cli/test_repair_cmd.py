"""`pullpipe repair`: the store becomes what a fresh pull would have made; what cannot be mended is told, and stays."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from store import Digest, Store
from tests.cli.damages import DAMAGES, Damaged, Target, flip, image, pullpipe
from tests.cli.rig import (
    answer,
    digest_of,
    fails,
    file_layer,
    group_is_gone,
    layers_of,
    layout_of,
    mounted,
    ok,
    started,
    until,
)
from tests.cli.store_checker import layer_tree
from tests.conftest import Cli
from tests.support import faults
from tests.support.documents import Layout
from tests.support.faulty_proxy import FaultProxy, Rule
from tests.support.images import File, Image, Layer, host_shell_layers, write_layout
from tests.support.registry import Registry
from tests.support.tree import difference, snapshot

pytestmark = pytest.mark.needs_root

KINDS = ("layers", "variants", "stacks")
OPTIONS = ("--plain-http", "--retries=0", "--timeout=20", "--durability=none")
Findings = list[dict[str, Any]]


def repair(cli: Cli, *options: str | Path, code: int = 0) -> Findings:
    """What it has mended, and what not, as its JSON tells."""
    done = cli("repair", *OPTIONS, "--quiet", "--format=json", *options)
    assert (done.returncode, done.stderr) == (code, ""), done.stdout
    findings: Findings = json.loads(done.stdout)
    assert bool([finding for finding in findings if finding["state"] == "damaged"]) == bool(code)
    return findings


def is_whole(cli: Cli) -> bool:
    done = cli("verify", "--deep", "--quiet", "--format=json")
    return (done.returncode, done.stdout, done.stderr) == (0, "[]\n", "")


def copied(damaged: Damaged, root: Path) -> Damaged:
    """Another copy of that store."""
    subprocess.run(["cp", "-a", damaged.bad, root], check=True)
    return damaged._replace(bad=root)


def assert_same(one: Path, other: Path) -> None:
    """Both have the same blobs, trees, and records, to the last attribute."""
    for kind in KINDS:
        names = sorted(path.name for path in (one / kind / "sha256").iterdir())
        assert names == sorted(path.name for path in (other / kind / "sha256").iterdir())
        for name in names:
            trees = [layer_tree(root, f"sha256:{name}", kind) for root in (one, other)]
            assert difference(*trees) == [], (kind, name)
            document = "stack.json" if kind == "stacks" else "layer.json"
            assert len({(root / kind / "sha256" / name / document).read_bytes() for root in (one, other)}) == 1
    blobs = [{path.name: path.read_bytes() for path in (root / "blobs/sha256").iterdir()} for root in (one, other)]
    assert blobs[0] == blobs[1]
    assert (one / "index.json").read_bytes() == (other / "index.json").read_bytes()


class Repaired(NamedTuple):
    """The store with all damages, repaired without a registry and then with one."""

    store: Damaged
    offline: subprocess.CompletedProcess[str]
    between: dict[str, bool]  # whether the damaged blobs were what they were before
    online: subprocess.CompletedProcess[str]
    verified: subprocess.CompletedProcess[str]


class TestDamage:
    """Of each kind, all in one store."""

    @pytest.fixture(scope="class")
    @staticmethod
    def repaired(damaged: Damaged, tmp_path_factory: pytest.TempPathFactory) -> Repaired:
        store = copied(damaged, tmp_path_factory.mktemp("repaired") / "root")
        offline = pullpipe(store.bad, "repair", "--no-fetch", "--quiet", "--format=json")
        same = {
            path.name: path.read_bytes() == (store.bad / "blobs/sha256" / path.name).read_bytes()
            for path in (damaged.bad / "blobs/sha256").iterdir()
        }
        online = pullpipe(store.bad, "repair", *OPTIONS, "--quiet", "--format=json")
        verified = pullpipe(store.bad, "verify", "--deep", "--quiet")
        return Repaired(store, offline, same, online, verified)

    @pytest.mark.parametrize("name", [name for name, damage in DAMAGES.items() if not damage.fetched])
    def test_is_mended_from_the_blob(self, repaired: Repaired, name: str) -> None:
        """No registry is asked."""
        damage = DAMAGES[name]
        [finding] = [f for f in json.loads(repaired.offline.stdout) if repaired.store.references[name] in f["users"]]
        assert (finding["state"], finding["kind"], finding["remedy"]) == (
            "mended",
            damage.kind,
            "it has been made anew",
        )
        assert damage.problem in finding["problem"]
        assert repaired.store.references[name] not in repaired.online.stdout

    @pytest.mark.parametrize("name", [name for name, damage in DAMAGES.items() if damage.fetched])
    def test_is_mended_from_the_registry(self, repaired: Repaired, name: str) -> None:
        """And not without one: that is said, with what could be removed."""
        damage, reference = DAMAGES[name], repaired.store.references[name]
        for run, state in ((repaired.offline, "damaged"), (repaired.online, "mended")):
            [finding] = [f for f in json.loads(run.stdout) if f["kind"] == "blob" and reference in f["users"]]
            assert (finding["state"], finding["kind"]) == (state, damage.kind)
            assert damage.problem in finding["problem"]
            if run is repaired.offline:
                assert "not mended" in finding["remedy"]
                assert "--no-fetch" in finding["remedy"]
                what = "it" if name.startswith("blob") else reference
                assert finding["remedy"].endswith(f"`pullpipe repair --remove` removes {what}")
            else:
                assert finding["remedy"] == f"it has been fetched again from {reference.rpartition(':')[0]}"

    def test_exit_codes(self, repaired: Repaired) -> None:
        assert (repaired.offline.returncode, repaired.offline.stderr) == (1, "")
        assert (repaired.online.returncode, repaired.online.stderr) == (0, "")

    def test_without_a_registry_nothing_is_taken_away(self, repaired: Repaired) -> None:
        """Not even what is damaged."""
        assert all(repaired.between.values())

    def test_then_all_is_as_it_was(self, repaired: Repaired) -> None:
        """By its own word, and by another's: as what was pulled first."""
        assert (repaired.verified.returncode, repaired.verified.stdout) == (0, "")
        assert_same(repaired.store.bad, repaired.store.good)
        opaque = repaired.store.target("opaque").tree("layers", 1) / "fs/etc"  # which snapshots pass over
        assert os.getxattr(opaque, "trusted.overlay.opaque") == b"y"

    def test_nothing_is_left(self, repaired: Repaired) -> None:
        root = repaired.store.bad
        assert [*(root / "staging").iterdir(), *(root / "ingest").iterdir()] == []

    def test_only_these_images(self, cli: Cli, damaged: Damaged, store_root: Path) -> None:
        """The others stay as they are."""
        store = copied(damaged, store_root)
        mode, time = store.references["mode"], store.references["time"]
        [finding] = repair(cli, mode)
        assert finding["users"] == [mode]
        assert cli("verify", "--deep", mode).returncode == 0
        assert cli("verify", "--deep", time).returncode == 1

    def test_lines(self, cli: Cli, damaged: Damaged, store_root: Path) -> None:
        store = copied(damaged, store_root)
        done = cli("repair", "--progress=none", store.references["mode"])
        assert done.returncode == 0
        [line] = done.stdout.splitlines()
        assert line.startswith("mended layer sha256:")
        assert line.endswith("; it has been made anew")
        assert done.stderr == "whole, 1 mended\n"


class TestWhole:
    def test_nothing_to_do(self, cli: Cli, image: str, store_root: Path) -> None:
        """Nothing changes, not even a time."""
        before = {path: path.lstat() for path in store_root.rglob("*") if "staging" not in path.parts}
        assert repair(cli) == repair(cli, image) == []
        after = {path: path.lstat() for path in before}
        for path, status in before.items():
            assert (after[path].st_ino, after[path].st_ctime_ns) == (status.st_ino, status.st_ctime_ns), path

    def test_no_such_image(self, cli: Cli, image: str) -> None:
        assert "other:1 is not in the store" in fails(cli, "repair", "other:1")


class TestRegistries:
    """Those that do not help."""

    @pytest.fixture
    def pulled(self, cli: Cli, registry: Registry, layout: Path) -> Iterator[tuple[FaultProxy, str]]:
        with FaultProxy(registry) as proxy:
            registry.push(layout, "image", to="repair/image:1")
            reference = f"{proxy.host}/repair/image:1"
            ok(cli, "pull", "-q", "--plain-http", reference)
            yield proxy, reference

    @pytest.mark.parametrize(
        ("fault", "why"),
        [
            (faults.refusal(404, "Not Found", "BLOB_UNKNOWN"), "has no"),
            (faults.corrupt(5), "arrived with the digest"),
            (faults.drop(), "connection"),
            (faults.page(503, "Unavailable"), "503"),
        ],
    )
    def test_the_damaged_blob_stays(
        self, cli: Cli, pulled: tuple[FaultProxy, str], layout: Path, store_root: Path, fault: Any, why: str
    ) -> None:
        """Until the right one is there; then that."""
        proxy, _ = pulled
        digest = layers_of(layout)[0]["digest"]
        blob = store_root / "blobs" / digest.replace(":", "/")
        right = blob.read_bytes()
        flip(blob, 5)
        wrong = blob.read_bytes()
        proxy.rules = [Rule(fault, digest, times=None)]
        [finding, _] = repair(cli, code=1)
        assert (finding["state"], finding["name"]) == ("damaged", digest)
        assert finding["remedy"].startswith("not mended: ")
        assert why in finding["remedy"]
        assert blob.read_bytes() == wrong
        proxy.rules = []
        [finding] = repair(cli)
        assert (finding["state"], finding["name"]) == ("mended", digest)
        assert blob.read_bytes() == right
        assert is_whole(cli)

    def test_a_wrong_one_comes_once(
        self, cli: Cli, pulled: tuple[FaultProxy, str], layout: Path, store_root: Path
    ) -> None:
        """It is fetched again."""
        proxy, _ = pulled
        digest = layers_of(layout)[0]["digest"]
        flip(store_root / "blobs" / digest.replace(":", "/"), 5)
        proxy.rules = [Rule(faults.corrupt(5), digest, times=1)]
        assert [finding["state"] for finding in repair(cli)] == ["mended"]
        assert is_whole(cli)

    def test_is_gone(self, cli: Cli, layout: Path, store_root: Path) -> None:
        """It is asked once, however much there is to fetch; each damage is told."""
        reference = "127.0.0.1:1/gone:1"
        ok(cli, "load", "-q", "-t", reference, layout)
        for layer in layers_of(layout):
            flip(store_root / "blobs" / layer["digest"].replace(":", "/"), 5)
        done = cli("repair", *OPTIONS, "--retries=1", "--jobs=1", "--progress=plain")
        assert done.returncode == 1
        assert done.stdout.count("not mended: ") == 2
        assert done.stdout.count("cannot connect to 127.0.0.1:1") == 2
        assert done.stderr.count("trying again") == 1

    def test_an_image_that_was_loaded(self, cli: Cli, layout: Path, store_root: Path) -> None:
        """No such registry has it; to load it again helps."""
        ok(cli, "load", "-q", "-t", "127.0.0.1:1/gone:1", layout)
        digest = digest_of(layout)
        (store_root / "blobs" / digest.replace(":", "/")).unlink()
        [finding] = repair(cli, code=1)
        assert (finding["kind"], finding["name"], finding["problem"]) == ("blob", digest, "it is not there")
        ok(cli, "load", "-q", "-t", "127.0.0.1:1/gone:1", layout)
        assert is_whole(cli)

    def test_an_index(self, cli: Cli, registry: Registry, store_root: Path, tmp_path: Path) -> None:
        """And another platform's manifest that was damaged: what leads to an image is fetched, too."""
        layout = Layout(tmp_path / "both")
        there = layout.image(Image([file_layer("there")], platform="linux/s390x"))
        layout.tag(layout.index(layout.image(Image([file_layer("here")])), there))
        reference = layout.upload(registry, "repair/both")
        ok(cli, "pull", "-q", "--all-platforms", reference)
        before = {path: path.read_bytes() for path in (store_root / "blobs/sha256").iterdir()}
        [record] = Store(str(store_root)).images
        (store_root / "blobs/sha256" / record.resolved.hex).unlink()
        (store_root / "blobs" / there["digest"].replace(":", "/")).write_text("{}")
        findings = repair(cli)
        assert {finding["name"] for finding in findings} == {str(record.resolved), there["digest"]}
        assert {path: path.read_bytes() for path in (store_root / "blobs/sha256").iterdir()} == before
        assert is_whole(cli)

    def test_credentials_are_for_one(self, cli: Cli, layout: Path) -> None:
        """Images of two registries: neither learns the other's password."""
        for reference in ("127.0.0.1:1/a:1", "127.0.0.1:2/b:1"):
            ok(cli, "load", "-q", "-t", reference, layout)
        for option in (("--creds", "user:secret"), ("--plain-http",), ("--unix-socket", "/x")):
            line = fails(cli, "repair", *option)
            assert "127.0.0.1:1, 127.0.0.1:2" in line
            assert "secret" not in line
            assert cli("repair", *option, "127.0.0.1:1/a:1").returncode == 0


class TestBlobsThatAreNotKept:
    """They are fetched for what is damaged, or looks so, and not kept then either."""

    @pytest.mark.parametrize("damage", ["lost-record", "zeroed", "variant-lost", "variant-zeroed"])
    def test_a_damaged_layer(
        self, cli: Cli, registry: Registry, damaged: Damaged, store_root: Path, tmp_path: Path, damage: str
    ) -> None:
        reference = registry.push(damaged.layout, damaged.references["mode"], to="repair/discarded:1")
        ok(cli, "pull", "-q", "--plain-http", "--discard-blobs", reference)
        subprocess.run(["cp", "-a", store_root, tmp_path / "good"], check=True)
        DAMAGES[damage].do(Target(store_root, damaged.layout, damaged.references["mode"]))
        assert cli("repair", "--no-fetch").returncode == 1
        findings = repair(cli)
        assert [finding["kind"] for finding in findings if finding["state"] == "mended"] == [DAMAGES[damage].kind]
        assert_same(store_root, tmp_path / "good")
        assert answer(cli, "verify", "--deep", "-q", "--format=json") == []
        assert list((store_root / "ingest").iterdir()) == []

    def test_one_that_only_looks_damaged(self, cli: Cli, registry: Registry, tmp_path: Path) -> None:
        """It is looked at, and found to be right."""
        twice = Layer([File("a", b"first" * 10), File("a", b"second")])
        reference = registry.push(layout_of(tmp_path / "l", twice), "image", to="repair/twice:1")
        ok(cli, "pull", "-q", "--plain-http", "--discard-blobs", reference)
        assert repair(cli) == []


class TestRemoval:
    """Asked for, and only what cannot be mended."""

    def test_of_a_blob(self, cli: Cli, damaged: Damaged, store_root: Path) -> None:
        """The image stays, for its layer does."""
        store = copied(damaged, store_root)
        reference = store.references["blob-flipped"]
        [finding, _] = repair(cli, "--no-fetch", "--remove", reference)
        assert (finding["state"], finding["kind"]) == ("mended", "blob")
        assert "has been removed" in finding["remedy"]
        assert not store.target("blob-flipped").blob(0).exists()
        assert cli("inspect", reference).returncode == 0
        assert cli("verify", "--deep", reference).returncode == 0

    def test_of_images(self, cli: Cli, damaged: Damaged, store_root: Path) -> None:
        """Those that were named, and of no other; then all, and what was mended stays."""
        copied(damaged, store_root)
        reference = damaged.references["manifest-lost"]
        layers = {path.name for path in (store_root / "layers/sha256").iterdir()}
        [finding] = repair(cli, "--no-fetch", "--remove", reference)
        assert (finding["state"], finding["users"]) == ("mended", [reference])
        assert finding["remedy"] == f"removed, with {reference}"
        assert "not in the store" in fails(cli, "inspect", reference)
        # Other manifests are damaged, too: what they lead to cannot be known, so no layer goes yet.
        assert {path.name for path in (store_root / "layers/sha256").iterdir()} == layers
        assert {finding["state"] for finding in repair(cli, "--no-fetch", "--remove")} == {"mended", "unchecked"}
        left = {found["reference"] for found in answer(cli, "images", "--format=json")}
        assert left == {
            reference
            for name, reference in damaged.references.items()
            if name.partition("-")[0] not in ("manifest", "config")
        }
        assert len(list((store_root / "layers/sha256").iterdir())) == 3 * len(left)
        assert cli("verify", "--deep").returncode == 0

    def test_of_a_layer_takes_its_images_with_it(self, cli: Cli, layout: Path, store_root: Path) -> None:
        """It must not be there for the next pull to find."""
        for reference in ("127.0.0.1:1/a:1", "127.0.0.1:1/b:1"):
            ok(cli, "load", "-q", "--discard-blobs", "-t", reference, layout)
        ok(cli, "load", "-q", "-t", "other:1", layout_of(layout.parent / "other", file_layer("upper")))
        diff_id = file_layer("lower").diff_id
        (store_root / "layers" / diff_id.replace(":", "/") / "layer.json").unlink()
        [finding] = [f for f in repair(cli, "127.0.0.1:1/a:1", code=1) if f["state"] == "damaged"]
        assert "--remove` removes 127.0.0.1:1/a:1" in finding["remedy"]
        assert "127.0.0.1:1" in finding["remedy"]
        [finding] = [
            f for f in repair(cli, "--remove", "--no-fetch") if f["kind"] == "layer" and f["state"] == "mended"
        ]
        assert finding["remedy"] == "removed, with 127.0.0.1:1/a:1, 127.0.0.1:1/b:1"
        assert [found["reference"] for found in answer(cli, "images", "--format=json")] == ["docker.io/library/other:1"]
        assert not (store_root / "layers" / diff_id.replace(":", "/")).exists()
        assert cli("verify", "--deep").returncode == 0

    def test_not_of_what_a_container_stands_on(
        self, cli: Cli, image: str, layout: Path, store_root: Path, tmp_path: Path
    ) -> None:
        """Its user has to remove that first."""
        with mounted(cli, image, tmp_path / "m", "--rw") as target:
            (target / "written").touch()
        [container] = answer(cli, "ps", "--format=json")
        (store_root / "blobs" / digest_of(layout).replace(":", "/")).unlink()
        [finding] = [f for f in repair(cli, "--no-fetch", "--remove", code=1) if f["state"] == "damaged"]
        assert f"pullpipe rm {container['name']}" in finding["remedy"]
        assert len(json.loads((store_root / "index.json").read_bytes())["manifests"]) == 1
        ok(cli, "rm", container["name"])
        assert [finding["state"] for finding in repair(cli, "--no-fetch", "--remove")] == ["mended"]
        assert is_whole(cli)

    def test_of_a_record_of_something_else(self, cli: Cli, image: str, layout: Path, store_root: Path) -> None:
        index = json.loads((store_root / "index.json").read_bytes())
        config = json.loads((store_root / "blobs" / digest_of(layout).replace(":", "/")).read_bytes())["config"]
        index["manifests"][0] |= {"digest": config["digest"], "size": config["size"]}
        (store_root / "index.json").write_text(json.dumps(index))
        [finding] = repair(cli, "--no-fetch", code=1)
        assert finding["kind"] == "image"
        assert repair(cli, "--no-fetch", "--remove")[0]["state"] == "mended"
        assert answer(cli, "images", "--format=json") == []


class TestIndex:
    def test_a_cut_one(self, cli: Cli, image: str, layout: Path, store_root: Path) -> None:
        """What can be read of it is kept, when that is asked for; what it has lost is pulled again for nothing."""
        ok(cli, "load", "-q", "-t", "other:1", layout)
        index = store_root / "index.json"
        whole = index.read_text()
        index.write_text(whole[:-200])
        [finding] = repair(cli, code=1)
        assert (finding["kind"], finding["state"]) == ("index", "damaged")
        assert "--remove" in finding["remedy"]
        assert index.read_text() == whole[:-200]
        findings = repair(cli, "--remove")
        assert [(f["kind"], f["state"]) for f in findings] == [("index", "mended")]
        assert [found["reference"] for found in answer(cli, "images", "--format=json")] == [image]
        ok(cli, "load", "-q", "-t", "other:1", layout)
        assert index.read_text() == whole
        assert is_whole(cli)


class TestRoot:
    def test_is_set_right(self, cli: Cli, image: str, store_root: Path) -> None:
        (store_root / "layers").chmod(0o711)
        shutil.rmtree(store_root / "staging")
        (store_root / "oci-layout").unlink()
        findings = repair(cli)
        assert sorted((f["state"], f["name"]) for f in findings) == [
            ("mended", "layers"),
            ("mended", "oci-layout"),
            ("mended", "staging"),
        ]
        assert is_whole(cli)

    def test_leftovers_go(self, cli: Cli, image: str, store_root: Path) -> None:
        """But for partial blobs, which the next pull continues."""
        (store_root / "staging/layers-sha256-2/fs").mkdir(parents=True)
        partial = store_root / "ingest" / f"sha256-{'1' * 64}"
        partial.write_text("part")
        assert repair(cli) == []
        assert list((store_root / "staging").iterdir()) == []
        assert partial.read_text() == "part"


class TestOrphans:
    def test_damaged_ones_go(self, cli: Cli, image: str, layout: Path, store_root: Path) -> None:
        """So that no pull takes them for whole; the others are for `prune`."""
        lower, upper = (layer.diff_id for layer in (file_layer("lower"), file_layer("upper")))
        (store_root / "index.json").write_text('{"schemaVersion": 2, "manifests": []}')
        tree = store_root / "layers" / lower.replace(":", "/")
        (tree / "layer.json").unlink()
        blob = store_root / "blobs" / layers_of(layout)[0]["digest"].replace(":", "/")
        flip(blob, 5)
        findings = repair(cli)
        assert {(f["state"], f["kind"], f["remedy"]) for f in findings} == {
            ("mended", "layer", "it has been removed"),
            ("mended", "blob", "it has been removed"),
        }
        assert not tree.exists()
        assert not blob.exists()
        assert (store_root / "layers" / upper.replace(":", "/")).exists()
        ok(cli, "load", "-q", "-t", image, layout)
        assert is_whole(cli)


class TestContainers:
    @pytest.mark.parametrize("tree", KINDS[:1] + KINDS[2:])
    def test_that_is_mounted(self, cli: Cli, damaged: Damaged, store_root: Path, tmp_path: Path, tree: str) -> None:
        """What it stands on stays, and is told; afterwards it is mended, and the container sees it."""
        write_layout(tmp_path / "l", {"a/mine:1": image("mine")})
        ok(cli, "load", "-q", tmp_path / "l")
        target = Target(store_root, tmp_path / "l", "a/mine:1")
        path = target.tree(tree) / "fs/usr"
        with mounted(cli, "a/mine:1", tmp_path / "m", "--rw") as mount:
            (mount / "written").touch()
            path.chmod(0o700)
            [finding] = [f for f in repair(cli, code=1) if f["state"] == "damaged"]
            assert f"pullpipe umount {mount}" in finding["remedy"]
            assert (mount / "bin/tool").read_bytes() == b"tool" * 1000
            assert path.stat().st_mode & 0o777 == 0o700
        assert [finding["state"] for finding in repair(cli)] == ["mended"]
        assert path.stat().st_mode & 0o777 == 0o710
        assert is_whole(cli)

    def test_that_runs(self, cli: Cli, store_root: Path, tmp_path: Path) -> None:
        """It goes on undisturbed."""
        shell = layout_of(tmp_path / "shell", *host_shell_layers(), file_layer("file", b"content"))
        ok(cli, "load", "-q", "-t", "shell:1", shell)
        file = store_root / "layers" / file_layer("file", b"content").diff_id.replace(":", "/") / "fs/file"
        command = "trap 'cat /file; exit' TERM; echo ready; while :; do sleep 0.05; done"
        with started(store_root, "run", "--name=mine", "shell:1", "sh", "-c", command, stderr=tmp_path / "said") as run:
            assert run.stdout is not None
            assert run.stdout.readline() == "ready\n"
            file.chmod(0o600)
            [finding] = [f for f in repair(cli, code=1) if f["state"] == "damaged"]
            assert "container mine stands on it; end its command" in finding["remedy"]
            run.send_signal(signal.SIGTERM)
            assert run.communicate(timeout=20)[0] == "content"
        assert [finding["state"] for finding in repair(cli)] == ["mended"]
        assert is_whole(cli)

    def test_whose_record_is_damaged(self, cli: Cli, image: str, store_root: Path, tmp_path: Path) -> None:
        """What it stands on cannot be known, so nothing is exchanged."""
        with mounted(cli, image, tmp_path / "m", "--rw") as target:
            (target / "written").touch()
        [container] = answer(cli, "ps", "--format=json")
        (store_root / "containers" / container["id"] / "config.json").write_text("{")
        tree = store_root / "layers" / file_layer("lower").diff_id.replace(":", "/")
        (tree / "layer.json").unlink()
        findings = repair(cli, "--remove", code=1)
        assert {f["kind"] for f in findings if f["state"] == "damaged"} >= {"layer", "container"}
        assert all(f"pullpipe rm {container['id']}" in f["remedy"] for f in findings if f["kind"] != "stack")
        ok(cli, "rm", container["id"])
        repair(cli)
        assert is_whole(cli)


class TestMeanwhile:
    def test_killed(self, cli: Cli, damaged: Damaged, store_root: Path, tmp_path: Path) -> None:
        """At random moments: nothing is lost, and the next repair does the rest."""
        store = copied(damaged, store_root)
        rng = random.Random(7)
        for _ in range(4):
            with started(store_root, "repair", *OPTIONS, "--quiet", stderr=tmp_path / "said") as process:
                time.sleep(rng.uniform(0.2, 1.2))  # not to wait for anything: any moment will do
                process.kill()
                process.communicate(timeout=20)
                until(lambda process=process: group_is_gone(process))  # type: ignore[misc]
        assert {f["state"] for f in repair(cli)} <= {"mended"}
        assert is_whole(cli)
        assert_same(store_root, store.good)

    def test_two_at_once(self, cli: Cli, damaged: Damaged, store_root: Path, tmp_path: Path) -> None:
        """Each mends, or finds mended; what one fetches the other may have to leave."""
        store = copied(damaged, store_root)
        with (
            started(store_root, "repair", *OPTIONS, "--quiet", stderr=tmp_path / "one") as one,
            started(store_root, "repair", *OPTIONS, "--quiet", stderr=tmp_path / "two") as two,
        ):
            for process in (one, two):
                out, _ = process.communicate(timeout=60)
                left = [line for line in out.splitlines() if line.startswith("damaged")]
                assert all("another process" in line for line in left), left
        assert {f["state"] for f in repair(cli)} <= {"mended"}
        assert is_whole(cli)
        assert_same(store_root, store.good)

    def test_interrupted(self, cli: Cli, damaged: Damaged, store_root: Path, tmp_path: Path) -> None:
        """Nothing is left of what it was about to do."""
        copied(damaged, store_root)
        with started(store_root, "repair", *OPTIONS, "--quiet", stderr=tmp_path / "said") as process:
            until(lambda: list((store_root / "staging").iterdir()))
            process.send_signal(signal.SIGTERM)
            process.communicate(timeout=20)
        assert process.returncode == 128 + signal.SIGTERM
        assert list((store_root / "staging").iterdir()) == []


def test_what_mended_blobs_are_good_for(cli: Cli, registry: Registry, layout: Path, tmp_path: Path) -> None:
    """The message of a command that found damage names the repair, and that helps."""
    reference = registry.push(layout, "image", to="repair/saved:1")
    ok(cli, "pull", "-q", "--plain-http", reference)
    root = Path(answer(cli, "inspect", reference)["layers"][0]["directory"]).parents[3]
    flip(root / "blobs" / layers_of(layout)[0]["digest"].replace(":", "/"), 5)
    assert f"`pullpipe repair {reference}`" in fails(cli, "save", "-q", "-o", tmp_path / "saved", reference)
    assert Digest.parse(repair(cli, reference)[0]["name"])
    ok(cli, "save", "-q", "-o", tmp_path / "saved", reference)
    ok(cli, "unpack", "-q", reference, tmp_path / "unpacked")
    assert set(snapshot(tmp_path / "unpacked")) == {b".", b"lower", b"upper"}


@pytest.mark.parametrize("blob", [file_layer("lower").blob[:-12], file_layer("other").blob], ids=["cut", "other"])
def test_a_blob_that_is_not_the_layer_that_an_image_says(
    cli: Cli, image: str, store_root: Path, tmp_path: Path, blob: bytes
) -> None:
    """As it may have been loaded before such were refused: the layer's own blob serves, and the image is told."""
    layout = Layout(tmp_path / "mistaken")
    lower = file_layer("lower")
    mistaken = layout.blob(blob, lower.media_type)
    layout.tag(layout.document(layout.manifest(Image([lower]), layers=[mistaken])))
    ok(cli, "load", "-q", "--discard-blobs", "-t", "a:1", layout.path)  # of two images, this one comes first
    (store_root / "blobs" / mistaken["digest"].replace(":", "/")).write_bytes(blob)
    flip(store_root / "layers" / lower.diff_id.replace(":", "/") / "fs/lower")
    done = cli("verify", "--deep", "-q", "--format=json")
    expected = [("layer", lower.diff_id), ("image", "docker.io/library/a:1")]
    damaged = [finding for finding in json.loads(done.stdout) if finding["state"] == "damaged"]
    assert (done.returncode, [(finding["kind"], finding["name"]) for finding in damaged]) == (1, expected)
    found = repair(cli, code=1)
    assert [(f["state"], f["kind"], f["name"]) for f in found] == [("mended", *expected[0]), ("damaged", *expected[1])]
    assert mistaken["digest"] in found[1]["problem"]
    assert "repair --remove" in found[1]["remedy"]
    assert (store_root / "layers" / lower.diff_id.replace(":", "/") / "fs/lower").read_bytes() == b"lower"
    repair(cli, "--remove")
    assert is_whole(cli)
    assert [one["reference"] for one in answer(cli, "images", "--format=json")] == [image]
