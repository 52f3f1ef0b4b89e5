"""Manifests, indexes and configs: what is taken, which of several is chosen, and what is refused and why."""

from __future__ import annotations

import json
from base64 import b64encode
from typing import Any

import pytest

from pullpipe.errors import InvalidDocument
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
    best,
    chain_ids,
    parse_document,
)
from pullpipe.platforms import Platform
from store import Digest

DOCKER_LAYER = "application/vnd.docker.image.rootfs.diff.tar.gzip"


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


def choose(document: object, platform: str) -> int | None:
    """The place of the entry that is chosen."""
    parsed = parse(document)
    assert isinstance(parsed, Index)
    chosen = best(parsed.images, Platform.parse(platform))
    return None if chosen is None else parsed.manifests.index(chosen)


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
        layer = descriptor(f"{OCI_LAYER}+gzip", new={"a": 1})
        document = manifest(annotations={"a": "b"}, subject=descriptor(OCI_MANIFEST), new=[1], layers=[layer])
        assert len(parse_manifest(document).layers) == 1

    def test_annotations_of_a_layer(self) -> None:
        layer = descriptor(f"{OCI_LAYER}+gzip", annotations={"a": "b"})
        assert parse_manifest(manifest(layers=[layer])).layers[0].annotations == {"a": "b"}

    @pytest.mark.parametrize("layers", ["[]", "null"])
    def test_no_layers(self, layers: str) -> None:
        """Go writes null for an empty list."""
        data = json.dumps(manifest(layers=[])).replace("[]", layers)
        parsed = parse_document(data.encode())
        assert isinstance(parsed, Manifest)
        assert parsed.layers == ()

    @pytest.mark.parametrize("media_type", ["application/octet-stream", "application/json", "text/html", ""])
    def test_config_of_an_old_docker_image(self, media_type: str) -> None:
        """What old clients and registries called it; in an OCI manifest such a thing is no image's."""
        config = descriptor(media_type)
        layers = [descriptor(DOCKER_LAYER)]
        parsed = parse_manifest(manifest(mediaType=DOCKER_MANIFEST, config=config, layers=layers))
        assert parsed.config.media_type == media_type
        with pytest.raises(InvalidDocument, match="artifact"):
            parse(manifest(config=config))

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
            *(json.dumps(manifest()).encode(encoding) for encoding in ("utf-8-sig", "utf-16", "utf-16-le", "utf-32")),
            *(json.dumps(manifest(annotations={"x": float(n)})).encode() for n in ("nan", "inf", "-inf")),
            json.dumps(manifest(annotations={"x": "\u00fc"}), ensure_ascii=False).encode("latin-1"),
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
            ("digest", "blake3:" + "0" * 64),
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


class TestUrls:
    """Where a layer can be had besides: foreign layers have this."""

    def urls(self, *urls: object) -> tuple[str, ...]:
        layer = descriptor("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", urls=list(urls))
        return parse_manifest(manifest(layers=[layer])).layers[0].urls

    def test_http_and_https(self) -> None:
        good = ("https://example.org/x?y#z", "http://127.0.0.1:5000/blob", "HTTPS://example.org", "https://[::1]/a@b")
        assert self.urls(*good) == good

    @pytest.mark.parametrize(
        "url",
        [
            "",
            "https://",
            "https:///x",
            "//example.org/x",
            "ftp://example.org/x",
            "file:///etc/passwd",
            "javascript:alert(1)",
            "https://user@example.org/x",
            "https://user:secret@example.org/x",
            "https://example.org\\@evil.org/",
            "https://example.org/a b",
            "https://example.org/\r\nHost: evil.org",
            "https://ex\u00e4mple.org/",
            " https://example.org/",
            "https://example.org/\n",
        ],
    )
    def test_others_are_ignored(self, url: str) -> None:
        """Other schemes, credentials that a document should not choose, and what is no URL."""
        assert self.urls(url, "https://example.org/x") == ("https://example.org/x",)

    def test_none(self) -> None:
        assert self.urls() == ()
        assert parse_manifest(manifest(layers=[descriptor(OCI_LAYER, urls=None)])).layers[0].urls == ()

    @pytest.mark.parametrize("urls", ["https://example.org", [1], [None], {}])
    def test_wrong_type(self, urls: object) -> None:
        with pytest.raises(InvalidDocument, match=r"layers\[0\]\.urls"):
            parse(manifest(layers=[descriptor(OCI_LAYER, urls=urls)]))


