"""`pullpipe verify`: what is damaged is found and told with the images that it hurts; what is whole is called whole."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from store import Digest, Store
from tests.cli.damages import DAMAGES, Damaged, flip, image, pullpipe
from tests.cli.rig import (
    answer,
    digest_of,
    document,
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
from tests.conftest import PROJECT, Cli, require
from tests.support.documents import Layout
from tests.support.images import Dir, File, Image, Layer, write_layout
from tests.support.registry import Registry
from tests.torture.calls import Call, supervised
from tests.torture.rig import command

pytestmark = pytest.mark.needs_root

FIELDS = {"state", "kind", "name", "problem", "users", "remedy"}
Findings = list[dict[str, Any]]


def verify(cli: Cli, *options: str, code: int = 0) -> Findings:
    """What it finds, as its JSON tells."""
    done = cli("verify", "--format", "json", "--quiet", *options)
    assert (done.returncode, done.stderr) == (code, "")
    findings: Findings = json.loads(done.stdout)
    assert all(set(finding) == FIELDS for finding in findings)
    assert bool([finding for finding in findings if finding["state"] == "damaged"]) == bool(code)
    return findings


def told(findings: Findings) -> list[tuple[str, str, str]]:
    """State, kind and name of each."""
    return [(finding["state"], finding["kind"], finding["name"]) for finding in findings]


def unrecorded(root: Path, reference: str) -> None:
    """Takes the image's record away, and leaves all else, as a pull does that ends before its last step."""
    index = json.loads((root / "index.json").read_bytes())
    index["manifests"] = [
        entry for entry in index["manifests"] if entry["annotations"]["org.opencontainers.image.ref.name"] != reference
    ]
    (root / "index.json").write_text(json.dumps(index))


class TestDamage:
    """Of each kind there is one, each in an image of its own."""

    @pytest.fixture(scope="class")
    @staticmethod
    def deep(damaged: Damaged) -> Findings:
        done = pullpipe(damaged.bad, "verify", "--deep", "--quiet", "--format", "json")
        assert (done.returncode, done.stderr) == (1, "")
        findings: Findings = json.loads(done.stdout)
        return findings

    @pytest.fixture(scope="class")
    @staticmethod
    def quick(damaged: Damaged) -> Findings:
        done = pullpipe(damaged.bad, "verify", "--quiet", "--format", "json")
        assert (done.returncode, done.stderr) == (1, "")
        findings: Findings = json.loads(done.stdout)
        return findings

    @pytest.mark.parametrize("name", DAMAGES)
    def test_is_found(self, damaged: Damaged, deep: Findings, name: str) -> None:
        """Once, with what is wrong, whom it hurts, and what to do; and nothing else is wrong with that image."""
        damage = DAMAGES[name]
        [finding] = [
            finding
            for finding in deep
            if finding["state"] == "damaged" and damaged.references[name] in finding["users"]
        ]
        assert (finding["kind"], finding["users"]) == (damage.kind, [damaged.references[name]])
        assert damage.problem in finding["problem"]
        assert "`pullpipe repair`" in finding["remedy"]
        assert Digest.parse(finding["name"])

    @pytest.mark.parametrize("name", DAMAGES)
    def test_is_found_without_unpacking_where_that_shows(self, damaged: Damaged, quick: Findings, name: str) -> None:
        """The same then; what only contents show is not looked for."""
        found = [finding for finding in quick if damaged.references[name] in finding["users"]]
        assert [finding["kind"] for finding in found] == [DAMAGES[name].kind] * DAMAGES[name].quick
        assert all(DAMAGES[name].problem in finding["problem"] for finding in found)

    def test_what_cannot_be_checked_is_said(self, damaged: Damaged, deep: Findings) -> None:
        """A layer whose blob is damaged, and the stack of a layer that is."""
        unchecked = {
            (finding["kind"], *finding["users"]): finding for finding in deep if finding["state"] == "unchecked"
        }
        assert unchecked["layer", damaged.references["blob-cut"]]["problem"] == "its blob is damaged"
        assert unchecked["layer", damaged.references["blob-flipped"]]["problem"] == "its blob is damaged"
        assert unchecked["stack", damaged.references["mode"]]["problem"] == "a layer of it is damaged"
        assert {kind for kind, _ in unchecked} == {"layer", "stack"}

    def test_nothing_else_is_told(self, deep: Findings, quick: Findings) -> None:
        """But for the files that stand in trees' places. No orphans: what a damaged manifest leads to is not known."""
        assert {finding["state"] for finding in deep} == {"damaged", "unchecked", "leftover"}
        assert {finding["state"] for finding in quick} == {"damaged", "leftover"}

    def test_before(self, damaged: Damaged) -> None:
        """All of it was whole, in every respect; and to see that from outside, nothing is unpacked."""
        for options in (("--deep", "--progress=none"), ("--progress=plain",)):
            done = pullpipe(damaged.good, "verify", *options)
            assert (done.returncode, done.stdout, done.stderr) == (0, "", "whole\n")

    def test_only_these_images(self, damaged: Damaged) -> None:
        """Others do not count, be they damaged or not."""
        mode, zeroed = damaged.references["mode"], damaged.references["zeroed"]
        assert pullpipe(damaged.bad, "verify", mode).returncode == 0
        done = pullpipe(damaged.bad, "verify", "--deep", "--quiet", "--format=json", mode, zeroed)
        assert done.returncode == 1
        findings = json.loads(done.stdout)
        assert sorted(finding["users"] for finding in findings if finding["state"] == "damaged") == [[mode], [zeroed]]
        assert {user for finding in findings for user in finding["users"]} == {mode, zeroed}

    def test_lines(self, damaged: Damaged) -> None:
        """One for each; on standard error, how the work goes on, and a count."""
        reference = damaged.references["mode"]
        done = pullpipe(damaged.bad, "verify", "--deep", "--progress=plain", reference)
        digest = f"sha256:{damaged.target('mode').tree('layers').name}"
        damage, unchecked = done.stdout.splitlines()
        assert damage == (
            f"damaged layer {digest} of {reference}: bin/again: its mode is 0755 instead of 4755 (and 1 more); "
            "`pullpipe repair` makes it anew"
        )
        assert unchecked.startswith("unchecked stack sha256:")
        plan, *checked, count = done.stderr.splitlines()
        assert plan.startswith("blobs to check: 3 (")
        assert len([line for line in checked if ": checked, " in line]) == 3
        assert count == "1 damaged, 1 not checked"

    def test_nothing_is_left(self, damaged: Damaged, deep: Findings, quick: Findings) -> None:
        for root in (damaged.bad, damaged.good):
            assert [*(root / "staging").iterdir(), *(root / "ingest").iterdir()] == []


