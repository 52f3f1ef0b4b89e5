"""What goes wrong for users: one line says what and what to do, and nothing of it is left behind.

Each case is a command as a user types it. It has to fail with the right exit code and exactly one line on standard
error, which starts with `pullpipe: error:`; afterwards the store has to be as if nothing had happened, and to work.
"""

from __future__ import annotations

import asyncio
import json
import mmap
import os
import shutil
import socket
import ssl
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Protocol

import pytest

from pullpipe.pipe.pull import Options, pull
from pullpipe.platforms import Platform
from pullpipe.progress import Progress
from pullpipe.reference import Reference
from pullpipe.registry.client import Network, RegistryClient
from pullpipe.registry.hosts import origin
from store import Store
from tests.conftest import PROJECT, Cli, require
from tests.support.hostile import Fault, FaultyRegistry
from tests.support.images import (
    CONFIG,
    INDEX,
    LAYER,
    MANIFEST,
    REF_NAME,
    Dir,
    File,
    Image,
    Layer,
    Symlink,
    host_shell_layers,
    write_layout,
)
from tests.support.processes import until
from tests.support.registry import Registry

pytestmark = pytest.mark.needs_root

NOBODY = 65534
GONE = "sha256:" + 64 * "0"
# Linux connects 0.0.0.0 to loopback, but no program takes it for a loopback address, so it gets no leniency.
NOT_LOOPBACK = "0.0.0.0"


@dataclass(frozen=True)
class Crafted(Layer):
    """A layer whose blob is `data`, whatever that is, and whose diffID is whatever `claimed` says."""

    data: bytes = b""
    claimed: str = ""

    @cached_property
    def blob(self) -> bytes:
        return self.data or super().blob

    @property
    def diff_id(self) -> str:
        return self.claimed or super().diff_id


def one_line(done: subprocess.CompletedProcess[str], code: int, *words: str) -> str:
    """The one line that the command said on standard error; all `words` are in it, in any case of letters."""
    assert "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr
    line = done.stderr.strip()
    assert line.startswith("pullpipe: error: ")
    assert [word for word in words if word.lower() not in line.lower()] == [], line
    assert "this is a bug" not in line
    assert done.returncode == code
    assert done.stdout == ""
    return line


class Refused(Protocol):
    """Runs a command that has to fail with these words, and proves that the store is empty and works."""

    def __call__(
        self, *args: str | Path, says: tuple[str, ...], code: int = 1, env: Mapping[str, str] | None = None
    ) -> str: ...


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The reference of a small, good image at a registry without faults."""
    layout = tmp_path_factory.mktemp("small")
    write_layout(layout, {"1": Image([Layer([File("file", b"good")])], {"Cmd": ["/file"]})})
    with FaultyRegistry(layout) as faulty:
        yield f"{faulty.host}/good/small:1"


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The reference of an image with a shell, and with a few things that cannot be run."""
    more = Layer(
        [
            File("plain", b"no program", mode=0o755),
            File("data", b"#!/bin/sh\n", mode=0o644),
            File("orphan", b"#!/no/such/interpreter\n", mode=0o755),
            Dir("directory"),
        ]
    )
    layout = tmp_path_factory.mktemp("shell")
    write_layout(
        layout,
        {
            "1": Image([*host_shell_layers(), more], {"Cmd": ["/bin/true"]}),
            "silent": Image([more]),
            "linked": Image([Layer([Symlink("proc", "/etc"), File("x")])], {"Cmd": ["/x"]}),
        },
    )
    with FaultyRegistry(layout) as faulty:
        yield f"{faulty.host}/good/shell:1"


@pytest.fixture(scope="module")
def pushed(registry: Registry, tmp_path_factory: pytest.TempPathFactory) -> str:
    """An image at the real registry."""
    layout = tmp_path_factory.mktemp("layout")
    write_layout(layout, {"1": Image([Layer([File("x")])])})
    return registry.push(layout, "1", to="bad-input/image:1")


@pytest.fixture(scope="module")
def private(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """An image at a real registry that wants user `u` with the password `open sesame`."""
    require("docker-registry")
    require("skopeo")
    layout = tmp_path_factory.mktemp("layout")
    write_layout(layout, {"1": Image([Layer([File("x")])])})
    with Registry(tmp_path_factory.mktemp("private"), users={"u": "open sesame"}) as registry:
        yield registry.push(layout, "1", to="private:1")


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A layout with an image of two incompressible layers."""
    layout = tmp_path_factory.mktemp("layout")
    good, other = File("random", os.urandom(300_000)), File("other", os.urandom(300_000))
    write_layout(layout, {"1": Image([Layer([good]), Layer([other])])})
    return layout


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """`:blob` is 6 MB on the way, `:files` is little on the way and 24 MB unpacked, `:many` has 3000 files."""
    layout = tmp_path_factory.mktemp("layout")
    write_layout(
        layout,
        {
            "blob": Image([Layer([File("random", os.urandom(6 << 20))], compression=None)]),
            "files": Image([Layer([File("zeros", bytes(24 << 20))])]),
            "many": Image([Layer([File(f"{number}") for number in range(3000)])]),
        },
    )
    with FaultyRegistry(layout) as faulty:
        yield f"{faulty.host}/large"


@pytest.fixture
def refused(cli: Cli, store_root: Path, small: str) -> Refused:
    good: list[str] = []

    def run(*args: str | Path, says: tuple[str, ...], code: int = 1, env: Mapping[str, str] | None = None) -> str:
        command, *rest = args
        retries = ["--retries=0"] if command in ("pull", "run") else []  # they have tests of their own
        line = one_line(cli(command, *retries, *rest, env=env), code, *says)
        if store_root.exists():
            assert os.listdir(store_root / "staging") == []
            assert os.listdir(store_root / "containers") == []
        # A good pull works, and no later command sees anything but what good pulls brought.
        good.append(small.replace("small", f"small-{len(good)}"))
        asyncio.run(pull_here(store_root, good[-1]))
        images = json.loads(cli("images", "--format", "json").stdout)
        assert [image["reference"] for image in images] == good
        assert os.listdir(store_root / "staging") == []
        if args[0] == "run":
            assert json.loads(cli("ps", "--format", "json").stdout) == []
        return line

    return run


async def pull_here(root: Path, reference: str) -> None:
    """What `pullpipe pull` does, without a process of its own: half a second each, a hundred times."""
    parsed = Reference.parse(reference)
    async with RegistryClient(parsed, [origin(parsed, plain_http=True)], Network(retries=0)) as client:
        store = Store(str(root), durable=False)
        await pull(client, parsed.wanted, reference, store, Options(Platform.of_this_machine()), Progress())


def ingested(store_root: Path) -> list[str]:
    """The names of the partial blobs."""
    return sorted(os.listdir(store_root / "ingest"))


def write_documents(layout: Path, documents: Mapping[str, Mapping[str, Any]], *blobs: bytes) -> dict[str, str]:
    """A layout whose tags name these documents, whatever they are; returns each one's digest."""
    directory = layout / "blobs" / "sha256"
    directory.mkdir(parents=True)
    digests = {}
    for tag, document in documents.items():
        data = json.dumps(document).encode()
        (directory / sha256(data).hexdigest()).write_bytes(data)
        digests[tag] = f"sha256:{sha256(data).hexdigest()}"
    for blob in blobs:
        (directory / sha256(blob).hexdigest()).write_bytes(blob)
    entries = [
        {
            "mediaType": documents[tag].get("mediaType", MANIFEST),
            "digest": digest,
            "size": (directory / digest.partition(":")[2]).stat().st_size,
            "annotations": {REF_NAME: tag},
        }
        for tag, digest in digests.items()
    ]
    (layout / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    (layout / "index.json").write_text(json.dumps({"schemaVersion": 2, "mediaType": INDEX, "manifests": entries}))
    return digests


def descriptor(data: bytes, media_type: str) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": f"sha256:{sha256(data).hexdigest()}", "size": len(data)}


@contextmanager
def mounted(target: Path, *arguments: str) -> Iterator[None]:
    """Something mounted at `target` for a block of code."""
    target.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", *arguments, target], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", target], check=True)