class TestData:
    """A blob that is in its descriptor (image-spec, descriptor.md)."""

    def layer(self, data: object, content: bytes = b"content") -> Descriptor:
        layer = {"mediaType": OCI_LAYER, "digest": str(Digest.of(content)), "size": len(content), "data": data}
        return parse_manifest(manifest(layers=[layer])).layers[0]

    def test_is_the_blob(self) -> None:
        assert self.layer(b64encode(b"content").decode()).data == b"content"
        assert self.layer("AA==", b"\0").data == b"\0"

    @pytest.mark.parametrize("data", [None, ""])
    def test_none(self, data: object) -> None:
        """Left out, as Go's encoder may write it; the blob is then to be fetched."""
        assert self.layer(data).data is None

    def test_sha512(self) -> None:
        digest = str(Digest.of(b"x", "sha512"))
        layer = {"mediaType": OCI_LAYER, "digest": digest, "size": 1, "data": "eA=="}
        assert parse_manifest(manifest(layers=[layer])).layers[0].data == b"x"
        with pytest.raises(InvalidDocument, match="refused"):
            parse(manifest(layers=[{**layer, "data": "eQ=="}]))

    @pytest.mark.parametrize(
        "data",
        [
            "Y29udGVudA=",  # padding
            "Y29udGVudA",
            "Y29udGVudA===",
            "=Y29udGVudA==",
            "Y29u dGVudA==",  # what a lenient decoder skips
            "Y29udGVudA==\n",
            "Y29u\r\ndGVudA==",
            "Y29udGVudA==Y29udGVudA==",
            "Y29udGVu-A==",  # the URL's alphabet
            "Y29udGVudA\u00e4==",
            "*",
        ],
    )
    def test_not_base64(self, data: str) -> None:
        """As RFC 4648 has it, section 4, and nothing besides."""
        with pytest.raises(InvalidDocument, match=r"layers\[0\]\.data is not base64"):
            self.layer(data)

    @pytest.mark.parametrize("content", [b"conten", b"contents", b"CONTENT"])
    def test_other_bytes(self, content: bytes) -> None:
        """Shorter, longer, different: never taken."""
        with pytest.raises(InvalidDocument, match=r"layers\[0\]\.data.*refused"):
            self.layer(b64encode(content).decode())

    @pytest.mark.parametrize("data", [1, [], {}, True])
    def test_wrong_type(self, data: object) -> None:
        with pytest.raises(InvalidDocument, match=r"layers\[0\]\.data"):
            self.layer(data)


