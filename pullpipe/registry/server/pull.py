"""Pulling and looking around (distribution-spec, "Pull" and "Content Discovery").

Each handler answers HEAD, too: aiohttp then sends the headers only.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urlencode

from aiohttp import hdrs, web
from aiohttp.abc import AbstractStreamWriter

from pullpipe.oci import OCI_INDEX
from pullpipe.reference import REPOSITORY
from pullpipe.registry.server.catalog import Catalog
from pullpipe.registry.server.refusals import parse_digest
from store.digest import Digest

DIGEST_HEADER = "Docker-Content-Digest"
_RANGE = re.compile(r"bytes=(?:[0-9]+-[0-9]*|-[0-9]+)")
NAME = rf"/v2/{{name:{REPOSITORY.pattern}}}"


class Pull:
    """The handlers. `seen` is called with each blob that a HEAD has found, before the answer."""

    def __init__(self, catalog: Catalog, seen: Callable[[Digest], object] | None = None) -> None:
        self._catalog = catalog
        self._seen = seen

    def routes(self) -> list[web.RouteDef]:
        return [
            web.get("/v2/", self._base),
            web.get("/v2", self._base),
            web.get("/v2/_catalog", self._repositories),
            web.get(f"{NAME}/manifests/{{reference}}", self._manifest),
            web.get(f"{NAME}/blobs/{{digest}}", self._blob),
            web.get(f"{NAME}/tags/list", self._tags),
            web.get(f"{NAME}/referrers/{{digest}}", self._referrers),
        ]

    async def _base(self, request: web.Request) -> web.Response:
        return web.json_response({})

    async def _manifest(self, request: web.Request) -> web.Response:
        name, namespace = _name(request)
        reference = request.match_info["reference"]
        document = await asyncio.to_thread(self._catalog.document, name, namespace, reference)
        headers = {DIGEST_HEADER: str(document.digest), **_spoken_for(namespace)}
        if _has(request, document.digest):
            return web.Response(status=304, headers=headers)
        return web.Response(body=document.data, headers={hdrs.CONTENT_TYPE: document.media_type, **headers})

    async def _blob(self, request: web.Request) -> web.StreamResponse:
        digest = parse_digest(request.match_info["digest"])
        if self._seen is not None and request.method == "HEAD":
            await asyncio.to_thread(self._seen, digest)
        path = await asyncio.to_thread(self._catalog.blob, digest)
        headers = {DIGEST_HEADER: str(digest)}
        if _has(request, digest):
            return web.Response(status=304, headers=headers)
        return _Blob(path, headers={hdrs.CONTENT_TYPE: "application/octet-stream", **headers})

    async def _tags(self, request: web.Request) -> web.Response:
        name, namespace = _name(request)
        tags = await asyncio.to_thread(self._catalog.tags, name, namespace)
        page, headers = _page(request, tags)
        return web.json_response({"name": name, "tags": page}, headers={**headers, **_spoken_for(namespace)})

    async def _repositories(self, request: web.Request) -> web.Response:
        page, headers = _page(request, await asyncio.to_thread(self._catalog.repositories))
        return web.json_response({"repositories": page}, headers=headers)

    async def _referrers(self, request: web.Request) -> web.Response:
        name, namespace = _name(request)
        subject = parse_digest(request.match_info["digest"])
        wanted = request.query.get("artifactType", "")
        index = await asyncio.to_thread(self._catalog.referrers, name, namespace, subject, wanted)
        applied = {"OCI-Filters-Applied": "artifactType"} if wanted else {}
        return web.Response(body=index, headers={hdrs.CONTENT_TYPE: OCI_INDEX, **applied})


class _Blob(web.FileResponse):
    """A blob's bytes, by sendfile; or the range of them that was asked for, by 206, or 416 if there is none.

    A Range that is not to be heeded is answered by the whole blob, as HTTP says (RFC 9110, 14.2). So are several at
    once: clients that ask for them (of zstd:chunked layers) make do with all of it, but not with aiohttp's refusal.
    """

    async def prepare(self, request: web.BaseRequest) -> AbstractStreamWriter | None:
        if hdrs.RANGE in request.headers and not self._heeds_range(request.headers):
            headers = request.headers.copy()
            del headers[hdrs.RANGE]
            request = request.clone(headers=headers)
        return await super().prepare(request)

    def _heeds_range(self, headers: Mapping[str, str]) -> bool:
        if not _RANGE.fullmatch(headers[hdrs.RANGE]):
            return False
        condition = headers.get(hdrs.IF_RANGE, "")
        return not condition.endswith('"') or condition == f'"{self.headers[DIGEST_HEADER]}"'  # dates are aiohttp's


async def describe(request: web.Request, response: web.StreamResponse) -> None:
    """Adds what all answers have in common; a signal handler."""
    response.headers["Docker-Distribution-Api-Version"] = "registry/2.0"  # older Docker clients look for it
    if digest := response.headers.get(DIGEST_HEADER):
        response.headers[hdrs.ETAG] = f'"{digest}"'


def _name(request: web.Request) -> tuple[str, str]:
    """The repository that is asked for, and the registry for which we are to speak; most often none."""
    return request.match_info["name"], request.query.get("ns", "")


def _spoken_for(namespace: str) -> dict[str, str]:
    # Only what was found comes here, so it is the name of a registry.
    return {"OCI-Namespace": namespace} if namespace else {}


def _has(request: web.Request, digest: Digest) -> bool:
    """Whether the client has it already, and only wants to know if it is still the same."""
    return any(tag.value in (str(digest), "*") for tag in request.if_none_match or ())


def _page(request: web.Request, names: list[str]) -> tuple[list[str], dict[str, Any]]:
    """Those after `?last=`, at most `?n=`, and the header that tells where there are more."""
    after = request.query.get("last", "")
    names = [name for name in names if name > after]
    limit = request.query.get("n", "")
    if not (limit.isascii() and limit.isdigit()) or len(names) <= int(limit[:9]):
        return names, {}
    page = names[: int(limit[:9])]
    if not page:
        return page, {}
    query = urlencode({**request.query, "n": limit, "last": page[-1]})
    return page, {"Link": f'<{request.path}?{query}>; rel="next"'}
