"""What a push leaves behind when something goes wrong, and that a sweep never takes from it what it needs."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from pullpipe import local
from pullpipe.oci import OCI_MANIFEST
from pullpipe.registry.server import uploads
from store import Digest, ImageRecord, Store
from tests.support.processes import until
from tests.support.served import Client, Running, descriptor, manifest, running, served

LARGE = os.urandom(3 << 20)


@pytest.fixture
def store(store_root: Path) -> Store:
    return Store(str(store_root), durable=False)


@pytest.fixture
def registry(store: Store) -> Iterator[Running]:
    with running(Path(store.root), writable=store) as registry:
        yield registry


def ingests(root: str | Path) -> list[Path]:
    return list(Path(root, "ingest").iterdir())


def start(client: Client, name: str = "a") -> str:
    return str(client.ask(f"/v2/{name}/blobs/uploads/", "POST").headers["Location"])


def arrived(client: Client, location: str) -> int:
    """The bytes that an upload has, as its status says."""
    last = int(client.ask(location).headers["Range"].removeprefix("0-"))
    return last + 1 if last else 0


def is_there(client: Client, digest: Digest) -> bool:
    return client.ask(f"/v2/a/blobs/{digest}").status == 200


class TestSweeping:
    """Between a blob's arrival and its manifest's, there is no lock and no entry; there is a lease."""

    def test_a_blob_waits_for_its_manifest(self, store: Store, registry: Running) -> None:
        document = registry.manifest("a", b"layer")
        local.collect(store)
        assert registry.push_manifest("a", "1", document)[1].status == 201

    @pytest.mark.parametrize("how", ["head", "mount"])
    def test_a_blob_that_a_client_need_not_push(self, store: Store, registry: Running, how: str) -> None:
        """It is told that the blob is here, and so it must stay, whosever it was."""
        document = manifest(b"{}", b"layer")
        for data in (b"{}", b"layer"):
            with store.blobs.document(Digest.of(data), data) as blob:
                store.publish([blob], [])
            if how == "head":
                assert registry.ask(f"/v2/a/blobs/{Digest.of(data)}", "HEAD").status == 200
            else:
                mount = f"/v2/a/blobs/uploads/?mount={Digest.of(data)}&from=b"
                assert registry.ask(mount, "POST").status == 201
        local.collect(store)
        assert registry.push_manifest("a", "1", document)[1].status == 201

    def test_reading_keeps_nothing(self, store: Store, registry: Running) -> None:
        with store.blobs.document(Digest.of(b"x"), b"x") as blob:
            store.publish([blob], [])
        assert is_there(registry, Digest.of(b"x"))
        local.collect(store)
        assert not is_there(registry, Digest.of(b"x"))

    def test_what_is_pushed_stays(self, store: Store, registry: Running) -> None:
        """Images, artifacts, and all that an index leads to, when their leases are over."""
        registry.push_image("a", "1", b"image")
        registry.push_blob("a", b"data of a chart")
        chart = registry.manifest("a", artifactType="application/vnd.example")
        chart["layers"] = [descriptor(b"data of a chart", "application/vnd.example.data")]
        chart["config"] = {**chart["config"], "mediaType": "application/vnd.example.config"}
        digest, answer = registry.push_manifest("a", str(Digest.of(json.dumps(chart).encode())), chart)
        assert answer.status == 201
        forget_leases(store)
        local.collect(store)
        assert registry.ask(f"/v2/a/manifests/{digest}").json == chart
        assert is_there(registry, Digest.of(b"data of a chart"))
        assert is_there(registry, Digest.of(b"image"))

    @pytest.mark.parametrize("odd", [{"size": None}, {"mediaType": None}, {"annotations": {"x": 1}}, {"platform": {}}])
    def test_what_is_pushed_with_an_odd_descriptor(self, store: Store, registry: Running, odd: dict[str, Any]) -> None:
        """What was good enough to be taken is good enough to keep its blobs, and to be given again."""
        chart = registry.manifest("a", b"odd")
        chart["layers"][0].update(odd)
        digest, answer = registry.push_manifest("a", "1", chart)
        assert answer.status == 201
        forget_leases(store)
        local.collect(store)
        assert registry.ask(f"/v2/a/manifests/{digest}").json == chart
        assert is_there(registry, Digest.of(b"odd"))

    def test_what_is_deleted_goes(self, store: Store, registry: Running) -> None:
        """With its blobs, but for those that others need."""
        digest = registry.push_image("a", "1", b"mine", b"shared")
        registry.push_image("b", "1", b"shared")
        assert registry.ask(f"/v2/a/manifests/{digest}", "DELETE").status == 202
        forget_leases(store)
        local.collect(store)
        assert not is_there(registry, Digest.of(b"mine"))
        assert is_there(registry, Digest.of(b"shared"))
        assert digest not in store.blobs

    def test_an_upload_goes_on(self, store: Store, registry: Running) -> None:
        """Also while other processes clean up."""
        location = start(registry)
        registry.ask(location, "PATCH", LARGE[:1000])
        Store(store.root).clean()
        local.collect(store)
        assert registry.ask(f"{location}?digest={Digest.of(LARGE)}", "PUT", LARGE[1000:]).status == 201

    def test_indexes_nested_deeper_than_a_program_recurses(self, store: Store, registry: Running) -> None:
        inner = b'{"schemaVersion": 2, "manifests": []}'
        for _ in range(1500):
            with store.blobs.document(Digest.of(inner), inner) as blob:
                store.publish([blob], [])
            entry = descriptor(inner, "application/vnd.oci.image.index.v1+json")
            inner = json.dumps({"schemaVersion": 2, "manifests": [entry]}).encode()
        with store.blobs.document(Digest.of(inner), inner) as blob:
            store.publish([blob], [])
        store.images.push("a", "deep", Digest.of(inner), OCI_MANIFEST, len(inner))
        innermost = Digest.of(b'{"schemaVersion": 2, "manifests": []}')
        local.collect(store)
        assert innermost in store.blobs
        assert registry.ask(f"/v2/a/manifests/{innermost}").status == 200


def forget_leases(store: Store) -> None:
    for lease in Path(store.root, "leases").iterdir():
        os.utime(lease, (0, 0))


class TestUploads:
    def test_a_killed_registry_leaves_only_what_cleaning_removes(self, tmp_path: Path) -> None:
        root = tmp_path / "root"
        with served(root, "--writable") as registry:
            location = start(registry)
            registry.ask(location, "PATCH", LARGE)
            assert [path.stat().st_size for path in ingests(root)] == [len(LARGE)]
            registry.end(signal.SIGKILL)
        with served(root, "--writable") as registry:
            assert registry.ask(location).refusal == (404, "BLOB_UPLOAD_UNKNOWN")
            assert ingests(root) == []
            assert registry.push_image("a", "1", LARGE)

    def test_nothing_stays_of_uploads_when_the_registry_ends(self, tmp_path: Path) -> None:
        root = tmp_path / "root"
        with served(root, "--writable") as registry:
            registry.ask(start(registry), "PATCH", LARGE)
            start(registry)
            assert len(ingests(root)) == 2
            assert registry.end() == 0
        assert ingests(root) == []

    @pytest.mark.parametrize("method", ["PATCH", "PUT"])
    def test_a_connection_that_breaks(self, store: Store, registry: Running, method: str) -> None:
        """Most of what came stays, and the client goes on from where the status says."""
        location = start(registry)
        query = f"?digest={Digest.of(LARGE)}" if method == "PUT" else ""
        with raw(registry) as connection:
            head = f"{method} {location}{query} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(LARGE)}\r\n\r\n"
            connection.sendall(head.encode() + LARGE[: 2 << 20])
            until(lambda: arrived(registry, location) >= 1 << 20, "it has come")

        def resumed() -> bool:
            at = arrived(registry, location)
            span = f"{at}-{len(LARGE) - 1}"
            answer = registry.ask(f"{location}?digest={Digest.of(LARGE)}", "PUT", LARGE[at:], Content_Range=span)
            return answer.status == 201  # or 416, when some more of the first request has been stored meanwhile

        until(resumed, "it goes on")
        assert store.blobs.read(Digest.of(LARGE)) == LARGE

    def test_a_single_post_that_breaks(self, store: Store, registry: Running) -> None:
        """Nobody could go on with it, so nothing stays."""
        with raw(registry) as connection:
            path = f"/v2/a/blobs/uploads/?digest={Digest.of(LARGE)}"
            head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(LARGE)}\r\n\r\n"
            connection.sendall(head.encode() + LARGE[: 1 << 20])
            until(lambda: bool(ingests(store.root)), "it has begun")
        until(lambda: not ingests(store.root), "it is forgotten")

    def test_a_chunked_body_that_is_broken(self, store: Store, registry: Running) -> None:
        location = start(registry)
        with raw(registry) as connection:
            head = f"PATCH {location} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
            connection.sendall(head.encode() + b"4\r\nfour\r\nnot a size\r\n")
            assert connection.recv(1 << 16).splitlines()[0].endswith(b" 400 Bad Request")
        assert registry.ask(location).status == 204

    def test_a_client_that_stalls(self, registry: Running, monkeypatch: pytest.MonkeyPatch) -> None:
        """It is told so, others are served meanwhile, and what came stays."""
        monkeypatch.setattr(uploads, "_STALLED", 2.0)  # nobody else may be so slow
        location = start(registry)
        with raw(registry) as connection:
            head = f"PATCH {location} HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n"
            connection.sendall(head.encode() + b"some")
            assert registry.push_image("b", "1", b"meanwhile")
            assert connection.recv(1 << 16).startswith(b"HTTP/1.1 408 ")
        assert registry.ask(location).headers["Range"] == "0-3"

    def test_an_upload_that_is_cancelled_while_it_comes(self, store: Store, registry: Running) -> None:
        location = start(registry)
        with raw(registry) as connection:
            head = f"PATCH {location} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(LARGE)}\r\n\r\n"
            connection.sendall(head.encode() + LARGE[: 1 << 20])
            assert registry.ask(location, "DELETE").status == 204
            connection.sendall(LARGE[1 << 20 :])
            assert connection.recv(1 << 16).startswith(b"HTTP/1.1 404 ")
        assert ingests(store.root) == []

    def test_two_requests_for_one_upload_take_turns(self, registry: Running) -> None:
        """A client that thinks its connection broken, and sends the rest by another one."""
        location = start(registry)
        with raw(registry) as connection:
            head = f"PATCH {location} HTTP/1.1\r\nHost: x\r\nContent-Length: 8\r\n\r\n"
            connection.sendall(head.encode() + b"four")
            answers: list[int] = []
            second = threading.Thread(
                target=lambda: answers.append(
                    registry.ask(location, "PATCH", b"ninety", Content_Range="8-13").status,
                )
            )
            second.start()
            until(lambda: registry.requests.count(("PATCH", location)) == 2, "the second one is there")
            connection.sendall(b"more")
            second.join()
            assert answers == [202]
        assert registry.ask(f"{location}?digest={Digest.of(b'fourmoreninety')}", "PUT").status == 201

    def test_uploads_that_are_left_are_forgotten(
        self, store: Store, registry: Running, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """When the next one begins, an hour later."""
        left = start(registry)
        registry.ask(left, "PATCH", b"left")
        now = time.monotonic()
        monkeypatch.setattr(uploads, "monotonic", lambda: now + 3500)
        kept = start(registry)
        monkeypatch.setattr(uploads, "monotonic", lambda: now + 3700)
        start(registry)
        assert registry.ask(left).refusal == (404, "BLOB_UPLOAD_UNKNOWN")
        assert registry.ask(kept).status == 204
        assert len(ingests(store.root)) == 2

    def test_there_are_not_any_number_of_them(
        self, store: Store, registry: Running, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(uploads, "_LIMIT", 2)
        locations = [start(registry) for _ in range(2)]
        assert registry.ask("/v2/a/blobs/uploads/", "POST").refusal == (429, "TOOMANYREQUESTS")
        assert registry.ask(locations[0], "DELETE").status == 204
        assert registry.ask("/v2/a/blobs/uploads/", "POST").status == 202

    def test_the_same_blob_by_many_at_once(self, store: Store, registry: Running) -> None:
        def push() -> None:
            registry.push_image("a", "1", LARGE)

        at_once(*[push] * 8)
        assert store.blobs.read(Digest.of(LARGE)) == LARGE
        assert registry.ask("/v2/a/tags/list").json["tags"] == ["1"]
        assert ingests(store.root) == []

    def test_many_tags_at_once(self, registry: Running) -> None:
        """None is lost."""
        document = registry.manifest("a", b"x")

        def push(tag: str) -> Callable[[], None]:
            def run() -> None:
                assert registry.push_manifest("a", tag, document)[1].status == 201

            return run

        tags = [f"t{number}" for number in range(12)]
        at_once(*map(push, tags))
        assert registry.ask("/v2/a/tags/list").json["tags"] == sorted(tags)

    def test_a_damaged_blob_is_mended_by_pushing_it_again(self, store: Store, registry: Running) -> None:
        digest = registry.push_blob("a", b"good")
        Path(store.blobs.path(digest)).write_bytes(b"evil")
        registry.push_blob("a", b"good")
        assert store.blobs.read(digest) == b"good"


@contextmanager
def raw(registry: Running) -> Iterator[socket.socket]:
    """A connection to say anything over."""
    host, _, port = registry.address.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        yield connection


def at_once(*jobs: Callable[[], None]) -> None:
    """Runs them in threads; fails if one does."""
    errors: list[BaseException] = []

    def run(job: Callable[[], None]) -> None:
        try:
            job()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(job,)) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MiB."""
    place = tmp_path / "disk"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(place)], check=True)
    yield place
    subprocess.run(["umount", str(place)], check=True)


