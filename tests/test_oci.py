"""Manifests, indexes and configs: what is taken, which of several is chosen, and what is refused and why."""

from __future__ import annotations

import json
from typing import Any

import pytest

from pullpipe.errors import InvalidDocument, NoSuchPlatform
from pullpipe.oci import (
    DOCKER_CONFIG,
    DOCKER_LIST,
    DOCKER_MANIFEST,
    OCI_CONFIG,
    OCI_INDEX,
    OCI_LAYER,
    OCI_MANIFEST,
    Descriptor,
    ImageConfig,
    Index,
    Manifest,
    Platform,
    parse_document,
)
from store import Digest

DOCKER_LAYER = "application/vnd.docker.image.rootfs.diff.tar.gzip"
AMD64 = Platform("linux", "amd64")


def digest(text: str) -> str:
    return str(Digest.of(text.encode()))


def descriptor(media_type: str, name: str = "x", **fields: object) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": digest(name), "size": 7, **fields}


def manifest(**changes: object) -> dict[str, Any]:
    """A good one, with these fields changed; None takes one away."""
    document: dict[str, Any] = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": descriptor(OCI_CONFIG, "config"),
        "layers": [descriptor(f"{OCI_LAYER}+gzip", "0"), descriptor(f"{OCI_LAYER}+zstd", "1")],
        **changes,
    }
    return {name: value for name, value in document.items() if value is not None}


def index(*platforms: str | None, **changes: object) -> dict[str, Any]:
    """One manifest for each platform, called by its place."""
    entries = []
    for number, platform in enumerate(platforms):
        fields: dict[str, Any] = {}
        if platform is not None:
            fields["platform"] = dict(zip(("os", "architecture", "variant"), platform.split("/"), strict=False))
        entries.append(descriptor(OCI_MANIFEST, str(number), **fields))
    document: dict[str, Any] = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries, **changes}
    return {name: value for name, value in document.items() if value is not None}


def parse(document: object, content_type: str = "") -> Manifest | Index:
    return parse_document(json.dumps(document).encode(), content_type)


def parse_manifest(document: object, content_type: str = "") -> Manifest:
    parsed = parse(document, content_type)
    assert isinstance(parsed, Manifest)
    return parsed


def choose(document: object, platform: str) -> int:
    """The place of the entry that is chosen."""
    parsed = parse(document)
    assert isinstance(parsed, Index)
    chosen = parsed.choose(Platform.parse(platform), "example.org/a:1")
    return parsed.manifests.index(chosen)


