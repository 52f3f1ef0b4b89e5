"""Under which names the images of a store can be had, and what their tags serve."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from pullpipe.oci import OCI_INDEX, OCI_MANIFEST
from store import Digest, ImageRecord, Store
from tests.support.served import Running, descriptor, running
from tests.support.served import manifest as manifest_of

CONFIG = b"{}"


def put(store: Store, data: bytes) -> Digest:
    digest = Digest.of(data)
    with store.blobs.document(digest, data) as document:
        store.publish([document], [])
    return digest


def manifest(content: str) -> bytes:
    return json.dumps(manifest_of(CONFIG, annotations={"this is": content})).encode()


def index(*manifests: bytes) -> bytes:
    entries = [descriptor(data, OCI_MANIFEST) for data in manifests]
    return json.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries}).encode()


def pull(store: Store, reference: str, document: bytes, resolved: bytes | None = None) -> None:
    """Has the image in the store as a pull does; of an index, one manifest."""
    digest = put(store, document)
    platform = ("linux", "amd64")
    put(store, CONFIG)
    named = put(store, resolved) if resolved else digest
    store.images.put(ImageRecord(reference, digest, OCI_MANIFEST, len(document), named, *platform))


def push(store: Store, name: str, tag: str, document: bytes) -> None:
    store.images.push(name, tag, put(store, document), OCI_MANIFEST, len(document))


@pytest.fixture
def store(store_root: Path) -> Store:
    return Store(str(store_root), durable=False)


@pytest.fixture
def registry(store: Store) -> Iterator[Running]:
    with running(Path(store.root)) as registry:
        yield registry


def got(registry: Running, path: str) -> str | tuple[int, str]:
    """What a manifest says that it is; or the error."""
    answer = registry.ask(f"/v2/{path}")
    return str(answer.json["annotations"]["this is"]) if answer.status == 200 else answer.refusal


def names(registry: Running) -> Sequence[str]:
    found: list[str] = registry.ask("/v2/_catalog").json["repositories"]
    return found


def test_a_pulled_image_by_its_whole_name_and_without_its_registry(store: Store, registry: Running) -> None:
    pull(store, "docker.io/library/alpine:3.20", manifest("alpine"))
    for name in ("docker.io/library/alpine", "library/alpine"):
        assert got(registry, f"{name}/manifests/3.20") == "alpine"
        assert got(registry, f"{name}/manifests/{Digest.of(manifest('alpine'))}") == "alpine"
        assert registry.ask(f"/v2/{name}/tags/list").json == {"name": name, "tags": ["3.20"]}
    assert got(registry, "alpine/manifests/3.20") == (404, "NAME_UNKNOWN")
    assert names(registry) == ["docker.io/library/alpine"]


def test_for_the_registry_that_a_mirrors_client_names(store: Store, registry: Running) -> None:
    """For that one and no other; the answer says which it speaks for."""
    pull(store, "docker.io/library/alpine:3.20", manifest("alpine"))
    answer = registry.ask("/v2/library/alpine/manifests/3.20?ns=docker.io")
    assert (answer.status, answer.headers["OCI-Namespace"]) == (200, "docker.io")
    assert registry.ask("/v2/library/alpine/tags/list?ns=docker.io").headers["OCI-Namespace"] == "docker.io"
    for other in ("quay.io", "docker.io/library", "x%0d%0aSet-Cookie:%20a"):
        assert got(registry, f"library/alpine/manifests/3.20?ns={other}") == (404, "NAME_UNKNOWN")
    assert got(registry, "docker.io/library/alpine/manifests/3.20?ns=docker.io") == (404, "NAME_UNKNOWN")


def test_two_registries_with_the_same_name(store: Store, registry: Running) -> None:
    """docker.io's is meant, unless the client says which; without one of docker.io there is no telling."""
    pull(store, "ghcr.io/some/tool:1", manifest("ghcr"))
    pull(store, "quay.io/some/tool:1", manifest("quay"))
    answer = registry.ask("/v2/some/tool/manifests/1")
    assert answer.refusal == (404, "NAME_UNKNOWN")
    assert "ghcr.io/some/tool or quay.io/some/tool" in answer.json["errors"][0]["message"]
    assert got(registry, "some/tool/manifests/1?ns=quay.io") == "quay"
    assert got(registry, "quay.io/some/tool/manifests/1") == "quay"

    pull(store, "docker.io/some/tool:2", manifest("hub"))
    assert got(registry, "some/tool/manifests/2") == "hub"
    assert got(registry, "some/tool/manifests/1") == (404, "MANIFEST_UNKNOWN")
    assert got(registry, "some/tool/manifests/1?ns=ghcr.io") == "ghcr"
    assert registry.ask("/v2/some/tool/tags/list").json["tags"] == ["2"]
    assert names(registry) == ["docker.io/some/tool", "ghcr.io/some/tool", "quay.io/some/tool"]


def test_a_registry_with_a_port(store: Store, registry: Running) -> None:
    """It cannot stand in a name, so the name is what is behind it."""
    pull(store, "127.0.0.1:5000/a/b:1", manifest("port"))
    pull(store, "localhost/c:1", manifest("localhost"))
    assert got(registry, "a/b/manifests/1") == "port"
    assert got(registry, "a/b/manifests/1?ns=127.0.0.1:5000") == "port"
    assert registry.ask("/v2/127.0.0.1:5000/a/b/manifests/1").status == 404
    assert got(registry, "c/manifests/1") == "localhost"
    assert names(registry) == ["a/b", "localhost/c"]

    pull(store, "127.0.0.1:6000/a/b:1", manifest("other port"))
    assert got(registry, "a/b/manifests/1") == (404, "NAME_UNKNOWN")
    assert got(registry, "a/b/manifests/1?ns=127.0.0.1:6000") == "other port"
    assert names(registry) == ["localhost/c"]  # only what can be asked for


