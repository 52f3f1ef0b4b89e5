"""The embedded registry, as real clients and bare HTTP requests see it."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pullpipe.demo import DemoImage, build_image
from pullpipe.oci import DOCKER_LIST, DOCUMENT_LIMIT, OCI_INDEX, OCI_MANIFEST
from pullpipe.registry.server import serve
from store.digest import Digest
from tests.support.served import Running, running

needs_skopeo = pytest.mark.skipif(shutil.which("skopeo") is None, reason="needs skopeo")


def write_layout(layout: Path, images: dict[str, bytes]) -> dict[str, Digest]:
    """A layout in which each reference name leads to a blob with these bytes."""
    blobs = layout / "blobs" / "sha256"
    blobs.mkdir(parents=True)
    digests = {name: Digest.of(body) for name, body in images.items()}
    for name, body in images.items():
        (blobs / digests[name].hex).write_bytes(body)
    write_index(layout, digests)
    return digests


def write_index(layout: Path, digests: dict[str, Digest]) -> None:
    manifests = [
        {"digest": str(digest), "annotations": {"org.opencontainers.image.ref.name": name}}
        for name, digest in digests.items()
    ]
    # A descriptor without annotations is what a layout has for an image that lost its name.
    index = {"schemaVersion": 2, "manifests": [*manifests, {"digest": f"sha256:{'0' * 64}"}]}
    (layout / "index.json").write_text(json.dumps(index))


@pytest.fixture(scope="module")
def demo_layout(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, DemoImage]:
    layout = tmp_path_factory.mktemp("registry") / "layout"
    return layout, build_image(layout)


@pytest.fixture
def image(demo_layout: tuple[Path, DemoImage]) -> DemoImage:
    return demo_layout[1]


@pytest.fixture
def layer(demo_layout: tuple[Path, DemoImage]) -> bytes:
    """The bytes of the demo image's lowest layer."""
    layout, image = demo_layout
    return (layout / "blobs" / "sha256" / image.layers[0].digest.hex).read_bytes()


@pytest.fixture
def registry(demo_layout: tuple[Path, DemoImage]) -> Iterator[Running]:
    with running(demo_layout[0]) as registry:
        yield registry


@needs_skopeo
def test_skopeo_inspects_the_demo_image(registry: Running, image: DemoImage) -> None:
    done = subprocess.run(
        ["skopeo", "inspect", "--tls-verify=false", f"docker://{registry.address}/{image.reference}"],
        check=True,
        capture_output=True,
        timeout=60,
    )
    seen = json.loads(done.stdout)
    assert seen["Digest"] == str(image.digest)
    assert seen["Layers"] == [str(layer.digest) for layer in image.layers]
    assert seen["RepoTags"] == ["1"]


@needs_skopeo
def test_skopeo_copies_the_demo_image(registry: Running, image: DemoImage, tmp_path: Path) -> None:
    """skopeo verifies every digest on its way, and asks for each layer once."""
    subprocess.run(
        [
            *("skopeo", "copy", "--quiet", "--src-tls-verify=false"),
            *(f"docker://{registry.address}/{image.reference}", f"dir:{tmp_path}/copy"),
        ],
        check=True,
        capture_output=True,
        timeout=60,
    )
    for layer in image.layers:
        assert layer.digest.matches((tmp_path / "copy" / layer.digest.hex).read_bytes())
        assert registry.requests.count(("GET", f"/v2/demo/blobs/{layer.digest}")) == 1


@pytest.mark.parametrize("path", ["/v2/", "/v2"])
def test_the_base_endpoint_says_version_2(registry: Running, path: str) -> None:
    answer = registry.ask(path)
    assert (answer.status, answer.body) == (200, b"{}")


@pytest.mark.parametrize("by_digest", [False, True])
def test_a_manifest_by_tag_and_by_digest(registry: Running, image: DemoImage, by_digest: bool) -> None:
    answer = registry.ask(f"/v2/demo/manifests/{image.digest if by_digest else '1'}")
    assert answer.status == 200
    assert answer.headers["Content-Type"] == OCI_MANIFEST
    assert answer.headers["Docker-Content-Digest"] == str(image.digest)
    assert image.digest.matches(answer.body)


def test_a_blob(registry: Running, image: DemoImage, layer: bytes) -> None:
    answer = registry.ask(f"/v2/demo/blobs/{image.layers[0].digest}")
    assert answer.status == 200
    assert answer.headers["Content-Type"] == "application/octet-stream"
    assert answer.headers["Docker-Content-Digest"] == str(image.layers[0].digest)
    assert answer.headers["Accept-Ranges"] == "bytes"
    assert answer.headers["Content-Encoding"] is None  # a gzip layer is not a gzip encoded answer
    assert answer.body == layer