class TestRecords:
    def test_no_such_image(self, cli: Cli, image: str) -> None:
        assert "other:1 is not in the store" in fails(cli, "verify", "other:1")
        assert "other:1 is not in the store" in fails(cli, "verify", "--deep", image, "other:1")

    def test_an_empty_store(self, cli: Cli) -> None:
        assert verify(cli) == verify(cli, "--deep") == []

    def test_a_cut_index(self, cli: Cli, image: str, layout: Path, store_root: Path) -> None:
        """What it still has is looked at; what nothing leads to may be what it has lost, and is not told."""
        ok(cli, "load", "-q", "-t", "other:1", layout_of(layout.parent / "other", file_layer("other")))
        index = store_root / "index.json"
        index.write_text(index.read_text()[:-200])
        shutil.rmtree(store_root / "layers")
        (store_root / "layers/sha256").mkdir(parents=True)
        findings = verify(cli, code=1)
        assert ("damaged", "index", "index.json") in told(findings)
        [finding] = [finding for finding in findings if finding["kind"] == "index"]
        assert "only 1 of its entries" in finding["problem"]
        assert "`pullpipe repair --remove`" in finding["remedy"]
        assert [finding["users"] for finding in findings if finding["kind"] == "layer"] == [[image]] * 2
        assert not [finding for finding in findings if finding["state"] == "orphan"]

    def test_a_record_of_something_else(self, cli: Cli, image: str, layout: Path, store_root: Path) -> None:
        """The blob is right, and no manifest."""
        index = json.loads((store_root / "index.json").read_bytes())
        config = document(layout, digest_of(layout))["config"]
        index["manifests"][0] |= {"digest": config["digest"], "size": config["size"]}
        (store_root / "index.json").write_text(json.dumps(index))
        [finding] = [finding for finding in verify(cli, code=1) if finding["state"] == "damaged"]
        assert (finding["kind"], finding["name"], finding["users"]) == ("image", image, [image])
        assert "pullpipe repair --remove" in finding["remedy"]

    def test_a_container(self, cli: Cli, image: str, tmp_path: Path, store_root: Path) -> None:
        """Its record is damaged: `rm` helps. What its stack needs is told with its name."""
        with mounted(cli, image, tmp_path / "m", "--rw") as target:
            (target / "written").touch()
        [container] = answer(cli, "ps", "--format", "json")
        [stack] = (store_root / "stacks").glob("*/*")
        (stack / "stack.json").rename(stack / "lost")
        [finding] = verify(cli, code=1)
        assert (finding["kind"], finding["users"]) == ("stack", [image, f"container {container['name']}"])
        (stack / "lost").rename(stack / "stack.json")
        (store_root / "containers" / container["id"] / "config.json").write_text("{")
        [finding] = verify(cli, code=1)
        assert (finding["kind"], finding["name"]) == ("container", container["id"])
        assert f"pullpipe rm {container['id']}" in finding["remedy"]
        ok(cli, "rm", container["id"])
        assert verify(cli, "--deep") == []

    def test_a_containers_layers_without_its_image(self, cli: Cli, image: str, layout: Path, tmp_path: Path) -> None:
        """No image tells any more which blobs they came from."""
        with mounted(cli, image, tmp_path / "m", "--rw") as target:
            (target / "written").touch()
        ok(cli, "load", "-q", "-t", image, layout_of(tmp_path / "other", file_layer("lower"), file_layer("new")))
        [container] = answer(cli, "ps", "--format", "json")
        findings = verify(cli, "--deep")
        assert [(finding["state"], finding["kind"]) for finding in findings if finding["state"] == "unchecked"] == [
            ("unchecked", "layer"),
            ("unchecked", "stack"),
        ]
        assert {user for f in findings if f["state"] == "unchecked" for user in f["users"]} == {
            f"container {container['name']}"
        }