class TestChoice:
    def test_by_platform(self) -> None:
        document = index("linux/arm64", "linux/amd64", "windows/amd64")
        assert choose(document, "linux/amd64") == 1
        assert choose(document, "windows/amd64") == 2
        assert choose(document, "linux/s390x") is None

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

    @pytest.mark.parametrize(
        ("offered", "place"),
        [
            (["linux/arm/v5", "linux/arm/v6", "linux/arm/v7"], 2),
            (["linux/arm/v7", "linux/arm/v6"], 0),
            (["linux/arm/v5", "linux/arm/v6"], 1),
            (["linux/arm/v6"], 0),
            (["linux/arm/v8"], None),
            (["linux/arm64"], None),
        ],
    )
    def test_the_variant_itself_and_then_lower_ones(self, offered: list[str], place: int | None) -> None:
        """Whatever their order: what an arm/v7 machine takes."""
        assert choose(index(*offered), "linux/arm/v7") == place

    def test_amd64_variants(self) -> None:
        """Plain amd64 is v1; higher levels run lower ones, and not the other way around."""
        assert choose(index("linux/amd64/v3", "linux/amd64"), "linux/amd64") == 1
        assert choose(index("linux/amd64", "linux/amd64/v3"), "linux/amd64/v3") == 1
        assert choose(index("linux/amd64", "linux/amd64/v2", "linux/amd64/v4"), "linux/amd64/v3") == 1
        assert choose(index("linux/amd64/v2", "linux/amd64/v1"), "linux/amd64") == 1
        assert choose(index("linux/amd64/v3"), "linux/amd64/v2") is None

    def test_other_names_in_the_index(self) -> None:
        """Of builders that did not ask Go."""
        assert choose(index("linux/amd64", "linux/aarch64"), "linux/arm64") == 1
        assert choose(index("Linux/x86_64"), "linux/amd64/v1") == 0

    def test_windows_versions_do_not_count(self) -> None:
        """The first of several builds."""
        document = index("windows/amd64", "windows/amd64")
        for number, entry in enumerate(document["manifests"]):
            entry["platform"] |= {"os.version": f"10.0.{number}", "os.features": ["win32k"]}
        assert choose(document, "windows/amd64") == 0

    def test_attestations_are_passed_over(self) -> None:
        """What buildx adds for each image, with the platform unknown/unknown; nobody can ask for them."""
        document = index("unknown/unknown", "linux/amd64", "unknown/unknown")
        for entry in document["manifests"][::2]:
            entry["annotations"] = {"vnd.docker.reference.type": "attestation-manifest"}
        assert choose(document, "linux/amd64") == 1
        assert choose(document, "linux/arm64") is None
        assert choose(document, "unknown/unknown") is None

    def test_unknown_media_types_are_passed_over(self) -> None:
        """The spec demands it: an index may hold more than images."""
        document = index("linux/amd64", "linux/amd64")
        document["manifests"][0]["mediaType"] = "application/vnd.example.new+json"
        assert choose(document, "linux/amd64") == 1
        document["manifests"].pop()
        assert choose(document, "linux/amd64") is None

    def test_an_index_in_the_index(self) -> None:
        document = index("linux/arm64", "linux/amd64")
        document["manifests"][1]["mediaType"] = OCI_INDEX
        assert choose(document, "linux/amd64") == 1

    def test_without_a_platform(self) -> None:
        """What it is for stands elsewhere."""
        assert choose(index(None), "linux/amd64") is None
        assert choose(index(None, "linux/amd64"), "linux/amd64") == 1


def test_chain_ids() -> None:
    """As image-spec's config.md has them: the first is the diffID as it is, and sha256 makes the others of any."""
    first, second, third = Digest.of(b"0", "sha512"), Digest.of(b"1", "sha512"), Digest.of(b"2")
    chain = chain_ids([first, second, third])
    assert chain[0] == first
    assert chain[1] == Digest.of(f"{first} {second}".encode())
    assert chain[2] == Digest.of(f"{chain[1]} {third}".encode())
    assert chain_ids([]) == []


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
                "StopSignal": "SIGQUIT",
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
            stop_signal="SIGQUIT",
            created="2024-01-02T03:04:05Z",
        )

    @pytest.mark.parametrize("settings", [None, {}, {"Env": None, "Cmd": None, "Entrypoint": None, "User": None}])
    def test_what_may_be_missing(self, settings: object) -> None:
        """Go writes null for an empty list."""
        config = self.parse(config=settings, variant=None, created=None)
        assert (config.env, config.entrypoint, config.cmd) == ((), (), ())
        assert (config.working_dir, config.user, config.created) == ("", "", "")
        assert config.platform == Platform("linux", "arm")

    @pytest.mark.parametrize("said", [{"os": None}, {"architecture": None}, {"os": ""}, {"architecture": ""}])
    def test_platform_that_is_not_said(self, said: dict[str, Any]) -> None:
        """Old Docker images: for Linux, and on whatever architecture."""
        expected = {"os": "linux", "architecture": "arm"} | {name: "" for name in said if name == "architecture"}
        platform = self.parse(**said, variant=None).platform
        assert (platform.os, platform.architecture) == (expected["os"], expected["architecture"])

    def test_other_names_of_the_platform(self) -> None:
        assert self.parse(architecture="armhf", variant=None).platform == Platform("linux", "arm", "v7")
        assert self.parse(architecture="x86_64", variant=None).platform == Platform("linux", "amd64")

    def test_fields_of_old_docker_images(self) -> None:
        """What is not needed may be there, and null."""
        document = self.config() | {
            "id": "x",
            "container": "y",
            "container_config": {"Cmd": ["/bin/sh", "-c", "#(nop)"], "Image": "z"},
            "docker_version": "1.9",
            "created": None,
            "history": None,
        }
        config = ImageConfig.parse(json.dumps(document).encode(), layers=2)
        assert (config.created, config.cmd) == ("", ("-c", "true"))

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
            {"os": []},
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