def test_head_tells_size_and_digest_without_a_body(registry: Running, image: DemoImage, layer: bytes) -> None:
    manifest = registry.ask("/v2/demo/manifests/1", "HEAD")
    assert (manifest.status, manifest.body) == (200, b"")
    assert manifest.headers["Docker-Content-Digest"] == str(image.digest)
    assert int(manifest.headers["Content-Length"]) == len(registry.ask("/v2/demo/manifests/1").body)

    blob = registry.ask(f"/v2/demo/blobs/{image.layers[0].digest}", "HEAD")
    assert (blob.status, blob.body) == (200, b"")
    assert int(blob.headers["Content-Length"]) == len(layer)

    assert registry.ask("/v2/demo/manifests/2", "HEAD").status == 404


@pytest.mark.parametrize(
    ("requested", "part"),
    [
        ("bytes=0-0", slice(0, 1)),
        ("bytes=1000-1999", slice(1000, 2000)),
        ("bytes=5000-", slice(5000, None)),
        ("bytes=-7", slice(-7, None)),
        ("bytes=10-99999999999", slice(10, None)),
    ],
)
def test_a_range_of_a_blob(registry: Running, image: DemoImage, layer: bytes, requested: str, part: slice) -> None:
    answer = registry.ask(f"/v2/demo/blobs/{image.layers[0].digest}", Range=requested)
    first, last, _ = part.indices(len(layer))
    assert answer.status == 206
    assert answer.headers["Content-Range"] == f"bytes {first}-{last - 1}/{len(layer)}"
    assert answer.body == layer[part]


@pytest.mark.parametrize("requested", ["bytes=abc", "bytes=-", "bytes=0-1,5-9", "lines=0-1", "0-1"])
def test_a_range_that_is_none(registry: Running, image: DemoImage, layer: bytes, requested: str) -> None:
    """It is as if nothing of the kind had been asked for."""
    answer = registry.ask(f"/v2/demo/blobs/{image.layers[0].digest}", Range=requested)
    assert (answer.status, answer.body) == (200, layer)


def test_a_range_on_condition(registry: Running, image: DemoImage, layer: bytes) -> None:
    """That what the client has is of this very blob."""
    path = f"/v2/demo/blobs/{image.layers[0].digest}"
    ours = registry.ask(path, "HEAD").headers["ETag"]
    for condition, part in ((ours, layer[:2]), (f"W/{ours}", layer), ('"another"', layer)):
        answer = registry.ask(path, Range="bytes=0-1", If_Range=condition)
        assert answer.body == part, condition


def test_a_range_past_the_end_is_refused_with_the_size(registry: Running, image: DemoImage, layer: bytes) -> None:
    answer = registry.ask(f"/v2/demo/blobs/{image.layers[0].digest}", Range=f"bytes={len(layer)}-")
    assert answer.status == 416
    assert answer.headers["Content-Range"] == f"bytes */{len(layer)}"


def test_blobs_are_sent_by_sendfile(
    registry: Running, image: DemoImage, layer: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[int] = []
    sendfile = os.sendfile

    def counting(*arguments: Any) -> int:
        sent.append(sendfile(*arguments))
        return sent[-1]

    monkeypatch.setattr(os, "sendfile", counting)
    registry.ask(f"/v2/demo/blobs/{image.layers[0].digest}")
    assert sum(sent) == len(layer)


MISSING = f"sha256:{'0' * 64}"


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("/v2/demo/manifests/2", "MANIFEST_UNKNOWN"),
        (f"/v2/demo/manifests/{MISSING}", "MANIFEST_UNKNOWN"),
        (f"/v2/demo/blobs/{MISSING}", "BLOB_UNKNOWN"),
        ("/v2/other/manifests/1", "NAME_UNKNOWN"),
        ("/v2/other/tags/list", "NAME_UNKNOWN"),
        ("/v2/demo/referrers", "UNSUPPORTED"),
        ("/v2/DEMO/manifests/1", "UNSUPPORTED"),
        ("/", "UNSUPPORTED"),
    ],
)
def test_what_is_not_there_is_a_404_with_its_code(registry: Running, path: str, code: str) -> None:
    answer = registry.ask(path)
    assert (answer.status, answer.error) == (404, code)


def test_a_layer_is_no_manifest(registry: Running, image: DemoImage) -> None:
    for layer in image.layers:
        answer = registry.ask(f"/v2/demo/manifests/{layer.digest}")
        assert (answer.status, answer.error) == (404, "MANIFEST_UNKNOWN")


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
def test_writing_is_refused(registry: Running, method: str) -> None:
    answer = registry.ask("/v2/demo/manifests/1", method)
    assert (answer.status, answer.error) == (405, "UNSUPPORTED")


@pytest.mark.parametrize(
    "digest",
    [
        "sha256:short",
        f"sha256:{'A' * 64}",
        f"md5:{'0' * 32}",
        f"sha256:{'0' * 64}%0A",
        "sha256:..%2F..%2Findex.json",
        "sha256:%2e%2e%2f%2e%2e%2findex.json",
        "..%2F..:index.json",
        "sha256:%2Fetc%2Fpasswd",
        "sha256:%00",
    ],
)
@pytest.mark.parametrize("kind", ["blobs", "manifests"])
def test_a_malformed_digest_is_refused(registry: Running, kind: str, digest: str) -> None:
    """No text but a digest becomes a path, however its slashes and dots are written."""
    answer = registry.ask(f"/v2/demo/{kind}/{digest}")
    assert (answer.status, answer.error) == (400, "DIGEST_INVALID")


