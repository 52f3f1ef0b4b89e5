"""The rules of the distribution-spec 1.1, category by category, against `pullpipe serve --writable` as a process.

The categories are those of the spec's own conformance tests: pull, push, content discovery, content management.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest

from pullpipe.oci import DOCKER_MANIFEST, DOCUMENT_LIMIT, OCI_INDEX, OCI_MANIFEST
from store import Digest
from tests.support.served import Answer, Served, descriptor, manifest, served

NAME = "conformance/one"
MISSING = f"sha256:{'0' * 64}"
CONFIG = b'{"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": []}}'
EMPTY = "application/vnd.oci.empty.v1+json"


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """One for all tests: each has its own tags or its own bytes."""
    with served(tmp_path_factory.mktemp("conformance") / "root", "--writable") as running:
        yield running
        assert running.end() == 0


@pytest.fixture(scope="module")
def image(registry: Served) -> Digest:
    """NAME:pull, with one layer."""
    return registry.push_image(NAME, "pull", b"layer for pull")


def start(registry: Served, name: str = NAME, **query: str) -> Answer:
    return registry.ask(f"/v2/{name}/blobs/uploads/?{urlencode(query)}", "POST", Content_Length="0")


def finish(registry: Served, location: str, digest: Digest | str, data: bytes = b"", **headers: str) -> Answer:
    return registry.ask(f"{location}?{urlencode({'digest': str(digest)})}", "PUT", data, **headers)


def index(*entries: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": list(entries), **fields}


class TestPull:
    def test_the_api_is_there(self, registry: Served) -> None:
        answer = registry.ask("/v2/")
        assert (answer.status, answer.json) == (200, {})
        assert answer.headers["Docker-Distribution-Api-Version"] == "registry/2.0"

    @pytest.mark.parametrize("method", ["GET", "HEAD"])
    def test_a_blob(self, registry: Served, image: Digest, method: str) -> None:
        digest = Digest.of(b"layer for pull")
        answer = registry.ask(f"/v2/{NAME}/blobs/{digest}", method)
        assert (answer.status, answer.body) == (200, b"layer for pull" if method == "GET" else b"")
        assert answer.headers["Docker-Content-Digest"] == str(digest)
        assert answer.headers["Content-Length"] == "14"

    @pytest.mark.parametrize("method", ["GET", "HEAD"])
    @pytest.mark.parametrize("by", ["tag", "digest"])
    def test_a_manifest(self, registry: Served, image: Digest, method: str, by: str) -> None:
        answer = registry.ask(f"/v2/{NAME}/manifests/{'pull' if by == 'tag' else image}", method)
        assert answer.status == 200
        assert answer.headers["Docker-Content-Digest"] == str(image)
        assert answer.headers["Content-Type"] == OCI_MANIFEST
        if method == "GET":
            assert image.matches(answer.body)
            assert int(answer.headers["Content-Length"]) == len(answer.body)
        else:
            assert answer.body == b""

    @pytest.mark.parametrize("method", ["GET", "HEAD"])
    @pytest.mark.parametrize(
        "path", [f"blobs/{MISSING}", f"manifests/{MISSING}", "manifests/no-such-tag", "manifests/.INVALID_TAG"]
    )
    def test_what_is_not_there(self, registry: Served, image: Digest, method: str, path: str) -> None:
        answer = registry.ask(f"/v2/{NAME}/{path}", method)
        assert answer.status == 404
        if method == "GET":
            assert answer.error in ("BLOB_UNKNOWN", "MANIFEST_UNKNOWN")

    def test_a_repository_that_is_not_there(self, registry: Served) -> None:
        assert registry.ask("/v2/nobody/manifests/1").refusal == (404, "NAME_UNKNOWN")

    @pytest.mark.parametrize(("asked", "part"), [("0-3", slice(0, 4)), ("4-", slice(4, None)), ("-5", slice(-5, None))])
    def test_a_part_of_a_blob(self, registry: Served, image: Digest, asked: str, part: slice) -> None:
        answer = registry.ask(f"/v2/{NAME}/blobs/{Digest.of(b'layer for pull')}", Range=f"bytes={asked}")
        assert (answer.status, answer.body) == (206, b"layer for pull"[part])

    @pytest.mark.parametrize("asked", ["14-", "100-200", "5-2"])
    def test_a_part_that_is_not_there(self, registry: Served, image: Digest, asked: str) -> None:
        answer = registry.ask(f"/v2/{NAME}/blobs/{Digest.of(b'layer for pull')}", Range=f"bytes={asked}")
        assert (answer.status, answer.headers["Content-Range"]) == (416, "bytes */14")

    def test_several_parts_at_once_are_all_of_it(self, registry: Served, image: Digest) -> None:
        answer = registry.ask(f"/v2/{NAME}/blobs/{Digest.of(b'layer for pull')}", Range="bytes=0-1,5-6")
        assert (answer.status, answer.body) == (200, b"layer for pull")

    def test_many_requests_over_one_connection(self, registry: Served, image: Digest) -> None:
        connection, sockets = registry.connect(), set()
        for path in ("/v2/", f"/v2/{NAME}/manifests/pull", "/v2/nobody/tags/list", f"/v2/{NAME}/manifests/pull"):
            connection.request("GET", path)
            assert connection.getresponse().read()
            sockets.add(connection.sock)
        assert len(sockets) == 1
        assert None not in sockets  # the registry would have closed it
        connection.close()

    @pytest.mark.parametrize("kind", ["manifests", "blobs"])
    def test_what_a_client_has_it_need_not_get_again(self, registry: Served, image: Digest, kind: str) -> None:
        digest = image if kind == "manifests" else Digest.of(b"layer for pull")
        first = registry.ask(f"/v2/{NAME}/{kind}/{digest}")
        assert first.headers["ETag"] == f'"{digest}"'
        again = registry.ask(f"/v2/{NAME}/{kind}/{digest}", If_None_Match=first.headers["ETag"])
        assert (again.status, again.body, again.headers["Docker-Content-Digest"]) == (304, b"", str(digest))
        other = registry.ask(f"/v2/{NAME}/{kind}/{digest}", If_None_Match=f'"{MISSING}"')
        assert (other.status, other.body) == (200, first.body)


class TestPushBlobs:
    def there(self, registry: Served, answer: Answer, data: bytes) -> None:
        """The push is answered as the spec says, and the blob is where the answer says."""
        assert answer.status == 201, answer
        assert registry.ask(answer.headers["Location"]).body == data

    @pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
    def test_post_then_put(self, registry: Served, algorithm: str) -> None:
        data = f"post then put {algorithm}".encode()
        session = start(registry)
        assert session.status == 202
        answer = finish(registry, session.headers["Location"], Digest.of(data, algorithm), data)
        self.there(registry, answer, data)
        assert answer.headers["Docker-Content-Digest"] == str(Digest.of(data, algorithm))

    @pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
    def test_a_single_post(self, registry: Served, algorithm: str) -> None:
        data = f"single {algorithm}".encode()
        query = urlencode({"digest": str(Digest.of(data, algorithm))})
        self.there(registry, registry.ask(f"/v2/{NAME}/blobs/uploads/?{query}", "POST", data), data)

    def test_streamed(self, registry: Served) -> None:
        """One PATCH without a length, as podman and skopeo do it."""
        location = start(registry).headers["Location"]
        patched = registry.ask(location, "PATCH", iter([b"stre", b"amed"]))
        assert (patched.status, patched.headers["Range"]) == (202, "0-7")
        self.there(registry, finish(registry, patched.headers["Location"], Digest.of(b"streamed")), b"streamed")

    @pytest.mark.parametrize("last_by_put", [False, True])
    def test_in_chunks(self, registry: Served, last_by_put: bool) -> None:
        data = f"three chunks, the last by put: {last_by_put}".encode()
        location, at = start(registry).headers["Location"], 0
        for chunk in (data[:5], data[5:11], *([] if last_by_put else [data[11:]])):
            span = f"{at}-{at + len(chunk) - 1}"
            answer = registry.ask(location, "PATCH", chunk, Content_Range=span)
            at += len(chunk)
            assert (answer.status, answer.headers["Range"]) == (202, f"0-{at - 1}")
            location = answer.headers["Location"]
        last = {"Content_Range": f"{at}-{len(data) - 1}"} if last_by_put else {}
        self.there(registry, finish(registry, location, Digest.of(data), data[at:], **last), data)

    @pytest.mark.parametrize("method", ["PATCH", "PUT"])
    def test_a_chunk_out_of_order(self, registry: Served, method: str) -> None:
        """It is refused, the status tells where to go on, and so it can."""
        location, data = start(registry).headers["Location"], f"in order by {method}".encode()
        registry.ask(location, "PATCH", data[:4], Content_Range="0-3")
        query = f"?{urlencode({'digest': str(Digest.of(data))})}" if method == "PUT" else ""
        for wrong in ("0-3", "5-8"):
            refused = registry.ask(location + query, method, b"nope", Content_Range=wrong)
            assert refused.refusal == (416, "BLOB_UPLOAD_INVALID")
        status = registry.ask(location)
        assert (status.status, status.headers["Range"], status.headers["Location"]) == (204, "0-3", location)
        answer = finish(registry, location, Digest.of(data), data[4:], Content_Range=f"4-{len(data) - 1}")
        self.there(registry, answer, data)

    @pytest.mark.parametrize("stated", ["0-9", "x", "3-1", "0-99999999999999999999999999"])
    def test_a_chunk_of_another_size_than_it_says(self, registry: Served, stated: str) -> None:
        location = start(registry).headers["Location"]
        answer = registry.ask(location, "PATCH", b"four", Content_Range=stated)
        assert answer.status == 400
        assert answer.error in ("SIZE_INVALID", "BLOB_UPLOAD_INVALID")
        assert registry.ask(location).status == 204  # nothing of it was taken
        self.there(registry, finish(registry, location, Digest.of(b"five"), b"five"), b"five")

    def test_a_streamed_chunk_of_another_size_than_it_says(self, registry: Served) -> None:
        """That is seen only when it is there, so the upload is over."""
        location = start(registry).headers["Location"]
        answer = registry.ask(location, "PATCH", iter([b"four"]), Content_Range="0-9")
        assert answer.refusal == (400, "SIZE_INVALID")
        assert registry.ask(location).refusal == (404, "BLOB_UPLOAD_UNKNOWN")

    def test_a_body_that_is_called_compressed_is_kept_as_it_is(self, registry: Served) -> None:
        data = gzip.compress(b"a layer, say")
        location = start(registry).headers["Location"]
        answer = finish(registry, location, Digest.of(data), data, Content_Encoding="gzip")
        self.there(registry, answer, data)

    def test_the_empty_blob(self, registry: Served) -> None:
        self.there(registry, finish(registry, start(registry).headers["Location"], Digest.of(b"")), b"")

    @pytest.mark.parametrize("how", ["post", "put", "patch"])
    def test_a_wrong_digest(self, registry: Served, how: str) -> None:
        """The blob is not there, nor is the upload."""
        digest, data = Digest.of(f"promised by {how}".encode()), b"something else"
        location = start(registry).headers["Location"]
        if how == "post":
            query = urlencode({"digest": str(digest)})
            answer = registry.ask(f"/v2/{NAME}/blobs/uploads/?{query}", "POST", data)
        elif how == "put":
            answer = finish(registry, location, digest, data)
        else:
            registry.ask(location, "PATCH", data)
            answer = finish(registry, location, digest)
        assert answer.refusal == (400, "DIGEST_INVALID")
        assert registry.ask(f"/v2/{NAME}/blobs/{digest}").status == 404
        if how != "post":
            assert registry.ask(location).refusal == (404, "BLOB_UPLOAD_UNKNOWN")

    @pytest.mark.parametrize("digest", ["", "sha256:short", "md5:" + "0" * 32, "../../index.json"])
    def test_what_is_no_digest(self, registry: Served, digest: str) -> None:
        """The upload goes on: it is the client's to say it better."""
        location = start(registry).headers["Location"]
        assert finish(registry, location, digest, b"x").refusal == (400, "DIGEST_INVALID")
        self.there(registry, finish(registry, location, Digest.of(b"x"), b"x"), b"x")

    def test_cancelled(self, registry: Served) -> None:
        location = start(registry).headers["Location"]
        registry.ask(location, "PATCH", b"half")
        assert registry.ask(location, "DELETE").status == 204
        for method in ("GET", "PATCH", "PUT", "DELETE"):
            query = f"?digest={Digest.of(b'')}"
            assert registry.ask(location + query, method).refusal == (404, "BLOB_UPLOAD_UNKNOWN"), method

    def test_an_upload_belongs_to_its_repository(self, registry: Served) -> None:
        location = start(registry).headers["Location"]
        assert registry.ask(location.replace(NAME, "another")).refusal == (404, "BLOB_UPLOAD_UNKNOWN")

    @pytest.mark.parametrize("source", [{"from": "conformance/source"}, {}])
    def test_mounted(self, registry: Served, source: dict[str, str]) -> None:
        digest = registry.push_blob("conformance/source", b"to be mounted")
        answer = start(registry, "conformance/target", mount=str(digest), **source)
        self.there(registry, answer, b"to be mounted")
        assert answer.headers["Location"] == f"/v2/conformance/target/blobs/{digest}"

    def test_what_is_not_there_cannot_be_mounted(self, registry: Served) -> None:
        """An upload begins instead."""
        digest = Digest.of(b"not there to be mounted")
        session = start(registry, mount=str(digest), **{"from": "conformance/source"})
        assert session.status == 202
        answer = finish(registry, session.headers["Location"], digest, b"not there to be mounted")
        self.there(registry, answer, b"not there to be mounted")