def test_what_was_pushed_goes_first(store: Store, registry: Running) -> None:
    """By its name as it is; for a mirror's client it is what that name says."""
    pull(store, "docker.io/library/alpine:1", manifest("pulled"))
    push(store, "library/alpine", "1", manifest("pushed"))
    push(store, "docker.io/mine", "1", manifest("mine"))
    assert got(registry, "library/alpine/manifests/1") == "pushed"
    assert got(registry, "library/alpine/manifests/1?ns=docker.io") == "pulled"
    assert got(registry, "docker.io/library/alpine/manifests/1") == "pulled"
    assert got(registry, "mine/manifests/1?ns=docker.io") == "mine"
    assert got(registry, "mine/manifests/1") == (404, "NAME_UNKNOWN")


def test_a_tag_serves_what_it_named_at_its_origin(store: Store, registry: Running) -> None:
    """The index, if the store has it: its digest is the one that others know."""
    here, elsewhere = manifest("amd64"), manifest("arm64")
    pull(store, "docker.io/library/alpine:1", here, index(here, elsewhere))
    answer = registry.ask("/v2/library/alpine/manifests/1")
    assert answer.headers["Docker-Content-Digest"] == str(Digest.of(index(here, elsewhere)))
    assert (answer.headers["Content-Type"], answer.body) == (OCI_INDEX, index(here, elsewhere))
    assert got(registry, f"library/alpine/manifests/{Digest.of(here)}") == "amd64"
    assert got(registry, f"library/alpine/manifests/{Digest.of(elsewhere)}") == (404, "MANIFEST_UNKNOWN")

    store.blobs.remove(Digest.of(index(here, elsewhere)))
    assert got(registry, "library/alpine/manifests/1") == "amd64"


def test_what_an_index_lists_can_be_had_by_digest(store: Store, registry: Running) -> None:
    """An index in an index, too; but nothing that belongs to another repository."""
    inner, other = manifest("inner"), manifest("other")
    put(store, inner)
    put(store, index(inner))
    push(store, "mine", "1", index(index(inner)))
    push(store, "yours", "1", other)
    assert got(registry, f"mine/manifests/{Digest.of(inner)}") == "inner"
    assert got(registry, f"mine/manifests/{Digest.of(other)}") == (404, "MANIFEST_UNKNOWN")


def test_an_image_without_a_tag(store: Store, registry: Running) -> None:
    """Pulled by its digest, it has that only, even if the user gave a tag with it: nobody has looked what that is."""
    document = manifest("by digest")
    for reference in (f"quay.io/a@{Digest.of(document)}", f"quay.io/b:1@{Digest.of(document)}"):
        pull(store, reference, document)
    for name in ("quay.io/a", "quay.io/b"):
        assert got(registry, f"{name}/manifests/{Digest.of(document)}") == "by digest"
        assert registry.ask(f"/v2/{name}/tags/list").json["tags"] == []
    assert got(registry, "quay.io/b/manifests/1") == (404, "MANIFEST_UNKNOWN")


def test_layers_that_the_store_has_not_kept(store: Store, registry: Running) -> None:
    document = json.dumps(manifest_of(CONFIG, b"discarded")).encode()
    pull(store, "quay.io/a:1", document)
    assert registry.ask("/v2/quay.io/a/manifests/1").status == 200
    assert registry.ask(f"/v2/quay.io/a/blobs/{Digest.of(b'discarded')}").refusal == (404, "BLOB_UNKNOWN")


def test_an_image_that_is_removed_meanwhile(store: Store, registry: Running) -> None:
    pull(store, "quay.io/a:1", manifest("a"))
    assert got(registry, "quay.io/a/manifests/1") == "a"
    store.images.remove("quay.io/a:1")
    assert got(registry, "quay.io/a/manifests/1") == (404, "NAME_UNKNOWN")


def test_a_damaged_index_is_not_the_clients_fault(store: Store) -> None:
    """Nor its business: where it lies is told to whoever serves."""
    errors: list[str] = []
    with running(Path(store.root), on_error=errors.append) as registry:
        Path(store.root, "index.json").write_text("{")
        answer = registry.ask("/v2/a/tags/list")
        assert answer.refusal == (500, "UNKNOWN")
    assert store.root not in answer.body.decode()
    [error] = errors
    assert error.startswith("GET /v2/a/tags/list: ")
    assert f"{store.root}/index.json is damaged" in error


def test_referrers_in_an_index_of_another_program(store: Store, registry: Running) -> None:
    """All manifests of the repository count, not only those that have an entry of their own."""
    subject = manifest("subject")
    about = manifest_of(CONFIG, subject=descriptor(subject, OCI_MANIFEST), artifactType="a/b")
    data = json.dumps(about).encode()
    put(store, data)
    put(store, subject)
    push(store, "some", "1", index(subject, data))
    [found] = registry.ask(f"/v2/some/referrers/{Digest.of(subject)}").json["manifests"]
    assert found == {**descriptor(data, OCI_MANIFEST), "artifactType": "a/b"}