class TestManifest:
    def test_oci(self) -> None:
        """Its config and its layers, in their order."""
        parsed = parse_manifest(manifest())
        assert parsed.media_type == OCI_MANIFEST
        assert parsed.config == Descriptor(OCI_CONFIG, Digest.of(b"config"), 7)
        assert [layer.digest for layer in parsed.layers] == [Digest.of(b"0"), Digest.of(b"1")]
        assert [layer.media_type for layer in parsed.layers] == [f"{OCI_LAYER}+gzip", f"{OCI_LAYER}+zstd"]

    @pytest.mark.parametrize("content_type", ["", DOCKER_MANIFEST, "text/plain", f"{DOCKER_MANIFEST}; charset=utf-8"])
    def test_docker(self, content_type: str) -> None:
        """Schema 2, whether or not the server says what it is."""
        document = manifest(
            mediaType=DOCKER_MANIFEST, config=descriptor(DOCKER_CONFIG), layers=[descriptor(DOCKER_LAYER)]
        )
        assert parse_manifest(document, content_type).media_type == DOCKER_MANIFEST

    @pytest.mark.parametrize("content_type", ["", OCI_MANIFEST, "application/octet-stream"])
    def test_media_type_may_be_missing(self, content_type: str) -> None:
        """As the spec allows; then the header counts, and failing that the fields."""
        assert parse_manifest(manifest(mediaType=None), content_type).media_type == OCI_MANIFEST
        parsed = parse(index("linux/amd64", mediaType=None), content_type.replace("manifest", "index"))
        assert isinstance(parsed, Index)

    def test_unknown_fields_are_ignored(self) -> None:
        """Annotations, subject, and what is to come."""
        layer = descriptor(f"{OCI_LAYER}+gzip", urls=["https://example.org"], data="AA==", new={"a": 1})
        document = manifest(annotations={"a": "b"}, subject=descriptor(OCI_MANIFEST), new=[1], layers=[layer])
        assert len(parse_manifest(document).layers) == 1

    def test_annotations_of_a_layer(self) -> None:
        layer = descriptor(f"{OCI_LAYER}+gzip", annotations={"a": "b"})
        assert parse_manifest(manifest(layers=[layer])).layers[0].annotations == {"a": "b"}

    def test_no_layers(self) -> None:
        assert parse_manifest(manifest(layers=[])).layers == ()

    @pytest.mark.parametrize(
        "media_type",
        [
            OCI_LAYER,
            f"{OCI_LAYER}+gzip",
            f"{OCI_LAYER}+zstd",
            "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
            DOCKER_LAYER,
            "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
            "application/vnd.docker.image.rootfs.diff.tar.zstd",
        ],
    )
    def test_layer_media_types(self, media_type: str) -> None:
        assert parse_manifest(manifest(layers=[descriptor(media_type)])).layers[0].media_type == media_type

    def test_sha512(self) -> None:
        layer = {**descriptor(OCI_LAYER), "digest": str(Digest.of(b"x", "sha512"))}
        assert parse_manifest(manifest(layers=[layer])).layers[0].digest.algorithm == "sha512"


class TestTwoReadings:
    """A document that two programs may read differently is refused (CVE-2021-41190)."""

    @pytest.mark.parametrize(
        "document",
        [
            manifest(manifests=[]),
            manifest(manifests=[descriptor(OCI_MANIFEST)], mediaType=None),
            index("linux/amd64", layers=[]),
            index("linux/amd64", layers=[descriptor(OCI_LAYER)], mediaType=None),
            index("linux/amd64", config=descriptor(OCI_CONFIG)),
        ],
    )
    def test_index_and_manifest_at_once(self, document: object) -> None:
        with pytest.raises(InvalidDocument, match="at once"):
            parse(document)

    @pytest.mark.parametrize(
        ("document", "content_type"),
        [
            (manifest(), OCI_INDEX),
            (manifest(), DOCKER_MANIFEST),
            (manifest(), f"{DOCKER_LIST};charset=utf-8"),
            (index("linux/amd64"), OCI_MANIFEST),
            (index("linux/amd64"), DOCKER_LIST),
            (manifest(), "application/vnd.docker.distribution.manifest.v1+prettyjws"),
        ],
    )
    def test_header_and_document_disagree(self, document: object, content_type: str) -> None:
        with pytest.raises(InvalidDocument, match="calls itself"):
            parse(document, content_type)

    @pytest.mark.parametrize(
        ("document", "content_type"),
        [(manifest(mediaType=None), OCI_INDEX), (index("linux/amd64", mediaType=None), OCI_MANIFEST)],
    )
    def test_header_and_fields_disagree(self, document: object, content_type: str) -> None:
        with pytest.raises(InvalidDocument):
            parse(document, content_type)

    def test_header_alone_in_another_case(self) -> None:
        """Media types do not distinguish case (RFC 6838), so this one is not another one."""
        assert parse_manifest(manifest(), OCI_MANIFEST.upper()).media_type == OCI_MANIFEST