class TestPushManifests:
    @pytest.mark.parametrize("by", ["tag", "digest"])
    def test_accepted(self, registry: Served, by: str) -> None:
        """As it is, byte by byte, and where the answer says."""
        document = registry.manifest(NAME, b"layer", annotations={"pushed by": by})
        data = json.dumps(document, indent=5).encode()
        digest = Digest.of(data)
        reference = "tagged" if by == "tag" else str(digest)
        answer = registry.ask(f"/v2/{NAME}/manifests/{reference}", "PUT", data, Content_Type=OCI_MANIFEST)
        assert answer.status == 201
        assert answer.headers["Docker-Content-Digest"] == str(digest)
        assert answer.headers["OCI-Subject"] is None
        for path in (answer.headers["Location"], f"/v2/{NAME}/manifests/{reference}"):
            assert registry.ask(path).body == data

    def test_sha512(self, registry: Served) -> None:
        document = registry.manifest(NAME, b"layer", annotations={"algorithm": "sha512"})
        digest = Digest.of(json.dumps(document).encode(), "sha512")
        assert registry.push_manifest(NAME, str(digest), document)[1].status == 201
        assert digest.matches(registry.ask(f"/v2/{NAME}/manifests/{digest}").body)

    def test_without_layers(self, registry: Served) -> None:
        registry.push_image(NAME, "no-layers")
        assert registry.ask(f"/v2/{NAME}/manifests/no-layers").json["layers"] == []

    def test_an_index(self, registry: Served) -> None:
        """Its manifests first, by their digests."""
        entries = []
        for architecture in ("amd64", "arm64"):
            document = registry.manifest(NAME, b"layer", annotations={"for": architecture})
            data = json.dumps(document).encode()
            assert registry.push_manifest(NAME, str(Digest.of(data)), document)[1].status == 201
            entries.append(descriptor(data, OCI_MANIFEST))
        digest, answer = registry.push_manifest(NAME, "index", index(*entries))
        assert answer.status == 201
        assert registry.ask(f"/v2/{NAME}/manifests/index").headers["Content-Type"] == OCI_INDEX
        assert registry.ask(f"/v2/{NAME}/manifests/{digest}").json["manifests"] == entries

    def test_an_empty_index_and_one_in_an_index(self, registry: Served) -> None:
        _, answer = registry.push_manifest(NAME, "empty-index", index())
        assert answer.status == 201
        outer = index(descriptor(json.dumps(index()).encode(), OCI_INDEX))
        assert registry.push_manifest(NAME, "nested-index", outer)[1].status == 201

    def test_an_artifact(self, registry: Served) -> None:
        registry.push_blob(NAME, b"{}")
        registry.push_blob(NAME, b"a chart, say")
        document = manifest(b"{}", artifactType="application/vnd.example+type")
        document["config"] = descriptor(b"{}", EMPTY)
        document["layers"] = [descriptor(b"a chart, say", "application/vnd.example.data")]
        assert registry.push_manifest(NAME, "artifact", document)[1].status == 201

    def test_one_of_four_megabytes(self, registry: Served) -> None:
        registry.push_image(NAME, "large", annotations={str(number): "A" * 10_000 for number in range(390)})

    def test_one_that_is_too_large(self, registry: Served) -> None:
        data = b"{" + b" " * DOCUMENT_LIMIT + b"}"
        pieces = (data[at : at + (1 << 16)] for at in range(0, len(data), 1 << 16))
        for body in (data, pieces):  # the second one is streamed: its length is not told before
            answer = registry.ask(f"/v2/{NAME}/manifests/1", "PUT", body, Content_Type=OCI_MANIFEST)
            assert answer.refusal == (413, "SIZE_INVALID")

    def test_blobs_that_are_elsewhere_need_not_be_here(self, registry: Served) -> None:
        document = registry.manifest(NAME)
        elsewhere = descriptor(b"far away", "application/vnd.oci.image.layer.nondistributable.v1.tar")
        document["layers"] = [{**elsewhere, "urls": ["https://example.org/far/away"]}]
        assert registry.push_manifest(NAME, "elsewhere", document)[1].status == 201

    @pytest.mark.parametrize("part", ["config", "layer", "manifest"])
    def test_parts_that_are_not_here(self, registry: Served, part: str) -> None:
        document = registry.manifest(NAME, b"layer")
        absent = descriptor(b"absent", OCI_MANIFEST)
        if part == "config":
            document["config"] = absent
        elif part == "layer":
            document["layers"].append(absent)
        else:
            document = index(absent)
        digest, answer = registry.push_manifest(NAME, "incomplete", document)
        assert answer.refusal == (404, "MANIFEST_BLOB_UNKNOWN")
        assert absent["digest"] in answer.json["errors"][0]["message"]
        for reference in ("incomplete", str(digest)):
            assert registry.ask(f"/v2/{NAME}/manifests/{reference}").status == 404

    @pytest.mark.parametrize(
        ("document", "media_type"),
        [
            (b"", OCI_MANIFEST),
            (b"no json", OCI_MANIFEST),
            (b"[]", OCI_MANIFEST),
            (b"{}", OCI_MANIFEST),
            (b"[" * 100_000, OCI_MANIFEST),
            (json.dumps({**manifest(CONFIG), "manifests": []}).encode(), OCI_MANIFEST),
            (json.dumps({**manifest(CONFIG), "schemaVersion": 1}).encode(), OCI_MANIFEST),
            (json.dumps({**manifest(CONFIG), "layers": [{"digest": "sha256:x"}]}).encode(), OCI_MANIFEST),
            (json.dumps({"schemaVersion": 2, "layers": []}).encode(), OCI_MANIFEST),
            (json.dumps(manifest(CONFIG)).encode(), DOCKER_MANIFEST),
            (json.dumps(manifest(CONFIG)).encode(), OCI_INDEX),
            (json.dumps({**manifest(CONFIG), "mediaType": "text/html"}).encode(), "text/html"),
        ],
    )
    def test_what_is_no_manifest(self, registry: Served, document: bytes, media_type: str) -> None:
        registry.push_blob(NAME, CONFIG)
        answer = registry.ask(f"/v2/{NAME}/manifests/invalid", "PUT", document, Content_Type=media_type)
        assert answer.refusal == (400, "MANIFEST_INVALID")
        assert registry.ask(f"/v2/{NAME}/manifests/invalid").status == 404

    @pytest.mark.parametrize("reference", [MISSING, "sha256:totallywrong"])
    def test_under_a_digest_that_is_not_its_own(self, registry: Served, reference: str) -> None:
        document = registry.manifest(NAME)
        assert registry.push_manifest(NAME, reference, document)[1].refusal == (400, "DIGEST_INVALID")

    @pytest.mark.parametrize("tag", [".dot", "-dash", "a" * 129, "a%20b"])
    def test_what_is_no_tag(self, registry: Served, tag: str) -> None:
        assert registry.push_manifest(NAME, tag, registry.manifest(NAME))[1].refusal == (400, "MANIFEST_INVALID")

    def test_a_name_that_is_too_long(self, registry: Served) -> None:
        name = "/".join(["a" * 50] * 6)
        assert start(registry, name).refusal == (400, "NAME_INVALID")
        _, answer = registry.push_manifest(name, "1", manifest(CONFIG))
        assert answer.refusal == (400, "NAME_INVALID")


