"""The registry client against registries that keep to the protocol, and registries that do not.

Real TLS, HTTP and sockets throughout: Debian's docker-registry, `FaultyRegistry`, and below, for what neither does, a
few lines of a server for each test.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import traceback
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from pullpipe.errors import (
    NotFound,
    PullpipeError,
    TransferError,
    Unauthorized,
    UnexpectedAnswer,
    Unreachable,
    VerificationError,
)
from pullpipe.oci import OCI_LAYER, OCI_MANIFEST, Descriptor
from pullpipe.reference import Reference
from pullpipe.registry.client import Network, RegistryClient
from pullpipe.registry.credentials import Credentials, Keyring
from pullpipe.registry.hosts import origin
from pullpipe.transports import Document
from store import Digest
from tests.conftest import require
from tests.support.hostile import BASIC, PASSWORD, STORAGE_ADDRESS, USER, Fault, FaultyRegistry
from tests.support.images import File, Image, Layer, write_layout
from tests.support.registry import Registry
from tests.support.serving import Handler, serving

GOOD = Credentials(USER, PASSWORD)
MANIFEST = json.dumps({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "layers": []}).encode()


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A layout with an image `1` of one incompressible layer."""
    layout = tmp_path_factory.mktemp("layout")
    write_layout(layout, {"1": Image([Layer([File("x", os.urandom(100_000))])])})
    return layout


@pytest.fixture(scope="module")
def manifest(layout: Path) -> tuple[Digest, bytes]:
    """The image's manifest."""
    [entry] = json.loads((layout / "index.json").read_bytes())["manifests"]
    digest = Digest.parse(entry["digest"])
    return digest, (layout / "blobs" / "sha256" / digest.hex).read_bytes()


@pytest.fixture(scope="module")
def layer(layout: Path, manifest: tuple[Digest, bytes]) -> tuple[Descriptor, bytes]:
    """The image's layer."""
    [fields] = json.loads(manifest[1])["layers"]
    descriptor = Descriptor.from_json(fields, "layer")
    return descriptor, (layout / "blobs" / "sha256" / descriptor.digest.hex).read_bytes()


def client(host: str, *, plain_http: bool = True, credentials: Credentials | None = None) -> RegistryClient:
    """A client for the image `a/b:1` there."""
    reference = Reference.parse(f"{host}/a/b:1")
    network = Network(Keyring(given=credentials, registry=reference.registry), retries=0)
    return RegistryClient(reference, [origin(reference, plain_http=plain_http)], network)


def document(host: str, wanted: str = "1", *, credentials: Credentials | None = None) -> Document:
    """The manifest, through a client of its own."""

    async def ask() -> Document:
        async with client(host, credentials=credentials) as one:
            return await one.document(wanted)

    return asyncio.run(ask())


def blob(host: str, descriptor: Descriptor, offset: int = 0, *, credentials: Credentials | None = None) -> bytes:
    """The blob's bytes from there on, through a client of its own."""

    async def ask() -> bytes:
        async with client(host, credentials=credentials) as one:
            return await read(one, descriptor, offset)

    return asyncio.run(ask())


async def read(one: RegistryClient, descriptor: Descriptor, offset: int = 0) -> bytes:
    async with one.blob(descriptor, offset) as pieces:
        return b"".join([piece async for piece in pieces])


def asked(handler: Handler, ask: Callable[[str], Coroutine[Any, Any, Any]]) -> Any:
    """What `ask(host)` returns with such a server running."""

    async def main() -> Any:
        async with serving(handler) as host:
            return await ask(host)

    return asyncio.run(main())


def descriptor_of(data: bytes) -> Descriptor:
    return Descriptor(OCI_LAYER, Digest.of(data), len(data))


