"""From an index to one platform's image: which entry is taken, what is asked for, and what is refused."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path
from typing import Any

import pytest

from pullpipe.errors import InvalidDocument, NoSuchPlatform, NotFound, VerificationError
from pullpipe.local import LocalImage
from pullpipe.pipe.documents import Documents
from pullpipe.pipe.resolve import resolve
from pullpipe.platforms import Platform
from pullpipe.transports import Document
from pullpipe.transports.files import Directory
from pullpipe.transports.layout import LayoutSource
from store import Digest, Store
from tests.support.documents import Descriptor, Layout, inlined
from tests.support.images import MANIFEST, File, Image, Layer

REFERENCE = "example.org/a:1"


class Source(LayoutSource):
    """A layout that knows which documents and blobs it was asked for."""

    def __init__(self, layout: Layout) -> None:
        super().__init__(Directory(str(layout.path)))
        self.asked: list[str] = []

    async def document(self, wanted: str) -> Document:
        self.asked.append(wanted)
        return await super().document(wanted)


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(tmp_path / "layout")


@pytest.fixture
def store(store_root: Path) -> Store:
    return Store(str(store_root), durable=False)


def image(platform: str) -> Image:
    """Another one for each platform."""
    return Image([Layer([File(platform.replace("/", "-"))])], platform=platform)


def resolved(layout: Layout, store: Store, top: Descriptor, platform: str, source: Source | None = None) -> LocalImage:
    """What the platform is given of the document `top`."""
    documents = Documents(source or Source(layout), store)

    async def work() -> LocalImage:
        document = await documents.named(Digest.parse(top["digest"]))
        return await resolve(documents, document, REFERENCE, Platform.parse(platform))

    return asyncio.run(work())


def chosen(layout: Layout, store: Store, top: Descriptor, platform: str, source: Source | None = None) -> str:
    """The digest of the manifest that the platform is given."""
    return str(resolved(layout, store, top, platform, source).record.manifest)


class TestNested:
    @pytest.mark.parametrize("named", [False, True])
    def test_an_index_in_the_index(self, layout: Layout, store: Store, named: bool) -> None:
        """With the platform's name, or without any: then what is in it tells."""
        entries = {name: layout.image(image(name)) for name in ("linux/amd64", "linux/arm64", "linux/s390x")}
        fields: dict[str, Any] = {"platform": {"os": "linux", "architecture": "arm64"}} if named else {}
        inner = layout.index(entries["linux/amd64"], entries["linux/arm64"], **fields)
        top = layout.index(entries["linux/s390x"], inner)
        found = resolved(layout, store, top, "linux/arm64")
        assert str(found.record.manifest) == entries["linux/arm64"]["digest"]
        assert str(found.record.resolved) == top["digest"]
        assert chosen(layout, store, top, "linux/s390x") == entries["linux/s390x"]["digest"]

    def test_of_another_platform(self, layout: Layout, store: Store) -> None:
        """It is not even asked for; what it offers is told all the same."""
        inner = layout.index(layout.image(image("linux/arm64")), platform={"os": "linux", "architecture": "arm64"})
        top = layout.index(inner, layout.image(image("linux/amd64")))
        source = Source(layout)
        chosen(layout, store, top, "linux/amd64", source)
        assert inner["digest"] not in source.asked
        with pytest.raises(NoSuchPlatform, match=r"it has linux/amd64, linux/arm64; choose one with --platform"):
            chosen(layout, store, top, "linux/s390x")

    @pytest.mark.parametrize("first", ["inner", "outer"])
    def test_the_best_wherever_it_is(self, layout: Layout, store: Store, first: str) -> None:
        """The very variant in an inner index, before a lower one outside; of equals the first."""
        v5, v6, v7 = (layout.image(image(f"linux/arm/v{version}")) for version in (5, 6, 7))
        inner = layout.index(v5, v7)
        top = layout.index(inner, v6) if first == "inner" else layout.index(v6, inner)
        assert chosen(layout, store, top, "linux/arm/v7") == v7["digest"]
        assert chosen(layout, store, top, "linux/arm/v6") == v6["digest"]
        other = layout.document({**layout.manifest(image("linux/arm/v6")), "annotations": {"a": "b"}})
        other["platform"] = v6["platform"]
        equals = [layout.index(other), v6] if first == "inner" else [v6, layout.index(other)]
        expected = other if first == "inner" else v6
        assert chosen(layout, store, layout.index(*equals), "linux/arm/v6") == expected["digest"]

    def test_takes_the_name_of_the_entry_around_it(self, layout: Layout, store: Store) -> None:
        """A manifest without a platform, in an index that has one."""
        bare = layout.image(image("linux/arm64"), unnamed=True)
        inner = layout.index(bare, platform={"os": "linux", "architecture": "riscv64"})
        assert chosen(layout, store, layout.index(inner), "linux/riscv64") == bare["digest"]

    def test_three_deep(self, layout: Layout, store: Store) -> None:
        """Four indexes one below the other are enough; a fifth is refused, as it is for all platforms."""
        manifest = layout.image(image("linux/amd64"))
        top = manifest
        for _ in range(4):
            top = layout.index(top)
        assert chosen(layout, store, top, "linux/amd64") == manifest["digest"]
        below = asyncio.run(everything_below(layout, store, top))
        assert len(below) == 2
        top = layout.index(top)
        with pytest.raises(InvalidDocument, match="nests indexes more than 4 deep"):
            chosen(layout, store, top, "linux/amd64")
        with pytest.raises(InvalidDocument, match="nests indexes more than 4 deep"):
            asyncio.run(everything_below(layout, store, top))

    def test_many_times_the_same(self, layout: Layout, store: Store) -> None:
        """Each index names the next a hundred times: a million ways down, and each is asked for once."""
        top = layout.image(image("linux/amd64"))
        for _ in range(4):
            top = layout.index(*[top] * 100)
        source = Source(layout)
        chosen(layout, store, top, "linux/amd64", source)
        assert len(source.asked) == len(set(source.asked)) == 5
        assert len(asyncio.run(everything_below(layout, store, top))) == 2

    def test_more_documents_than_any_image_has(self, layout: Layout, store: Store) -> None:
        """Refused before a hostile index has filled memory or disk."""
        inner = [layout.index(layout.blob(f"{n}".encode(), MANIFEST)) for n in range(1100)]
        with pytest.raises(InvalidDocument, match="more than 1000 documents"):
            chosen(layout, store, layout.index(*inner), "linux/amd64")

    def test_an_entry_of_another_kind_than_it_says(self, layout: Layout, store: Store) -> None:
        """An index that is called a manifest, and the other way around: two readings, so none."""
        manifest = layout.image(image("linux/amd64"))
        index = layout.index(manifest, platform=manifest["platform"])
        manifest_as_index = {**manifest, "mediaType": index["mediaType"]}
        index_as_manifest = {**index, "mediaType": manifest["mediaType"]}
        for entry in (manifest_as_index, index_as_manifest):
            with pytest.raises(InvalidDocument, match="refused, one of the two is wrong"):
                chosen(layout, store, layout.index(entry), "linux/amd64")


