"""`pullpipe push`: every digest stays, nothing is sent that is there, and what breaks goes on."""

from __future__ import annotations

import json
import os
import re
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from store import Digest, Store
from tests.cli.rig import Log, answer, digest_of, document, fails, file_layer, layers_of, layout_of, ok, started, until
from tests.conftest import Cli
from tests.support.images import File, Image, Layer
from tests.support.registry import Registry
from tests.support.relay import Break, Relay
from tests.support.served import served
from tests.support.tokens import TokenServer

pytestmark = pytest.mark.needs_root

LARGE = 16 << 20  # bytes of a layer: more than sockets hold
PUT = "PUT /v2/.*/blobs/uploads/"


@pytest.fixture
def large(cli: Cli, tmp_path: Path) -> str:
    """An image of a single plain layer, of which a large part can be sent before it is complete."""
    layer = Layer([File("large", os.urandom(LARGE))], compression=None)
    layout = layout_of(tmp_path / "large", layer)
    assert ok(cli, "load", "--quiet", "--tag", "large", layout)
    return "large"


def blobs(root: Path) -> list[str]:
    """The digests of all blobs in a store or a layout."""
    return sorted(f"sha256:{path.name}" for path in (root / "blobs" / "sha256").iterdir())


def raw(reference: str, *options: str) -> dict[str, Any]:
    """What skopeo finds under this name."""
    command = ["skopeo", "inspect", "--raw", "--tls-verify=false", *options, f"docker://{reference}"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def is_absent(reference: str) -> bool:
    command = ["skopeo", "inspect", "--raw", "--tls-verify=false", f"docker://{reference}"]
    done = subprocess.run(command, capture_output=True, text=True)
    return done.returncode != 0 and "unknown" in done.stderr


def fetched(reference: str, directory: Path) -> Path:
    """The image as skopeo copies it, with all its platforms, which proves every digest."""
    command = ["skopeo", "copy", "--quiet", "--insecure-policy", "--all", "--preserve-digests"]
    command += ["--src-tls-verify=false", f"docker://{reference}", f"oci:{directory}:image"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return directory


class TestWhatArrives:
    def test_digests_stay(self, cli: Cli, image: str, layout: Path, registry: Registry, tmp_path: Path) -> None:
        there = f"{registry.host}/push/digests:1"
        done = cli("push", image, there)
        assert (done.returncode, done.stdout) == (0, f"{digest_of(layout)}\n"), done.stderr
        lines = done.stderr.splitlines()
        assert lines[0].startswith("3 blobs, 0 already there, 3 to push (")
        assert lines[-1] == f"pushed {there}"
        assert sorted(line.partition(": ")[2].partition(",")[0] for line in lines[1:-1]) == ["pushed"] * 3
        copy = fetched(there, tmp_path / "copy")
        assert blobs(copy) == blobs(layout)

    def test_by_its_own_name(self, cli: Cli, layout: Path, registry: Registry) -> None:
        reference = f"{registry.host}/push/own:1"
        ok(cli, "load", "--quiet", "--tag", reference, layout)
        assert ok(cli, "push", "--quiet", reference) == digest_of(layout)
        assert raw(reference) == document(layout, digest_of(layout))

    def test_quiet_says_nothing(self, cli: Cli, image: str, registry: Registry) -> None:
        done = cli("push", "--quiet", image, f"{registry.host}/push/quiet:1")
        assert (done.returncode, done.stderr) == (0, "")

    def test_json_tells_of_bytes(self, cli: Cli, large: str, registry: Registry) -> None:
        done = cli("push", "--progress", "json", large, f"{registry.host}/push/json:1")
        events = [json.loads(line) for line in done.stderr.splitlines()]
        sent = [event["bytes"] for event in events if event["event"] == "sent"]
        assert max(sent) > LARGE
        assert {event["event"] for event in events} == {"plan", "started", "sent", "finished", "note"}

    @pytest.mark.parametrize("compression", ["zstd", None])
    def test_compressions(self, cli: Cli, registry: Registry, tmp_path: Path, compression: Any) -> None:
        layout = layout_of(tmp_path / "layout", Layer([File("file", b"data")], compression=compression))
        ok(cli, "load", "--quiet", "--tag", "image", layout)
        there = f"{registry.host}/push/{compression or 'plain'}:1"
        assert ok(cli, "push", "--quiet", "image", there) == digest_of(layout)
        assert blobs(fetched(there, tmp_path / "copy")) == blobs(layout)

    def test_schema_2(self, cli: Cli, layout: Path, registry: Registry) -> None:
        source = registry.push(layout, "image", to="push/schema2:1", format="v2s2")
        ok(cli, "pull", "--quiet", source)
        there = f"{registry.host}/push/schema2-copy:1"
        ok(cli, "push", "--quiet", source, there)
        assert raw(there) == raw(source)

    def test_all_platforms(self, cli: Cli, registry: Registry, tmp_path: Path) -> None:
        here, other = Image([file_layer("here")]), Image([file_layer("there")], platform="linux/s390x")
        layout = layout_of(tmp_path / "layout", image=[here, other])  # type: ignore[arg-type]
        source = registry.push(layout, "image", to="push/platforms:1")
        ok(cli, "pull", "--quiet", "--all-platforms", source)
        there = f"{registry.host}/push/platforms-copy:1"
        assert ok(cli, "push", "--quiet", source, there) == digest_of(layout)
        assert blobs(fetched(there, tmp_path / "copy")) == blobs(layout)

    def test_one_platform_of_several(self, cli: Cli, registry: Registry, tmp_path: Path) -> None:
        here, other = Image([file_layer("here")]), Image([file_layer("there")], platform="linux/s390x")
        layout = layout_of(tmp_path / "layout", image=[here, other])  # type: ignore[arg-type]
        source = registry.push(layout, "image", to="push/platform:1")
        ok(cli, "pull", "--quiet", source)
        there = f"{registry.host}/push/platform-copy:1"
        done = cli("push", source, there)
        mine = document(layout, digest_of(layout))["manifests"][0]["digest"]
        assert done.stdout.strip() == mine
        assert f"{source}: {here.platform} only, for other platforms are not here" in done.stderr
        assert raw(there) == document(layout, mine)

    def test_by_digest(self, cli: Cli, image: str, layout: Path, registry: Registry) -> None:
        there = f"{registry.host}/push/by-digest@{digest_of(layout)}"
        assert ok(cli, "push", "--quiet", image, there) == digest_of(layout)
        assert raw(there) == document(layout, digest_of(layout))

    def test_to_a_registry_of_our_own(self, cli: Cli, image: str, layout: Path, tmp_path: Path) -> None:
        with served(tmp_path / "other", "--writable") as other:
            there = f"{other.address.removeprefix('http://')}/push/served:1"
            assert ok(cli, "push", "--quiet", image, there) == digest_of(layout)
            assert blobs(fetched(there, tmp_path / "copy")) == blobs(layout)


class TestWhatIsNotSent:
    def test_what_is_there(self, cli: Cli, image: str, registry: Registry) -> None:
        there = f"{registry.host}/push/again"
        ok(cli, "push", "--quiet", image, f"{there}:1")
        log = Log(registry, "push/again")
        done = cli("push", image, f"{there}:2")
        assert "3 blobs, 3 already there, 0 to push (0 B)" in done.stderr
        assert [method for method, _ in log.requests()] == ["HEAD"] * 3 + ["PUT"]

    def test_what_another_repository_has(self, cli: Cli, layout: Path, registry: Registry) -> None:
        source = registry.push(layout, "image", to="push/source:1")
        ok(cli, "pull", "--quiet", source)
        log = Log(registry, "push/mounted")
        ok(cli, "push", "--quiet", source, f"{registry.host}/push/mounted:1")
        mounts = [path for method, path in log.requests() if method == "POST" and "from=push%2Fsource" in path]
        assert sorted(re.findall("sha256%3A[0-9a-f]{64}", " ".join(mounts))) == sorted(
            layer["digest"].replace(":", "%3A") for layer in layers_of(layout)
        )
        uploaded = [path for method, path in log.requests() if method == "PUT" and "digest=" in path]
        assert len(uploaded) == 1  # the config

    def test_a_mount_that_is_refused(self, cli: Cli, layout: Path, registry: Registry, tmp_path: Path) -> None:
        """The store knows the blob from a repository that has gone."""
        ok(cli, "load", "--quiet", "--tag", f"{registry.host}/push/gone:1", layout)
        there = f"{registry.host}/push/not-mounted:1"
        ok(cli, "push", "--quiet", f"{registry.host}/push/gone:1", there)
        assert blobs(fetched(there, tmp_path / "copy")) == blobs(layout)

    def test_foreign_layers(self, cli: Cli, registry: Registry, tmp_path: Path) -> None:
        layout = layout_of(tmp_path / "layout", file_layer("own"), file_layer("foreign"))
        manifest = document(layout, digest_of(layout))
        manifest["layers"][1]["mediaType"] = "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip"
        manifest["layers"][1]["urls"] = ["https://example.com/layer"]
        replace_manifest(layout, manifest)
        ok(cli, "load", "--quiet", "--tag", "image", layout)
        with served(tmp_path / "other", "--writable") as other:
            host = other.address.removeprefix("http://")
            done = cli("push", "image", f"{host}/foreign:1")
            assert "1 layer may not be handed on" in done.stderr
            assert done.returncode == 0
            assert manifest["layers"][1]["digest"] not in blobs(tmp_path / "other")
            assert manifest["layers"][0]["digest"] in blobs(tmp_path / "other")


def replace_manifest(layout: Path, manifest: dict[str, Any]) -> None:
    data = json.dumps(manifest).encode()
    digest = Digest.of(data)
    (layout / "blobs" / "sha256" / digest.hex).write_bytes(data)
    index = json.loads((layout / "index.json").read_bytes())
    index["manifests"][0] |= {"digest": str(digest), "size": len(data)}
    (layout / "index.json").write_text(json.dumps(index))


class TestAuthentication:
    def test_basic(self, cli: Cli, image: str, tmp_path: Path) -> None:
        with Registry(tmp_path / "registry", {"user": "secret"}) as registry:
            there = f"{registry.host}/push/basic:1"
            assert "needs authentication" in fails(cli, "push", "--quiet", image, there)
            assert "user" in fails(cli, "push", "--quiet", "--creds", "user:wrong", image, there)
            ok(cli, "push", "--quiet", "--creds", "user:secret", image, there)
            assert raw(there, "--creds=user:secret")["layers"]

    def test_tokens_are_for_pushing(self, cli: Cli, layout: Path, tmp_path: Path) -> None:
        """And for the repository that a blob is mounted from."""
        with (
            TokenServer(tmp_path / "tokens", {"user": "secret"}) as tokens,
            Registry(tmp_path / "registry", tokens=tokens) as registry,
        ):
            source = registry.push(layout, "image", to="private/source:1")
            ok(cli, "pull", "--quiet", "--creds", "user:secret", source)
            before = len(registry.log)
            ok(cli, "push", "--quiet", "--creds", "user:secret", source, f"{registry.host}/private/copy:1")
            scopes = {scope for asked in tokens.asked for scope in asked.fields.get("scope", [])}
            assert "repository:private/copy:pull,push" in scopes
            assert len(re.findall(r'"PUT /v2/private/copy/blobs/\S+ HTTP/1.1" 201', registry.log[before:])) == 1
            assert raw(f"{registry.host}/private/copy:1", "--creds=user:secret") == raw(source, "--creds=user:secret")

    def test_no_right_to_push(self, cli: Cli, image: str, tmp_path: Path) -> None:
        with (
            TokenServer(tmp_path / "tokens", {"user": "secret"}) as tokens,
            Registry(tmp_path / "registry", tokens=tokens) as registry,
        ):
            line = fails(cli, "push", "--quiet", image, f"{registry.host}/public/image:1")
            assert "refuses" in line or "needs authentication" in line
            assert "login" in line


class TestBrokenConnections:
    def test_an_upload_goes_on(self, cli: Cli, large: str, store_root: Path, tmp_path: Path) -> None:
        [layer] = answer_layers(cli, large)
        with served(tmp_path / "other", "--writable") as other:
            address = other.address.removeprefix("http://")
            with Relay(address, Break(f"{PUT}.*{layer[7:]}", "cut", after=2 << 20)) as relay:
                ok(cli, "push", large, f"{relay.host}/push/cut:1")
                first, second = relay.of(f"{PUT}.*{layer[7:]}")
            assert raw(f"{address}/push/cut:1")["layers"][0]["digest"] == layer
        start = int(second.headers["content-range"].partition("-")[0])
        assert 0 < start <= first.count == 2 << 20
        assert start + second.count == (store_root / "blobs/sha256" / layer[7:]).stat().st_size

    def test_an_upload_that_cannot_go_on(self, cli: Cli, large: str, registry: Registry) -> None:
        """docker-registry wants to be told what only the broken request's answer would have said."""
        [layer] = answer_layers(cli, large)
        with Relay(registry.host, Break(f"{PUT}.*{layer[7:]}", "cut", after=2 << 20)) as relay:
            ok(cli, "push", large, f"{relay.host}/push/anew:1")
            _, second = relay.of(f"{PUT}.*{layer[7:]}")
        assert "content-range" not in second.headers
        assert raw(f"{registry.host}/push/anew:1")["layers"][0]["digest"] == layer

    def test_only_the_answer_was_lost(self, cli: Cli, large: str, registry: Registry) -> None:
        [layer] = answer_layers(cli, large)
        with Relay(registry.host, Break(f"{PUT}.*{layer[7:]}", "mute")) as relay:
            ok(cli, "push", large, f"{relay.host}/push/mute:1")
            assert len(relay.of(f"{PUT}.*{layer[7:]}")) == 1
        assert raw(f"{registry.host}/push/mute:1")["layers"][0]["digest"] == layer

    def test_a_registry_that_takes_no_more(self, cli: Cli, large: str, registry: Registry) -> None:
        with Relay(registry.host, Break(PUT, "stall", after=LARGE // 2)) as relay:
            [layer] = answer_layers(cli, large)
            relay.breaks[0].pattern = f"{PUT}.*{layer[7:]}"
            done = cli("push", "--timeout", "1", large, f"{relay.host}/push/stall:1")
            assert done.returncode == 0, done.stderr
            assert "trying again" in done.stderr
            assert len(relay.of(f"{PUT}.*{layer[7:]}")) >= 2  # a busy machine's answer may come too late, too

    def test_in_the_end_it_says_what_was_tried(self, cli: Cli, large: str, registry: Registry) -> None:
        with Relay(registry.host, Break("PUT .*/manifests/", "cut", times=9)) as relay:
            line = fails(cli, "push", "--quiet", "--retries", "1", large, f"{relay.host}/push/never:1")
            assert "tried 2 times" in line
        assert is_absent(f"{registry.host}/push/never:1")

    def test_ctrl_c(self, image: str, large: str, store_root: Path, registry: Registry, tmp_path: Path) -> None:
        with (
            Relay(registry.host, Break(PUT, "stall", after=1, times=9)) as relay,
            started(store_root, "push", large, f"{relay.host}/push/stopped:1", stderr=tmp_path / "stderr") as process,
        ):
            until(lambda: relay.of(PUT))
            process.terminate()
            assert process.wait(10) == 143
        assert "Traceback" not in (tmp_path / "stderr").read_text()


def answer_layers(cli: Cli, reference: str) -> list[str]:
    found: list[str] = [layer["digest"] for layer in answer(cli, "inspect", reference)["layers"]]
    return found


class TestFailures:
    def test_not_in_the_store(self, cli: Cli, image: str, registry: Registry) -> None:
        assert "is not in the store" in fails(cli, "push", "nothing", f"{registry.host}/push/nothing:1")

    def test_a_blob_that_was_not_kept(self, cli: Cli, layout: Path, registry: Registry, tmp_path: Path) -> None:
        ok(cli, "load", "--quiet", "--discard-blobs", "--tag", "image", layout)
        there = f"{registry.host}/push/not-kept:1"
        assert "has not kept blob" in fails(cli, "push", "image", there)
        assert is_absent(there)

    def test_a_blob_that_was_not_kept_and_is_there(self, cli: Cli, layout: Path, registry: Registry) -> None:
        source = registry.push(layout, "image", to="push/kept-there:1")
        ok(cli, "pull", "--quiet", "--discard-blobs", source)
        ok(cli, "push", "--quiet", source, f"{registry.host}/push/kept-there:2")
        ok(cli, "push", "--quiet", source, f"{registry.host}/push/kept-there-mounted:1")
        assert raw(f"{registry.host}/push/kept-there-mounted:1") == raw(source)

    def test_a_damaged_blob(self, cli: Cli, image: str, layout: Path, registry: Registry, store_root: Path) -> None:
        [layer, _] = [Digest.parse(layer["digest"]) for layer in layers_of(layout)]
        path = Path(Store(str(store_root)).blobs.path(layer))
        path.write_bytes(path.read_bytes()[:-1] + b"x")
        there = f"{registry.host}/push/damaged:1"
        line = fails(cli, "push", "--quiet", image, there)
        assert f"blob {layer}" in line
        assert "damaged in the store" in line
        assert is_absent(there)

    def test_another_digest(self, cli: Cli, image: str, layout: Path, registry: Registry) -> None:
        line = fails(cli, "push", image, f"{registry.host}/push/other@{Digest.of(b'')}")
        assert digest_of(layout) in line

    def test_a_registry_that_takes_no_pushes(self, cli: Cli, image: str, tmp_path: Path) -> None:
        with served(tmp_path / "other") as other:
            line = fails(cli, "push", "--quiet", image, f"{other.address.removeprefix('http://')}/image:1")
        assert "read-only" in line

    def test_a_cache(self, cli: Cli, image: str, registry: Registry, tmp_path: Path) -> None:
        with Registry(tmp_path / "cache", upstream=registry.url) as cache:
            line = fails(cli, "push", "--quiet", image, f"{cache.host}/push/cache:1")
        assert "405" in line

    def test_nobody_is_there(self, cli: Cli, image: str) -> None:
        assert "cannot connect" in fails(cli, "push", "--quiet", "--retries", "0", image, "127.0.0.1:9/image:1")

    def test_bad_names(self, cli: Cli, image: str) -> None:
        assert "invalid image reference" in fails(cli, "push", image, "example.com/UPPER")


class Scripted(ThreadingHTTPServer):
    """A registry that says of each upload that it goes on at `location`, and what then came where."""

    def __init__(self, location: str) -> None:
        self.location = location
        self.seen: list[tuple[str, str, str]] = []  # (method, path, Authorization)
        self.digest = ""  # of manifests, as it says
        super().__init__(("127.0.0.1", 0), _Handler)

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Scripted

    def _answer(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.seen.append((self.command, self.path, self.headers.get("Authorization", "")))
        wants = self.server.location and not self.headers.get("Authorization") and "/elsewhere/" not in self.path
        status = {"HEAD": 404, "POST": 202, "PUT": 201}.get(self.command, 200)
        self.send_response(401 if wants else status)
        if wants:
            self.send_header("WWW-Authenticate", 'Basic realm="here"')
        elif self.command == "POST":
            self.send_header("Location", self.server.location)
        if self.server.digest and "/manifests/" in self.path:
            self.send_header("Docker-Content-Digest", self.server.digest)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_GET = do_HEAD = do_POST = do_PUT = _answer  # noqa: N815 - http.server's names

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def elsewhere() -> Iterator[Scripted]:
    yield from _running(Scripted(""))


@pytest.fixture
def scripted() -> Iterator[Scripted]:
    yield from _running(Scripted("/somewhere"))


def _running(server: Scripted) -> Iterator[Scripted]:
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class TestWhereUploadsGoOn:
    def puts(self, server: Scripted) -> list[tuple[str, str]]:
        return [(path, secret) for method, path, secret in server.seen if method == "PUT" and "digest=" in path]

    def push(self, cli: Cli, image: str, scripted: Scripted) -> None:
        ok(cli, "push", "--quiet", "--creds", "user:secret", image, f"{scripted.host}/image:1")

    @pytest.mark.parametrize("location", ["/at/{}?state=a%2Fb", "http://{host}/at/{}?state=a%2Fb"])
    def test_on_the_registry(self, cli: Cli, image: str, scripted: Scripted, location: str) -> None:
        scripted.location = location.replace("{host}", scripted.host).replace("{}", "uploads")
        self.push(cli, image, scripted)
        assert len(self.puts(scripted)) == 3
        for path, secret in self.puts(scripted):
            assert path.startswith("/at/uploads?state=a%2Fb&digest=sha256%3A")
            assert secret.startswith("Basic ")

    def test_on_another_host(self, cli: Cli, image: str, scripted: Scripted, elsewhere: Scripted) -> None:
        """Which gets the bytes, and no credentials."""
        scripted.location = f"http://{elsewhere.host}/elsewhere/upload"
        self.push(cli, image, scripted)
        assert self.puts(scripted) == []
        assert [secret for _, secret in self.puts(elsewhere)] == ["", "", ""]

    @pytest.mark.parametrize("location", ["", "ftp://example.com/", "http://[/"])
    def test_nowhere(self, cli: Cli, image: str, scripted: Scripted, location: str) -> None:
        scripted.location = location or " "
        line = fails(cli, "push", "--quiet", "--creds", "user:secret", image, f"{scripted.host}/image:1")
        assert "does not say where an upload is to go on" in line

    def test_a_registry_that_changes_manifests(self, cli: Cli, image: str, scripted: Scripted) -> None:
        scripted.digest = str(Digest.of(b"another"))
        line = fails(cli, "push", "--quiet", "--creds", "user:secret", image, f"{scripted.host}/image:1")
        assert f"has made {scripted.digest} of the manifest" in line
