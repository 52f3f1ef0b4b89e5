"""`pullpipe pull --all-platforms`: the whole index in the store, one platform of it unpacked."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import threading
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from pullpipe import local
from store import Digest, Store
from tests.cli.rig import Log, answer, fails, file_layer, group_is_gone, mounted_tree, ok, started, until
from tests.conftest import Cli
from tests.support.documents import Descriptor, Layout, digest_of, inlined
from tests.support.hostile import Fault, FaultyRegistry
from tests.support.images import File, Image, Layer
from tests.support.registry import Registry

pytestmark = pytest.mark.needs_root

HERE, THERE = Image([]).platform, "linux/s390x"
LARGE = os.urandom(3 << 20)


class Whole:
    """An index of four images and an attestation, one of the images in an index of its own."""

    def __init__(self, path: Path) -> None:
        self.layout = Layout(path)
        shared = file_layer("shared")
        self.own = self.layout.image(Image([shared, file_layer("own")]))
        large = Layer([File("large", LARGE)], compression=None)
        self.there = self.layout.image(Image([shared, file_layer("there"), large], platform=THERE))
        self.windows = self.layout.image(Image([file_layer("windows")], platform="windows/amd64"))
        self.nested = self.layout.image(Image([file_layer("nested")], platform="linux/ppc64le"))
        self.statement = self.layout.blob(
            b'{"_type": "https://in-toto.io/Statement/v0.1"}', "application/vnd.in-toto+json"
        )
        self.attestation = self.layout.document(
            self.layout.manifest(Image([]), layers=[self.statement]),
            platform={"os": "unknown", "architecture": "unknown"},
        )
        self.large = digest_of(large.blob)
        inner = self.layout.index(self.nested)
        self.index = self.layout.index(self.own, self.attestation, self.there, self.windows, inner)
        self.layout.tag(self.index)

    @property
    def path(self) -> Path:
        return self.layout.path

    def blobs(self) -> dict[str, bytes]:
        """All that is in it, by digest."""
        return {f"sha256:{path.name}": path.read_bytes() for path in self.path.glob("blobs/sha256/*")}

    def document(self, descriptor: Descriptor) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.blobs()[descriptor["digest"]])
        return found

    def blobs_of(self, descriptor: Descriptor) -> list[str]:
        """The digests of an image's config and layers."""
        manifest = self.document(descriptor)
        return [manifest["config"]["digest"], *(layer["digest"] for layer in manifest["layers"])]


@pytest.fixture
def whole(tmp_path: Path) -> Whole:
    return Whole(tmp_path / "whole")


def in_store(root: Path) -> dict[str, bytes]:
    return {f"{path.parent.name}:{path.name}": path.read_bytes() for path in root.glob("blobs/*/*")}


def layers_in(root: Path) -> int:
    return len(list(root.glob("layers/*/*")))