class TestDocuments:
    def test_resolve_by_head(self, layout: Path, manifest: tuple[Digest, bytes]) -> None:
        """A tag costs one request without a body."""

        async def resolve(host: str) -> Digest:
            async with client(host) as one:
                return await one.resolve("1")

        with FaultyRegistry(layout) as faulty:
            assert asyncio.run(resolve(faulty.host)) == manifest[0]
            assert [(request.method, request.path) for request in faulty.requests] == [("HEAD", "/v2/a/b/manifests/1")]

    def test_resolve_a_digest(self, layout: Path, manifest: tuple[Digest, bytes]) -> None:
        """It names itself, and costs no request."""

        async def resolve(host: str) -> Digest:
            async with client(host) as one:
                return await one.resolve(str(manifest[0]))

        with FaultyRegistry(layout) as faulty:
            assert asyncio.run(resolve(faulty.host)) == manifest[0]
            assert faulty.requests == []

    def test_no_head(self, layout: Path, manifest: tuple[Digest, bytes]) -> None:
        """The manifest itself tells, and is not fetched a second time."""

        async def both(host: str) -> tuple[Digest, Document]:
            async with client(host) as one:
                return await one.resolve("1"), await one.document("1")

        with FaultyRegistry(layout, {Fault.NO_HEAD}) as faulty:
            resolved, document = asyncio.run(both(faulty.host))
            assert len([request for request in faulty.requests if request.method == "GET"]) == 1
        assert (resolved, document.digest, document.data) == (manifest[0], *manifest)

    @pytest.mark.parametrize("wanted", ["1", str(Digest.of(MANIFEST)), str(Digest.of(MANIFEST, "sha512"))])
    def test_no_digest_header(self, wanted: str) -> None:
        """A registry need not say the digest; by what was asked, or by the bytes, it is known."""

        async def handler(request: web.BaseRequest) -> web.Response:
            return web.Response(body=MANIFEST, content_type=OCI_MANIFEST)

        async def ask(host: str) -> tuple[Digest, Document]:
            async with client(host) as one:
                return await one.resolve(wanted), await one.document(wanted)

        resolved, document = asked(handler, ask)
        assert document.data == MANIFEST
        assert document.media_type == OCI_MANIFEST
        assert resolved == document.digest == (Digest.parse(wanted) if ":" in wanted else Digest.of(MANIFEST))

    @pytest.mark.parametrize("by_digest", [False, True])
    def test_wrong_manifest(self, layout: Path, manifest: tuple[Digest, bytes], by_digest: bool) -> None:
        """What was asked for by digest has it, and what came with a digest has that."""
        with (
            FaultyRegistry(layout, {Fault.WRONG_MANIFEST}) as faulty,
            pytest.raises(VerificationError, match=manifest[0].hex),
        ):
            document(faulty.host, str(manifest[0]) if by_digest else "1")

    def test_header_that_lies_about_a_digest(self) -> None:
        """Asked for by digest, that digest counts, whatever the registry says of what it sends."""
        other = MANIFEST + b"\n"

        async def handler(request: web.BaseRequest) -> web.Response:
            return web.Response(body=other, headers={"Docker-Content-Digest": str(Digest.of(other))})

        async def ask(host: str) -> Document:
            async with client(host) as one:
                return await one.document(str(Digest.of(MANIFEST)))

        with pytest.raises(VerificationError):
            asked(handler, ask)

    @pytest.mark.parametrize("stated", ["sha256:../../etc/passwd", "sha256:12", "md5:" + 32 * "0", "nonsense"])
    def test_header_that_is_no_digest(self, stated: str) -> None:
        """A digest becomes a path, so it is checked before anything is done with it."""

        async def handler(request: web.BaseRequest) -> web.Response:
            return web.Response(body=MANIFEST, headers={"Docker-Content-Digest": stated})

        async def resolve(host: str) -> Digest:
            async with client(host) as one:
                return await one.resolve("1")

        async def fetch(host: str) -> Document:
            async with client(host) as one:
                return await one.document("1")

        for ask in (resolve, fetch):
            with pytest.raises(UnexpectedAnswer, match="invalid digest"):
                asked(handler, ask)

    def test_endless_manifest(self) -> None:
        """Nobody's memory is filled: reading stops at a limit."""
        sent = 0

        async def handler(request: web.BaseRequest) -> web.StreamResponse:
            nonlocal sent
            response = web.StreamResponse()
            await response.prepare(request)
            while True:
                await response.write(bytes(1 << 20))
                sent += 1 << 20

        async def ask(host: str) -> Document:
            async with client(host) as one:
                return await one.document("1")

        with pytest.raises(UnexpectedAnswer, match="larger than"):
            asked(handler, ask)
        assert sent < 64 << 20

    def test_manifest_that_breaks_off(self) -> None:
        async def handler(request: web.BaseRequest) -> web.StreamResponse:
            response = web.StreamResponse()
            response.content_length = 1000
            await response.prepare(request)
            await response.write(MANIFEST)
            assert request.transport is not None
            request.transport.close()
            return response

        async def ask(host: str) -> Document:
            async with client(host) as one:
                return await one.document("1")

        with pytest.raises(TransferError, match="broke off"):
            asked(handler, ask)

    def test_what_is_accepted(self, layout: Path) -> None:
        """All that can be parsed is asked for, indexes too, or a registry converts what it has to schema 1."""
        with FaultyRegistry(layout) as faulty:
            document(faulty.host)
            [request] = faulty.arrived("/manifests/")
        kinds = {kind.strip() for kind in request.headers["Accept"].split(",")}
        assert kinds == {
            "application/vnd.oci.image.index.v1+json",
            "application/vnd.oci.image.manifest.v1+json",
            "application/vnd.docker.distribution.manifest.list.v2+json",
            "application/vnd.docker.distribution.manifest.v2+json",
        }

    def test_real_registry(self, registry: Registry, layout: Path, manifest: tuple[Digest, bytes]) -> None:
        host, _, _ = registry.push(layout, "1", to="a/b:1").partition("/")
        assert document(host) == Document(manifest[1], OCI_MANIFEST, manifest[0])
        with pytest.raises(NotFound, match=f"{host}/a/b:2.*manifest unknown"):
            document(host, "2")


