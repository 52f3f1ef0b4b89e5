"""The embedded registry: an OCI image layout on disk, served to any client that can pull.

Guarantees: it only reads; it serves no file outside the layout's blobs, because only a valid `Digest` becomes a
path; index.json is read anew for each request, so an image added meanwhile is seen. It does not verify the blobs it
serves: whoever pulls must do that anyway, and knows which digest was asked for.

Follows the OCI distribution-spec 1.1: "Pull" (end-1 to end-3), "Listing Tags" (end-8) and "Error Codes"; and the
image-spec's image-layout.md. A layout does not say which repository a blob belongs to, so every name reaches every
blob by its digest; names matter only where tags are looked up.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path

from aiohttp import hdrs, web
from aiohttp.typedefs import Handler

from pullpipe.oci import DOCUMENT_LIMIT, INDEXES, MANIFESTS, OCI_INDEX, OCI_MANIFEST
from store.digest import Digest
from store.errors import InvalidDigest

_REF_NAME = "org.opencontainers.image.ref.name"

# distribution-spec, "Pulling manifests": the grammar of <name>.
_COMPONENT = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_NAME = rf"{_COMPONENT}(?:/{_COMPONENT})*"

# Seconds that a response still being sent may take when the server closes (aiohttp's own default is 60).
_SHUTDOWN_TIMEOUT = 1.0


class _Refused(Exception):
    """A request that gets an error of the distribution-spec instead of what it asked for."""

    def __init__(self, status: HTTPStatus, code: str, message: str) -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code, message

    def response(self) -> web.Response:
        body = {"errors": [{"code": self.code, "message": self.message}]}
        return web.json_response(body, status=self.status)


@dataclass(frozen=True)
class _Manifest:
    digest: Digest
    media_type: str
    body: bytes


@dataclass(frozen=True)
class _Layout:
    """What the registry needs of an OCI image layout. All methods block on the disk."""

    root: Path

    def references(self) -> dict[str, str]:
        """The digest of each image that index.json gives a reference name."""
        index = json.loads((self.root / "index.json").read_bytes())
        named = {}
        for descriptor in index["manifests"]:
            name = (descriptor.get("annotations") or {}).get(_REF_NAME)
            if name is not None:
                named[name] = descriptor["digest"]
        return named

    def tags(self, name: str) -> list[str]:
        """The tags of `name`, sorted as the spec wants them. Refused when there are none."""
        split = [reference.rpartition(":") for reference in self.references()]
        tags = sorted(tag for repository, _, tag in split if repository == name)
        if not tags:
            raise _Refused(HTTPStatus.NOT_FOUND, "NAME_UNKNOWN", f"no image is named {name}:TAG")
        return tags

    def blob(self, digest: Digest) -> Path:
        """The blob's file. Refused when the layout has none."""
        path = self.root / "blobs" / digest.algorithm / digest.hex
        if not path.is_file():
            raise _Refused(HTTPStatus.NOT_FOUND, "BLOB_UNKNOWN", f"no blob {digest}")
        return path

    def manifest(self, name: str, reference: str) -> _Manifest:
        """The manifest or index that `reference`, a tag or a digest, names. Refused when it names none."""
        unknown = _Refused(HTTPStatus.NOT_FOUND, "MANIFEST_UNKNOWN", f"no manifest {reference} in {name}")
        if ":" in reference:  # a tag has no colon
            digest = _parse_digest(reference)
        elif reference in self.tags(name):
            digest = Digest.parse(self.references()[f"{name}:{reference}"])
        else:
            raise unknown
        try:
            path = self.blob(digest)
        except _Refused as no_blob:
            raise unknown from no_blob
        if path.stat().st_size > DOCUMENT_LIMIT:  # a layer, most likely: not to be read into memory
            raise unknown
        body = path.read_bytes()
        media_type = _media_type(body)
        if media_type is None:
            raise unknown
        return _Manifest(digest, media_type, body)


def _parse_digest(text: str) -> Digest:
    try:
        return Digest.parse(text)
    except InvalidDigest as error:
        raise _Refused(HTTPStatus.BAD_REQUEST, "DIGEST_INVALID", str(error)) from error