class TestWhole:
    def test_all_of_it(self, cli: Cli, registry: Registry, whole: Whole, store_root: Path, tmp_path: Path) -> None:
        """Every blob is there, fetched once; this machine's image is unpacked and the others are not."""
        reference = whole.layout.upload(registry, "all/everything")
        log = Log(registry, "all/everything")
        assert ok(cli, "pull", "-q", "--all-platforms", reference) == whole.own["digest"]
        assert in_store(store_root) == whole.blobs()
        paths = [path for method, path in log.requests() if method == "GET" and path.startswith("blobs/")]
        assert len(paths) == len(set(paths))
        assert layers_in(store_root) == 2
        assert set(mounted_tree(cli, reference, tmp_path / "mounted")) == {b".", b"shared", b"own"}
        assert [*(store_root / "staging").iterdir(), *(store_root / "ingest").iterdir()] == []

    def test_other_platforms_are_then_here(
        self, cli: Cli, registry: Registry, whole: Whole, store_root: Path, tmp_path: Path
    ) -> None:
        """Nothing is fetched for them, not even a manifest; and nothing is lost when they take the name."""
        reference = whole.layout.upload(registry, "all/others")
        ok(cli, "pull", "-q", "--all-platforms", reference)
        log = Log(registry, "all/others")
        assert ok(cli, "pull", "-q", "--platform", THERE, reference) == whole.there["digest"]
        assert {method for method, _ in log.requests()} == {"HEAD"}
        assert b"large" in mounted_tree(cli, reference, tmp_path / "mounted")
        assert [image["platform"] for image in answer(cli, "images", "--format", "json")] == [THERE]
        ok(cli, "pull", "-q", "--all-platforms", "--platform", "linux/ppc64le", reference)
        assert {method for method, _ in log.requests()} == {"HEAD"}
        assert in_store(store_root) == whole.blobs()

    def test_again(self, cli: Cli, registry: Registry, whole: Whole) -> None:
        """One HEAD; with a digest, or a policy that does not ask, nothing."""
        reference = whole.layout.upload(registry, "all/again")
        ok(cli, "pull", "-q", "--all-platforms", reference)
        log = Log(registry, "all/again")
        done = cli("pull", "--all-platforms", reference)
        assert (done.returncode, done.stdout.strip()) == (0, whole.own["digest"])
        assert "up to date" in done.stderr
        assert log.requests() == [("HEAD", "manifests/1")]
        log = Log(registry, "all/again")
        for policy in ("missing", "never"):
            assert ok(cli, "pull", "-q", "--all-platforms", "--policy", policy, reference) == whole.own["digest"]
        assert log.requests() == []

    def test_by_digest(self, cli: Cli, registry: Registry, whole: Whole, store_root: Path) -> None:
        whole.layout.upload(registry, "all/digest")
        reference = f"{registry.host}/all/digest@{whole.index['digest']}"
        ok(cli, "pull", "-q", "--all-platforms", reference)
        assert in_store(store_root) == whole.blobs()
        log = Log(registry, "all/digest")
        ok(cli, "pull", "-q", "--all-platforms", reference)
        assert log.requests() == []

    def test_after_one_platform(self, cli: Cli, registry: Registry, whole: Whole, store_root: Path) -> None:
        """What is there stays, the rest comes; a policy that forbids to ask says that it is not all there."""
        reference = whole.layout.upload(registry, "all/after")
        ok(cli, "pull", "-q", reference)
        assert in_store(store_root).keys() < whole.blobs().keys()
        line = fails(cli, "pull", "--all-platforms", "--policy", "never", reference)
        assert "for all platforms is not in the store" in line
        log = Log(registry, "all/after")
        assert ok(cli, "pull", "-q", "--all-platforms", "--policy", "missing", reference) == whole.own["digest"]
        assert in_store(store_root) == whole.blobs()
        assert not log.blobs() & set(whole.blobs_of(whole.own))
        assert ("GET", "manifests/1") not in log.requests()

    def test_after_blobs_were_discarded(self, cli: Cli, registry: Registry, whole: Whole, store_root: Path) -> None:
        """The layers are here and their blobs are not: those come, too."""
        reference = whole.layout.upload(registry, "all/discarded")
        ok(cli, "pull", "-q", "--discard-blobs", reference)
        ok(cli, "pull", "-q", "--all-platforms", reference)
        assert in_store(store_root) == whole.blobs()

    def test_a_lone_manifest(self, cli: Cli, registry: Registry, whole: Whole, store_root: Path) -> None:
        """It is all there is."""
        whole.layout.tag(whole.own)
        reference = whole.layout.upload(registry, "all/lone")
        assert ok(cli, "pull", "-q", "--all-platforms", reference) == whole.own["digest"]
        assert in_store(store_root).keys() == {whole.own["digest"], *whole.blobs_of(whole.own)}

    def test_blobs_that_are_in_their_descriptors(self, cli: Cli, tmp_path: Path, store_root: Path) -> None:
        """Of another platform: a manifest, a config and a layer that no registry has; by sha512, too."""
        layout = Layout(tmp_path / "inline")
        manifest = layout.manifest(Image([file_layer("x"), file_layer("y")], platform=THERE), algorithm="sha512")
        manifest["config"], manifest["layers"][0] = (
            inlined(layout, one) for one in (manifest["config"], manifest["layers"][0])
        )
        there = inlined(layout, layout.document(manifest, platform={"os": "linux", "architecture": "s390x"}))
        own = layout.image(Image([file_layer("own")]))
        layout.tag(layout.index(own, there))
        with FaultyRegistry(layout.path) as faulty:
            reference = f"{faulty.host}/a:1"
            ok(cli, "pull", "-q", "--all-platforms", reference)
            digests = {one["digest"] for one in (there, manifest["config"], *manifest["layers"])}
            assert digests < in_store(store_root).keys()
            assert ok(cli, "pull", "-q", "--platform", THERE, reference) == there["digest"]

    def test_entries_of_unknown_types(self, cli: Cli, whole: Whole, store_root: Path) -> None:
        """They may be anything, and are neither asked for nor missed."""
        new = {"mediaType": "application/vnd.example.new", "digest": f"sha256:{'0' * 64}", "size": 3}
        whole.layout.tag(whole.layout.index(*whole.document(whole.index)["manifests"], new))
        with FaultyRegistry(whole.path) as faulty:
            for _ in range(2):
                ok(cli, "pull", "-q", "--all-platforms", f"{faulty.host}/a:1")
            assert len([one for one in faulty.requests if one.method == "HEAD"]) == 2
            assert faulty.arrived("0" * 64) == []

    def test_not_for_this_machine(self, cli: Cli, whole: Whole, store_root: Path) -> None:
        """Told before a blob is fetched, with the platforms that there are."""
        whole.layout.tag(whole.layout.index(whole.there, whole.windows))
        with FaultyRegistry(whole.path) as faulty:
            line = fails(cli, "pull", "--all-platforms", f"{faulty.host}/a:1")
            assert "it has linux/s390x, windows/amd64; choose one with --platform" in line
            assert faulty.arrived("/blobs/") == []
        assert in_store(store_root) == {}

    def test_with_discard_blobs(self, cli: Cli, store_root: Path) -> None:
        """One asks for blobs, and the other for none."""
        line = fails(cli, "pull", "--all-platforms", "--discard-blobs", "a")
        assert "--all-platforms" in line
        assert "--discard-blobs" in line