@pytest.mark.parametrize(
    "path",
    [
        "/v2/demo/blobs/../../../index.json",
        "/v2/demo/blobs/sha256:../../index.json",
        "/v2/../../etc/passwd",
        "/v2/demo/blobs/..%2f..%2f..%2findex.json",
    ],
)
def test_no_path_leads_out_of_the_blobs(registry: Running, path: str) -> None:
    answer = registry.ask(path)
    assert answer.status in (400, 404)
    assert answer.error in ("DIGEST_INVALID", "UNSUPPORTED")


def test_names_may_have_slashes(tmp_path: Path) -> None:
    """Even ones that look like the endpoints' own words."""
    body = json.dumps({"mediaType": OCI_MANIFEST, "layers": []}).encode()
    names = ["a/b.c/d__e:latest", "x/manifests/y:v1.0_2"]
    digests = write_layout(tmp_path / "layout", dict.fromkeys(names, body))
    with running(tmp_path / "layout") as registry:
        for name, digest in digests.items():
            repository, _, tag = name.rpartition(":")
            assert registry.ask(f"/v2/{repository}/manifests/{tag}").body == body
            assert registry.ask(f"/v2/{repository}/blobs/{digest}").body == body


@pytest.mark.parametrize(
    ("document", "media_type"),
    [
        ({"mediaType": OCI_INDEX, "manifests": []}, OCI_INDEX),
        ({"mediaType": DOCKER_LIST, "manifests": []}, DOCKER_LIST),
        ({"manifests": []}, OCI_INDEX),
        ({"layers": []}, OCI_MANIFEST),
    ],
)
def test_the_media_type_is_the_documents_own(tmp_path: Path, document: dict[str, Any], media_type: str) -> None:
    """OCI documents may leave it out; then their shape tells."""
    write_layout(tmp_path / "layout", {"some:1": json.dumps(document).encode()})
    with running(tmp_path / "layout") as registry:
        answer = registry.ask("/v2/some/manifests/1")
    assert (answer.status, answer.headers["Content-Type"]) == (200, media_type)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"\xff",
        b"[" * 100_000,
        b'{"mediaType": "text/html", "layers": []}',
        b'{"mediaType": [], "layers": []}',
        b'{"layers": []' + b" " * DOCUMENT_LIMIT + b"}",
    ],
)
def test_what_is_no_manifest_is_not_served_as_one(tmp_path: Path, body: bytes) -> None:
    write_layout(tmp_path / "layout", {"some:1": body})
    with running(tmp_path / "layout") as registry:
        answer = registry.ask("/v2/some/manifests/1")
    assert (answer.status, answer.error) == (404, "MANIFEST_UNKNOWN")


def test_tags_are_listed_in_pages(tmp_path: Path) -> None:
    body = json.dumps({"layers": []}).encode()
    write_layout(tmp_path / "layout", dict.fromkeys(["a/b:3", "a/b:1", "a/b:2", "a:4"], body))
    with running(tmp_path / "layout") as registry:
        pages = [json.loads(registry.ask(f"/v2/a/b/tags/list{query}").body) for query in ("", "?n=2&last=1", "?n=0")]
    assert pages == [{"name": "a/b", "tags": tags} for tags in (["1", "2", "3"], ["2", "3"], [])]


def test_an_image_added_while_serving_is_found(tmp_path: Path) -> None:
    body = json.dumps({"layers": []}).encode()
    digests = write_layout(tmp_path / "layout", {"some:1": body})
    with running(tmp_path / "layout") as registry:
        assert registry.ask("/v2/some/manifests/2").status == 404
        write_index(tmp_path / "layout", {**digests, "some:2": digests["some:1"]})
        assert registry.ask("/v2/some/manifests/2").body == body


def test_every_request_is_reported(registry: Running) -> None:
    """The refused ones, too, and by path without query."""
    registry.ask("/v2/")
    registry.ask("/v2/demo/tags/list?n=1", "HEAD")
    registry.ask("/nowhere", "DELETE")
    assert registry.requests == [("GET", "/v2/"), ("HEAD", "/v2/demo/tags/list"), ("DELETE", "/nowhere")]


def test_a_directory_that_is_no_layout_is_an_error_at_once(tmp_path: Path) -> None:
    async def main() -> None:
        async with serve(tmp_path):
            pass

    with pytest.raises(FileNotFoundError, match=r"index\.json"):
        asyncio.run(main())


def test_the_port_is_free_again_afterwards(demo_layout: tuple[Path, DemoImage]) -> None:
    async def main() -> None:
        async with serve(demo_layout[0]) as address:
            host, _, port = address.partition(":")
        assert host == "127.0.0.1"
        async with serve(demo_layout[0], port=int(port)) as again:
            assert again == address

    asyncio.run(main())