async def everything_below(layout: Layout, store: Store, top: Descriptor) -> dict[Digest, Any]:
    documents = Documents(Source(layout), store)
    document = await documents.named(Digest.parse(top["digest"]))
    return dict(await documents.blobs_below(document))


class TestWithoutPlatform:
    def test_the_config_tells(self, layout: Layout, store: Store) -> None:
        """Whichever of several it is."""
        amd64, arm64 = (layout.image(image(name), unnamed=True) for name in ("linux/amd64", "linux/arm64"))
        top = layout.index(amd64, arm64)
        assert chosen(layout, store, top, "linux/arm64") == arm64["digest"]
        assert chosen(layout, store, top, "linux/amd64") == amd64["digest"]
        assert resolved(layout, store, top, "linux/arm64").record.architecture == "arm64"
        with pytest.raises(NoSuchPlatform, match="it has linux/amd64, linux/arm64"):
            chosen(layout, store, top, "linux/s390x")

    def test_is_looked_at_last(self, layout: Layout, store: Store) -> None:
        """An entry that names the platform is enough."""
        bare, named = layout.image(image("linux/amd64"), unnamed=True), layout.image(image("linux/amd64"))
        named = layout.document(
            {**layout.manifest(image("linux/amd64")), "annotations": {}}, platform=named["platform"]
        )
        source = Source(layout)
        assert chosen(layout, store, layout.index(bare, named), "linux/amd64", source) == named["digest"]
        assert bare["digest"] not in source.asked

    def test_what_is_no_image(self, layout: Layout, store: Store) -> None:
        """An artifact without a platform is passed over."""
        artifact = layout.manifest(Image([]), config=layout.blob(b"{}", "application/vnd.oci.empty.v1+json"))
        real = layout.image(image("linux/amd64"), unnamed=True)
        top = layout.index(layout.document(artifact), real)
        assert chosen(layout, store, top, "linux/amd64") == real["digest"]
        with pytest.raises(NoSuchPlatform):
            chosen(layout, store, layout.index(layout.document(artifact)), "linux/amd64")