class TestRoot:
    def test_open_to_others(self, cli: Cli, image: str, store_root: Path) -> None:
        """Setuid files of images must be out of others' reach."""
        (store_root / "layers").chmod(0o711)
        assert told(verify(cli, code=1)) == [("damaged", "file", "layers")]
        store_root.chmod(0o755)
        assert "chmod 700" in fails(cli, "verify")

    def test_a_directory_that_is_gone(self, cli: Cli, image: str, store_root: Path) -> None:
        shutil.rmtree(store_root / "containers")
        [finding] = verify(cli, "--deep", code=1)
        assert (finding["name"], finding["problem"]) == ("containers", "it is not there")
        assert "`pullpipe repair`" in finding["remedy"]

    def test_what_other_programs_need(self, cli: Cli, image: str, store_root: Path) -> None:
        (store_root / "oci-layout").write_text("")
        assert told(verify(cli, code=1)) == [("damaged", "file", "oci-layout")]


class TestOrphans:
    """Whole, and led to by nothing: no damage."""

    def test_all_that_a_pull_left_unrecorded(self, cli: Cli, damaged: Damaged, store_root: Path) -> None:
        """Of all kinds; `prune` removes them. Of an image that one asks about there are none."""
        reference, other = damaged.references["mode"], damaged.references["time"]
        write_layout(store_root.parent / "l", {reference: image("mode"), other: image("time")})
        ok(cli, "load", "-q", store_root.parent / "l")
        assert verify(cli, "--deep") == []
        unrecorded(store_root, reference)
        findings = verify(cli)
        assert {(finding["state"], finding["problem"].partition(",")[0]) for finding in findings} == {
            ("orphan", "nothing leads to it")
        }
        kinds = [finding["kind"] for finding in findings]
        assert {kind: kinds.count(kind) for kind in kinds} == {"blob": 5, "layer": 3, "variant": 1, "stack": 1}
        assert all("`pullpipe prune`" in finding["remedy"] and not finding["users"] for finding in findings)
        assert verify(cli, "--deep") == findings
        assert verify(cli, "--deep", other) == []

    def test_damaged_ones(self, cli: Cli, image: str, layout: Path, store_root: Path) -> None:
        """The next pull would take them for whole. They are told once, as damaged."""
        unrecorded(store_root, image)
        lower, upper = (layer.diff_id for layer in (file_layer("lower"), file_layer("upper")))
        (store_root / "layers" / lower.replace(":", "/") / "layer.json").unlink()
        blob = layers_of(layout)[0]["digest"]
        flip(store_root / "blobs" / blob.replace(":", "/"), 5)
        assert told([f for f in verify(cli, code=1) if f["state"] == "damaged"]) == [("damaged", "layer", lower)]
        findings = verify(cli, "--deep", code=1)
        assert sorted(told([f for f in findings if f["name"] in (lower, upper, blob)])) == sorted(
            [("damaged", "layer", lower), ("orphan", "layer", upper), ("damaged", "blob", blob)]
        )
        assert all("removes it" in finding["remedy"] for finding in findings)

    def test_what_a_push_is_about_to_need_is_none(self, cli: Cli, store_root: Path) -> None:
        store = Store(str(store_root), durable=False)
        leased, other = Digest.of(b"leased"), Digest.of(b"other")
        for digest, data in ((leased, b"leased"), (other, b"other")):
            with store.blobs.document(digest, data) as ingest:
                store.publish([ingest], [])
        with store.shared():
            store.leases.grant(leased)
        assert told(verify(cli)) == [("orphan", "blob", str(other))]


