"""What a document of any kind leads to."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import pytest

from pullpipe.errors import InvalidDocument
from pullpipe.oci import DOCKER_LIST, DOCKER_MANIFEST, OCI_INDEX, OCI_MANIFEST, Descriptor
from pullpipe.outline import Outline, Part
from store import Digest

A, B, C = (Digest.of(name) for name in (b"a", b"b", b"c"))


def part(digest: Digest, **fields: Any) -> dict[str, Any]:
    return {"mediaType": "application/x", "digest": str(digest), "size": 1, **fields}


def outline(document: Any) -> Outline:
    return Outline.of(json.dumps(document).encode())


def digests(parts: Iterable[Part]) -> list[Digest]:
    return [found.digest for found in parts]


def test_a_manifest() -> None:
    found = outline({"schemaVersion": 2, "config": part(A), "layers": [part(B), part(C, urls=["https://x.example"])]})
    assert (found.media_type, digests(found.blobs), found.manifests) == (OCI_MANIFEST, [A, B, C], ())
    assert found.artifact_type == "application/x"  # its config's


def test_an_index() -> None:
    found = outline({"manifests": [part(A), part(B)], "annotations": {"a": "1", "b": 2}})
    assert (found.media_type, digests(found.manifests), found.blobs) == (OCI_INDEX, [A, B], ())
    assert (found.artifact_type, found.annotations) == ("", {"a": "1"})


def test_an_artifact() -> None:
    """Its own word for what it is goes before the config's. An empty list may be null, as Go's encoder writes it."""
    found = outline({"config": part(A), "layers": None, "artifactType": "application/y", "subject": part(B)})
    assert (found.artifact_type, found.subject, digests(found.blobs)) == ("application/y", B, [A])


def test_what_an_index_lists() -> None:
    """Entries of other media types, or of none, may be anything."""
    types = {OCI_MANIFEST: True, DOCKER_LIST: True, "application/vnd.example.new+json": False, "": False}
    odd = [{"digest": str(A)}, {"digest": str(A), "mediaType": []}]
    found = outline({"manifests": [*(part(A, mediaType=one) for one in types), *odd]})
    assert [one.is_document for one in found.manifests] == [*types.values(), False, False]


def test_a_descriptor() -> None:
    """Whoever needs more of it than the digest has it parsed strictly; only then is it an error that it is odd."""
    good, odd = outline({"layers": [part(A, urls=["https://x.example"]), part(B, size="x")]}).blobs
    assert good.descriptor() == Descriptor("application/x", A, 1, urls=("https://x.example",))
    with pytest.raises(InvalidDocument, match=r"layers\[1\]\.size"):
        odd.descriptor()


@pytest.mark.parametrize(
    ("media_type", "field"), [(OCI_INDEX, "manifests"), (DOCKER_LIST, "manifests"), (DOCKER_MANIFEST, "layers")]
)
def test_its_own_media_type(media_type: str, field: str) -> None:
    assert outline({"mediaType": media_type, field: []}).media_type == media_type


@pytest.mark.parametrize(
    "document",
    [
        [],
        {},
        {"manifests": [], "layers": []},
        {"manifests": [], "config": part(A)},
        {"mediaType": OCI_MANIFEST, "manifests": []},
        {"mediaType": OCI_INDEX, "layers": []},
        {"mediaType": "text/html", "layers": []},
        {"mediaType": [], "layers": []},
        {"layers": "x"},
        {"layers": ["x"]},
        {"layers": [{}]},
        {"layers": [{"digest": "sha256:../../x"}]},
        {"layers": [], "config": "x"},
        {"layers": [], "subject": {"digest": 1}},
        {"layers": [], "annotations": ["x"]},
        {"manifests": {"digest": str(A)}},
    ],
)
def test_what_is_none(document: Any) -> None:
    with pytest.raises(InvalidDocument):
        outline(document)


@pytest.mark.parametrize("data", [b"", b"\xff", b"[" * 100_000, b"{"])
def test_what_is_no_json(data: bytes) -> None:
    with pytest.raises(InvalidDocument, match="not JSON"):
        Outline.of(data)