class TestBlobs:
    def test_whole(self, registry: Registry, layout: Path, layer: tuple[Descriptor, bytes]) -> None:
        host, _, _ = registry.push(layout, "1", to="a/b:1").partition("/")
        assert blob(host, layer[0]) == layer[1]
        assert blob(host, layer[0], 5000) == layer[1][5000:]

    def test_range_honoured(self, layout: Path, layer: tuple[Descriptor, bytes]) -> None:
        """One request, for the rest alone."""
        with FaultyRegistry(layout) as faulty:
            assert blob(faulty.host, layer[0], 5000) == layer[1][5000:]
            [request] = faulty.arrived("/blobs/")
        assert request.headers["Range"] == "bytes=5000-"

    def test_no_range_from_the_start(self, layout: Path, layer: tuple[Descriptor, bytes]) -> None:
        """A whole blob is asked for as such: caches like that better."""
        with FaultyRegistry(layout) as faulty:
            assert blob(faulty.host, layer[0]) == layer[1]
            [request] = faulty.arrived("/blobs/")
        assert "Range" not in request.headers

    def test_range_ignored(self, layout: Path, layer: tuple[Descriptor, bytes]) -> None:
        """The answer is the whole blob: what comes before is passed over."""
        with FaultyRegistry(layout, {Fault.RANGE_IGNORED}) as faulty:
            assert blob(faulty.host, layer[0], 5000) == layer[1][5000:]
            assert len(faulty.arrived("/blobs/")) == 1

    def test_range_refused(self, layout: Path, layer: tuple[Descriptor, bytes]) -> None:
        """416: then all of it."""
        with FaultyRegistry(layout, {Fault.RANGE_REFUSED}) as faulty:
            assert blob(faulty.host, layer[0], 5000) == layer[1][5000:]

    def test_range_shifted(self, layout: Path, layer: tuple[Descriptor, bytes]) -> None:
        """Bytes from elsewhere are never passed on as those that were asked for."""
        with (
            FaultyRegistry(layout, {Fault.RANGE_SHIFTED}) as faulty,
            pytest.raises(UnexpectedAnswer, match=f"another part of blob {layer[0].digest}"),
        ):
            blob(faulty.host, layer[0], 5000)

    @pytest.mark.parametrize("content_range", [None, "bytes */100", "bytes 5-", "items 5-9/10", "bytes x-y/z"])
    def test_partial_answer_that_does_not_say_which_part(self, content_range: str | None) -> None:
        async def handler(request: web.BaseRequest) -> web.Response:
            headers = {} if content_range is None else {"Content-Range": content_range}
            return web.Response(status=206, body=b"56789", headers=headers)

        async def ask(host: str) -> object:
            async with client(host) as one:
                return await read(one, descriptor_of(b"0123456789"), 5)

        with pytest.raises(UnexpectedAnswer, match="another part"):
            asked(handler, ask)

    def test_encoding_that_is_only_said(self) -> None:
        """Some stores call a gzipped layer `Content-Encoding: gzip`. The digest is that of the bytes as they come."""
        data = Layer([File("x", b"data")]).blob
        accepted: list[str] = []

        async def handler(request: web.BaseRequest) -> web.Response:
            accepted.append(request.headers.get("Accept-Encoding", ""))
            return web.Response(body=data, headers={"Content-Encoding": "gzip"})

        async def ask(host: str) -> object:
            async with client(host) as one:
                return await read(one, descriptor_of(data))

        assert asked(handler, ask) == data
        assert accepted == ["identity"]

    def test_no_content_length(self, layout: Path, layer: tuple[Descriptor, bytes]) -> None:
        with FaultyRegistry(layout, {Fault.NO_CONTENT_LENGTH}) as faulty:
            assert blob(faulty.host, layer[0]) == layer[1]

    @pytest.mark.parametrize("fault", [Fault.TRUNCATED_BLOB, Fault.RESET_BLOB])
    def test_broken_connection(self, layout: Path, layer: tuple[Descriptor, bytes], fault: Fault) -> None:
        """An error, and not an end: with a Content-Length the difference is known."""
        with FaultyRegistry(layout, {fault}) as faulty, pytest.raises(TransferError, match="try again"):
            blob(faulty.host, layer[0])

    def test_html_error(self, layout: Path, layer: tuple[Descriptor, bytes]) -> None:
        """The status is told, the page is not."""
        with (
            FaultyRegistry(layout, {Fault.HTML_ERROR}) as faulty,
            pytest.raises(UnexpectedAnswer, match="500 Internal Server Error") as caught,
        ):
            blob(faulty.host, layer[0])
        assert "<" not in str(caught.value)

    def test_blob_unknown(self, layout: Path) -> None:
        with FaultyRegistry(layout) as faulty, pytest.raises(NotFound, match=f"{faulty.host} has no blob sha256:0000"):
            blob(faulty.host, Descriptor(OCI_LAYER, Digest("sha256", 64 * "0"), 10))

    def test_what_a_registry_says(self) -> None:
        """Its message reaches the user in part: on one line, without control characters, and no book."""
        message = "no\nline\rbreaks\x1b[31m" + 5000 * "x"

        async def handler(request: web.BaseRequest) -> web.Response:
            return web.json_response({"errors": [{"code": "DENIED", "message": message}]}, status=403)

        async def ask(host: str) -> object:
            async with client(host) as one:
                return await one.document("1")

        with pytest.raises(Unauthorized, match="nolinebreaks") as caught:
            asked(handler, ask)
        assert str(caught.value).isprintable()
        assert len(str(caught.value)) < 1000

    @pytest.mark.parametrize("body", [b"[]", b'{"errors": []}', b'{"errors": {}}', b'{"errors": [7]}', b"[" * 60_000])
    def test_error_document_that_is_none(self, body: bytes) -> None:
        """It changes nothing about the error that it came with."""

        async def handler(request: web.BaseRequest) -> web.Response:
            return web.Response(status=404, body=body, content_type="application/json")

        async def ask(host: str) -> object:
            async with client(host) as one:
                return await one.document("1")

        with pytest.raises(NotFound, match="check the name"):
            asked(handler, ask)