class TestLeftovers:
    def test_of_pulls_that_ended_early(self, cli: Cli, image: str, store_root: Path) -> None:
        """Information; what belongs to a process that lives is none, and nothing is removed."""
        partial = f"sha256-{'1' * 64}"
        (store_root / "ingest" / partial).write_bytes(b"12345")
        (store_root / "staging/layers-sha256-2").mkdir()
        store = Store(str(store_root), durable=False)
        alive = store.layers.stage_alone(Digest.of(b"alive"))
        with store.blobs.ingest(Digest.of(b"arriving"), 5) as arriving:
            os.write(arriving.fileno(), b"arr")
            findings = verify(cli, "--deep")
        assert told(findings) == [
            ("leftover", "file", "staging/layers-sha256-2"),
            ("leftover", "file", f"ingest/{partial}"),
        ]
        assert "5 B" in findings[1]["problem"]
        assert "goes on from there" in findings[1]["remedy"]
        assert (store_root / "ingest" / partial).exists()
        assert os.path.isdir(alive.files)
        alive.discard()


def unsealed(root: Path) -> None:
    """The store without the digests of what was unpacked."""
    for path in (root / "layers").glob("*/*/fs.digest"):
        path.unlink()


class TestBlobsThatAreNotKept:
    def test_their_layers_are_checked(self, cli: Cli, layout: Path, store_root: Path) -> None:
        """By a digest of what was unpacked; without --deep, when there is more or less of that."""
        ok(cli, "load", "-q", "--discard-blobs", "-t", "image:1", layout)
        assert verify(cli) == verify(cli, "--deep") == []
        diff_id = file_layer("lower").diff_id
        path = store_root / "layers" / diff_id.replace(":", "/") / "fs/lower"
        for data, options in ((b"LOWER", ["--deep"]), (b"longer", ["--deep"]), (b"longer", [])):
            before = path.stat()
            path.write_bytes(data)
            os.utime(path, ns=(before.st_mtime_ns, before.st_mtime_ns))
            [finding] = [found for found in verify(cli, *options, code=1) if found["kind"] == "layer"]
            assert (finding["state"], finding["name"]) == ("damaged", diff_id)
            assert finding["problem"] == "its files are not those that were unpacked"
            assert "`pullpipe repair`" in finding["remedy"]

    def test_without_a_digest(self, cli: Cli, layout: Path, store_root: Path) -> None:
        """Older programs took none: each layer that could not be checked is said; the stack could."""
        ok(cli, "load", "-q", "--discard-blobs", "-t", "image:1", layout)
        unsealed(store_root)
        assert verify(cli) == []
        findings = verify(cli, "--deep")
        assert [(f["state"], f["kind"], f["problem"]) for f in findings] == [
            ("unchecked", "layer", "its blob is not kept")
        ] * 2

    def test_a_tree_that_looks_wrong(self, cli: Cli, layout: Path, store_root: Path) -> None:
        """Only its blob could tell: `repair` fetches it."""
        ok(cli, "load", "-q", "--discard-blobs", "-t", "image:1", layout)
        unsealed(store_root)
        diff_id = file_layer("lower").diff_id
        os.truncate(store_root / "layers" / diff_id.replace(":", "/") / "fs/lower", 0)
        [finding] = verify(cli)
        assert (finding["state"], finding["name"]) == ("unchecked", diff_id)
        assert "its files have 0 bytes, and 5 were unpacked" in finding["problem"]
        assert "`pullpipe repair`" in finding["problem"]

    def test_another_images_blob_serves(self, cli: Cli, layout: Path, store_root: Path) -> None:
        """The same layer under another compression, and only that is in the store."""
        ok(cli, "load", "-q", "--discard-blobs", "-t", "image:1", layout)
        lower = Layer(file_layer("lower").entries, "zstd")
        ok(cli, "load", "-q", "-t", "other:1", layout_of(layout.parent / "other", lower, file_layer("third")))
        [blob] = [layer["digest"] for layer in layers_of(layout.parent / "other")][:1]
        if not (store_root / "blobs" / blob.replace(":", "/")).exists():  # a layer that was there is not fetched
            (store_root / "blobs" / blob.replace(":", "/")).write_bytes(lower.blob)
        assert verify(cli, "--deep") == []
        flip(store_root / "layers" / lower.diff_id.replace(":", "/") / "fs/lower")
        [finding] = [finding for finding in verify(cli, "--deep", code=1) if finding["state"] == "damaged"]
        assert finding["users"] == ["docker.io/library/image:1", "docker.io/library/other:1"]