class TestPlatform:
    def test_the_index_is_believed(self, layout: Layout, store: Store) -> None:
        """Many a config says amd64 where the builder's machine was one; so the record says what was asked for."""
        wrong = {
            **layout.image(image("linux/amd64")),
            "platform": {"os": "linux", "architecture": "arm", "variant": "v6"},
        }
        record = resolved(layout, store, layout.index(wrong), "linux/arm/v7").record
        assert (record.os, record.architecture, record.variant) == ("linux", "arm", "v6")

    def test_a_lone_manifest_tells_by_its_config(self, layout: Layout, store: Store) -> None:
        top = layout.image(image("linux/arm/v6"))
        assert resolved(layout, store, top, "linux/arm/v7").record.variant == "v6"
        with pytest.raises(NoSuchPlatform, match=r"example\.org/a:1 is for linux/arm/v6, not linux/arm/v5"):
            chosen(layout, store, top, "linux/arm/v5")

    @pytest.mark.parametrize("missing", [["os"], ["architecture"], ["os", "architecture"]])
    def test_an_old_image_that_does_not_say(self, layout: Layout, store: Store, missing: list[str]) -> None:
        """It is taken for what was asked for, as Docker does."""
        config = json.loads(image("linux/s390x").config_blob)
        for name in missing:
            del config[name]
        described = layout.blob(json.dumps(config).encode(), "application/vnd.oci.image.config.v1+json")
        top = layout.document(layout.manifest(image("linux/s390x"), config=described))
        record = resolved(layout, store, top, "linux/s390x").record
        assert (record.os, record.architecture) == ("linux", "s390x")

    @pytest.mark.skipif(os.uname().machine != "x86_64", reason="an amd64 machine's matter")
    def test_a_level_that_no_processor_has(self, layout: Layout, store: Store) -> None:
        """The error tells what this one has."""
        top = layout.index(layout.image(image("linux/amd64/v9")))
        with pytest.raises(NoSuchPlatform, match=r"it has linux/amd64/v9.*processor is a linux/amd64/v[1-4]\)"):
            chosen(layout, store, top, "linux/amd64")

    def test_unknown_entries_are_not_asked_for(self, layout: Layout, store: Store) -> None:
        """Attestations and unknown media types, which may be anything: here, nothing."""
        good = layout.image(image("linux/amd64"))
        gone = {"digest": f"sha256:{'0' * 64}", "size": 5}
        attestation = {**gone, "mediaType": MANIFEST, "platform": {"os": "unknown", "architecture": "unknown"}}
        new = {**gone, "mediaType": "application/vnd.example.new+json", "platform": good["platform"]}
        source = Source(layout)
        top = layout.index(attestation, new, good)
        assert chosen(layout, store, top, "linux/amd64", source) == good["digest"]
        assert source.asked == [top["digest"], good["digest"]]