@pytest.mark.needs_root
@pytest.mark.parametrize("how", ["patch", "put", "post"])
def test_a_full_disk(small_disk: Path, how: str, capfd: pytest.CaptureFixture[str]) -> None:
    """The client is told, nothing stays of the upload, and what fits can be pushed."""
    data = os.urandom(10 << 20)
    with served(small_disk / "root", "--writable") as registry:
        location = start(registry)
        query = f"?digest={Digest.of(data)}"
        if how == "post":
            answer = registry.ask(f"/v2/a/blobs/uploads/{query}", "POST", data)
        elif how == "put":
            answer = registry.ask(location + query, "PUT", data)
        else:
            answer = registry.ask(location, "PATCH", data)
        assert answer.refusal == (507, "UNKNOWN")
        assert "disk is full" in answer.json["errors"][0]["message"]
        assert sum(path.stat().st_size for path in ingests(small_disk / "root")) == 0
        registry.push_image("a", "1", LARGE)
        assert registry.end() == 0
    [line] = capfd.readouterr().err.splitlines()
    assert line.startswith("pullpipe: error: P")
    assert line.endswith("No space left on device")


class TestWhoMayWrite:
    def test_not_over_what_was_pulled(self, store: Store, registry: Running) -> None:
        """Containers may run on it; `rmi` is the way to remove it."""
        digest = registry.push_image("other", "1", b"x")
        record = ImageRecord("docker.io/library/alpine:1", digest, OCI_MANIFEST, 1, digest, "linux", "amd64")
        store.images.put(record)
        name = "docker.io/library/alpine"
        _, answer = registry.push_manifest(name, "1", registry.manifest(name, b"y"))
        assert answer.refusal == (403, "DENIED")
        assert "pullpipe rmi docker.io/library/alpine:1" in answer.json["errors"][0]["message"]
        for place in (name, "library/alpine"):
            for reference in ("1", str(digest)):
                refused = registry.ask(f"/v2/{place}/manifests/{reference}", "DELETE")
                assert refused.refusal == (405, "UNSUPPORTED")
        assert list(store.images) == [record]
        assert registry.push_image(name, "2", b"y")

    @pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE"])
    def test_no_web_page(self, registry: Running, method: str) -> None:
        """A browser reaches loopback, too, and pages of strangers run in it."""
        registry.push_image("a", "1", b"x")
        for path in ("/v2/a/blobs/uploads/", "/v2/a/manifests/1"):
            answer = registry.ask(path, method, b"", Origin="https://evil.example")
            assert answer.refusal == (403, "DENIED")
        assert registry.ask("/v2/a/manifests/1", Origin="https://good.example").status == 200


