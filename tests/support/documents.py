"""OCI layouts of documents written by hand: any digest algorithm, indexes in indexes, fields that are odd or wrong."""

from __future__ import annotations

import hashlib
import json
from base64 import b64encode
from collections.abc import Mapping
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tests.support.images import CONFIG, INDEX, MANIFEST, REF_NAME, Image, Layer
from tests.support.registry import Registry

Descriptor = dict[str, Any]


class Sha512Layer(Layer):
    """A layer whose diffID is a sha512 digest."""

    @property
    def diff_id(self) -> str:
        return digest_of(self.tar, "sha512")


class Layout:
    """An OCI image layout that grows in the directory `path`. Every method returns a descriptor, as JSON has it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._tagged: list[Descriptor] = []
        self._documents: dict[str, str] = {}  # digest to media type, what is named before what names it
        path.mkdir(parents=True, exist_ok=True)
        (path / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
        self._write_index()

    def blob(self, data: bytes, media_type: str, *, algorithm: str = "sha256", **fields: object) -> Descriptor:
        """`fields` go into the descriptor besides."""
        digest = digest_of(data, algorithm)
        place = self._place(digest)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(data)
        return {"mediaType": media_type, "digest": digest, "size": len(data), **fields}

    def document(self, document: Mapping[str, Any], *, algorithm: str = "sha256", **fields: object) -> Descriptor:
        """A manifest or an index."""
        media_type = document.get("mediaType", MANIFEST)
        descriptor = self.blob(json.dumps(document).encode(), media_type, algorithm=algorithm, **fields)
        self._documents[descriptor["digest"]] = media_type
        return descriptor

    def manifest(self, image: Image, *, algorithm: str = "sha256", **changes: object) -> dict[str, Any]:
        """An image's manifest, not yet in the layout, with these fields changed; its blobs are written."""
        return {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": self.blob(image.config_blob, CONFIG, algorithm=algorithm),
            "layers": [self.blob(layer.blob, layer.media_type, algorithm=algorithm) for layer in image.layers],
            **changes,
        }

    def image(self, image: Image, *, algorithm: str = "sha256", unnamed: bool = False) -> Descriptor:
        """With the image's platform, unless it is to be `unnamed`."""
        fields = {} if unnamed else {"platform": image.platform_fields}
        return self.document(self.manifest(image, algorithm=algorithm), algorithm=algorithm, **fields)

    def index(self, *entries: Descriptor, algorithm: str = "sha256", **fields: object) -> Descriptor:
        document = {"schemaVersion": 2, "mediaType": INDEX, "manifests": entries}
        return self.document(document, algorithm=algorithm, **fields)

    def tag(self, descriptor: Descriptor, name: str = "1") -> Descriptor:
        """Gives it this name in the layout, in place of what had it."""
        self._tagged = [one for one in self._tagged if one["annotations"][REF_NAME] != name]
        self._tagged.append({**descriptor, "annotations": {REF_NAME: name}})
        self._write_index()
        return descriptor

    def remove(self, descriptor: Descriptor) -> None:
        """Takes the blob away that this describes."""
        self._place(descriptor["digest"]).unlink()

    def upload(self, registry: Registry, repository: str) -> str:
        """Pushes all of it to a real registry, byte for byte, and returns `host/repository:1`."""
        for path in sorted((self.path / "blobs").glob("*/*")):
            _, headers = _ask(registry, "POST", f"/v2/{repository}/blobs/uploads/")
            place = urlsplit(headers["Location"])
            wanted = f"{place.path}?{place.query}&digest={path.parent.name}:{path.name}"
            _ask(registry, "PUT", wanted, path.read_bytes())
        names = [(digest, media_type, digest) for digest, media_type in self._documents.items() if "sha256:" in digest]
        names += [(one["digest"], one["mediaType"], one["annotations"][REF_NAME]) for one in self._tagged]
        for digest, media_type, name in names:
            _ask(registry, "PUT", f"/v2/{repository}/manifests/{name}", self._place(digest).read_bytes(), media_type)
        return f"{registry.host}/{repository}:1"

    def _place(self, digest: str) -> Path:
        return self.path / "blobs" / digest.replace(":", "/")

    def _write_index(self) -> None:
        index = {"schemaVersion": 2, "mediaType": INDEX, "manifests": self._tagged}
        (self.path / "index.json").write_text(json.dumps(index))


def digest_of(data: bytes, algorithm: str = "sha256") -> str:
    return f"{algorithm}:{hashlib.new(algorithm, data).hexdigest()}"


def inlined(layout: Layout, descriptor: Descriptor) -> Descriptor:
    """The descriptor with the blob in it, and nowhere else."""
    place = layout.path / "blobs" / descriptor["digest"].replace(":", "/")
    data = place.read_bytes()
    place.unlink()
    return {**descriptor, "data": b64encode(data).decode()}


def _ask(
    registry: Registry, method: str, path: str, data: bytes = b"", media_type: str = "application/octet-stream"
) -> tuple[int, dict[str, str]]:
    connection = HTTPConnection("127.0.0.1", registry.port, timeout=20)
    try:
        connection.request(method, path, data, {"Content-Type": media_type})
        answer = connection.getresponse()
        said = answer.read()
        if answer.status not in (201, 202):
            raise RuntimeError(f"{method} {path}: {answer.status} {said!r}")
        return answer.status, dict(answer.headers)
    finally:
        connection.close()