class TestPresent:
    """What is at hand is not asked for."""

    def test_a_manifest_that_is_in_the_index(self, layout: Layout, store: Store) -> None:
        entry = inlined(layout, layout.image(image("linux/amd64")))
        assert chosen(layout, store, layout.index(entry), "linux/amd64") == entry["digest"]

    def test_an_index_that_is_in_the_index(self, layout: Layout, store: Store) -> None:
        entry = layout.image(image("linux/amd64"))
        assert (
            chosen(layout, store, layout.index(inlined(layout, layout.index(entry))), "linux/amd64") == entry["digest"]
        )

    def test_a_config_that_is_in_the_manifest(self, layout: Layout, store: Store) -> None:
        manifest = layout.manifest(image("linux/amd64"))
        manifest["config"] = inlined(layout, manifest["config"])
        found = resolved(layout, store, layout.document(manifest), "linux/amd64")
        assert len(found.config.diff_ids) == 1

    def test_what_the_store_has(self, layout: Layout, store: Store) -> None:
        """Index, manifest and config of an earlier pull: no request at all."""
        top = layout.index(layout.image(image("linux/amd64")))
        documents = Documents(Source(layout), store)
        found = [top["digest"], *(str(digest) for digest in asyncio.run(put_documents(documents, store, top)))]
        for place in layout.path.glob("blobs/*/*"):
            place.unlink()
        source = Source(layout)
        assert chosen(layout, store, top, "linux/amd64", source) in found
        assert source.asked == []

    def test_what_is_damaged_in_the_store(self, layout: Layout, store: Store) -> None:
        """It is fetched again."""
        manifest = layout.image(image("linux/amd64"))
        top = layout.index(manifest)
        asyncio.run(put_documents(Documents(Source(layout), store), store, top))
        Path(store.blobs.path(Digest.parse(manifest["digest"]))).write_bytes(b"damaged")
        source = Source(layout)
        assert chosen(layout, store, top, "linux/amd64", source) == manifest["digest"]
        assert source.asked == [manifest["digest"]]


async def put_documents(documents: Documents, store: Store, top: Descriptor) -> list[Digest]:
    """Puts what an amd64 machine needs into the store."""
    document = await documents.named(Digest.parse(top["digest"]))
    await resolve(documents, document, REFERENCE, Platform("linux", "amd64"))
    for digest, data in documents.found.items():
        with store.blobs.document(digest, data) as ingest:
            store.publish([ingest], [])
    return list(documents.found)


class TestWrong:
    def test_a_size_that_is_not_the_manifests(self, layout: Layout, store: Store) -> None:
        entry = layout.image(image("linux/amd64"))
        with pytest.raises(VerificationError, match=entry["digest"]):
            chosen(layout, store, layout.index({**entry, "size": entry["size"] + 1}), "linux/amd64")

    def test_a_manifest_that_is_missing(self, layout: Layout, store: Store) -> None:
        entry = layout.image(image("linux/amd64"))
        layout.remove(entry)
        with pytest.raises(NotFound, match=entry["digest"]):
            chosen(layout, store, layout.index(entry), "linux/amd64")

    def test_a_config_of_another_size(self, layout: Layout, store: Store) -> None:
        manifest = layout.manifest(image("linux/amd64"))
        for change in (-1, 1):
            config = {**manifest["config"], "size": manifest["config"]["size"] + change}
            with pytest.raises(VerificationError, match=config["digest"]):
                chosen(layout, store, layout.document({**manifest, "config": config}), "linux/amd64")

    def test_a_config_that_claims_gigabytes(self, layout: Layout, store: Store) -> None:
        """Refused by its word alone."""
        manifest = layout.manifest(image("linux/amd64"))
        manifest["config"]["size"] = 1 << 40
        with pytest.raises(InvalidDocument, match="limit"):
            chosen(layout, store, layout.document(manifest), "linux/amd64")
