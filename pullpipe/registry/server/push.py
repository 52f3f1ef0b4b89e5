"""Pushing and removing (distribution-spec, "Push" and "Content Management").

A blob that arrives is committed at once, and leased (`store.leases`): no sweep removes it before its manifest comes.
So is a blob that was here already, when a client learns so by HEAD or by a mount. A manifest is accepted only if all
that it needs is here, and it and its entry in index.json are written while nothing can be swept; from then on the entry
keeps all of it. Blobs are not removed by themselves: that is the garbage collection's matter.
"""

from __future__ import annotations

import asyncio
import json
import re
from http import HTTPStatus

from aiohttp import hdrs, web

from pullpipe.errors import InvalidDocument
from pullpipe.oci import DOCUMENT_LIMIT, MANIFESTS
from pullpipe.outline import Outline
from pullpipe.reference import TAG
from pullpipe.registry.server.catalog import Catalog
from pullpipe.registry.server.pull import DIGEST_HEADER, NAME
from pullpipe.registry.server.refusals import Refused, parse_digest
from pullpipe.registry.server.uploads import Upload, Uploads, read
from store import Digest, InUse, Store

_NAME_LIMIT = 255  # characters, as clients have it
_RANGE = re.compile(r"(?:bytes[ =])?(\d{1,18})-(\d{1,18})(?:/.*)?")

UPLOADS = f"{NAME}/blobs/uploads{{slash:/?}}"
UPLOAD = f"{NAME}/blobs/uploads/{{upload}}"