class TestSweeping:
    def test_stays_as_long_as_the_image(self, cli: Cli, whole: Whole, store_root: Path, tmp_path: Path) -> None:
        """Another image goes, and nothing of this one; this one goes, and everything does."""
        with FaultyRegistry(whole.path) as faulty:
            reference = f"{faulty.host}/a:1"
            ok(cli, "pull", "-q", "--all-platforms", reference)
        other = Layout(tmp_path / "other")
        other.tag(other.image(Image([file_layer("other")])))
        ok(cli, "load", "-q", "--tag", "other:1", other.path)
        ok(cli, "rmi", "other:1")
        assert in_store(store_root) == whole.blobs()
        ok(cli, "rmi", reference)
        assert in_store(store_root) == {}
        assert layers_in(store_root) == 0

    def test_stays_with_another_platform(self, cli: Cli, whole: Whole, store_root: Path) -> None:
        """Two names for two platforms of one index: either keeps all blobs, and only its own layers."""
        with FaultyRegistry(whole.path) as faulty:
            first, second = f"{faulty.host}/a:1", f"{faulty.host}/b:1"
            ok(cli, "pull", "-q", "--all-platforms", first)
            ok(cli, "pull", "-q", "--platform", THERE, second)
        assert layers_in(store_root) == 4
        ok(cli, "rmi", first)
        assert in_store(store_root) == whole.blobs()
        assert layers_in(store_root) == 3

    def test_a_damaged_document(self, cli: Cli, whole: Whole, store_root: Path) -> None:
        """What it led to cannot be known; all else stays, and the next pull makes it whole."""
        with FaultyRegistry(whole.path) as faulty:
            reference = f"{faulty.host}/a:1"
            ok(cli, "pull", "-q", "--all-platforms", reference)
            ok(cli, "pull", "-q", f"{faulty.host}/b:1")
            (store_root / "blobs" / whole.there["digest"].replace(":", "/")).write_bytes(b"damaged")
            ok(cli, "rmi", f"{faulty.host}/b:1")
            assert set(whole.blobs_of(whole.own)) < in_store(store_root).keys()
            ok(cli, "pull", "-q", "--all-platforms", reference)
        assert in_store(store_root) == whole.blobs()

    def test_what_is_missing_can_be_told(self, cli: Cli, whole: Whole, store_root: Path) -> None:
        """By the documents that are here."""
        index = Digest.parse(whole.index["digest"])
        with FaultyRegistry(whole.path) as faulty:
            ok(cli, "pull", "-q", f"{faulty.host}/a:1")
            store = Store(str(store_root))
            others = (whole.attestation, whole.there, whole.windows, whole.nested)
            assert set(map(str, local.missing(store, index))) == {one["digest"] for one in others}
            ok(cli, "pull", "-q", "--all-platforms", f"{faulty.host}/a:1")
        assert local.whole(store, index)
        (store_root / "blobs" / whole.statement["digest"].replace(":", "/")).unlink()
        assert list(map(str, local.missing(store, index))) == [whole.statement["digest"]]
        assert not local.whole(store, Digest.of(b"what is not here"))