def _media_type(body: bytes) -> str | None:
    """The media type of a manifest or an index; None for any other blob.

    OCI documents may leave `mediaType` out (image-spec, manifest.md and image-index.md); Docker's must have it. Not
    as strict as `pullpipe.oci.parse_document`: what an artifact or an odd image is good for, its puller decides.
    """
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        return None
    if not isinstance(document, dict):
        return None
    inferred = OCI_INDEX if "manifests" in document else OCI_MANIFEST if "layers" in document else None
    media_type = document.get("mediaType", inferred)
    return media_type if isinstance(media_type, str) and media_type in (INDEXES | MANIFESTS) else None


async def _get_base(request: web.Request) -> web.Response:
    # The header is what older Docker clients look for.
    return web.json_response({}, headers={"Docker-Distribution-Api-Version": "registry/2.0"})


@dataclass(frozen=True)
class _Pull:
    """The handlers of the pull endpoints. Each answers HEAD, too: aiohttp then sends the headers only."""

    layout: _Layout

    async def get_manifest(self, request: web.Request) -> web.Response:
        name, reference = request.match_info["name"], request.match_info["reference"]
        manifest = await asyncio.to_thread(self.layout.manifest, name, reference)
        return web.Response(
            body=manifest.body,
            headers={hdrs.CONTENT_TYPE: manifest.media_type, "Docker-Content-Digest": str(manifest.digest)},
        )

    async def get_blob(self, request: web.Request) -> web.FileResponse:
        digest = _parse_digest(request.match_info["digest"])
        path = await asyncio.to_thread(self.layout.blob, digest)
        # FileResponse answers Range with 206 or 416, and sends by sendfile.
        return web.FileResponse(
            path,
            headers={hdrs.CONTENT_TYPE: "application/octet-stream", "Docker-Content-Digest": str(digest)},
        )

    async def get_tags(self, request: web.Request) -> web.Response:
        name = request.match_info["name"]
        tags = await asyncio.to_thread(self.layout.tags, name)
        after = request.query.get("last", "")
        page = [tag for tag in tags if tag > after]
        if (limit := request.query.get("n", "")).isdecimal():
            page = page[: int(limit)]
        return web.json_response({"name": name, "tags": page})


def _application(layout: _Layout, on_request: Callable[[str, str], None] | None) -> web.Application:
    @web.middleware
    async def observe(request: web.Request, handler: Handler) -> web.StreamResponse:
        if on_request is not None:
            on_request(request.method, request.path)
        try:
            return await handler(request)
        except _Refused as refused:
            return refused.response()
        except (web.HTTPNotFound, web.HTTPMethodNotAllowed) as error:  # from aiohttp's router
            message = f"{request.method} {request.path} is not part of this read-only registry"
            return _Refused(HTTPStatus(error.status), "UNSUPPORTED", message).response()

    pull = _Pull(layout)
    application = web.Application(middlewares=[observe])
    application.add_routes(
        [
            web.get("/v2/", _get_base),
            web.get(rf"/v2/{{name:{_NAME}}}/manifests/{{reference}}", pull.get_manifest),
            web.get(rf"/v2/{{name:{_NAME}}}/blobs/{{digest}}", pull.get_blob),
            web.get(rf"/v2/{{name:{_NAME}}}/tags/list", pull.get_tags),
        ]
    )
    return application


@asynccontextmanager
async def serve(
    layout: Path,
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    on_request: Callable[[str, str], None] | None = None,
) -> AsyncIterator[str]:
    """Serves the OCI image layout at `layout` over plain HTTP, and yields `host:port`, until the block is left.

    The image `NAME:TAG` is the one whose reference name in index.json is exactly that. Port 0 takes a free one.
    `on_request` is called on the event loop with the method and the path of each request, before it is answered.

    Raises `OSError` when `layout` has no readable index.json or the address cannot be had, `ValueError` when
    index.json is not JSON.
    """
    served = _Layout(layout)
    await asyncio.to_thread(served.references)  # rather here than as a 500 to the first client
    runner = web.AppRunner(_application(served, on_request), access_log=None, shutdown_timeout=_SHUTDOWN_TIMEOUT)
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port).start()
        bound_host, bound_port = runner.addresses[0][:2]
        yield f"[{bound_host}]:{bound_port}" if ":" in bound_host else f"{bound_host}:{bound_port}"
    finally:
        await runner.cleanup()