class TestRefused:
    @pytest.mark.parametrize(
        "data",
        [
            b"",
            b"{",
            b"null",
            b"[]",
            b'"x"',
            b"1",
            b"\xff\xfe",
            b"<html></html>",
            b"{}",
            b"[" * 200_000,
            b'{"schemaVersion": 2, "config": ' + b"[" * 200_000,
        ],
        ids=lambda data: repr(data[:20]),
    )
    def test_not_a_manifest(self, data: bytes) -> None:
        """An error of ours, whatever the bytes are."""
        with pytest.raises(InvalidDocument):
            parse_document(data)

    def test_schema_1(self) -> None:
        """Said by its name, so that its owner knows what to do."""
        prettyjws = "application/vnd.docker.distribution.manifest.v1+prettyjws"
        document = {"schemaVersion": 1, "name": "a", "tag": "1", "fsLayers": [], "history": [], "signatures": []}
        for content_type in ("", prettyjws, "application/vnd.docker.distribution.manifest.v1+json"):
            with pytest.raises(InvalidDocument, match="schema 1"):
                parse(document, content_type)

    @pytest.mark.parametrize(
        "changes",
        [
            {"config": descriptor("application/vnd.cncf.helm.config.v1+json")},
            {"config": descriptor("application/vnd.oci.empty.v1+json"), "artifactType": "application/x.helm"},
            {"config": descriptor("application/vnd.oci.empty.v1+json"), "layers": [descriptor("text/plain")]},
        ],
    )
    def test_artifact(self, changes: dict[str, Any]) -> None:
        """A chart, a signature: the error says which kind."""
        kind = changes.get("artifactType") or changes["config"]["mediaType"]
        with pytest.raises(InvalidDocument, match="artifact") as caught:
            parse(manifest(**changes))
        assert kind in str(caught.value)

    @pytest.mark.parametrize(
        "media_type", ["text/plain", "", f"{OCI_LAYER}+gzip+encrypted", "application/vnd.oci.image.config.v1+json"]
    )
    def test_a_layer_that_is_none(self, media_type: str) -> None:
        """The error says which of them."""
        layers = [descriptor(OCI_LAYER), descriptor(media_type)]
        with pytest.raises(InvalidDocument, match="layer 1"):
            parse(manifest(layers=layers))

    @pytest.mark.parametrize(
        "changes",
        [
            {"schemaVersion": None},
            {"schemaVersion": 3},
            {"schemaVersion": "2"},
            {"mediaType": 7},
            {"mediaType": "application/json"},
            {"config": None},
            {"config": []},
            {"config": {}},
            {"layers": None},
            {"layers": {}},
            {"layers": [None]},
            {"layers": ["x"]},
        ],
    )
    def test_fields(self, changes: dict[str, Any]) -> None:
        with pytest.raises(InvalidDocument):
            parse(manifest(**changes))

    @pytest.mark.parametrize(
        ("field", "value"),
        [
            ("mediaType", None),
            ("mediaType", 1),
            ("digest", None),
            ("digest", 1),
            ("digest", "sha256:abc"),
            ("digest", "md5:" + "0" * 32),
            ("digest", "sha256:../../../../etc/passwd"),
            ("size", None),
            ("size", -1),
            ("size", "7"),
            ("size", 7.0),
            ("size", True),
            ("annotations", []),
            ("annotations", {"a": 1}),
            ("platform", "linux/amd64"),
            ("platform", {"os": "linux"}),
            ("platform", {"os": 1, "architecture": "amd64"}),
        ],
    )
    def test_descriptor(self, field: str, value: object) -> None:
        """The error leads to the place: the first layer, and which field of it."""
        layer = {**descriptor(OCI_LAYER), field: value}
        with pytest.raises(InvalidDocument, match=rf"manifest\.layers\[0\]\.{field}"):
            parse(manifest(layers=[layer]))

    @pytest.mark.parametrize("manifests", [None, {}, [None], ["x"], [{}], [{"mediaType": OCI_MANIFEST}]])
    def test_index(self, manifests: object) -> None:
        with pytest.raises(InvalidDocument):
            parse({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": manifests})


class TestChoice:
    def test_by_platform(self) -> None:
        document = index("linux/arm64", "linux/amd64", "windows/amd64")
        assert choose(document, "linux/amd64") == 1
        assert choose(document, "windows/amd64") == 2

    def test_docker_list(self) -> None:
        document = index("linux/arm64", "linux/amd64", mediaType=DOCKER_LIST)
        document["manifests"] = [{**entry, "mediaType": DOCKER_MANIFEST} for entry in document["manifests"]]
        assert choose(document, "linux/amd64") == 1

    def test_the_first_of_two(self) -> None:
        """As the spec says: entries are in the order of preference."""
        assert choose(index("linux/arm64", "linux/amd64", "linux/amd64"), "linux/amd64") == 1

    @pytest.mark.parametrize(
        ("wanted", "place"),
        [("linux/arm/v7", 1), ("linux/arm", 1), ("linux/arm/v6", 0), ("linux/arm64", 3), ("linux/arm64/v8", 3)],
    )
    def test_variants(self, wanted: str, place: int) -> None:
        """Arm alone means v7; arm64 is arm64/v8 whichever way it is written."""
        assert choose(index("linux/arm/v6", "linux/arm/v7", "linux/amd64", "linux/arm64/v8"), wanted) == place
        assert choose(index("linux/arm64"), "linux/arm64/v8") == 0
        assert choose(index("linux/arm"), "linux/arm/v7") == 0

    def test_amd64_variants_are_others(self) -> None:
        """A v3 image may not run on a plain amd64 machine."""
        assert choose(index("linux/amd64/v3", "linux/amd64"), "linux/amd64") == 1
        assert choose(index("linux/amd64", "linux/amd64/v3"), "linux/amd64/v3") == 1
        with pytest.raises(NoSuchPlatform):
            choose(index("linux/amd64/v3"), "linux/amd64")

    def test_attestations_are_passed_over(self) -> None:
        """What buildx adds for each image, with the platform unknown/unknown; listings do not offer it."""
        document = index("unknown/unknown", "linux/amd64", "unknown/unknown")
        for entry in document["manifests"][::2]:
            entry["annotations"] = {"vnd.docker.reference.type": "attestation-manifest"}
        assert choose(document, "linux/amd64") == 1
        with pytest.raises(NoSuchPlatform) as caught:
            choose(document, "linux/arm64")
        assert "unknown" not in str(caught.value)

    def test_attestations_cannot_be_asked_for(self) -> None:
        """They are no images."""
        with pytest.raises(NoSuchPlatform):
            choose(index("unknown/unknown", "linux/amd64"), "unknown/unknown")

    def test_unknown_media_types_are_passed_over(self) -> None:
        """The spec demands it: an index may hold more than images."""
        document = index("linux/amd64", "linux/amd64")
        document["manifests"][0]["mediaType"] = "application/vnd.example.new+json"
        assert choose(document, "linux/amd64") == 1
        document["manifests"].pop()
        with pytest.raises(NoSuchPlatform):
            choose(document, "linux/amd64")

    def test_an_index_in_the_index(self) -> None:
        document = index("linux/arm64", "linux/amd64")
        document["manifests"][1]["mediaType"] = OCI_INDEX
        assert choose(document, "linux/amd64") == 1

    def test_the_only_one_without_a_platform(self) -> None:
        """It is taken when no other fits; two of them are a question, not an answer."""
        assert choose(index(None), "linux/amd64") == 0
        assert choose(index("linux/arm64", None), "linux/amd64") == 1
        assert choose(index(None, "linux/amd64"), "linux/amd64") == 1
        with pytest.raises(NoSuchPlatform):
            choose(index(None, None), "linux/amd64")

    def test_none_fits(self) -> None:
        """The error names the image, what was wanted, and what there is."""
        with pytest.raises(NoSuchPlatform, match=r"example\.org/a:1.*linux/amd64.*linux/arm/v7, linux/s390x"):
            choose(index("linux/s390x", "linux/arm/v7"), "linux/amd64")
        with pytest.raises(NoSuchPlatform):
            choose(index(), "linux/amd64")


class TestPlatform:
    @pytest.mark.parametrize("text", ["linux/amd64", "linux/arm/v7"])
    def test_text(self, text: str) -> None:
        assert str(Platform.parse(text)) == text

    @pytest.mark.parametrize("text", ["", "linux", "linux/", "/amd64", "linux//v7", "linux/arm/", "a/b/c/d"])
    def test_no_platform(self, text: str) -> None:
        with pytest.raises(InvalidDocument, match="OS/ARCH"):
            Platform.parse(text)

    def test_of_this_machine(self) -> None:
        """Linux, and an architecture by Go's name."""
        here = Platform.of_this_machine()
        assert here.os == "linux"
        assert here.architecture not in ("", "x86_64", "aarch64")
        assert here.accepts(here)


class TestConfig:
    def config(self, **changes: object) -> dict[str, Any]:
        document: dict[str, Any] = {
            "os": "linux",
            "architecture": "arm",
            "variant": "v7",
            "created": "2024-01-02T03:04:05Z",
            "config": {
                "Env": ["A=1", "B=2"],
                "Entrypoint": ["/bin/sh"],
                "Cmd": ["-c", "true"],
                "WorkingDir": "/w",
                "User": "1:2",
            },
            "rootfs": {"type": "layers", "diff_ids": [digest("0"), digest("1")]},
            **changes,
        }
        return {name: value for name, value in document.items() if value is not None}

    def parse(self, layers: int = 2, **changes: object) -> ImageConfig:
        return ImageConfig.parse(json.dumps(self.config(**changes)).encode(), layers=layers)

    def test_all_fields(self) -> None:
        assert self.parse() == ImageConfig(
            platform=Platform("linux", "arm", "v7"),
            diff_ids=(Digest.of(b"0"), Digest.of(b"1")),
            env=("A=1", "B=2"),
            entrypoint=("/bin/sh",),
            cmd=("-c", "true"),
            working_dir="/w",
            user="1:2",
            created="2024-01-02T03:04:05Z",
        )

    @pytest.mark.parametrize("settings", [None, {}, {"Env": None, "Cmd": None, "Entrypoint": None, "User": None}])
    def test_what_may_be_missing(self, settings: object) -> None:
        """Go writes null for an empty list."""
        config = self.parse(config=settings, variant=None, created=None)
        assert (config.env, config.entrypoint, config.cmd) == ((), (), ())
        assert (config.working_dir, config.user, config.created) == ("", "", "")
        assert config.platform == Platform("linux", "arm")

    @pytest.mark.parametrize("rootfs", [{"type": "layers", "diff_ids": []}, {"type": "layers", "diff_ids": None}])
    def test_no_layers(self, rootfs: object) -> None:
        assert self.parse(layers=0, rootfs=rootfs).diff_ids == ()

    @pytest.mark.parametrize("layers", [0, 1, 3])
    def test_another_number_of_layers_than_the_manifest(self, layers: int) -> None:
        """Else some layer would go unproven. The error tells both numbers."""
        with pytest.raises(InvalidDocument, match=rf"{layers} layers .* 2"):
            self.parse(layers=layers)

    @pytest.mark.parametrize(
        "changes",
        [
            {"os": None},
            {"architecture": None},
            {"architecture": 1},
            {"variant": 7},
            {"rootfs": None},
            {"rootfs": []},
            {"rootfs": {"diff_ids": "x"}},
            {"rootfs": {"diff_ids": [digest("0"), "sha256:../x"]}},
            {"rootfs": {"diff_ids": [digest("0"), None]}},
            {"config": []},
            {"config": {"Env": "A=1"}},
            {"config": {"Env": [1]}},
            {"config": {"Cmd": "sh -c true"}},
            {"config": {"Entrypoint": {"a": 1}}},
            {"config": {"WorkingDir": 1}},
            {"config": {"User": 0}},
            {"created": 0},
        ],
    )
    def test_wrong_fields(self, changes: dict[str, Any]) -> None:
        with pytest.raises(InvalidDocument, match=r"config"):
            self.parse(**changes)

    @pytest.mark.parametrize("data", [b"", b"[]", b"null", b"\x1f\x8b"])
    def test_not_a_config(self, data: bytes) -> None:
        with pytest.raises(InvalidDocument):
            ImageConfig.parse(data, layers=0)