class Push:
    """The handlers."""

    def __init__(self, store: Store, catalog: Catalog) -> None:
        self._store = store
        self._catalog = catalog
        self._uploads = Uploads(store)

    def routes(self) -> list[web.RouteDef]:
        return [
            web.post(UPLOADS, self._start),
            web.get(UPLOAD, self._status),
            web.patch(UPLOAD, self._chunk),
            web.put(UPLOAD, self._finish),
            web.delete(UPLOAD, self._cancel),
            web.put(f"{NAME}/manifests/{{reference}}", self._put_manifest),
            web.delete(f"{NAME}/manifests/{{reference}}", self._delete_manifest),
            web.delete(f"{NAME}/blobs/{{digest}}", self._delete_blob),
        ]

    async def close(self) -> None:
        """Forgets all uploads."""
        await self._uploads.close()

    def lease(self, digest: Digest) -> bool:
        """Has the blob stay, if it is here, and says whether it is."""
        with self._store.shared():
            if digest not in self._store.blobs:
                return False
            self._store.leases.grant(digest)
            return True

    async def _start(self, request: web.Request) -> web.Response:
        name = _checked_name(request)
        if mount := request.query.get("mount"):
            digest = parse_digest(mount)
            if await asyncio.to_thread(self.lease, digest):  # from whichever repository: blobs are everybody's
                return _created(name, digest)
        if wanted := request.query.get("digest"):
            digest = parse_digest(wanted)
            identifier, upload = await self._uploads.start(name)
            try:
                return await self._complete(request, name, identifier, upload, digest)
            finally:
                await self._uploads.end(name, identifier)  # nobody knows its name
        identifier, upload = await self._uploads.start(name)
        return web.Response(status=202, headers=_progress(name, identifier, upload))

    async def _status(self, request: web.Request) -> web.Response:
        name, identifier = request.match_info["name"], request.match_info["upload"]
        upload = self._uploads.find(name, identifier)
        return web.Response(status=204, headers=_progress(name, identifier, upload))

    async def _chunk(self, request: web.Request) -> web.Response:
        name, identifier = request.match_info["name"], request.match_info["upload"]
        upload = self._uploads.find(name, identifier)
        async with upload.busy:
            await self._receive(request, name, identifier, upload)
        return web.Response(status=202, headers=_progress(name, identifier, upload))

    async def _finish(self, request: web.Request) -> web.Response:
        name, identifier = request.match_info["name"], request.match_info["upload"]
        upload = self._uploads.find(name, identifier)
        return await self._complete(request, name, identifier, upload, parse_digest(request.query.get("digest", "")))

    async def _complete(
        self, request: web.Request, name: str, identifier: str, upload: Upload, digest: Digest
    ) -> web.Response:
        async with upload.busy:
            await self._receive(request, name, identifier, upload)
            try:
                await asyncio.to_thread(upload.commit, self._store, digest)
            finally:
                await self._uploads.end(name, identifier)
        return _created(name, digest)

    async def _cancel(self, request: web.Request) -> web.Response:
        name, identifier = request.match_info["name"], request.match_info["upload"]
        self._uploads.find(name, identifier)
        await self._uploads.end(name, identifier)
        return web.Response(status=204)

    async def _receive(self, request: web.Request, name: str, identifier: str, upload: Upload) -> None:
        """Appends the request's body to the upload, if that is where it goes on."""
        expected = _chunk_size(request, upload, _progress(name, identifier, upload))
        try:
            received = await upload.receive(request.content)
        except ConnectionError:
            raise  # what came stays: the client may go on from there
        except OSError:
            await self._uploads.end(name, identifier)  # it would be in the way of whatever makes room
            raise
        if expected not in (None, received):
            await self._uploads.end(name, identifier)
            raise _wrong_size()

    async def _put_manifest(self, request: web.Request) -> web.Response:
        name, reference = _checked_name(request), request.match_info["reference"]
        stated = parse_digest(reference) if ":" in reference else None
        if stated is None and not TAG.fullmatch(reference):
            raise _invalid(f"{reference[:200]!r} is no valid tag")
        data = b""
        while piece := await read(request.content):
            data += piece
            if max(len(data), request.content_length or 0) > DOCUMENT_LIMIT:
                message = f"a manifest may have {DOCUMENT_LIMIT} bytes"
                raise Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "SIZE_INVALID", message)
        media_type = request.headers.get(hdrs.CONTENT_TYPE, "")
        tag = "" if stated else reference
        digest, outline = await asyncio.to_thread(self._keep_manifest, name, tag, stated, data, media_type)
        subject = {"OCI-Subject": str(outline.subject)} if outline.subject else {}
        headers = {hdrs.LOCATION: f"/v2/{name}/manifests/{digest}", DIGEST_HEADER: str(digest), **subject}
        return web.Response(status=201, headers=headers)

    def _keep_manifest(
        self, name: str, tag: str, stated: Digest | None, data: bytes, media_type: str
    ) -> tuple[Digest, Outline]:
        digest = stated or Digest.of(data)
        if not digest.matches(data):
            raise Refused(HTTPStatus.BAD_REQUEST, "DIGEST_INVALID", f"the manifest does not have the digest {digest}")
        outline = _outline(data, media_type)
        with self._store.shared():
            needed = [part for part in (*outline.manifests, *outline.blobs) if not part.fields.get("urls")]
            missing = [part.digest for part in needed if part.digest not in self._store.blobs]
            if missing:
                message = f"the manifest needs {', '.join(map(str, missing[:10]))}, which must be pushed before it"
                raise Refused(HTTPStatus.NOT_FOUND, "MANIFEST_BLOB_UNKNOWN", message)
            with self._store.blobs.document(digest, data) as document:
                self._store.publish([document], [])
            try:
                self._store.images.push(name, tag, digest, outline.media_type, len(data))
            except InUse as error:
                raise Refused(HTTPStatus.FORBIDDEN, "DENIED", str(error)) from error
        return digest, outline

    async def _delete_manifest(self, request: web.Request) -> web.Response:
        name, reference = request.match_info["name"], request.match_info["reference"]
        images = self._store.images
        if ":" in reference:
            gone = await asyncio.to_thread(images.withdraw, name, parse_digest(reference))
        else:
            gone = await asyncio.to_thread(images.untag, name, reference)
        if not gone:
            await asyncio.to_thread(self._catalog.document, name, "", reference)  # or refused, for it is not there
            raise _unsupported(
                f"{name} was pulled, or another image needs this: `pullpipe rmi` removes what was pulled"
            )
        return web.Response(status=202)

    async def _delete_blob(self, request: web.Request) -> web.Response:
        digest = parse_digest(request.match_info["digest"])
        await asyncio.to_thread(self._catalog.blob, digest)
        raise _unsupported("blobs go by themselves when no manifest needs them any more")