@pytest.mark.parametrize(
    "path",
    [
        "/v2/../../etc/passwd",
        "/v2/a/../b/blobs/uploads/",
        "/v2/a/blobs/uploads/../../../x",
        "/v2/a%2Fb/blobs/uploads/",
        "/v2/A/blobs/uploads/",
        "/v2//blobs/uploads/",
        "/v2/a/blobs/uploads/%2e%2e",
        "/v2/a/manifests/..%2f..%2fx",
        "/v2/a/manifests/sha256:..%2f..%2fx",
        "/v2/a/blobs/uploads/?digest=sha256:../../../x",
        "/v2/a/blobs/uploads/?mount=sha256:../../../x&from=a",
    ],
)
def test_no_path_leads_anywhere_else(store: Store, registry: Running, path: str) -> None:
    before = {place for place in Path(store.root).rglob("*") if "blobs/" not in str(place)}
    for method in ("POST", "PUT", "PATCH", "DELETE"):
        answer = registry.ask(path, method, json.dumps(manifest(b"{}")).encode(), Content_Type=OCI_MANIFEST)
        assert answer.status in (400, 404, 405), method
    assert {place for place in Path(store.root).rglob("*") if "blobs/" not in str(place)} <= before | {
        Path(store.root, name) for name in ("index.lock", "use.lock")
    }