class TestBearer:
    def test_anonymous(self, layout: Path, manifest: tuple[Digest, bytes], layer: tuple[Descriptor, bytes]) -> None:
        """One token serves the manifest and the blobs; it is asked for without credentials."""

        async def both(host: str) -> tuple[Document, bytes]:
            async with client(host) as one:
                return await one.document("1"), await read(one, layer[0])

        with FaultyRegistry(layout, {Fault.BEARER}) as faulty:
            found, data = asyncio.run(both(faulty.host))
            [token] = faulty.arrived("^/token")
        assert (found.data, data) == (manifest[1], layer[1])
        assert "Authorization" not in token.headers
        assert "repository:a/b:pull" in token.path.replace("%3A", ":").replace("%2F", "/")
        assert "service=faulty" in token.path

    def test_credentials(self, layout: Path, manifest: tuple[Digest, bytes]) -> None:
        """They go to the token server, and never to the registry itself."""
        with FaultyRegistry(layout, {Fault.BEARER_WITH_CREDENTIALS}) as faulty:
            assert document(faulty.host, credentials=GOOD).data == manifest[1]
            [token] = faulty.arrived("^/token")
            assert token.headers["Authorization"] == BASIC
            assert BASIC not in [request.headers.get("Authorization") for request in faulty.arrived("^/v2/")]

    def test_credentials_wanted(self, layout: Path) -> None:
        with (
            FaultyRegistry(layout, {Fault.BEARER_WITH_CREDENTIALS}) as faulty,
            pytest.raises(Unauthorized, match="--creds USER:PASSWORD"),
        ):
            document(faulty.host)

    def test_credentials_refused(self, layout: Path) -> None:
        with (
            FaultyRegistry(layout, {Fault.BEARER_WITH_CREDENTIALS}) as faulty,
            pytest.raises(Unauthorized, match=f"{faulty.host} .*'{USER}'"),
        ):
            document(faulty.host, credentials=Credentials(USER, "guessed"))

    def test_expired_in_mid_pull(self) -> None:
        """Eight blobs find the token expired at the same time: one new token is fetched for all of them."""
        blobs = {str(Digest.of(bytes([number]))): bytes([number]) for number in range(8)}
        given: list[str] = []
        refused: list[str] = []

        async def handler(request: web.BaseRequest) -> web.Response:
            if request.path == "/token":
                given.append(f"token-{len(given)}")
                return web.json_response({"access_token": given[-1]})
            if not given or request.headers.get("Authorization") != f"Bearer {given[-1]}" or expired == given[-1]:
                refused.append(request.path)
                realm = f'Bearer realm="http://{request.host}/token",service="s",scope="repository:a/b:pull"'
                return web.Response(status=401, headers={"WWW-Authenticate": realm})
            return web.Response(body=blobs.get(request.path.rpartition("/")[2], MANIFEST))

        expired = ""

        async def ask(host: str) -> list[bytes]:
            nonlocal expired
            async with client(host) as one:
                await one.document("1")
                assert (given, len(refused)) == (["token-0"], 1)
                expired = "token-0"
                return await asyncio.gather(*(read(one, descriptor_of(data)) for data in blobs.values()))

        assert asked(handler, ask) == list(blobs.values())
        assert given == ["token-0", "token-1"]
        assert len(refused) == 1 + len(blobs)

    def test_new_token_that_is_no_better(self, layout: Path, layer: tuple[Descriptor, bytes]) -> None:
        """It is tried once, not for ever."""
        with FaultyRegistry(layout, {Fault.BEARER, Fault.EXPIRED_TOKEN}) as faulty:
            with pytest.raises(Unauthorized, match=layer[0].digest.hex):
                blob(faulty.host, layer[0])
            assert len(faulty.arrived("/blobs/")) <= 3

    @pytest.mark.parametrize(
        "challenge",
        ["Bearer", 'Bearer realm=""', 'Bearer realm="ftp://127.0.0.1/"', 'Bearer realm="/token"', "Bearer realm=x"],
    )
    def test_no_token_server(self, challenge: str) -> None:
        async def handler(request: web.BaseRequest) -> web.Response:
            return web.Response(status=401, headers={"WWW-Authenticate": challenge})

        async def ask(host: str) -> object:
            async with client(host) as one:
                return await one.document("1")

        with pytest.raises(UnexpectedAnswer, match="no token server"):
            asked(handler, ask)

    @pytest.mark.parametrize(
        ("status", "body"),
        [
            (200, b"<html>"),
            (200, b"[]"),
            (200, b"{}"),
            (200, b'{"token": 7}'),
            (200, b'{"token": "a\\r\\nX-Injected: yes"}'),
            (200, b'{"token": ""}'),
            (500, b""),
            (404, b"{}"),
        ],
    )
    def test_token_that_is_none(self, status: int, body: bytes) -> None:
        """The token server is to blame, and nothing of its making becomes a header."""

        async def handler(request: web.BaseRequest) -> web.Response:
            if request.path == "/token":
                return web.Response(status=status, body=body)
            realm = f'Bearer realm="http://{request.host}/token"'
            return web.Response(status=401, headers={"WWW-Authenticate": realm})

        async def ask(host: str) -> object:
            async with client(host) as one:
                return await one.document("1")

        with pytest.raises(UnexpectedAnswer, match=r"token server 127\.0\.0\.1"):
            asked(handler, ask)

    def test_two_headers(self) -> None:
        """A registry may send a WWW-Authenticate for each way that it knows; the first need not be ours."""

        async def handler(request: web.BaseRequest) -> web.Response:
            if request.headers.get("Authorization") == BASIC:
                return web.Response(body=MANIFEST)
            response = web.Response(status=401)
            response.headers.add("WWW-Authenticate", "Negotiate")
            response.headers.add("WWW-Authenticate", 'Basic realm="x"')
            return response

        async def ask(host: str) -> Document:
            async with client(host, credentials=GOOD) as one:
                return await one.document("1")

        assert asked(handler, ask).data == MANIFEST


