"""`pullpipe pull`: from a real registry into the store, and what a second pull, a policy or a crash makes of it."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal

import pytest
from aiohttp import web

from tests.cli.rig import (
    Log,
    answer,
    digest_of,
    document,
    fails,
    file_layer,
    group_is_gone,
    layers_of,
    layout_of,
    mounted_tree,
    ok,
    started,
    umoci_tree,
    unpacked_tree,
    until,
)
from tests.conftest import Cli, require
from tests.support.hostile import Fault, FaultyRegistry
from tests.support.images import File, Image, Layer, write_layout
from tests.support.registry import Registry
from tests.support.tree import Snapshot, difference

pytestmark = pytest.mark.needs_root

Form = tuple[Literal["gzip", "zstd"] | None, Literal["oci", "v2s2"]]
FORMS: dict[str, Form] = {
    "gzip": ("gzip", "oci"),
    "zstd": ("zstd", "oci"),
    "docker": ("gzip", "v2s2"),
}
SHARED = {"busybox": "busybox", "alpine": "3.20.3"}  # layout and tag

# Random, so that it is as long when it is compressed: long enough that a part of it reaches the disk.
LONG = os.urandom(3 << 20)


@pytest.fixture(scope="session")
def shared_trees(shared_images: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Snapshot]:
    """What umoci makes of the shared images."""
    require("umoci")
    directory = tmp_path_factory.mktemp("umoci")
    return {name: umoci_tree(shared_images / name, tag, directory / name) for name, tag in SHARED.items()}


@pytest.fixture
def long_layout(tmp_path: Path) -> Path:
    """An image of one layer that takes more than one piece to fetch, and a small one above it."""
    return layout_of(tmp_path / "long", Layer([File("long", LONG)]), file_layer("small"))


def files_below(directory: Path) -> list[Path]:
    return [path for path in directory.rglob("*") if path.is_file()]


def arrived(root: Path, digest: str) -> int:
    """How much of the blob is on disk, in bytes."""
    return sum(path.stat().st_size for path in root.glob(f"ingest/*{digest.partition(':')[2]}*"))


LAYER_STAGES = {"recv", "store", "read", "hash blob", "inflate", "hash tar", "parse", "write"}


class TestTree:
    @pytest.mark.parametrize("name", SHARED)
    @pytest.mark.parametrize("form", FORMS)
    def test_is_what_umoci_unpacks(
        self,
        cli: Cli,
        registry: Registry,
        shared_images: Path,
        shared_trees: dict[str, Snapshot],
        tmp_path: Path,
        name: str,
        form: str,
    ) -> None:
        """Mounted and unpacked, to the last attribute, in whatever form the registry holds it."""
        compression, manifest = FORMS[form]
        to = f"pull/{name}:{form}"
        reference = registry.push(shared_images / name, SHARED[name], to=to, compression=compression, format=manifest)
        digest = ok(cli, "pull", reference)
        assert answer(cli, "inspect", reference)["digest"] == digest
        assert difference(mounted_tree(cli, reference, tmp_path / "mounted"), shared_trees[name]) == []
        assert difference(unpacked_tree(cli, reference, tmp_path / "unpacked"), shared_trees[name]) == []

    @pytest.mark.parametrize("form", FORMS)
    def test_other_programs_read_the_store(
        self, cli: Cli, registry: Registry, layout: Path, store_root: Path, form: str
    ) -> None:
        """umoci lists the image, skopeo inspects and copies it: the store is an OCI layout.

        In a layout skopeo sees OCI manifests only, so an image that came as Docker's is none that it could copy.
        """
        compression, manifest = FORMS[form]
        reference = registry.push(layout, "image", to=f"pull/layout:{form}", compression=compression, format=manifest)
        digest = ok(cli, "pull", "-q", reference)
        listed = subprocess.run(["umoci", "ls", "--layout", store_root], capture_output=True, text=True)
        assert (listed.stdout.split(), listed.returncode) == ([reference], 0), listed.stderr
        if manifest == "oci":
            image = f"oci:{store_root}:{reference}"
            inspected = subprocess.run(["skopeo", "inspect", image], capture_output=True, text=True)
            assert inspected.returncode == 0, inspected.stderr
            assert json.loads(inspected.stdout)["Digest"] == digest
            copy = ["skopeo", "copy", "-q", "--insecure-policy", image, f"dir:{store_root}-copy"]
            copied = subprocess.run(copy, capture_output=True, text=True)
            assert copied.returncode == 0, copied.stderr


class TestOutput:
    def test_digest_on_stdout_and_the_rest_on_stderr(self, cli: Cli, registry: Registry, layout: Path) -> None:
        """So that a script may use what it prints."""
        reference = registry.push(layout, "image", to="pull/output:1")
        done = cli("pull", reference)
        assert (done.returncode, done.stdout) == (0, f"{digest_of(layout)}\n")
        assert f"pulled {reference}" in done.stderr
        again = cli("pull", reference)
        assert (again.returncode, again.stdout) == (0, f"{digest_of(layout)}\n")
        assert "up to date" in again.stderr

    @pytest.mark.parametrize("option", ["--quiet", "-q"])
    def test_quiet(self, cli: Cli, registry: Registry, layout: Path, option: str) -> None:
        """Only the digest, the first time and the second."""
        reference = registry.push(layout, "image", to="pull/quiet:1")
        for _ in range(2):
            done = cli("pull", option, reference)
            assert (done.returncode, done.stdout, done.stderr) == (0, f"{digest_of(layout)}\n", "")

    def test_progress_none(self, cli: Cli, registry: Registry, layout: Path) -> None:
        reference = registry.push(layout, "image", to="pull/none:1")
        done = cli("pull", "--progress", "none", reference)
        assert (done.returncode, done.stderr) == (0, "")

    def test_progress_json(self, cli: Cli, registry: Registry, layout: Path) -> None:
        """An object a line: the plan, each layer from its start to its end, and the counts never go back.

        Of the pull and of each layer it tells how long the stages were at work.
        """
        reference = registry.push(layout, "image", to="pull/json:1")
        done = cli("pull", "--progress", "json", reference)
        events: list[dict[str, Any]] = [json.loads(line) for line in done.stderr.splitlines()]
        layers = layers_of(layout)
        stages = [event for event in events if event["event"] == "stage"]
        assert [event["stage"] for event in stages] == ["resolve", "settle", "publish"]
        assert all(event["seconds"] > 0 for event in stages)
        events = [event for event in events if event["event"] != "stage"]
        assert events[0] == {
            "event": "plan",
            "layers": [{"digest": one["digest"], "size": one["size"], "missing": True} for one in layers],
        }
        for layer in layers:
            own = [event for event in events if event.get("layer") == layer["digest"]]
            assert own[0] == {"event": "started", "layer": layer["digest"], "size": layer["size"]}
            finished = own[-1]
            assert (finished["event"], finished["stages"].keys()) == ("finished", LAYER_STAGES)
            assert all(seconds >= 0 for seconds in finished["stages"].values())
            counts = [event["bytes"] for event in own if event["event"] == "fetched"]
            assert counts == sorted(counts)
            assert counts[-1] == layer["size"]
        assert events[-1] == {"event": "note", "text": f"pulled {reference}"}

    def test_trace(self, cli: Cli, registry: Registry, layout: Path, tmp_path: Path) -> None:
        """Trace events: the pull and each layer have a row, with a track for each stage, within the pull's time."""
        reference = registry.push(layout, "image", to="pull/trace:1")
        ok(cli, "pull", "--trace", tmp_path / "trace.json", reference)
        events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
        rows = {event["pid"]: event["args"]["name"] for event in events if event["name"] == "process_name"}
        shorts = [layer["digest"].removeprefix("sha256:")[:12] for layer in layers_of(layout)]
        assert sorted(rows.values()) == sorted(["pull", *(f"layer {short}" for short in shorts)])
        spans = [event for event in events if event["ph"] == "X"]
        for row, name in rows.items():
            seen = {event["name"] for event in spans if event["pid"] == row}
            assert seen == ({"resolve", "settle", "publish"} if name == "pull" else LAYER_STAGES)
        end = max(event["ts"] + event["dur"] for event in spans if event["name"] == "publish")
        for event in spans:
            assert 0 <= event["ts"] <= event["ts"] + event["dur"] <= end
            assert 0 <= event["args"]["busy_us"] <= event["dur"] + 1

    def test_a_trace_that_cannot_be_written(self, cli: Cli, store_root: Path, tmp_path: Path) -> None:
        """Told before anything is asked."""
        assert "no/such" in fails(cli, "pull", "--trace", tmp_path / "no" / "such", "127.0.0.1:1/x")
        assert "is a directory" in fails(cli, "pull", "--trace", tmp_path, "127.0.0.1:1/x")

    def test_an_index_prints_the_digest_of_the_platforms_manifest(
        self, cli: Cli, registry: Registry, tmp_path: Path
    ) -> None:
        """Not the index's; inspect tells that too."""
        platforms = ["linux/s390x", "linux/arm/v7"]
        images = [Image([file_layer(name.replace("/", "-"))], platform=name) for name in platforms]
        write_layout(tmp_path / "many", {"many": images})
        reference = registry.push(tmp_path / "many", "many", to="pull/many:1")
        index = document(tmp_path / "many", digest_of(tmp_path / "many", "many"))
        for number, platform in enumerate(platforms):
            digest = ok(cli, "pull", "-q", "--platform", platform, reference)
            assert digest == index["manifests"][number]["digest"]
            found = answer(cli, "inspect", reference)
            assert (found["digest"], found["resolved"]) == (digest, digest_of(tmp_path / "many", "many"))
        assert re.search("linux/arm/v7, linux/s390x", fails(cli, "pull", "--platform", "linux/riscv64", reference))

    @pytest.mark.parametrize(
        "args",
        [["pull"], ["pull", "--policy", "sometimes", "a"], ["pull", "--jobs", "0", "a"]],
    )
    def test_usage(self, cli: Cli, args: list[str]) -> None:
        done = cli(*args)
        assert (done.returncode, done.stdout) == (2, "")
        assert "usage: pullpipe pull" in done.stderr

    def test_what_is_no_reference(self, cli: Cli, store_root: Path) -> None:
        """Refused before anything is made or asked."""
        assert "lower case" in fails(cli, "pull", "Alpine")
        assert not store_root.exists()


