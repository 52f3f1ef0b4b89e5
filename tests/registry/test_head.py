"""The one HEAD that tells whether a tag has changed, against registries that answer it, and those that do not."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from pullpipe.reference import Reference
from pullpipe.registry.client import RegistryClient
from pullpipe.registry.head import head
from pullpipe.registry.hosts import Endpoint, Tls, origin
from store import Digest
from tests.conftest import PROJECT
from tests.support.hostile import Fault, FaultyRegistry
from tests.support.images import File, Image, Layer, write_layout
from tests.support.registry import Registry

TIMEOUT = 20.0  # seconds
DIGEST = "sha256:" + "a" * 64


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A layout with an image `1`."""
    layout = tmp_path_factory.mktemp("layout")
    write_layout(layout, {"1": Image([Layer([File("x")])])})
    return layout


@contextmanager
def answering(answer: bytes, address: str = "127.0.0.1") -> Iterator[str]:
    """A server that says this to whoever connects first, whatever they want; yields its `address:port`."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.create_server((address, 0), family=family) as server:

        def serve() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(64 << 10)
                connection.sendall(answer)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"[{address}]:{server.getsockname()[1]}" if ":" in address else f"{address}:{server.getsockname()[1]}"
        thread.join(5)


def asked(host: str) -> Digest | None:
    return head(origin(Reference.parse(f"{host}/a/b:1"), plain_http=True), "1", None, TIMEOUT)


def test_the_same_as_the_client(registry: Registry, layout: Path) -> None:
    """Of a real registry."""
    reference = Reference.parse(registry.push(layout, "1", to="head/same:1"))

    async def resolve() -> Digest:
        async with RegistryClient(reference) as client:
            return await client.resolve("1")

    plain, either = origin(reference, plain_http=True), origin(reference)
    assert head(plain, "1", None, TIMEOUT) == head(either, "1", None, TIMEOUT) == asyncio.run(resolve())


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
@pytest.mark.parametrize("name", ["Docker-Content-Digest", "docker-content-digest"])
def test_a_plain_answer(address: str, name: str) -> None:
    with answering(f"HTTP/1.1 200 OK\r\n{name}: {DIGEST}\r\n\r\n".encode(), address) as host:
        assert asked(host) == Digest.parse(DIGEST)


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n\r\n",
        f"HTTP/1.1 200 OK\r\nDocker-Content-Digest: {DIGEST}\r\nDocker-Content-Digest: {DIGEST}\r\n\r\n".encode(),
        f"HTTP/1.1 401 Unauthorized\r\nDocker-Content-Digest: {DIGEST}\r\n\r\n".encode(),
        f"HTTP/1.1 307 Moved\r\nDocker-Content-Digest: {DIGEST}\r\nLocation: /\r\n\r\n".encode(),
        f"SSH-2.0 200 OK\r\nDocker-Content-Digest: {DIGEST}\r\n\r\n".encode(),
        b"HTTP/1.1 200 OK\r\nDocker-Content-Digest: sha256:../../etc/passwd\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"x" * (128 << 10),
        b"\xff" * 1000,
    ],
)
def test_any_other_answer_is_none(answer: bytes) -> None:
    """And is left to the client, which says what is wrong."""
    with answering(answer) as host:
        assert asked(host) is None


@pytest.mark.parametrize("fault", [Fault.NO_HEAD, Fault.NAME_UNKNOWN, Fault.BEARER, Fault.HTML_ERROR])
def test_a_refusal_is_none(fault: Fault, layout: Path) -> None:
    with FaultyRegistry(layout, {fault}) as faulty:
        assert asked(faulty.host) is None


def test_nobody_there() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    assert asked(f"127.0.0.1:{port}") is None
    assert asked("no-such-host.invalid") is None


def test_no_secret_without_tls(layout: Path) -> None:
    """Where TLS is to be tried first, on the network, nothing is sent without it."""
    with FaultyRegistry(layout) as faulty:
        host = faulty.host.replace("127.0.0.1", "0.0.0.0")  # this machine, too, and not by that name
        insecure = Endpoint(host, host, "a/b", ("https", "http"), tls=Tls(verify=False))
        assert head(insecure, "1", "Bearer secret", TIMEOUT) is None
        assert faulty.requests == []
        assert head(insecure._replace(schemes=("http",)), "1", "Bearer secret", TIMEOUT) is not None


def test_an_answer_that_drips() -> None:
    """It is not waited for, although each byte comes soon."""

    def drip(connection: socket.socket) -> None:
        with connection, suppress(OSError):  # once the other side has hung up
            while True:
                connection.sendall(b"H")
                time.sleep(0.05)

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=lambda: drip(server.accept()[0]), daemon=True)
        thread.start()
        host = "127.0.0.1:{1}".format(*server.getsockname())
        assert head(origin(Reference.parse(f"{host}/a/b:1"), plain_http=True), "1", None, 0.5) is None
        thread.join(10)
        assert not thread.is_alive()


@pytest.mark.needs_root
def test_an_unchanged_tag_costs_no_import(registry: Registry, layout: Path, store_root: Path) -> None:
    """Neither aiohttp nor asyncio, for a tag as for a digest; and the answer is the same."""
    program = (
        "import sys; from pullpipe.cli import main\n"
        "code = main(sys.argv[1:])\n"
        "print(code, *sorted({'aiohttp', 'asyncio', 'ssl', 'http.client'} & sys.modules.keys()))"
    )

    def pull(reference: str) -> list[str]:
        command = [sys.executable, "-c", program, "--root", str(store_root), "pull", "--quiet", reference]
        done = subprocess.run(
            command, env={**os.environ, "PYTHONPATH": str(PROJECT)}, check=True, stdout=subprocess.PIPE, text=True
        )
        return done.stdout.splitlines()

    reference = registry.push(layout, "1", to="head/unchanged:1")
    digest, loaded = pull(reference)
    assert "aiohttp" in loaded
    assert pull(reference) == [digest, "0"]
    by_digest = reference.removesuffix(":1") + f"@{digest}"
    pull(by_digest)
    assert pull(by_digest) == [digest, "0"]