class TestBlobsThatAreNotUnpacked:
    """They are read, and have their digests."""

    def test_of_other_platforms(self, cli: Cli, registry: Registry, store_root: Path, tmp_path: Path) -> None:
        layout = Layout(tmp_path / "both")
        there = layout.image(Image([file_layer("there")], platform="linux/s390x"))
        layout.tag(layout.index(layout.image(Image([file_layer("here")])), there))
        reference = layout.upload(registry, "verify/both")
        ok(cli, "pull", "-q", "--all-platforms", reference)
        assert verify(cli, "--deep") == []
        [layer] = json.loads((store_root / "blobs" / there["digest"].replace(":", "/")).read_bytes())["layers"]
        blob = store_root / "blobs" / layer["digest"].replace(":", "/")
        flip(blob, 5)
        assert verify(cli) == []
        [finding] = verify(cli, "--deep", code=1)
        assert (finding["kind"], finding["name"], finding["users"]) == ("blob", layer["digest"], [reference])
        blob.unlink()
        assert verify(cli, "--deep") == []  # one may have them, or not
        (store_root / "blobs" / there["digest"].replace(":", "/")).write_text("{}")
        [finding] = verify(cli, code=1)
        assert (finding["kind"], finding["name"]) == ("blob", there["digest"])

    def test_of_another_program(self, cli: Cli, image: str, layout: Path, store_root: Path) -> None:
        """What skopeo copied into the store: nobody knows another place of it."""
        theirs = layout_of(layout.parent / "theirs", file_layer("theirs"))
        copy = [require("skopeo"), "copy", "-q", "--insecure-policy", f"oci:{theirs}:image", f"oci:{store_root}:theirs"]
        subprocess.run(copy, check=True)
        assert verify(cli, "--deep") == []
        blob = store_root / "blobs" / layers_of(theirs)[0]["digest"].replace(":", "/")
        data = blob.read_bytes()
        blob.unlink()
        [finding] = verify(cli, code=1)
        assert (finding["kind"], finding["users"], finding["problem"]) == ("blob", ["theirs"], "it is not there")
        assert finding["remedy"] == "push it again"
        blob.write_bytes(data[:-1] + b"x")
        assert verify(cli) == []
        assert told(verify(cli, "--deep", code=1)) == [("damaged", "blob", layers_of(theirs)[0]["digest"])]