class TestRequests:
    def test_a_second_pull_asks_once(self, cli: Cli, registry: Registry, layout: Path) -> None:
        """One HEAD, and nothing is fetched."""
        reference = registry.push(layout, "image", to="pull/second:1")
        ok(cli, "pull", reference)
        log = Log(registry, "pull/second")
        ok(cli, "pull", reference)
        assert log.requests() == [("HEAD", "manifests/1")]

    def test_each_blob_is_fetched_once(self, cli: Cli, registry: Registry, layout: Path) -> None:
        """Also a layer that the image has twice."""
        twice = layout_of(layout.parent / "twice", file_layer("a"), file_layer("b"), file_layer("a"))
        reference = registry.push(twice, "image", to="pull/once:1")
        log = Log(registry, "pull/once")
        ok(cli, "pull", reference)
        blobs = {layer["digest"] for layer in layers_of(twice)}
        config = document(twice, digest_of(twice))["config"]["digest"]
        fetched = sorted(path for method, path in log.requests() if method == "GET" and path.startswith("blobs/"))
        assert fetched == sorted(f"blobs/{digest}" for digest in {*blobs, config})

    def test_a_digest_that_is_here_costs_no_request(self, cli: Cli, registry: Registry, layout: Path) -> None:
        """It cannot have changed."""
        registry.push(layout, "image", to="pull/digest:1")
        reference = f"{registry.host}/pull/digest@{digest_of(layout)}"
        assert ok(cli, "pull", reference) == digest_of(layout)
        log = Log(registry, "pull/digest")
        assert ok(cli, "pull", reference) == digest_of(layout)
        assert log.requests() == []

    def test_a_digest_that_is_another_images(self, cli: Cli, registry: Registry, layout: Path) -> None:
        """A manifest of another digest is not what was asked for; there is none of this one."""
        registry.push(layout, "image", to="pull/other:1")
        fails(cli, "pull", f"{registry.host}/pull/other@sha256:{'0' * 64}")

    def test_a_new_tag_fetches_what_is_new(self, cli: Cli, registry: Registry, layout: Path) -> None:
        """What it shares with an image that is here stays where it is."""
        new = layout_of(layout.parent / "new", file_layer("lower"), file_layer("upper"), file_layer("third"))
        ok(cli, "pull", registry.push(layout, "image", to="pull/shared:1"))
        reference = registry.push(new, "image", to="pull/shared:2")
        log = Log(registry, "pull/shared")
        ok(cli, "pull", reference)
        config = document(new, digest_of(new))["config"]["digest"]
        assert log.blobs() == {config, layers_of(new)[2]["digest"]}

    def test_a_tag_that_moved(self, cli: Cli, registry: Registry, layout: Path, tmp_path: Path) -> None:
        """The new image is there under the old name, by default and with `newer`; not with `missing`."""
        reference = registry.push(layout, "image", to="pull/moved:1")
        old = ok(cli, "pull", reference)
        second = layout_of(layout.parent / "second", file_layer("lower"), file_layer("second"))
        registry.push(second, "image", to="pull/moved:1")
        assert ok(cli, "pull", "--policy", "missing", reference) == old
        assert ok(cli, "pull", "--policy", "newer", reference) == digest_of(second)
        tree = mounted_tree(cli, reference, tmp_path / "mounted")
        assert tree.keys() == {b".", b"lower", b"second"}
        registry.push(layout, "image", to="pull/moved:1")
        assert ok(cli, "pull", reference) == old

    def test_other_compression_same_layers(self, cli: Cli, registry: Registry, layout: Path) -> None:
        """Layers are known by what is in them: as zstd only the config and the manifest are new."""
        ok(cli, "pull", registry.push(layout, "image", to="pull/compression:gzip", compression="gzip"))
        reference = registry.push(layout, "image", to="pull/compression:zstd", compression="zstd")
        log = Log(registry, "pull/compression")
        ok(cli, "pull", reference)
        layers = {layer["digest"] for layer in answer(cli, "inspect", reference)["manifest"]["layers"]}
        assert not log.blobs() & layers