class TestBasic:
    @pytest.fixture(scope="class", name="private")
    @classmethod
    def _private(cls, tmp_path_factory: pytest.TempPathFactory, layout: Path) -> Any:
        require("docker-registry")
        require("skopeo")
        with Registry(tmp_path_factory.mktemp("private"), users={USER: PASSWORD}) as registry:
            registry.push(layout, "1", to="a/b:1")
            yield registry

    def test_right(self, private: Registry, manifest: tuple[Digest, bytes], layer: tuple[Descriptor, bytes]) -> None:
        assert document(private.host, credentials=GOOD).data == manifest[1]
        assert blob(private.host, layer[0], 5000, credentials=GOOD) == layer[1][5000:]

    def test_missing(self, private: Registry) -> None:
        with pytest.raises(Unauthorized, match=r"needs authentication.*--creds USER:PASSWORD"):
            document(private.host)

    def test_wrong(self, private: Registry) -> None:
        with pytest.raises(Unauthorized, match=f"check the credentials of '{USER}'"):
            document(private.host, credentials=Credentials(USER, "guessed"))


class TestCredentialsStayHome:
    @pytest.mark.parametrize("fault", [Fault.BEARER, Fault.BEARER_WITH_CREDENTIALS])
    def test_redirect(self, layout: Path, layer: tuple[Descriptor, bytes], fault: Fault) -> None:
        """The registry's authorization does not go along to the store that it redirects to."""
        with FaultyRegistry(layout, {fault, Fault.REDIRECTED_BLOB}) as faulty:
            assert blob(faulty.host, layer[0], credentials=GOOD) == layer[1]
            assert "Authorization" in faulty.arrived("/blobs/", at=faulty.host)[-1].headers
            [stored] = faulty.arrived("/storage/", at=faulty.storage)
        assert "Authorization" not in stored.headers

    def test_redirected_range(self, layout: Path, layer: tuple[Descriptor, bytes]) -> None:
        """The range, though, goes along."""
        with FaultyRegistry(layout, {Fault.REDIRECTED_BLOB}) as faulty:
            assert blob(faulty.host, layer[0], 5000) == layer[1][5000:]

    def test_token_server_elsewhere(self) -> None:
        """No password goes over the network without TLS, even if the registry asks for that."""
        arrived: list[str] = []

        async def handler(request: web.BaseRequest) -> web.Response:
            arrived.append(request.path)
            # Not a loopback address, and yet this machine.
            realm = f'Bearer realm="http://{request.host.replace("127.0.0.1", "0.0.0.0")}/token"'
            return web.Response(status=401, headers={"WWW-Authenticate": realm})

        async def ask(host: str) -> object:
            async with client(host, credentials=GOOD) as one:
                return await one.document("1")

        with pytest.raises(Unauthorized, match="without TLS"):
            asked(handler, ask)
        assert "/token" not in arrived

    def test_token_server_that_redirects(self) -> None:
        arrived: list[web.BaseRequest] = []

        async def elsewhere(request: web.BaseRequest) -> web.Response:
            arrived.append(request)
            return web.json_response({"token": "t"})

        async def main() -> None:
            async with serving(elsewhere, STORAGE_ADDRESS) as other:

                async def handler(request: web.BaseRequest) -> web.Response:
                    if request.path == "/token":
                        assert request.headers["Authorization"] == BASIC
                        raise web.HTTPTemporaryRedirect(f"http://{other}/token")
                    realm = f'Bearer realm="http://{request.host}/token"'
                    return web.Response(status=401, headers={"WWW-Authenticate": realm})

                async with serving(handler) as host, client(host, credentials=GOOD) as one:
                    with pytest.raises(PullpipeError):
                        await one.document("1")

        asyncio.run(main())
        assert [request.headers.get("Authorization") for request in arrived] == [None]

    @pytest.mark.parametrize("trouble", ["refused", "redirects", "closes", "garbage", "token"])
    def test_no_password_in_errors(self, trouble: str) -> None:
        """Neither in an error nor in what caused it, plain or encoded."""

        async def handler(request: web.BaseRequest) -> web.StreamResponse:
            if "Authorization" not in request.headers:
                realm = f'Bearer realm="http://{request.host}/token"' if trouble == "token" else "Basic"
                return web.Response(status=401, headers={"WWW-Authenticate": realm})
            if trouble == "redirects":
                raise web.HTTPTemporaryRedirect(str(request.url))
            if trouble == "closes":
                assert request.transport is not None
                request.transport.close()
            if trouble == "garbage":
                assert isinstance(request.transport, asyncio.Transport)
                request.transport.write(b"garbage\r\n\r\n")
                request.transport.close()
            return web.Response(status=500 if trouble == "token" else 403)

        async def ask(host: str) -> object:
            async with client(host, credentials=GOOD) as one:
                return await one.document("1")

        with pytest.raises(TransferError) as caught:
            asked(handler, ask)
        shown = "".join(traceback.format_exception(caught.value)) + repr(caught.value)
        assert PASSWORD not in shown
        assert base64.b64encode(PASSWORD.encode()).decode().rstrip("=")[:-1] not in shown
        assert BASIC.partition(" ")[2] not in shown