class TestDyingDisk:
    """It does not give back what it was given: each kind of thing that is read may be what it keeps."""

    @pytest.mark.parametrize(
        ("what", "kind", "problem"),
        [
            ("manifest", "blob", "it cannot be read"),
            ("config", "blob", "it cannot be read"),
            ("blob", "blob", "it cannot be read: Input/output error"),
            ("file", "layer", "lower: its content differs"),
            ("tree", "layer", "it cannot be read: Input/output error"),
            ("record", "layer", "its layer.json is damaged"),
        ],
    )
    def test_is_told_as_damage(
        self, image: str, layout: Path, store_root: Path, what: str, kind: str, problem: str
    ) -> None:
        """Of that alone."""
        digests = {
            "manifest": digest_of(layout),
            "config": document(layout, digest_of(layout))["config"]["digest"],
            "blob": layers_of(layout)[0]["digest"],
        }
        tree = store_root / "layers" / file_layer("lower").diff_id.replace(":", "/")
        places = {name: store_root / "blobs" / digest.replace(":", "/") for name, digest in digests.items()}
        places |= {"file": tree / "fs/lower", "tree": tree / "fs", "record": tree / "layer.json"}

        def decide(call: Call, _: int) -> int:
            reads = call.name in ("read", "pread64", "getdents64")
            return errno.EIO if reads and call.path == str(places[what]) else 0

        words = ("verify", "--deep", "--quiet", "--format=json")
        done = supervised(command(store_root, *words), [store_root], decide, reading=True)
        findings = json.loads(done.out)
        assert [(f["kind"], f["problem"]) for f in findings if f["state"] == "damaged"] == [(kind, problem)]
        assert (done.code, done.said) == (1, "")


@contextmanager
def looping(script: str, *args: str) -> Iterator[subprocess.Popen[bytes]]:
    """A shell that runs it, which ends with the block."""
    process = subprocess.Popen(
        ["sh", "-c", script, sys.executable, *args],
        cwd=PROJECT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


class TestMeanwhile:
    def test_others_pull_and_remove(self, cli: Cli, image: str, store_root: Path, tmp_path: Path) -> None:
        """What they are just publishing, or taking away, is no damage."""
        many = [file_layer(f"file{number}", os.urandom(50_000)) for number in range(12)]
        layout = layout_of(tmp_path / "many", *many, Layer([Dir("d", mode=0o700)]), Layer([File("d/x")]))
        script = (
            'while :; do "$0" -m pullpipe --root "$1" load -q --durability=none -t many:1 "$2" || exit 1;'
            ' "$0" -m pullpipe --root "$1" rmi many:1 || exit 1; done'
        )
        with looping(script, str(store_root), str(layout)) as others:
            seen = set()
            for number in range(12):
                findings = verify(cli, "--deep" if number % 2 else "--format=json")
                seen |= {finding["state"] for finding in findings}
            assert others.poll() is None
        assert "damaged" not in seen

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
    def test_interrupted(self, cli: Cli, store_root: Path, tmp_path: Path, number: int) -> None:
        """In the midst of unpacking. Nothing is left; after a kill, nothing but what the next pull removes."""
        files = [File(f"{count}", b"x") for count in range(3_000)]
        ok(cli, "load", "-q", "--durability=none", "-t", "a:1", layout_of(tmp_path / "l", Layer(files)))
        with started(store_root, "verify", "--deep", stderr=tmp_path / "said") as process:
            until(lambda: list((store_root / "staging").iterdir()))
            process.send_signal(number)
            process.communicate(timeout=30)
            until(lambda: group_is_gone(process))
        assert process.returncode in (128 + number, -number)
        left = list((store_root / "staging").iterdir())
        assert bool(left) == (number == signal.SIGKILL)
        assert {state for state, _, _ in told(verify(cli, "--deep"))} <= {"leftover"}


@pytest.mark.parametrize("name", ["alpine", "busybox"])
def test_real_images(cli: Cli, shared_images: Path, name: str) -> None:
    """As they are used in the world: whole, and all of it was looked at."""
    ok(cli, "load", "-q", "-t", f"{name}:1", shared_images / name)
    assert verify(cli, "--deep") == verify(cli) == []


def test_many_duplicates_in_an_archive(cli: Cli, tmp_path: Path) -> None:
    """The files have fewer bytes than were unpacked, and are right: the layer is unpacked again, and told whole."""
    twice = Layer([File("a", b"first" * 10), File("b", b"b"), File("a", b"second")])
    ok(cli, "load", "-q", "-t", "twice:1", layout_of(tmp_path / "l", twice))
    assert verify(cli) == verify(cli, "--deep") == []


def test_json_lines_of_progress(cli: Cli, image: str) -> None:
    done = cli("verify", "--deep", "--progress=json", image)
    events = [json.loads(line) for line in done.stderr.splitlines()[:-1]]
    assert events[0]["event"] == "check"
    assert len(events[0]["blobs"]) == 2
    assert [event["event"] for event in events].count("finished") == 2