class TestPolicy:
    def test_never(self, cli: Cli, registry: Registry, layout: Path) -> None:
        """The registry is not asked: an error when it is not here, and an answer when it is."""
        reference = registry.push(layout, "image", to="pull/never:1")
        log = Log(registry, "pull/never")
        assert "never" in fails(cli, "pull", "--policy", "never", reference)
        assert log.requests() == []
        ok(cli, "pull", reference)
        log = Log(registry, "pull/never")
        assert ok(cli, "pull", "--policy", "never", reference) == digest_of(layout)
        assert log.requests() == []

    def test_missing(self, cli: Cli, registry: Registry, layout: Path) -> None:
        """Pulled when it is not here, and not asked for when it is."""
        reference = registry.push(layout, "image", to="pull/missing:1")
        assert ok(cli, "pull", "--policy", "missing", reference) == digest_of(layout)
        log = Log(registry, "pull/missing")
        assert ok(cli, "pull", "--policy", "missing", reference) == digest_of(layout)
        assert log.requests() == []

    def test_newer_without_an_answer(self, cli: Cli, layout: Path) -> None:
        """The local image serves, with a warning; without one it is an error; `always` wants its answer."""
        with FaultyRegistry(layout) as faulty:
            reference = f"{faulty.host}/a:image"
            ok(cli, "pull", reference)
        done = cli("pull", "--policy", "newer", reference)
        assert (done.returncode, done.stdout) == (0, f"{digest_of(layout)}\n")
        assert "warning" in done.stderr
        fails(cli, "pull", "--retries=0", "--policy", "always", reference)
        fails(cli, "pull", "--retries=0", "--policy", "newer", f"{faulty.host}/b:image")

    def test_another_platform_is_not_the_image_that_is_here(self, cli: Cli, registry: Registry, tmp_path: Path) -> None:
        images = [Image([file_layer(name[6:])], platform=name) for name in ("linux/s390x", "linux/riscv64")]
        write_layout(tmp_path / "two", {"two": images})
        reference = registry.push(tmp_path / "two", "two", to="pull/two:1")
        first = ok(cli, "pull", "--platform", "linux/s390x", reference)
        assert "linux/riscv64" in fails(cli, "pull", "--platform", "linux/riscv64", "--policy", "never", reference)
        assert ok(cli, "pull", "--platform", "linux/riscv64", "--policy", "missing", reference) != first