class TestProgress:
    def test_plain(self, cli: Cli, whole: Whole) -> None:
        """A line for each blob; those that are not unpacked say so."""
        with FaultyRegistry(whole.path) as faulty:
            lines = cli("pull", "--all-platforms", f"{faulty.host}/a:1").stderr.splitlines()
        blobs = {blob for one in (whole.there, whole.windows) for blob in whole.blobs_of(one)}
        for digest in blobs - set(whole.blobs_of(whole.own)):
            [line] = [line for line in lines if digest[7:19] in line]
            assert ": pulled, " in line
        assert sum(": pulled and unpacked, " in line for line in lines) == 2
        assert any("0 already here" in line and "other blobs" in line for line in lines)

    def test_json(self, cli: Cli, whole: Whole) -> None:
        """What the plans say is missing is fetched, all of it, and each is finished."""
        with FaultyRegistry(whole.path) as faulty:
            done = cli("pull", "--all-platforms", "--progress", "json", f"{faulty.host}/a:1")
        events = [json.loads(line) for line in done.stderr.splitlines()]
        planned = {
            blob["digest"]: blob["size"]
            for event in events
            if event["event"] == "plan"
            for blob in event["layers"]
            if blob["missing"]
        }
        assert {event["layer"] for event in events if event["event"] == "finished"} == planned.keys()
        fetched = {event["layer"]: event["bytes"] for event in events if event["event"] == "fetched"}
        assert fetched == planned
        assert whole.large in planned
        assert whole.statement["digest"] in planned

    @pytest.mark.parametrize("face", ["bar", "none"])
    def test_other_faces(self, cli: Cli, whole: Whole, face: str) -> None:
        with FaultyRegistry(whole.path) as faulty:
            ok(cli, "pull", "--all-platforms", "--progress", face, f"{faulty.host}/a:1")