class TestDiscovery:
    def test_tags(self, registry: Served) -> None:
        name = "conformance/tags"
        for tag in ("b", "a", "C", "10", "9"):
            registry.push_image(name, tag)
        assert registry.ask(f"/v2/{name}/tags/list").json == {"name": name, "tags": ["10", "9", "C", "a", "b"]}

        answer, seen = registry.ask(f"/v2/{name}/tags/list?n=2"), []
        while "Link" in answer.headers:
            assert len(answer.json["tags"]) == 2
            seen += answer.json["tags"]
            target, _, relation = answer.headers["Link"].partition("; ")
            assert relation == 'rel="next"'
            answer = registry.ask(target.strip("<>"))
        assert [*seen, *answer.json["tags"]] == ["10", "9", "C", "a", "b"]

        assert registry.ask(f"/v2/{name}/tags/list?last=C").json["tags"] == ["a", "b"]
        nothing = registry.ask(f"/v2/{name}/tags/list?n=0")
        assert (nothing.json["tags"], nothing.headers["Link"]) == ([], None)
        assert registry.ask(f"/v2/{name}/tags/list?n=5").headers["Link"] is None

    def test_repositories(self, registry: Served) -> None:
        for name in ("conformance/catalog/b", "conformance/catalog/a"):
            registry.push_image(name, "1")
        found = registry.ask("/v2/_catalog").json["repositories"]
        assert {"conformance/catalog/a", "conformance/catalog/b"} <= set(found)
        assert found == sorted(found)
        page = registry.ask("/v2/_catalog?n=1&last=conformance/catalog")
        assert page.json["repositories"] == ["conformance/catalog/a"]
        after = registry.ask(page.headers["Link"].partition(">")[0].lstrip("<"))
        assert after.json["repositories"] == ["conformance/catalog/b"]

    def test_no_referrers(self, registry: Served) -> None:
        """An empty index, whether the subject, or the repository, is there or not."""
        for name in (NAME, "conformance/nobody"):
            answer = registry.ask(f"/v2/{name}/referrers/{MISSING}")
            assert (answer.status, answer.headers["Content-Type"]) == (200, OCI_INDEX)
            assert answer.json == {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": []}

    def test_referrers_of_what_is_no_digest(self, registry: Served) -> None:
        assert registry.ask(f"/v2/{NAME}/referrers/sha256:short").refusal == (400, "DIGEST_INVALID")

    def test_referrers(self, registry: Served) -> None:
        """Pushed before and after their subject, an index too, with their types and annotations; and by type."""
        name, other = "conformance/referrers", "conformance/elsewhere"
        subject = manifest(CONFIG, annotations={"the": "subject"})
        about = {"subject": descriptor(json.dumps(subject).encode(), OCI_MANIFEST)}
        registry.push_blob(name, CONFIG)
        registry.push_blob(name, b"{}")
        signature = manifest(CONFIG, artifactType="a/signature", annotations={"by": "me"}, **about)
        bill = manifest(CONFIG, **about)
        bill["config"] = descriptor(b"{}", "a/bill")  # its type, for it states none of its own
        both = index(annotations={"an": "index"}, **about)
        listing = index(artifactType="a/listing", **about)

        def push(document: dict[str, Any], repository: str = name) -> dict[str, Any]:
            data = json.dumps(document).encode()
            _, answer = registry.push_manifest(repository, str(Digest.of(data)), document)
            assert answer.status == 201
            assert answer.headers["OCI-Subject"] == about["subject"]["digest"]
            return descriptor(data, document["mediaType"])

        before = [push(signature), push(bill)]
        assert registry.push_manifest(name, "subject", subject)[1].status == 201
        after = [push(both), push(listing)]
        push(manifest(CONFIG, artifactType="a/signature", annotations={"in": "another repository"}, **about), other)

        path = f"/v2/{name}/referrers/{about['subject']['digest']}"
        expected = [
            {**before[0], "artifactType": "a/signature", "annotations": {"by": "me"}},
            {**before[1], "artifactType": "a/bill"},
            {**after[0], "annotations": {"an": "index"}},
            {**after[1], "artifactType": "a/listing"},
        ]
        answer = registry.ask(path)
        assert answer.json["manifests"] == expected
        assert answer.headers["OCI-Filters-Applied"] is None
        for kind, found in (("a/signature", expected[:1]), ("a/bill", expected[1:2]), ("a/nothing", [])):
            filtered = registry.ask(f"{path}?{urlencode({'artifactType': kind})}")
            assert filtered.json["manifests"] == found
            assert filtered.headers["OCI-Filters-Applied"] == "artifactType"


class TestManagement:
    def test_a_tag(self, registry: Served) -> None:
        """It goes at once; its manifest and its other tags stay."""
        name = "conformance/untagged"
        digest = registry.push_image(name, "1", b"x")
        registry.push_image(name, "2", b"x")
        assert registry.ask(f"/v2/{name}/manifests/1", "DELETE").status == 202
        assert registry.ask(f"/v2/{name}/manifests/1").refusal == (404, "MANIFEST_UNKNOWN")
        assert registry.ask(f"/v2/{name}/tags/list").json["tags"] == ["2"]
        assert registry.ask(f"/v2/{name}/manifests/2", "DELETE").status == 202
        assert registry.ask(f"/v2/{name}/manifests/{digest}").status == 200
        assert registry.ask(f"/v2/{name}/tags/list").json["tags"] == []

    def test_a_manifest(self, registry: Served) -> None:
        """It goes with its tags, and from its own repository only."""
        name, other = "conformance/deleted", "conformance/kept"
        digest = registry.push_image(name, "1", b"x")
        assert registry.push_image(other, "1", b"x") == digest
        registry.push_image(name, "2", b"y")
        assert registry.ask(f"/v2/{name}/manifests/{digest}", "DELETE").status == 202
        for reference in ("1", str(digest)):
            assert registry.ask(f"/v2/{name}/manifests/{reference}").refusal == (404, "MANIFEST_UNKNOWN")
            assert registry.ask(f"/v2/{other}/manifests/{reference}").status == 200
        assert registry.ask(f"/v2/{name}/tags/list").json["tags"] == ["2"]

    def test_the_last_one_takes_the_repository(self, registry: Served) -> None:
        name = "conformance/gone"
        digest = registry.push_image(name, "1", b"x")
        assert registry.ask(f"/v2/{name}/manifests/{digest}", "DELETE").status == 202
        assert registry.ask(f"/v2/{name}/tags/list").refusal == (404, "NAME_UNKNOWN")
        assert name not in registry.ask("/v2/_catalog").json["repositories"]

    @pytest.mark.parametrize("reference", ["nope", MISSING])
    def test_what_is_not_there(self, registry: Served, reference: str) -> None:
        registry.push_image(NAME, "there")
        assert registry.ask(f"/v2/{NAME}/manifests/{reference}", "DELETE").refusal == (404, "MANIFEST_UNKNOWN")
        assert registry.ask(f"/v2/nobody/manifests/{reference}", "DELETE").refusal == (404, "NAME_UNKNOWN")
        assert registry.ask(f"/v2/{NAME}/manifests/sha256:x", "DELETE").refusal == (400, "DIGEST_INVALID")

    def test_blobs_are_the_garbage_collections_matter(self, registry: Served) -> None:
        digest = registry.push_blob(NAME, b"not to be deleted")
        assert registry.ask(f"/v2/{NAME}/blobs/{digest}", "DELETE").refusal == (405, "UNSUPPORTED")
        assert registry.ask(f"/v2/{NAME}/blobs/{MISSING}", "DELETE").refusal == (404, "BLOB_UNKNOWN")
        assert registry.ask(f"/v2/{NAME}/blobs/{digest}").body == b"not to be deleted"


def test_a_read_only_registry_refuses_all_writing(registry: Served, tmp_path: Path) -> None:
    """By 405 and UNSUPPORTED, and reads on."""
    with served(tmp_path / "source", "--writable") as source:
        digest = source.push_image("some/image", "1", b"layer")
        assert source.end() == 0
    with served(tmp_path / "source") as reader:
        requests = [
            ("POST", "/v2/some/image/blobs/uploads/"),
            ("POST", f"/v2/some/image/blobs/uploads/?mount={digest}&from=x"),
            ("POST", f"/v2/some/image/blobs/uploads/?digest={digest}"),
            *((method, "/v2/some/image/blobs/uploads/0123") for method in ("GET", "PATCH", "PUT", "DELETE")),
            *((method, "/v2/some/image/manifests/1") for method in ("PUT", "DELETE", "POST", "PATCH")),
            *((method, f"/v2/some/image/manifests/{digest}") for method in ("PUT", "DELETE")),
            ("DELETE", f"/v2/some/image/blobs/{digest}"),
        ]
        for method, path in requests:
            answer = reader.ask(path, method, b"x" if method != "GET" else None)
            assert answer.refusal == (405, "UNSUPPORTED"), (method, path)
            assert "GET" in answer.headers["Allow"]
        assert digest.matches(reader.ask("/v2/some/image/manifests/1").body)
        assert reader.end() == 0