class TestStore:
    def test_discard_blobs(self, cli: Cli, registry: Registry, layout: Path, store_root: Path, tmp_path: Path) -> None:
        """The layers are there to be mounted and their blobs are not; the next pull still fetches nothing."""
        reference = registry.push(layout, "image", to="pull/discard:1")
        ok(cli, "pull", "--discard-blobs", reference)
        kept = {path.name for path in files_below(store_root / "blobs")}
        assert not kept & {layer["digest"].partition(":")[2] for layer in layers_of(layout)}
        assert files_below(store_root / "ingest") == []
        assert b"upper" in mounted_tree(cli, reference, tmp_path / "mounted")
        log = Log(registry, "pull/discard")
        ok(cli, "pull", "--discard-blobs", reference)
        assert log.requests() == [("HEAD", "manifests/1")]

    @pytest.mark.parametrize("durability", ["full", "none"])
    def test_durability(
        self, cli: Cli, registry: Registry, layout: Path, store_root: Path, tmp_path: Path, durability: str
    ) -> None:
        """The image is whole either way, and nothing is left on the way."""
        reference = registry.push(layout, "image", to=f"pull/durability:{durability}")
        ok(cli, "pull", "--durability", durability, reference)
        assert mounted_tree(cli, reference, tmp_path / "mounted").keys() == {b".", b"lower", b"upper"}
        assert [*(store_root / "staging").iterdir(), *(store_root / "ingest").iterdir()] == []

    @pytest.mark.parametrize("jobs", ["1", "3"])
    def test_jobs(self, cli: Cli, registry: Registry, tmp_path: Path, jobs: str) -> None:
        """Fewer at a time than there are layers."""
        many = layout_of(tmp_path / "many", *(file_layer(f"f{number}") for number in range(8)))
        reference = registry.push(many, "image", to="pull/jobs:1")
        ok(cli, "pull", "--jobs", jobs, reference)
        names = {f"f{number}".encode() for number in range(8)}
        assert mounted_tree(cli, reference, tmp_path / "mounted").keys() == {b".", *names}

    def test_damaged_layers_are_made_anew(self, cli: Cli, registry: Registry, layout: Path, store_root: Path) -> None:
        """A layer that somebody removed from the store comes back with the next pull."""
        reference = registry.push(layout, "image", to="pull/damaged:1")
        ok(cli, "pull", reference)
        [directory, _] = [Path(layer["directory"]) for layer in answer(cli, "inspect", reference)["layers"]]
        subprocess.run(["rm", "-r", directory.parent], check=True)
        ok(cli, "pull", reference)
        assert directory.is_dir()