def filled_up(directory: Path, what: str, *, but: int = 0) -> Path:
    """A new directory with files in it that take all the file system has of these, but for so many inodes."""
    directory.mkdir()
    if what == "bytes":
        with suppress(OSError), (directory / "file").open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))
    else:
        for number in range(os.statvfs(directory).f_ffree - but):
            (directory / str(number)).touch()
    assert os.statvfs(directory).f_ffree == but or what == "bytes"
    return directory


@contextmanager
def http_server(handler: type[BaseHTTPRequestHandler], context: ssl.SSLContext | None = None) -> Iterator[int]:
    """The port of an HTTP server on loopback."""
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        if context is not None:
            server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()


class Portal(BaseHTTPRequestHandler):
    """Says 200 to everything, with a page for people: a captive portal, or simply a web site."""

    def answer(self) -> None:
        page = b"<!DOCTYPE html>\n<html><body>Please log in to the hotel's network</body></html>"
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.send_header("Content-Length", str(len(page)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(page)

    do_GET = do_HEAD = answer  # noqa: N815 - the base class looks for these names

    def log_message(self, *_: object) -> None: ...


class TestUnreachable:
    def test_no_such_host(self, refused: Refused) -> None:
        """`.invalid` exists nowhere (RFC 2606)."""
        refused("pull", "-q", "nosuch.invalid/image:1", says=("no such host", "nosuch.invalid", "check the name"))

    def test_no_such_host_for_run(self, refused: Refused) -> None:
        """As with Docker, 125 says that the command was never started."""
        refused("run", "-q", "nosuch.invalid/image:1", says=("no such host", "nosuch.invalid"), code=125)

    def test_connection_refused(self, refused: Refused) -> None:
        """The line names the address and the kernel's reason."""
        with closing(socket.socket()) as taken:
            taken.bind(("127.0.0.1", 0))  # and does not listen
            host = f"127.0.0.1:{taken.getsockname()[1]}"
            refused("pull", "-q", f"{host}/a:1", says=(host, "connection refused", "running"))

    def test_no_tls_where_it_is_expected(self, refused: Refused, small: str) -> None:
        """A registry elsewhere is not spoken to without TLS unless the user says so, and the line tells how."""
        elsewhere = small.replace("127.0.0.1", NOT_LOOPBACK)
        refused("pull", "-q", elsewhere, says=(elsewhere.partition("/")[0], "TLS", "--plain-http"))

    @pytest.mark.parametrize("address", [NOT_LOOPBACK, "127.0.0.1"])
    def test_certificate_that_nobody_trusts(self, refused: Refused, tmp_path: Path, address: str) -> None:
        """The line blames the certificate, also on loopback, where plain HTTP is tried too."""
        key, certificate = tmp_path / "key", tmp_path / "certificate"
        command = [require("openssl"), "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
        command += ["-nodes", "-keyout", str(key), "-out", str(certificate), "-subj", f"/CN={address}"]
        subprocess.run([*command, "-addext", f"subjectAltName=IP:{address}"], check=True, capture_output=True)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        with http_server(Portal, context) as port:
            refused("pull", "-q", f"{address}:{port}/a:1", says=(f"{address}:{port}", "certificate"))

    def test_no_http_at_all(self, refused: Refused) -> None:
        """Something listens there that is no web server: the line says so, and not that one should try again."""
        with closing(socket.create_server(("127.0.0.1", 0))) as server:
            host = f"127.0.0.1:{server.getsockname()[1]}"

            def greet() -> None:
                while True:
                    try:
                        connection, _ = server.accept()
                    except OSError:
                        return  # shut down
                    with connection, suppress(OSError):
                        connection.sendall(b"SSH-2.0-OpenSSH_9.2\r\n")
                        connection.recv(1)

            greeter = threading.Thread(target=greet)
            greeter.start()
            try:
                line = refused("pull", "-q", f"{host}/a:1", says=(host,))
            finally:
                server.shutdown(socket.SHUT_RDWR)  # wakes accept
                greeter.join()
        assert "does not speak HTTP" in line or "not a registry" in line or "no registry" in line

    def test_newer_without_an_answer(self, cli: Cli, tmp_path: Path) -> None:
        """With --policy newer the image that is here serves, with a warning; without it, it is an error."""
        write_layout(tmp_path / "layout", {"1": Image([Layer([File("x")])])})
        with FaultyRegistry(tmp_path / "layout") as faulty:
            reference = f"{faulty.host}/a:1"
            digest = cli("pull", "-q", reference).stdout
        done = cli("pull", "-q", "--policy", "newer", reference)
        assert (done.returncode, done.stdout) == (0, digest)
        assert done.stderr.startswith("pullpipe: warning: ")
        one_line(cli("pull", "-q", reference), 1, reference.partition("/")[0])


class TestNotThere:
    def test_no_such_image(self, refused: Refused, registry: Registry) -> None:
        reference = f"{registry.host}/bad-input/nothing:1"
        refused("pull", "-q", reference, says=(registry.host, "bad-input/nothing:1", "check the name"))

    def test_no_such_tag(self, refused: Refused, pushed: str) -> None:
        refused("pull", "-q", f"{pushed}9", says=(f"{pushed}9", "check the name"))

    def test_no_such_digest(self, refused: Refused, pushed: str) -> None:
        name = pushed.rpartition(":")[0]
        refused("pull", "-q", f"{name}@{GONE}", says=(name, GONE, "check the name"))

    def test_no_such_image_for_run(self, refused: Refused, pushed: str) -> None:
        refused("run", "-q", f"{pushed}9", "true", says=(f"{pushed}9",), code=125)

    def test_name_unknown(self, refused: Refused, tmp_path: Path) -> None:
        """What the registry says of it is in the line."""
        write_layout(tmp_path / "layout", {"1": Image([])})
        with FaultyRegistry(tmp_path / "layout", {Fault.NAME_UNKNOWN}) as faulty:
            refused("pull", "-q", f"{faulty.host}/a:1", says=(faulty.host, "name_unknown", "check the name"))

    def test_never_asked_for(self, refused: Refused, pushed: str) -> None:
        """With the policy never, a registry that has the image is not asked."""
        refused("pull", "-q", "--policy", "never", pushed, says=(pushed, "not in the store", "never"))
        refused("run", "-q", "--pull", "never", pushed, says=(pushed, "not in the store", "never"), code=125)


class TestAuthentication:
    def test_needed(self, refused: Refused, private: str) -> None:
        refused("pull", "-q", private, says=(private.partition("/")[0], "authentication", "--creds USER:PASSWORD"))

    @pytest.mark.parametrize("credentials", ["u:wrong-word", "stranger:open sesame"])
    def test_wrong(self, refused: Refused, private: str, credentials: str) -> None:
        """The line names the user, and nothing shows the password."""
        user, _, password = credentials.partition(":")
        says = (private.partition("/")[0], f"'{user}'", "check the credentials")
        line = refused("pull", "-q", "--creds", credentials, private, says=says)
        assert password not in line

    def test_right(self, cli: Cli, private: str) -> None:
        """Otherwise the two tests above would prove little."""
        done = cli("pull", "-q", "--creds", "u:open sesame", private)
        assert done.returncode == 0, done.stderr

    def test_no_password_in_a_traceback(self, cli: Cli, private: str) -> None:
        """Not even for developers."""
        done = cli("--log-level", "debug", "pull", "--creds", "u:wrong-word", private)
        assert "Traceback" in done.stderr
        assert "wrong-word" not in done.stderr

    @pytest.mark.parametrize("credentials", ["u", ":open sesame"])
    def test_no_credentials_at_all(self, refused: Refused, private: str, credentials: str) -> None:
        line = refused("pull", "-q", "--creds", credentials, private, says=("USER:PASSWORD",))
        assert "sesame" not in line

    def test_token_server_says_no(self, refused: Refused, tmp_path: Path) -> None:
        write_layout(tmp_path / "layout", {"1": Image([])})
        with FaultyRegistry(tmp_path / "layout", {Fault.BEARER_WITH_CREDENTIALS}) as faulty:
            reference = f"{faulty.host}/a/b:1"
            refused("pull", "-q", reference, says=("a/b", "--creds USER:PASSWORD"))
            refused("pull", "-q", "--creds", "user:guess", reference, says=("a/b", "'user'", "credentials"))

    def test_no_challenge(self, refused: Refused, tmp_path: Path) -> None:
        write_layout(tmp_path / "layout", {"1": Image([])})
        with FaultyRegistry(tmp_path / "layout", {Fault.UNAUTHORIZED_WITHOUT_CHALLENGE}) as faulty:
            refused("pull", "-q", f"{faulty.host}/a:1", says=(faulty.host, "how to authenticate"))


class TestDamagedOnTheWay:
    """The bytes are not what their digest says: nothing is published, and the bad bytes are not kept."""

    @pytest.fixture
    def pieces(self, layout: Path) -> tuple[str, str, str]:
        """The digests of the image's manifest, config and first layer."""
        [entry] = json.loads((layout / "index.json").read_bytes())["manifests"]
        manifest = json.loads((layout / "blobs" / entry["digest"].replace(":", "/")).read_bytes())
        return entry["digest"], manifest["config"]["digest"], manifest["layers"][0]["digest"]

    def test_wrong_blob(
        self, refused: Refused, layout: Path, pieces: tuple[str, str, str], store_root: Path, cli: Cli
    ) -> None:
        """And the next pull, from a registry that has come to its senses, works."""
        layer = pieces[2]
        with FaultyRegistry(layout, {Fault.WRONG_BLOB}, only=layer) as faulty:
            refused("pull", "-q", f"{faulty.host}/a:1", says=(layer, "digest", "try again"))
            assert layer.replace(":", "-") not in ingested(store_root)  # of the other one, a part may be kept
            faulty.faults.clear()
            assert cli("pull", "-q", f"{faulty.host}/a:1").returncode == 0

    def test_wrong_config(self, refused: Refused, layout: Path, pieces: tuple[str, str, str], store_root: Path) -> None:
        config = pieces[1]
        with FaultyRegistry(layout, {Fault.WRONG_BLOB}, only=config) as faulty:
            refused("pull", "-q", f"{faulty.host}/a:1", says=("config", config, "digest"))
        assert ingested(store_root) == []

    @pytest.mark.parametrize("by", ["tag", "digest"])
    def test_wrong_manifest(self, refused: Refused, layout: Path, pieces: tuple[str, str, str], by: str) -> None:
        manifest = pieces[0]
        with FaultyRegistry(layout, {Fault.WRONG_MANIFEST}) as faulty:
            reference = f"{faulty.host}/a:1" if by == "tag" else f"{faulty.host}/a@{manifest}"
            refused("pull", "-q", reference, says=("manifest", manifest, faulty.host))

    @pytest.mark.parametrize("fault", [Fault.SHORT_BLOB, Fault.TRUNCATED_BLOB, Fault.RESET_BLOB])
    def test_truncated_blob(
        self, refused: Refused, cli: Cli, layout: Path, pieces: tuple[str, str, str], fault: Fault
    ) -> None:
        """An answer that ends early, or a connection that does. The next pull completes it."""
        with FaultyRegistry(layout, {fault}, only=pieces[2]) as faulty:
            refused(
                "pull",
                "-q",
                f"{faulty.host}/a:1",
                says=(faulty.host, "again" if fault is not Fault.SHORT_BLOB else "anew"),
            )
            faulty.faults.clear()
            assert cli("pull", "-q", f"{faulty.host}/a:1").returncode == 0

    def test_a_failure_in_run(self, refused: Refused, layout: Path, pieces: tuple[str, str, str]) -> None:
        with FaultyRegistry(layout, {Fault.WRONG_BLOB}, only=pieces[2]) as faulty:
            refused("run", "-q", f"{faulty.host}/a:1", "true", says=(pieces[2], "digest"), code=125)

    @pytest.mark.parametrize("face", ["plain", "json", "auto"])
    def test_after_progress(self, cli: Cli, layout: Path, pieces: tuple[str, str, str], face: str) -> None:
        """When progress is shown the error is still one line, and the last."""
        with FaultyRegistry(layout, {Fault.WRONG_BLOB}, only=pieces[2]) as faulty:
            done = cli("pull", "--progress", face, f"{faulty.host}/a:1")
        *before, last = done.stderr.splitlines()
        assert last.startswith("pullpipe: error: ")
        assert before
        assert not [line for line in before if line.startswith("pullpipe: error: ")]
        assert (done.returncode, done.stdout) == (1, "")

    def test_html_error_page(self, refused: Refused, layout: Path) -> None:
        """The page itself is not shown to the user."""
        with FaultyRegistry(layout, {Fault.HTML_ERROR}) as faulty:
            line = refused("pull", "-q", f"{faulty.host}/a:1", says=(faulty.host, "500", "a:1"))
        assert "<" not in line

    def test_too_many_requests(self, refused: Refused, layout: Path) -> None:
        with FaultyRegistry(layout, {Fault.TOO_MANY_REQUESTS}) as faulty:
            refused("pull", "-q", f"{faulty.host}/a:1", says=(faulty.host, "limit", "later"))

    def test_web_site(self, refused: Refused) -> None:
        """A page that comes as a success is no manifest either; the line says who sent it."""
        with http_server(Portal) as port:
            refused("pull", "-q", f"127.0.0.1:{port}/a:1", says=(f"127.0.0.1:{port}", "manifest"))


class TestDamagedAtTheSource:
    """The digests are right, and what they name is not what it should be. Only the image's owner can help."""

    @pytest.mark.parametrize("peer", ["registry", "faulty"])
    def test_wrong_diff_id(
        self, refused: Refused, registry: Registry, tmp_path: Path, store_root: Path, peer: str
    ) -> None:
        write_layout(tmp_path / "layout", {"1": Image([Crafted([File("x", b"data")], claimed=GONE)])})
        with FaultyRegistry(tmp_path / "layout") as faulty:
            reference = f"{faulty.host}/lying:1"
            if peer == "registry":
                reference = registry.push(tmp_path / "layout", "1", to="bad-input/lying:1")
            refused("pull", "-q", reference, says=("diffID", GONE, "inconsistent", "push"))
        assert ingested(store_root) == []

    @pytest.mark.parametrize(
        ("data", "cause"),
        [
            (os.urandom(4096), "tar"),
            (b"", "gzip"),
            (b"a word", "tar"),
        ],
        ids=["random", "damaged gzip", "word"],
    )
    def test_layer_that_is_none(
        self, refused: Refused, tmp_path: Path, store_root: Path, data: bytes, cause: str
    ) -> None:
        """Random bytes, and a gzip stream damaged in the middle: the line says which layer, and what is wrong."""
        if cause == "gzip":
            whole = bytearray(Layer([File("x", os.urandom(50_000))]).blob)
            whole[len(whole) // 2 : len(whole) // 2 + 64] = bytes(64)
            data = bytes(whole)
        write_layout(tmp_path / "layout", {"1": Image([Crafted([File("x")], data=data)])})
        with FaultyRegistry(tmp_path / "layout") as faulty:
            refused("pull", "-q", f"{faulty.host}/a:1", says=("layer", sha256(data).hexdigest()[:12]))
        assert ingested(store_root) == []

    def test_truncated_tar(self, refused: Refused, tmp_path: Path) -> None:
        data = Layer([File("x", bytes(5000))], compression=None).blob[:3000]
        write_layout(tmp_path / "layout", {"1": Image([Crafted([], data=data)])})
        with FaultyRegistry(tmp_path / "layout") as faulty:
            refused("pull", "-q", f"{faulty.host}/a:1", says=("truncated", sha256(data).hexdigest()[:12]))

    def test_other_platform(self, refused: Refused, tmp_path: Path) -> None:
        """A lone manifest says in its config what it is for."""
        write_layout(tmp_path / "layout", {"1": Image([Layer([File("x")])], platform="plan9/mips")})
        with FaultyRegistry(tmp_path / "layout") as faulty:
            reference = f"{faulty.host}/a:1"
            refused("pull", "-q", reference, says=(reference, "plan9/mips", "linux/", "--platform"))

    def test_index_without_our_platform(self, refused: Refused, tmp_path: Path) -> None:
        images = [Image([Layer([File("x", name.encode())])], platform=name) for name in ("plan9/mips", "aix/ppc64")]
        write_layout(tmp_path / "layout", {"1": images})
        with FaultyRegistry(tmp_path / "layout") as faulty:
            reference = f"{faulty.host}/a:1"
            refused("pull", "-q", reference, says=(reference, "aix/ppc64, plan9/mips", "--platform"))
            says = (reference, "linux/s390x", "--platform")
            refused("run", "-q", "--platform", "linux/s390x", reference, says=says, code=125)

    def test_index_of_nothing(self, refused: Refused, tmp_path: Path) -> None:
        write_documents(tmp_path / "layout", {"1": {"schemaVersion": 2, "mediaType": INDEX, "manifests": []}})
        with FaultyRegistry(tmp_path / "layout") as faulty:
            refused("pull", "-q", f"{faulty.host}/a:1", says=(f"{faulty.host}/a:1", "none"))

    def test_artifact(self, refused: Refused, tmp_path: Path) -> None:
        """A chart, a signature, a bill of materials: the line says what it is."""
        empty = descriptor(b"{}", "application/vnd.oci.empty.v1+json")
        chart = "application/vnd.cncf.helm.config.v1+json"
        documents = {
            "stated": {"schemaVersion": 2, "mediaType": MANIFEST, "config": empty, "layers": [empty]}
            | {"artifactType": "application/vnd.example.sbom"},
            "by-config": {"schemaVersion": 2, "mediaType": MANIFEST, "config": descriptor(b"{}", chart), "layers": []},
        }
        write_documents(tmp_path / "layout", documents, b"{}")
        with FaultyRegistry(tmp_path / "layout") as faulty:
            for tag, kind in (("stated", "application/vnd.example.sbom"), ("by-config", chart)):
                reference = f"{faulty.host}/a:{tag}"
                refused("pull", "-q", reference, says=(reference, "artifact", kind))

    def test_schema_1(self, refused: Refused, tmp_path: Path) -> None:
        kind = "application/vnd.docker.distribution.manifest.v1+prettyjws"
        document = {"schemaVersion": 1, "mediaType": kind, "name": "a", "tag": "1", "fsLayers": [], "history": []}
        write_documents(tmp_path / "layout", {"1": document})
        with FaultyRegistry(tmp_path / "layout") as faulty:
            refused("pull", "-q", f"{faulty.host}/a:1", says=(f"{faulty.host}/a:1", "schema 1", "push it again"))

    def test_index_and_image_at_once(self, refused: Refused, tmp_path: Path) -> None:
        """CVE-2021-41190."""
        config = descriptor(b"{}", CONFIG)
        document = {"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": [], "manifests": []}
        write_documents(tmp_path / "layout", {"1": document}, b"{}")
        with FaultyRegistry(tmp_path / "layout") as faulty:
            refused("pull", "-q", f"{faulty.host}/a:1", says=(f"{faulty.host}/a:1", "index and an image", "refused"))

    @pytest.mark.parametrize("config", [b"{}", b"\xff\xfe", b"[" * 100_000], ids=["empty", "binary", "deep"])
    def test_config_that_is_none(self, refused: Refused, tmp_path: Path, config: bytes) -> None:
        document = {"schemaVersion": 2, "mediaType": MANIFEST, "config": descriptor(config, CONFIG), "layers": []}
        write_documents(tmp_path / "layout", {"1": document}, config)
        with FaultyRegistry(tmp_path / "layout") as faulty:
            refused("pull", "-q", f"{faulty.host}/a:1", says=(f"{faulty.host}/a:1", "config"))

    def test_layer_missing(self, refused: Refused, tmp_path: Path) -> None:
        """A manifest that names what its registry does not have."""
        config = json.dumps(
            {"os": "linux", "architecture": os.uname().machine, "rootfs": {"type": "layers", "diff_ids": [GONE]}}
        ).encode()
        document = {"schemaVersion": 2, "mediaType": MANIFEST, "config": descriptor(config, CONFIG)}
        document["layers"] = [{"mediaType": LAYER, "digest": GONE, "size": 1024}]
        machine = Image([]).platform
        config = config.replace(os.uname().machine.encode(), machine.partition("/")[2].encode())
        document["config"] = descriptor(config, CONFIG)
        write_documents(tmp_path / "layout", {"1": document}, config)
        with FaultyRegistry(tmp_path / "layout") as faulty:
            refused("pull", "-q", f"{faulty.host}/a:1", says=(faulty.host, GONE))


class TestArguments:
    @pytest.mark.parametrize(
        "reference",
        [
            "",
            ":1",
            "/",
            "Upper",
            "a b",
            "a\nb",
            "a:b:c",
            "a@sha256:12",
            "a@md5:" + 32 * "0",
            "host:port/a",
            "../a",
            "https://example.org/a",
            "a:" + 129 * "x",
            300 * "a",
            "\udcff",
            "a;reboot",
        ],
    )
    def test_invalid_reference(self, cli: Cli, store_root: Path, reference: str) -> None:
        """No network is asked, no store is made, and the text is shown so that it stays on one line."""
        one_line(cli("pull", "-q", reference), 1, "invalid image reference")
        assert not store_root.exists()

    @pytest.mark.parametrize(
        ("command", "code"),
        [(("run",), 125), (("inspect",), 1), (("rmi",), 1), (("mount",), 1), (("unpack",), 1)],
        ids=lambda value: str(value),
    )
    def test_invalid_reference_elsewhere(self, cli: Cli, tmp_path: Path, command: tuple[str, ...], code: int) -> None:
        (tmp_path / "directory").mkdir()
        more = [tmp_path / "directory"] if command[0] in ("mount", "unpack") else []
        one_line(cli(*command, "Upper", *more), code, "invalid image reference", "Upper", "lower case")

    def test_invalid_platform(self, refused: Refused, small: str) -> None:
        refused("pull", "-q", "--platform", "linux", small, says=("invalid platform", "'linux'", "OS/ARCH"))

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            ((), ("usage", "commands:")),
            (("frobnicate",), ("'frobnicate'", "--help")),
            (("pull",), ("REF",)),
            (("pull", "--frobnicate", "a"), ("--frobnicate",)),
            (("inspect", "a", "b"), ("unrecognized", "b")),
            (("pull", "--jobs", "0", "a"), ("--jobs", "at least 1")),
            (("pull", "--policy", "sometimes", "a"), ("sometimes", "always")),
            (("images", "--format", "xml"), ("xml", "json")),
            (("--frobnicate", "images"), ("--frobnicate",)),
            (("--log-level", "loud", "images"), ("loud", "debug")),
        ],
        ids=lambda value: " ".join(value) or "nothing",
    )
    def test_usage(self, cli: Cli, store_root: Path, arguments: tuple[str, ...], words: tuple[str, ...]) -> None:
        """How to use it goes to standard error, with what is wrong in the last line; nothing else happens."""
        done = cli(*arguments)
        assert (done.returncode, done.stdout) == (2, "")
        assert "Traceback" not in done.stderr
        assert [word for word in words if word not in done.stderr] == []
        if arguments:
            assert ": error: " in done.stderr.splitlines()[-1]
        assert not store_root.exists()


class TestRoot:
    def test_file(self, cli: Cli, store_root: Path) -> None:
        store_root.write_text("kept")
        try:
            one_line(cli("images"), 1, str(store_root), "not a directory", "--root")
            assert store_root.read_text() == "kept"
        finally:
            store_root.unlink()

    def test_below_a_file(self, cli: Cli, tmp_path: Path, store_root: Path) -> None:
        (tmp_path / "file").touch()
        one_line(cli("--root", tmp_path / "file" / "root", "images"), 1, str(tmp_path / "file"), "--root")
        assert not store_root.exists()

    def test_foreign_directory(self, cli: Cli, store_root: Path, small: str) -> None:
        """It is not touched: not a file is added, and its mode stays."""
        store_root.mkdir()
        store_root.chmod(0o755)
        (store_root / "thesis.tex").write_text("ten years")
        for command in (("images",), ("pull", "-q", small), ("rmi", "a"), ("load", "/dev/null")):
            one_line(cli(*command), 1, str(store_root), "not a pullpipe store", "--root")
        assert os.listdir(store_root) == ["thesis.tex"]
        assert stat.S_IMODE(store_root.stat().st_mode) == 0o755

    def test_newer_format(self, cli: Cli, store_root: Path, small: str) -> None:
        """A store of a later pullpipe is not touched, not even to list it."""
        assert cli("images").returncode == 0
        (store_root / "version").write_text("2\n")
        for command in (("images",), ("pull", "-q", small)):
            one_line(cli(*command), 1, str(store_root), "format 2", "newer pullpipe", "--root")
        one_line(cli("run", "-q", small), 125, "format 2")

    @pytest.mark.parametrize("text", ["", "one", "-1", "1 2"])
    def test_damaged_version(self, cli: Cli, store_root: Path, text: str) -> None:
        assert cli("images").returncode == 0
        (store_root / "version").write_text(text)
        one_line(cli("images"), 1, str(store_root / "version"), "damaged", "1")

    def test_of_another_user(self, cli: Cli, store_root: Path, small: str) -> None:
        assert cli("images").returncode == 0
        os.chown(store_root, NOBODY, NOBODY)
        one_line(cli("pull", "-q", small), 1, str(store_root), str(NOBODY), "--root")

    def test_not_writable(self, cli: Cli, store_root: Path, small: str) -> None:
        """A store on a read-only file system can still be listed. Nothing can be put into it."""
        assert cli("pull", "-q", small).returncode == 0
        listed = cli("images").stdout
        with mounted(store_root, "--bind", str(store_root)):
            subprocess.run(["mount", "-o", "remount,bind,ro", store_root], check=True)
            assert cli("images").stdout == listed
            other = small.replace("small", "other")
            one_line(cli("pull", "-q", other), 1, "read-only file system", "--root")
            one_line(cli("rmi", small), 1, "read-only file system", "--root")
        assert cli("pull", "-q", other).returncode == 0

    def test_cannot_be_made(self, cli: Cli, tmp_path: Path, small: str) -> None:
        with mounted(tmp_path / "mnt", "-t", "tmpfs", "-o", "ro", "tmpfs"):
            root = tmp_path / "mnt" / "root"
            one_line(cli("--root", root, "pull", "-q", small), 1, str(root), "read-only file system", "--root")


class TestFullDisk:
    @pytest.mark.parametrize(("what", "size"), [("blob", "10m"), ("files", "4m"), ("many", "4m")])
    def test_full(self, cli: Cli, store_root: Path, small: str, large: str, what: str, size: str) -> None:
        """The line says so; the store can be used, small images go in, and the large one too once there is space."""
        with mounted(store_root, "-t", "tmpfs", "-o", f"size={size},nr_inodes=1000", "tmpfs"):
            one_line(cli("pull", "-q", f"{large}:{what}"), 1, "no space left", "--root")
            assert os.listdir(store_root / "staging") == []
            assert json.loads(cli("images", "--format", "json").stdout) == []
            done = cli("pull", "-q", small)
            assert done.returncode == 0, done.stderr
            subprocess.run(["mount", "-o", "remount,size=64m,nr_inodes=10000", store_root], check=True)
            done = cli("pull", "-q", f"{large}:{what}")
            assert done.returncode == 0, done.stderr

    def test_known_beforehand(self, cli: Cli, store_root: Path, small: str, large: str) -> None:
        """Sizes stand in the manifest: nothing is fetched that cannot fit."""
        with mounted(store_root, "-t", "tmpfs", "-o", "size=4m", "tmpfs"):
            one_line(cli("pull", "-q", f"{large}:blob"), 1, "6.3 MB are to be fetched", "MB are free at", "--root")
            assert os.listdir(store_root / "ingest") == []
            assert cli("pull", "-q", small).returncode == 0

    def test_known_on_the_way(self, cli: Cli, store_root: Path, tmp_path: Path) -> None:
        """What a layer unpacks to nobody knows: when it leaves too little for the next one, that is not asked for."""
        first = Layer([File("random", os.urandom(3 << 20)), File("zeros", bytes(24 << 20))])
        second = Layer([File("random", os.urandom(2 << 20))], compression=None)
        write_layout(tmp_path, {"latest": Image([first, second])})
        with (
            FaultyRegistry(tmp_path) as faulty,
            mounted(store_root, "-t", "tmpfs", "-o", "size=32m", "tmpfs"),
        ):
            one_line(cli("pull", "-q", "--jobs=1", f"{faulty.host}/a"), 1, "2.1 MB are to be fetched", "MB are free at")
            assert not faulty.arrived(sha256(second.blob).hexdigest())
            subprocess.run(["mount", "-o", "remount,size=64m", store_root], check=True)
            assert cli("pull", "-q", f"{faulty.host}/a").returncode == 0
            assert len(faulty.arrived(sha256(first.blob).hexdigest())) == 1

    def test_without_a_limit(self, cli: Cli, store_root: Path, small: str) -> None:
        """A file system may tell no size at all."""
        with mounted(store_root, "-t", "tmpfs", "-o", "size=0", "tmpfs"):
            done = cli("pull", "-q", small)
            assert done.returncode == 0, done.stderr

    def test_full_for_run(self, cli: Cli, store_root: Path, large: str) -> None:
        with mounted(store_root, "-t", "tmpfs", "-o", "size=4m", "tmpfs"):
            one_line(cli("run", "-q", f"{large}:files", "true"), 125, "no space left", "--root")
            assert cli("ps", "--quiet").stdout == ""

    @pytest.mark.parametrize("options", [("--rm",), ("--rm", "-d")], ids=" ".join)
    def test_a_container_that_finds_no_room(
        self, cli: Cli, store_root: Path, shell: str, options: tuple[str, ...]
    ) -> None:
        """Nothing stays of it, however far it has come: the next one finds what this one has found."""
        with mounted(store_root, "-t", "tmpfs", "-o", "size=64m,nr_inodes=500", "tmpfs"):
            assert cli("run", "-q", "--rm", shell).returncode == 0
            for inodes in range(8):

                def as_before(free: int = inodes) -> bool:
                    there = os.statvfs(store_root).f_ffree, os.listdir(store_root / "containers")
                    return there == (free, [])

                filled = filled_up(store_root / "staging" / "filled", "inodes", but=inodes)
                for _ in range(2):
                    one_line(cli("run", "-q", *options, shell), 125, "no space left")
                    until(as_before, "something stays")  # in the background it goes after it has been told why
                shutil.rmtree(filled)

    @pytest.mark.parametrize("options", [(), ("-d",), ("--rm",), ("--rm", "-d")], ids=" ".join)
    def test_a_container_whose_end_finds_no_room(
        self, cli: Cli, store_root: Path, shell: str, options: tuple[str, ...]
    ) -> None:
        """One that has not begun is listed with its end, or not at all."""
        with mounted(store_root, "-t", "tmpfs", "-o", "size=64m", "tmpfs"):
            assert cli("run", "-q", "--rm", shell).returncode == 0
            for pages in range(1, 7):
                filled = filled_up(store_root / "staging" / "filled", "bytes")
                os.truncate(filled / "file", (filled / "file").stat().st_size - pages * mmap.PAGESIZE)
                done = cli("run", "-q", *options, shell)
                one_line(done, 125, "no space left")
                listed = json.loads(cli("ps", "--all", "--format=json").stdout)
                assert all(each["exit_code"] == 125 and "--rm" not in options for each in listed)
                assert cli("rm", *(each["id"] for each in listed)).returncode == 0 or not listed
                shutil.rmtree(filled)

    @pytest.mark.parametrize("options", [(), ("-d",), ("--rm",)], ids=" ".join)
    def test_no_room_for_the_id(self, cli: Cli, tmp_path: Path, shell: str, options: tuple[str, ...]) -> None:
        """On the file system of --cidfile: then there is no container, and no such file."""
        with mounted(tmp_path / "full", "-t", "tmpfs", "-o", "size=64k", "tmpfs"):
            filled_up(tmp_path / "full" / "filled", "bytes")
            path = tmp_path / "full" / "id"
            one_line(cli("run", "-q", *options, "--cidfile", path, shell), 125, f"--cidfile {path}", "no space left")
            assert not path.exists()
            assert json.loads(cli("ps", "--all", "--format=json").stdout) == []

    @pytest.mark.parametrize("what", ["inodes", "bytes"])
    @pytest.mark.parametrize("command", ["rm", "rmi", "prune", "prune --all --containers"])
    def test_room_can_be_made(
        self, cli: Cli, store_root: Path, small: str, shell: str, what: str, command: str
    ) -> None:
        """When a container has filled the disk to the last byte, or inode, whatever removes works."""
        with mounted(store_root, "-t", "tmpfs", "-o", "size=32m,nr_inodes=500", "tmpfs"):
            assert cli("pull", "-q", small).returncode == 0
            assert cli("run", "-q", "--name", "fills", shell).returncode == 0
            [upper] = (store_root / "containers").glob("*/upper")
            filled_up(upper / "filled", what)
            done = cli(*command.split(), *{"rm": ["fills"], "rmi": [small]}.get(command, []))
            assert done.returncode == 0, done.stderr
            assert ("fills" in cli("ps", "--all").stdout) == (command in ("rmi", "prune"))
            if command == "rmi":
                assert small not in cli("images").stdout
            if command == "prune --all --containers":
                assert os.listdir(store_root / "blobs" / "sha256") == os.listdir(store_root / "staging") == []
                assert cli("pull", "-q", small).returncode == 0


class TestNotRoot:
    @pytest.fixture
    def nobody(self, cli: Cli, store_root: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
        """The command line as nobody runs it, with a store of its own.

        Nobody can read all files here: Python, the project and pytest's directories may be root's alone.
        """
        require("setpriv")
        store_root.mkdir()
        os.chown(store_root, NOBODY, NOBODY)
        rights = "dac_read_search"
        who = [f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
        who += [f"--inh-caps=-all,+{rights}", f"--ambient-caps=+{rights}", f"--bounding-set=-all,+{rights}"]

        def run(*args: str | Path) -> subprocess.CompletedProcess[str]:
            return as_somebody(who, store_root, *args)

        return run

    def test_listing(self, nobody: Callable[..., subprocess.CompletedProcess[str]], store_root: Path) -> None:
        """It takes no rights. What does: tests/rootless."""
        done = nobody("images", "--format", "json")
        assert (done.returncode, done.stdout, done.stderr) == (0, "[]\n", "")
        done = nobody("ps", "--format", "json")
        assert (done.returncode, done.stdout, done.stderr) == (0, "[]\n", "")
        assert store_root.stat().st_uid == NOBODY

    def test_permission_denied(self, cli: Cli, store_root: Path, small: str) -> None:
        """A store that may not be looked into. Without these rights root is as little as anybody is."""
        require("setpriv")
        assert cli("images").returncode == 0
        os.chown(store_root, NOBODY, NOBODY)
        who = ["--bounding-set=-dac_override,-dac_read_search", "--inh-caps=-dac_override,-dac_read_search"]
        for command, code in ((("images",), 1), (("pull", "-q", small), 1), (("run", "-q", small), 125)):
            done = as_somebody(who, store_root, *command)
            one_line(done, code, str(store_root), "belongs to user 65534", "--root")


def as_somebody(who: list[str], root: Path, *args: str | Path) -> subprocess.CompletedProcess[str]:
    """The command line as the user, and with the rights, that these options of setpriv say."""
    command = ["setpriv", *who, sys.executable, "-m", "pullpipe", "--root", str(root), *map(str, args)]
    return subprocess.run(
        command,
        cwd=PROJECT,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )


class TestRun:
    """Docker's exit codes: 127 and 126 for a command that cannot be, 125 for everything else that is not its own."""

    @pytest.fixture
    def failing(self, cli: Cli, shell: str) -> Callable[..., str]:
        """A run that fails, and leaves no container behind although the image is there."""

        def run(*args: str, code: int, says: tuple[str, ...], image: str = shell) -> str:
            line = one_line(cli("run", "--rm", "-q", *args[:-1], image, *args[-1:]), code, *says)
            assert cli("ps", "-q").stdout == ""
            return line

        return run

    def test_not_found(self, failing: Callable[..., str]) -> None:
        failing("frobnicate", code=127, says=("not found", "'frobnicate'", "PATH"))
        failing("/no/such/file", code=127, says=("not found", "'/no/such/file'", "image"))
        failing("/orphan", code=127, says=("/orphan", "interpreter"))

    def test_not_executable(self, failing: Callable[..., str]) -> None:
        failing("/data", code=126, says=("/data", "permission denied"))
        failing("/directory", code=126, says=("/directory", "permission denied"))
        failing("/plain", code=126, says=("/plain", "not a program"))

    def test_no_such_user(self, failing: Callable[..., str]) -> None:
        failing("--user", "stranger", "true", code=125, says=("user", "'stranger'", "--user"))
        failing("--user", "root:strangers", "true", code=125, says=("group", "'strangers'", "--user"))

    def test_working_directory(self, failing: Callable[..., str]) -> None:
        failing("--workdir", "/data", "true", code=125, says=("working directory", "'/data'"))

    def test_nothing_to_run(self, cli: Cli, shell: str) -> None:
        image = shell.replace(":1", ":silent")
        one_line(cli("run", "--rm", "-q", image), 125, "names no command", "say which")
        assert cli("ps", "-q").stdout == ""

    def test_proc_that_leads_elsewhere(self, cli: Cli, shell: str) -> None:
        """An image whose /proc is a symlink would have it mounted elsewhere."""
        image = shell.replace(":1", ":linked")
        one_line(cli("run", "--rm", "-q", image), 125, "/proc", "not a directory")
        assert cli("ps", "-q").stdout == ""

    def test_terminal_without_one(self, failing: Callable[..., str]) -> None:
        failing("-i", "-t", "true", code=125, says=("-t", "terminal"))

    def test_name_taken(self, cli: Cli, shell: str) -> None:
        """By a container that is still there, also if it has ended."""
        assert cli("run", "-q", "--name", "mine", shell).returncode == 0
        one_line(cli("run", "-q", "--name", "mine", shell), 125, "'mine'", "pullpipe rm mine")
        assert cli("rm", "mine").returncode == 0
        assert cli("run", "-q", "--rm", "--name", "mine", shell).returncode == 0

    def test_overlayfs_refuses(self, cli: Cli, store_root: Path, tmp_path: Path, shell: str) -> None:
        """Overlayfs writes into no other overlayfs, so a store there cannot run anything; the line says what can."""
        for name in ("lower", "upper", "work"):
            (tmp_path / name).mkdir()
        directories = f"lowerdir={tmp_path}/lower,upperdir={tmp_path}/upper,workdir={tmp_path}/work"
        with mounted(store_root, "-t", "overlay", "-o", directories, "overlay"):
            one_line(cli("run", "--rm", "-q", shell), 125, "overlay", "--root")
            assert cli("ps", "-q").stdout == ""


class TestNames:
    """Commands on what is not there, or not as it would have to be."""

    def test_unknown(self, cli: Cli, tmp_path: Path, small: str) -> None:
        one_line(cli("inspect", small), 1, small, "not in the store", f"pullpipe pull {small}")
        one_line(cli("inspect", "nonesuch"), 1, "nonesuch")
        one_line(cli("rmi", small), 1, small, "pullpipe images")
        one_line(cli("rm", "nonesuch"), 1, "'nonesuch'", "pullpipe ps")
        one_line(cli("rm", ""), 1, "no container", "pullpipe ps")
        one_line(cli("umount", tmp_path), 1, str(tmp_path), "pullpipe ps")
        one_line(cli("unpack", small, tmp_path / "new"), 1, small, "pullpipe pull")
        assert not (tmp_path / "new").exists()
        (tmp_path / "point").mkdir()
        one_line(cli("mount", small, tmp_path / "point"), 1, small, "pullpipe pull")
        assert cli("ps", "-q").stdout == ""

    def test_one_of_several(self, cli: Cli, small: str) -> None:
        """What comes before the unknown one is done and said."""
        assert cli("pull", "-q", small).returncode == 0
        done = cli("rmi", small, "nonesuch")
        assert (done.returncode, done.stdout) == (1, f"{small}\n")
        assert [line for line in done.stderr.splitlines() if line.startswith("pullpipe: error: ")]
        assert json.loads(cli("images", "--format", "json").stdout) == []

    def test_unpack_where_something_is(self, cli: Cli, tmp_path: Path, small: str) -> None:
        """Nothing is added to it."""
        assert cli("pull", "-q", small).returncode == 0
        (tmp_path / "full").mkdir()
        (tmp_path / "full" / "mine").touch()
        one_line(cli("unpack", small, tmp_path / "full"), 1, str(tmp_path / "full"), "not empty", "new directory")
        assert os.listdir(tmp_path / "full") == ["mine"]
        (tmp_path / "file").write_text("kept")
        one_line(cli("unpack", small, tmp_path / "file"), 1, str(tmp_path / "file"))
        assert (tmp_path / "file").read_text() == "kept"

    def test_mount_where_it_cannot(self, cli: Cli, tmp_path: Path, small: str) -> None:
        assert cli("pull", "-q", small).returncode == 0
        (tmp_path / "file").touch()
        one_line(cli("mount", small, tmp_path / "file"), 1, str(tmp_path / "file"), "not a directory")
        one_line(cli("mount", small, tmp_path / "none"), 1, str(tmp_path / "none"), "make it first")
        with mounted(tmp_path / "taken", "-t", "tmpfs", "tmpfs"):
            one_line(cli("mount", small, tmp_path / "taken"), 1, str(tmp_path / "taken"), "pullpipe umount")
        assert cli("ps", "-q").stdout == ""

    def test_image_in_use(self, cli: Cli, tmp_path: Path, small: str) -> None:
        """A mounted image is not removed, nor the mount's record; the remedies work, in the order given."""
        assert cli("pull", "-q", small).returncode == 0
        (tmp_path / "point").mkdir()
        assert cli("mount", small, tmp_path / "point").returncode == 0
        try:
            one_line(cli("rmi", small), 1, small, "used by")
            one_line(cli("rm", cli("ps", "-q").stdout.strip()), 1, f"pullpipe umount {tmp_path / 'point'}")
        finally:
            assert cli("umount", tmp_path / "point").returncode == 0
        assert cli("rmi", small).returncode == 0

    def test_load(self, refused: Refused, tmp_path: Path) -> None:
        """What is no image, in all its forms."""
        (tmp_path / "empty").mkdir()
        (tmp_path / "garbage").write_bytes(os.urandom(5000))
        (tmp_path / "nothing").touch()
        (tmp_path / "damaged.tar.gz").write_bytes(Layer([File("index.json", os.urandom(50_000))]).blob[:20_000])
        (tmp_path / "other.tar").write_bytes(Layer([File("x")], compression=None).blob)
        for name, words in {
            "missing": ("no such file",),
            "empty": ("no index.json, no manifest.json",),
            "garbage": ("not a tar archive",),
            "nothing": ("not a tar archive",),
            "damaged.tar.gz": ("truncated",),
            "other.tar": ("no index.json, no manifest.json",),
        }.items():
            refused("load", "-q", tmp_path / name, says=(str(tmp_path / name), *words))

    def test_load_from_a_stream(self, refused: Refused) -> None:
        """Nothing comes; the line says from where, in words that a user knows."""
        line = refused("load", "-q", "-", says=("not a tar archive", "standard input"))
        assert "/proc/" not in line

    @pytest.mark.parametrize("what", ["manifest", "config", "layer"])
    def test_load_what_is_incomplete(self, refused: Refused, tmp_path: Path, what: str) -> None:
        """A layout from which a blob is missing, or in which it is damaged: the line says which."""
        write_layout(tmp_path / "layout", {"1": Image([Layer([File("x", os.urandom(3000))])])})
        [entry] = json.loads((tmp_path / "layout" / "index.json").read_bytes())["manifests"]
        blobs = tmp_path / "layout" / "blobs"
        digest = entry["digest"]
        if what != "manifest":
            manifest = json.loads((blobs / digest.replace(":", "/")).read_bytes())
            digest = manifest["config"]["digest"] if what == "config" else manifest["layers"][0]["digest"]
        blob = blobs / digest.replace(":", "/")
        data = blob.read_bytes()
        blob.unlink()
        refused("load", "-q", tmp_path / "layout", says=(digest, "incomplete"))
        blob.write_bytes(data[:-1] + b"~")
        refused("load", "-q", tmp_path / "layout", says=(digest, "damaged"))


class TestDamagedStore:
    """The remedy that the line names has to work."""

    @pytest.fixture
    def pulled(self, cli: Cli, small: str) -> str:
        done = cli("pull", "-q", small)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    @pytest.mark.parametrize(
        "text",
        [
            b"",
            b"[]",
            b"{}",
            b'{"manifests": 7}',
            b'{"manifests": [7]}',
            b'{"manifests": [{"annotations": {"dev.pullpipe.resolved": "sha256:0"}}]}',
            b"\xff\xfe\x00",
            b"[" * 100_000,
        ],
        ids=["empty", "list", "object", "number", "numbers", "entry", "binary", "deep"],
    )
    def test_index_that_is_none(self, cli: Cli, store_root: Path, text: bytes) -> None:
        assert cli("images").returncode == 0
        (store_root / "index.json").write_bytes(text)
        one_line(cli("images"), 1, str(store_root / "index.json"), "damaged", "pullpipe repair --remove")

    def test_index(self, cli: Cli, store_root: Path, small: str, pulled: str) -> None:
        """It is not overwritten: what was in it might still be rescued. Removed, it comes back with the next pull."""
        index = store_root / "index.json"
        index.write_bytes(b"garbage")
        for command in (("images",), ("pull", "-q", small), ("rmi", small), ("inspect", small)):
            one_line(cli(*command), 1, str(index), "damaged", "pullpipe repair --remove")
        one_line(cli("run", "-q", small), 125, str(index), "damaged")
        assert index.read_bytes() == b"garbage"
        index.unlink()
        done = cli("pull", "-q", small)
        assert (done.returncode, done.stdout.strip()) == (0, pulled), done.stderr
        assert len(json.loads(cli("images", "--format", "json").stdout)) == 1

    @pytest.mark.parametrize("what", ["manifest", "config"])
    def test_document(self, cli: Cli, store_root: Path, small: str, pulled: str, what: str) -> None:
        """One damaged document: `inspect` says which image it is, and both remedies work."""
        blob = self.document(store_root, pulled, what)
        good = blob.read_bytes()
        damaged = b"{" + good[1:-1] + b" "
        blob.write_bytes(damaged)
        one_line(cli("inspect", small), 1, blob.name, "damaged", "pullpipe repair", small)
        assert cli("pull", "-q", small).stdout.strip() == pulled
        assert blob.read_bytes() == good
        blob.write_bytes(damaged)
        assert cli("rmi", small).stdout == f"{small}\n"
        done = cli("pull", "-q", small)
        assert (done.returncode, done.stdout.strip()) == (0, pulled), done.stderr
        assert cli("inspect", small).returncode == 0

    @pytest.mark.parametrize("what", ["manifest", "config"])
    def test_missing_document(self, cli: Cli, store_root: Path, small: str, pulled: str, what: str) -> None:
        """`inspect` says to pull again, and that works."""
        blob = self.document(store_root, pulled, what)
        blob.unlink()
        one_line(cli("inspect", small), 1, blob.name, "not in the store", "pull the image again")
        done = cli("pull", "-q", small)
        assert (done.returncode, done.stdout.strip()) == (0, pulled), done.stderr
        assert cli("inspect", small).returncode == 0

    def test_stack_record(self, cli: Cli, store_root: Path, tmp_path: Path, small: str, pulled: str) -> None:
        [record] = (store_root / "stacks").glob("*/*/stack.json")
        record.write_bytes(b"")
        (tmp_path / "point").mkdir()
        one_line(cli("mount", small, tmp_path / "point"), 1, str(record), "damaged", "pullpipe repair")
        assert cli("ps", "-q").stdout == ""
        assert cli("rmi", small).returncode == 0
        assert cli("pull", "-q", small).stdout.strip() == pulled
        assert cli("inspect", small).returncode == 0

    def test_layer_blob(self, cli: Cli, store_root: Path, tmp_path: Path, small: str, pulled: str) -> None:
        """`unpack` reads the blob: a damaged one is found, and the remedy that the line names works."""
        manifest = json.loads(self.document(store_root, pulled, "manifest").read_bytes())
        digest = manifest["layers"][0]["digest"]
        blob = store_root / "blobs" / digest.replace(":", "/")
        blob.write_bytes(blob.read_bytes()[:-8] + bytes(8))
        one_line(cli("unpack", "-q", small, tmp_path / "one"), 1, digest, "damaged")
        assert cli("rmi", small).returncode == 0
        assert cli("pull", "-q", small).returncode == 0
        assert cli("unpack", "-q", small, tmp_path / "two").returncode == 0
        assert (tmp_path / "two" / "file").read_bytes() == b"good"

    def test_container_record(self, cli: Cli, store_root: Path, shell: str) -> None:
        """The line names the container, and `rm` removes it."""
        assert cli("run", "-q", "--name", "mine", shell).returncode == 0
        [record] = (store_root / "containers").glob("*/config.json")
        record.write_bytes(b"{")
        one_line(cli("ps"), 1, str(record), "damaged", f"pullpipe rm {record.parent.name}")
        done = cli("rm", record.parent.name)
        assert done.returncode == 0, done.stderr
        assert cli("ps", "-q").stdout == ""
        assert not record.parent.exists()

    @staticmethod
    def document(store_root: Path, manifest: str, what: str) -> Path:
        """The file of the manifest with this digest, or of its config."""
        path = store_root / "blobs" / manifest.replace(":", "/")
        if what == "config":
            path = store_root / "blobs" / json.loads(path.read_bytes())["config"]["digest"].replace(":", "/")
        return path