def _chunk_size(request: web.Request, upload: Upload, progress: dict[str, str]) -> int | None:
    """The bytes of the body by its Content-Range; None without one. Raises `Refused` for a chunk out of turn."""
    stated = request.headers.get(hdrs.CONTENT_RANGE)
    if stated is None:
        return None
    chunk = _RANGE.fullmatch(stated)
    if chunk is None or int(chunk[2]) < int(chunk[1]):
        message = f"{stated[:200]!r} is no Content-Range: it should be FIRST-LAST"
        raise Refused(HTTPStatus.BAD_REQUEST, "BLOB_UPLOAD_INVALID", message)
    if int(chunk[1]) != upload.size:
        message = f"the upload has {upload.size} bytes, and the next chunk has to go on from there"
        raise Refused(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, "BLOB_UPLOAD_INVALID", message, progress)
    size = int(chunk[2]) + 1 - int(chunk[1])
    if request.content_length not in (None, size):
        raise _wrong_size()
    return size


def _wrong_size() -> Refused:
    return Refused(HTTPStatus.BAD_REQUEST, "SIZE_INVALID", "the body is not of the size that its Content-Range says")


def _progress(name: str, identifier: str, upload: Upload) -> dict[str, str]:
    # As Docker's registry says it: an upload without a byte has the range 0-0, too.
    return {
        hdrs.LOCATION: f"/v2/{name}/blobs/uploads/{identifier}",
        hdrs.RANGE: f"0-{max(upload.size - 1, 0)}",
        "Docker-Upload-UUID": identifier,
    }


def _created(name: str, digest: Digest) -> web.Response:
    headers = {hdrs.LOCATION: f"/v2/{name}/blobs/{digest}", DIGEST_HEADER: str(digest)}
    return web.Response(status=201, headers=headers)


def _outline(data: bytes, content_type: str) -> Outline:
    try:
        outline = Outline.of(data)
    except InvalidDocument as error:
        raise _invalid(str(error)) from error
    document = json.loads(data)
    if document.get("schemaVersion") != 2:
        raise _invalid(f"the manifest's schemaVersion is {str(document.get('schemaVersion'))[:20]}, not 2")
    if outline.media_type in MANIFESTS and not isinstance(document.get("config"), dict):
        raise _invalid("the manifest has no config")
    if content_type and content_type.partition(";")[0].strip() != outline.media_type:
        raise _invalid(f"the manifest is {outline.media_type}, and came as {content_type[:200]}")
    return outline


def _checked_name(request: web.Request) -> str:
    name = request.match_info["name"]
    if len(name) > _NAME_LIMIT:
        raise Refused(HTTPStatus.BAD_REQUEST, "NAME_INVALID", f"a name may have {_NAME_LIMIT} characters")
    return name


def _invalid(message: str) -> Refused:
    return Refused(HTTPStatus.BAD_REQUEST, "MANIFEST_INVALID", message)


def _unsupported(message: str) -> Refused:
    return Refused(HTTPStatus.METHOD_NOT_ALLOWED, "UNSUPPORTED", message, {hdrs.ALLOW: "GET, HEAD"})


async def read_only(request: web.Request) -> web.Response:
    """What a registry that takes no pushes says to one."""
    raise _unsupported("this registry is read-only; `pullpipe serve --writable` takes pushes")