class TestSeveral:
    def test_one_after_the_other(self, cli: Cli, registry: Registry, layout: Path, long_layout: Path) -> None:
        """The digests are in the order of the names."""
        first = registry.push(layout, "image", to="pull/several:1")
        second = registry.push(long_layout, "image", to="pull/several:2")
        assert ok(cli, "pull", second, first).splitlines() == [digest_of(long_layout), digest_of(layout)]

    def test_one_that_is_not_there(self, cli: Cli, registry: Registry, layout: Path) -> None:
        """The others are pulled all the same; a name that is none is told of before anything is pulled."""
        reference = registry.push(layout, "image", to="pull/several:1")
        done = cli("pull", "-q", f"{registry.host}/pull/absent:1", reference)
        assert (done.returncode, done.stdout) == (1, f"{digest_of(layout)}\n")
        assert "pull/absent:1" in done.stderr
        assert len(answer(cli, "images", "--format", "json")) == 1
        assert "'A'" in fails(cli, "pull", "-q", "A", reference)

    def test_of_several_registries(self, cli: Cli, registry: Registry) -> None:
        """Credentials are for one."""
        references = f"{registry.host}/a:1", "other.example/a:1"
        assert "other.example" in fails(cli, "pull", "--creds", "u:p", *references)

    def test_trace_of_one(self, cli: Cli, tmp_path: Path) -> None:
        assert "--trace" in fails(cli, "pull", "--trace", tmp_path / "trace", "a", "b")


@pytest.mark.parametrize("option", ["--timeout=inf", "--timeout=nan", "--timeout=0", "--timeout=-1", "--timeout=1e300"])
def test_no_time_to_wait(cli: Cli, option: str) -> None:
    done = cli("pull", option, "127.0.0.1:1/a")
    assert (done.returncode, done.stdout) == (2, "")
    assert "number of seconds" in done.stderr


@pytest.mark.parametrize("option", ["--retries=-1", "--retries=1.5", "--retries=inf"])
def test_no_number_of_retries(cli: Cli, option: str) -> None:
    done = cli("pull", option, "127.0.0.1:1/a")
    assert (done.returncode, done.stdout) == (2, "")
    assert "whole number" in done.stderr


