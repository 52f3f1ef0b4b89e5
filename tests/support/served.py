"""The embedded registry, in this process or as `pullpipe serve`, and bare HTTP requests to it.

http.client does not tidy up the paths that it sends.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlencode

from pullpipe.registry.server import serve
from store.digest import Digest

PROJECT = Path(__file__).parents[2]
_TIMEOUT = 30.0  # seconds


class Answer(NamedTuple):
    """What came back."""

    status: int
    headers: http.client.HTTPMessage
    body: bytes

    @property
    def error(self) -> str:
        """The one code of a distribution-spec error body."""
        assert self.headers["Content-Type"].startswith("application/json")
        (error,) = json.loads(self.body)["errors"]
        assert error["message"]
        return str(error["code"])

    @property
    def refusal(self) -> tuple[int, str]:
        return self.status, self.error

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Client:
    """Requests to a registry, each over a connection of its own. `headers` go with all of them."""

    def __init__(
        self, connect: Callable[[], http.client.HTTPConnection], headers: Mapping[str, str] | None = None
    ) -> None:
        self.connect = connect
        self.headers = dict(headers or {})

    def ask(self, path: str, method: str = "GET", body: Any = None, **headers: str) -> Answer:
        """One request; `Content_Type="…"` becomes a header."""
        connection = self.connect()
        try:
            named = {name.replace("_", "-"): value for name, value in headers.items()}
            connection.request(method, path, body, {**self.headers, **named})
            response = connection.getresponse()
            return Answer(response.status, response.headers, response.read())
        finally:
            connection.close()

    def push_blob(self, name: str, data: bytes, algorithm: str = "sha256") -> Digest:
        """By POST and PUT."""
        digest = Digest.of(data, algorithm)
        location = self.ask(f"/v2/{name}/blobs/uploads/", "POST").headers["Location"]
        answer = self.ask(f"{location}?{urlencode({'digest': str(digest)})}", "PUT", data)
        assert answer.status == 201, answer
        return digest

    def push_manifest(self, name: str, reference: str, document: Mapping[str, Any]) -> tuple[Digest, Answer]:
        """The document as JSON; its digest, and the answer."""
        data = json.dumps(document).encode()
        answer = self.ask(f"/v2/{name}/manifests/{reference}", "PUT", data, Content_Type=document["mediaType"])
        return Digest.of(data), answer

    def push_image(self, name: str, tag: str, *layers: bytes, **fields: Any) -> Digest:
        """Blobs, config and manifest; what is in them only matters to this test."""
        digest, answer = self.push_manifest(name, tag, self.manifest(name, *layers, **fields))
        assert answer.status == 201, answer
        return digest

    def manifest(self, name: str, *layers: bytes, **fields: Any) -> dict[str, Any]:
        """A manifest whose blobs have been pushed."""
        config = b'{"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": []}}'
        for data in (config, *layers):
            self.push_blob(name, data)
        return manifest(config, *layers, **fields)


def manifest(config: bytes, *layers: bytes, **fields: Any) -> dict[str, Any]:
    """An OCI manifest of these."""
    layer_type = "application/vnd.oci.image.layer.v1.tar"
    return {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": descriptor(config, "application/vnd.oci.image.config.v1+json"),
        "layers": [descriptor(layer, layer_type) for layer in layers],
        **fields,
    }


def descriptor(data: bytes, media_type: str) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": str(Digest.of(data)), "size": len(data)}


class Served(Client):
    """A running registry."""

    def __init__(self, process: subprocess.Popen[str], address: str, root: Path, tls: ssl.SSLContext | None) -> None:
        super().__init__(self._connection)
        self.process = process
        self.address = address
        self.root = root
        self._tls = tls

    def _connection(self) -> http.client.HTTPConnection:
        if self.address.startswith("/"):
            return _UnixConnection(self.address)
        if self._tls:
            return http.client.HTTPSConnection(self.address, timeout=_TIMEOUT, context=self._tls)
        return http.client.HTTPConnection(self.address, timeout=_TIMEOUT)

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        """The exit code."""
        self.process.send_signal(number)
        return self.process.wait(_TIMEOUT)


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=_TIMEOUT)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(_TIMEOUT)
        self.sock.connect(self._path)


class Running(Client):
    """The registry on an event loop in a thread of this process. `requests` are what it has been asked for."""

    def __init__(self, address: str, requests: list[tuple[str, str]]) -> None:
        super().__init__(lambda: http.client.HTTPConnection(address, timeout=_TIMEOUT))
        self.address = address
        self.requests = requests


@contextmanager
def running(layout: Path, **options: Any) -> Iterator[Running]:
    """The layout, served with these options of `serve`."""
    requests: list[tuple[str, str]] = []
    started: Future[tuple[str, asyncio.AbstractEventLoop, asyncio.Event]] = Future()

    async def main() -> None:
        try:
            async with serve(layout, on_request=lambda *request: requests.append(request), **options) as address:
                stop = asyncio.Event()
                started.set_result((address, asyncio.get_running_loop(), stop))
                await stop.wait()
        except BaseException as error:
            if not started.done():
                started.set_exception(error)
            raise

    thread = threading.Thread(target=asyncio.run, args=(main(),))
    thread.start()
    address, loop, stop = started.result(timeout=10)
    try:
        yield Running(address, requests)
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(timeout=10)
    assert not thread.is_alive()


@contextmanager
def served(
    root: Path, *options: str | Path, tls: ssl.SSLContext | None = None, prefix: Sequence[str] = ()
) -> Iterator[Served]:
    """`pullpipe --root ROOT serve`, on a free port unless the options say otherwise; killed after the block.

    Its stderr is the test's own. `prefix` is a program that starts it.
    """
    place = () if {"--listen", "--unix"} & {str(option) for option in options} else ("--listen", "127.0.0.1:0")
    command = [*prefix, sys.executable, "-m", "pullpipe", "--root", str(root), "serve", *place, *map(str, options)]
    with subprocess.Popen(command, cwd=PROJECT, stdout=subprocess.PIPE, text=True, start_new_session=True) as process:
        try:
            assert process.stdout is not None
            address = process.stdout.readline().strip()
            assert address, "it ended before it listened"
            yield Served(process, address, root, tls)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