class TestFailing:
    @pytest.mark.parametrize("what", ["config", "layer", "statement"])
    def test_a_wrong_blob(self, cli: Cli, whole: Whole, store_root: Path, what: str) -> None:
        """It is not kept; this machine's image is there, and the next time only what is missing comes."""
        digest = {
            "config": whole.blobs_of(whole.there)[0],
            "layer": whole.large,
            "statement": whole.statement["digest"],
        }
        with FaultyRegistry(whole.path, {Fault.WRONG_BLOB}, only=digest[what]) as faulty:
            reference = f"{faulty.host}/a:1"
            line = fails(cli, "pull", "-q", "--all-platforms", reference)
            assert digest[what] in line
            assert digest[what] not in in_store(store_root)
            assert not list(store_root.glob(f"ingest/*{digest[what][7:]}*"))
            assert ok(cli, "pull", "-q", "--policy", "never", reference) == whole.own["digest"]
            faulty.faults.clear()
            here = in_store(store_root).keys()
            faulty.requests.clear()
            ok(cli, "pull", "-q", "--all-platforms", reference)
            assert not [blob for blob in here if faulty.arrived(f"/blobs/{blob}")]
        assert in_store(store_root) == whole.blobs()

    def test_a_blob_that_was_damaged_on_the_way(self, cli: Cli, whole: Whole, store_root: Path) -> None:
        """It is asked for once more, from its start."""
        with FaultyRegistry(whole.path, {Fault.WRONG_BLOB}, only=whole.large, times=1) as faulty:
            ok(cli, "pull", "-q", "--all-platforms", f"{faulty.host}/a:1")
            assert ["Range" in request.headers for request in faulty.arrived(whole.large)] == [False, False]
        assert in_store(store_root) == whole.blobs()

    @pytest.mark.parametrize("what", ["manifest", "layer"])
    def test_what_the_registry_does_not_have(self, cli: Cli, whole: Whole, what: str) -> None:
        """A registry that was given one platform only: the line names what is missing."""
        digest = whole.windows["digest"] if what == "manifest" else whole.blobs_of(whole.windows)[1]
        (whole.path / "blobs" / digest.replace(":", "/")).unlink()
        with FaultyRegistry(whole.path) as faulty:
            assert digest in fails(cli, "pull", "-q", "--all-platforms", f"{faulty.host}/a:1")
            ok(cli, "pull", "-q", f"{faulty.host}/a:1")

    @pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
    def test_broken_off_and_continued(
        self, cli: Cli, whole: Whole, store_root: Path, tmp_path: Path, number: signal.Signals
    ) -> None:
        """In the middle of another platform's layer: the next pull asks for the rest of it, and for nothing twice."""
        with FaultyRegistry(whole.path, {Fault.STALLED_BLOB}, only=whole.large) as faulty:
            reference = f"{faulty.host}/a:1"
            partial = store_root / "ingest" / whole.large.replace(":", "-")
            with started(store_root, "pull", "-q", "--all-platforms", reference, stderr=tmp_path / "said") as process:
                until(lambda: partial.exists() and partial.stat().st_size >= 1 << 20)
                os.kill(process.pid, number)
                process.wait(20)
                until(lambda: group_is_gone(process))
            assert (tmp_path / "said").read_text() == ""
            assert ok(cli, "images", "--format", "json") != "[]"
            present = partial.stat().st_size
            here = in_store(store_root).keys()
            faulty.faults.clear()
            faulty.requests.clear()
            ok(cli, "pull", "-q", "--all-platforms", reference)
            [request] = faulty.arrived(whole.large)
            assert request.headers["Range"] == f"bytes={present}-"
            assert not [blob for blob in here if faulty.arrived(f"/blobs/{blob}")]
        assert in_store(store_root) == whole.blobs()
        assert [*(store_root / "staging").iterdir(), *(store_root / "ingest").iterdir()] == []


class Gated(FaultyRegistry):
    """A registry that keeps one blob back until `open` is called."""

    def __init__(self, layout: Path, only: str) -> None:
        super().__init__(layout, only=only)
        self.asked = threading.Event()
        self._gate = asyncio.Event()

    def open(self) -> None:
        self._loop.call_soon_threadsafe(self._gate.set)

    async def _stored_blob(self, request: web.Request) -> web.StreamResponse:
        if request.match_info["digest"] == self.only:
            self.asked.set()
            await self._gate.wait()
        return await super()._stored_blob(request)