class TestBrokenOff:
    def test_killed_and_continued(self, cli: Cli, long_layout: Path, store_root: Path, tmp_path: Path) -> None:
        """SIGKILL in the middle of a layer: the next pull asks for the rest of that blob only."""
        long = layers_of(long_layout)[0]["digest"]
        with FaultyRegistry(long_layout, {Fault.STALLED_BLOB}, only=long) as faulty:
            reference = f"{faulty.host}/a:image"
            with started(store_root, "pull", reference, stderr=tmp_path / "said") as process:
                until(lambda: arrived(store_root, long))
                assert answer(cli, "images", "--format", "json") == []
                os.kill(process.pid, signal.SIGKILL)
                process.wait()
                until(lambda: group_is_gone(process))  # its workers see that it has gone
            present = arrived(store_root, long)
            faulty.faults.clear()
            faulty.requests.clear()
            assert ok(cli, "pull", reference) == digest_of(long_layout)
            [request] = faulty.arrived(long)
            assert request.headers["Range"] == f"bytes={present}-"
        assert [*(store_root / "staging").iterdir(), *(store_root / "ingest").iterdir()] == []
        with_long = mounted_tree(cli, reference, tmp_path / "mounted")
        assert with_long[b"long"].size == len(LONG)

    @pytest.mark.parametrize("options", [(), ("--creds", "u:p")], ids=["by one HEAD", "by a client"])
    def test_cleared_by_a_pull_that_has_nothing_to_do(
        self,
        cli: Cli,
        registry: Registry,
        layout: Path,
        long_layout: Path,
        store_root: Path,
        tmp_path: Path,
        options: tuple[str, ...],
    ) -> None:
        """What a killed pull had begun; nothing of one that is at work, and no partial blob."""
        reference = registry.push(layout, "image", to="pull/clears:1")
        ok(cli, "pull", reference)
        long = layers_of(long_layout)[0]["digest"]
        staging = store_root / "staging"
        with (
            FaultyRegistry(long_layout, {Fault.STALLED_BLOB}, only=long) as faulty,
            started(store_root, "pull", f"{faulty.host}/a:image", stderr=tmp_path / "said") as process,
        ):
            until(lambda: arrived(store_root, long))
            begun = set(staging.iterdir())
            assert "up to date" in cli("pull", *options, reference).stderr
            assert begun
            assert begun <= set(staging.iterdir())
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
            until(lambda: group_is_gone(process))
        assert "up to date" in cli("pull", *options, reference).stderr
        assert list(staging.iterdir()) == []
        assert arrived(store_root, long)

    @pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
    def test_ended_by_a_signal(
        self, long_layout: Path, store_root: Path, tmp_path: Path, number: signal.Signals, code: int
    ) -> None:
        """No process and no layer in the making stays; what has arrived does, for the next time."""
        long = layers_of(long_layout)[0]["digest"]
        with FaultyRegistry(long_layout, {Fault.STALLED_BLOB}, only=long) as faulty:
            reference = f"{faulty.host}/a:image"
            with started(store_root, "pull", "--quiet", reference, stderr=tmp_path / "said") as process:
                until(lambda: arrived(store_root, long))
                os.kill(process.pid, number)
                assert process.wait(20) == code
                until(lambda: group_is_gone(process))
        assert (tmp_path / "said").read_text() == ""
        assert list((store_root / "staging").iterdir()) == []
        assert arrived(store_root, long) >= 1 << 20

    @pytest.mark.parametrize("fault", [Fault.RESET_BLOB, Fault.TRUNCATED_BLOB])
    def test_broken_connection_and_continued(self, cli: Cli, tmp_path: Path, fault: Fault) -> None:
        """Whether this pull tries again or the next one does: what was on disk does not come again."""
        # Long enough that some of it is out of the kernel's and the client's buffers when the connection breaks.
        layout = layout_of(tmp_path / "long", Layer([File("long", os.urandom(24 << 20))], compression=None))
        [layer] = layers_of(layout)
        with FaultyRegistry(layout, {fault}, only=layer["digest"], times=1) as faulty:
            reference = f"{faulty.host}/a:image"
            if cli("pull", reference).returncode:
                assert answer(cli, "images", "--format", "json") == []
                ok(cli, "pull", reference)
            first, second = faulty.arrived(layer["digest"])
        assert "Range" not in first.headers
        [begin] = re.findall(r"bytes=(\d+)-", second.headers["Range"])
        assert 1 << 20 <= int(begin) < layer["size"]


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
    @pytest.fixture
    def gated(self, cli: Cli, layout: Path) -> Iterator[Gated]:
        """The upper layer is kept back; the store is there already."""
        ok(cli, "images")
        with Gated(layout, layers_of(layout)[1]["digest"]) as registry:
            yield registry

    def test_two_pulls_of_one_image(
        self, cli: Cli, gated: Gated, layout: Path, store_root: Path, tmp_path: Path
    ) -> None:
        """Both succeed; the second waits for what the first is making, and every layer is fetched once."""
        reference = f"{gated.host}/a:image"
        with (
            started(store_root, "pull", reference, stderr=tmp_path / "first") as first,
            started(store_root, "pull", reference, stderr=tmp_path / "second") as second,
        ):
            assert gated.asked.wait(20)
            # Whichever of the two has the layer, the other one says that it waits.
            until(lambda: "waiting" in (tmp_path / "first").read_text() + (tmp_path / "second").read_text())
            gated.open()
            outs = [process.communicate(timeout=20)[0] for process in (first, second)]
            said = [(tmp_path / name).read_text() for name in ("first", "second")]
            assert (first.returncode, second.returncode) == (0, 0), said
        assert outs == [f"{digest_of(layout)}\n"] * 2
        for layer in layers_of(layout):
            assert len(gated.arrived(layer["digest"])) == 1
        assert mounted_tree(cli, reference, tmp_path / "mounted").keys() == {b".", b"lower", b"upper"}

    def test_ten_pulls_of_one_image(
        self, cli: Cli, gated: Gated, layout: Path, store_root: Path, tmp_path: Path
    ) -> None:
        """All succeed, and every layer is fetched once."""
        reference = f"{gated.host}/a:image"
        outputs = [tmp_path / f"{number}" for number in range(10)]
        with ExitStack() as running:
            pulls = [
                running.enter_context(started(store_root, "pull", "--progress=plain", reference, stderr=output))
                for output in outputs
            ]
            until(lambda: sum("waiting" in output.read_text() for output in outputs) == 9, seconds=60)
            gated.open()
            assert [pull.communicate(timeout=60)[0] for pull in pulls] == [f"{digest_of(layout)}\n"] * 10
        assert [len(gated.arrived(layer["digest"])) for layer in layers_of(layout)] == [1, 1]

    def test_two_images_that_share_a_layer(
        self, cli: Cli, gated: Gated, layout: Path, store_root: Path, tmp_path: Path
    ) -> None:
        """Also under two names, the shared layer is fetched once."""
        with (
            started(store_root, "pull", f"{gated.host}/a:image", stderr=tmp_path / "first") as first,
            started(store_root, "pull", f"{gated.host}/b:image", stderr=tmp_path / "second") as second,
        ):
            until(lambda: "waiting" in (tmp_path / "first").read_text() + (tmp_path / "second").read_text())
            gated.open()
            assert [process.wait(20) for process in (first, second)] == [0, 0]
        assert sum(len(gated.arrived(layer["digest"])) for layer in layers_of(layout)) == 2
        assert len(answer(cli, "images", "--format", "json")) == 2

    def test_the_one_that_makes_it_is_killed(self, long_layout: Path, store_root: Path, tmp_path: Path) -> None:
        """The one that waited takes over where it stopped."""
        long = layers_of(long_layout)[0]["digest"]
        with FaultyRegistry(long_layout, {Fault.STALLED_BLOB}, only=long, times=1) as faulty:
            reference = f"{faulty.host}/a:image"
            with started(store_root, "pull", reference, stderr=tmp_path / "first") as first:
                until(lambda: arrived(store_root, long))
                with started(store_root, "pull", reference, stderr=tmp_path / "second") as second:
                    until(lambda: "waiting" in (tmp_path / "second").read_text())
                    os.killpg(first.pid, signal.SIGKILL)
                    assert second.wait(20) == 0, (tmp_path / "second").read_text()
            _, request = faulty.arrived(long)
        assert "Range" in request.headers