class TestWhichProtocol:
    @pytest.mark.parametrize("plain_http", [False, True])
    def test_first_bytes(self, plain_http: bool) -> None:
        """On loopback TLS is tried first, unless the user says that there is none: then no handshake is sent."""
        firsts: list[bytes] = []

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            firsts.append(first := await reader.read(1))
            if first != b"\x16":  # a TLS record with a handshake
                await reader.readuntil(b"\r\n\r\n")
                writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(MANIFEST))
                writer.write(MANIFEST)
            writer.close()

        async def main() -> Document:
            server = await asyncio.start_server(serve, "127.0.0.1", 0)
            async with server:
                port = server.sockets[0].getsockname()[1]
                async with client(f"127.0.0.1:{port}", plain_http=plain_http) as one:
                    return await one.document("1")

        assert asyncio.run(main()).data == MANIFEST
        assert (firsts[0] == b"\x16") is not plain_http
        assert firsts[-1] == b"G"

    def test_loopback_falls_back_once(self, layout: Path, manifest: tuple[Digest, bytes]) -> None:
        """Which of the two it is, is found out once and for all of a pull's requests."""

        async def both(host: str) -> tuple[Digest, Document]:
            async with client(host, plain_http=False) as one:
                return await one.resolve("1"), await one.document("1")

        with FaultyRegistry(layout) as faulty:
            assert asyncio.run(both(faulty.host))[1].data == manifest[1]
            assert [request.path for request in faulty.requests] == 2 * ["/v2/a/b/manifests/1"]

    def test_no_fallback_elsewhere(self, layout: Path) -> None:
        """A registry on the network is never spoken to without TLS unless the user says so: no request arrives."""

        async def ask(host: str) -> object:
            async with client(host, plain_http=False, credentials=GOOD) as one:
                return await one.document("1")

        with FaultyRegistry(layout) as faulty:
            elsewhere = faulty.host.replace("127.0.0.1", "0.0.0.0")
            with pytest.raises(Unreachable, match="--plain-http"):
                asyncio.run(ask(elsewhere))
            assert faulty.requests == []

    def test_connection_refused(self) -> None:
        """The kernel's reason is told."""

        async def main() -> None:
            server = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
            port = server.sockets[0].getsockname()[1]
            server.close()
            await server.wait_closed()
            async with client(f"127.0.0.1:{port}") as one:
                await one.document("1")

        with pytest.raises(Unreachable, match="connection refused"):
            asyncio.run(main())

    def test_no_such_host(self) -> None:
        with pytest.raises(Unreachable, match=r"no such host: nosuch\.invalid"):
            document("nosuch.invalid")