class TestAtOnce:
    def test_slots(self, cli: Cli, whole: Whole, store_root: Path, tmp_path: Path) -> None:
        """With one job, one blob at a time."""
        with Gated(whole.path, whole.large) as gated:
            command = ("pull", "-q", "--all-platforms", "--jobs", "1", f"{gated.host}/a:1")
            with started(store_root, *command, stderr=tmp_path / "said") as process:
                assert gated.asked.wait(20)
                rest = {*whole.blobs_of(whole.windows), whole.statement["digest"]}
                assert not [digest for digest in rest if gated.arrived(f"/blobs/{digest}")]
                gated.open()
                assert process.wait(20) == 0, (tmp_path / "said").read_text()
        assert in_store(store_root) == whole.blobs()

    @pytest.mark.parametrize("second", [("--all-platforms",), ("--platform", THERE)], ids=["all", "one"])
    def test_two_pulls(self, cli: Cli, whole: Whole, store_root: Path, tmp_path: Path, second: tuple[str, ...]) -> None:
        """The second waits for the blob that the first is at, and every layer is fetched once."""
        ok(cli, "images")
        with Gated(whole.path, whole.large) as gated:
            first_pull = ("pull", "--progress=plain", "--all-platforms", f"{gated.host}/a:1")
            second_pull = ("pull", "--progress=plain", *second, f"{gated.host}/b:1")
            with started(store_root, *first_pull, stderr=tmp_path / "first") as first:
                assert gated.asked.wait(20)
                with started(store_root, *second_pull, stderr=tmp_path / "second") as other:
                    until(lambda: "another process" in (tmp_path / "second").read_text())
                    gated.open()
                    assert [first.wait(20), other.wait(20)] == [0, 0], (tmp_path / "second").read_text()
            layers = [digest for one in (whole.own, whole.there, whole.windows) for digest in whole.blobs_of(one)[1:]]
            for digest in (*layers, whole.statement["digest"]):
                assert len(gated.arrived(f"/blobs/{digest}")) == 1
        assert in_store(store_root) == whole.blobs()
        assert len(answer(cli, "images", "--format", "json")) == 2

    def test_the_first_is_killed(self, cli: Cli, whole: Whole, store_root: Path, tmp_path: Path) -> None:
        """The one that waited goes on where it stopped."""
        with FaultyRegistry(whole.path, {Fault.STALLED_BLOB}, only=whole.large, times=1) as faulty:
            command = ("pull", "--progress=plain", "--all-platforms", f"{faulty.host}/a:1")
            partial = store_root / "ingest" / whole.large.replace(":", "-")
            with started(store_root, *command, stderr=tmp_path / "first") as first:
                until(lambda: partial.exists() and partial.stat().st_size >= 1 << 20)
                with started(store_root, *command, stderr=tmp_path / "second") as second:
                    until(lambda: "waiting" in (tmp_path / "second").read_text())
                    os.killpg(first.pid, signal.SIGKILL)
                    assert second.wait(20) == 0, (tmp_path / "second").read_text()
            _, request = faulty.arrived(whole.large)
            assert "Range" in request.headers
        assert in_store(store_root) == whole.blobs()


def test_other_programs_see_whole_blobs(cli: Cli, whole: Whole, store_root: Path) -> None:
    """skopeo takes the index from the store's blobs, with all that it names."""
    index = whole.layout.tag(whole.layout.index(whole.own, whole.attestation, whole.there, whole.windows))
    with FaultyRegistry(whole.path) as faulty:
        ok(cli, "pull", "-q", "--all-platforms", f"{faulty.host}/a:1")
    view = store_root.parent / "view"
    view.mkdir()
    for name in ("oci-layout", "blobs"):
        (view / name).symlink_to(store_root / name)
    (view / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [index]}))
    copy = ["skopeo", "copy", "-q", "--insecure-policy", "--all", f"oci:{view}", f"dir:{view}-copy"]
    done = subprocess.run(copy, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert {whole.large[7:], whole.statement["digest"][7:]} < set(os.listdir(f"{view}-copy"))