def test_headers_without_end(registry: Running) -> None:
    with raw(registry) as connection:
        connection.sendall(b"GET /v2/ HTTP/1.1\r\nHost: x\r\nX: " + b"x" * 20_000)
        assert connection.recv(1 << 16).splitlines()[0].endswith(b" 400 Bad Request")
    assert registry.ask("/v2/").status == 200


def test_many_clients_that_never_read(registry: Running) -> None:
    """They are served what fits into their sockets; others all that they want."""
    digest = registry.push_blob("a", LARGE * 8)
    connections = [raw(registry) for _ in range(40)]
    opened = [one.__enter__() for one in connections]
    for connection in opened:
        connection.sendall(f"GET /v2/a/blobs/{digest} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        assert connection.recv(9) == b"HTTP/1.1 "
    assert registry.ask(f"/v2/a/blobs/{digest}").body == LARGE * 8
    assert registry.push_image("b", "1", b"meanwhile")
    for connection in opened:
        connection.close()


def test_a_bug_is_the_clients_to_know_and_ours_to_tell(
    store: Store, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """No traceback anywhere."""
    errors: list[str] = []

    def broken(*_: object) -> None:
        raise RuntimeError("broken")

    with running(Path(store.root), writable=store, on_error=errors.append) as registry:
        monkeypatch.setattr(asyncio, "to_thread", broken)
        assert registry.ask("/v2/_catalog").refusal == (500, "UNKNOWN")
        monkeypatch.undo()
    assert errors == ["GET /v2/_catalog: broken"]
    assert capfd.readouterr().err == ""
