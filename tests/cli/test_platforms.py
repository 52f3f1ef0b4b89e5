"""Images as registries have them: platforms, sha512, data in descriptors, and what old or odd documents leave out."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from base64 import b64encode
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from tests.cli.rig import Log, answer, fails, file_layer, mounted_tree, ok
from tests.conftest import PROJECT, Cli
from tests.support.documents import Descriptor, Layout, Sha512Layer, digest_of, inlined
from tests.support.hostile import Fault, FaultyRegistry
from tests.support.images import CONFIG, INDEX, MANIFEST, File, Image, Layer
from tests.support.registry import Registry

pytestmark = pytest.mark.needs_root

DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_LAYER = "application/vnd.docker.image.rootfs.diff.tar.gzip"


@pytest.fixture
def documents(tmp_path: Path) -> Layout:
    return Layout(tmp_path / "documents")


def image(platform: str) -> Image:
    """With a file of the platform's name."""
    return Image([file_layer(platform.replace("/", "-"))], platform=platform)


def names(cli: Cli, reference: str, target: Path) -> set[bytes]:
    """What is in the image."""
    return set(mounted_tree(cli, reference, target)) - {b"."}


def config_of(document: dict[str, Any]) -> bytes:
    return json.dumps(document).encode()


class TestVariants:
    @pytest.fixture
    def arm(self, documents: Layout, registry: Registry) -> tuple[str, dict[str, Descriptor]]:
        """At a real registry: arm/v5, v6 and v7, and their descriptors."""
        entries = {name: documents.image(image(f"linux/arm/{name}")) for name in ("v6", "v5", "v7")}
        documents.tag(documents.index(*entries.values()))
        return documents.upload(registry, "platforms/arm"), entries

    def test_the_best_is_taken(self, cli: Cli, arm: tuple[str, dict[str, Descriptor]]) -> None:
        """The very variant, also when the one that is here would run."""
        reference, entries = arm
        assert ok(cli, "pull", "-q", "--platform", "linux/arm/v6", reference) == entries["v6"]["digest"]
        # v6 would run there, too, but the index has better.
        assert ok(cli, "pull", "-q", "--platform", "armhf", reference) == entries["v7"]["digest"]
        assert ok(cli, "pull", "-q", "--platform", "linux/arm/v8", reference) == entries["v7"]["digest"]
        assert len(answer(cli, "images", "--format", "json")) == 1

    def test_a_lower_one_will_do(self, cli: Cli, documents: Layout, registry: Registry) -> None:
        """And is then the image for this platform: asked for again, one HEAD and nothing else."""
        documents.tag(documents.index(documents.image(image("linux/arm/v6")), documents.image(image("linux/amd64"))))
        reference = documents.upload(registry, "platforms/v6")
        digest = ok(cli, "pull", "-q", "--platform", "linux/arm/v7", reference)
        assert answer(cli, "images", "--format", "json")[0]["platform"] == "linux/arm/v6"
        log = Log(registry, "platforms/v6")
        done = cli("pull", "--platform", "linux/arm/v7", reference)
        assert (done.returncode, done.stdout.strip()) == (0, digest)
        assert "up to date" in done.stderr
        assert [method for method, path in log.requests() if path != "manifests/1"] == []
        assert ok(cli, "pull", "-q", "--platform", "arm", "--policy", "never", reference) == digest
        assert "linux/arm/v5" in fails(cli, "pull", "--platform", "linux/arm/v5", reference)

    @pytest.mark.parametrize("platform", ["arm64", "Linux/AArch64"])
    def test_other_names(self, cli: Cli, documents: Layout, platform: str) -> None:
        documents.tag(documents.index(documents.image(image("linux/arm64")), documents.image(image("linux/amd64"))))
        ok(cli, "load", "-q", "--platform", platform, "--tag", "a:1", documents.path)
        assert answer(cli, "inspect", "a:1")["config"]["architecture"] == "arm64"

    @pytest.mark.skipif(os.uname().machine != "x86_64", reason="an amd64 machine's matter")
    @pytest.mark.parametrize("able", [False, True])
    def test_a_level_of_amd64(self, documents: Layout, store_root: Path, tmp_path: Path, able: bool) -> None:
        """An image of amd64/v2 alone, on a processor that has what v2 needs, and on one that does not."""
        documents.tag(documents.index(documents.image(image("linux/amd64/v2")), documents.image(image("linux/arm64"))))
        flags = "fpu sse2 " + ("cx16 lahf_lm pni popcnt sse4_1 sse4_2 ssse3" if able else "cx16 pni")
        (tmp_path / "cpuinfo").write_text(f"processor\t: 0\nflags\t\t: {flags}\nbugs\t\t:\n")
        pull = f"{sys.executable} -m pullpipe --root {store_root} load -q --tag a:1 {documents.path}"
        script = f"mount --bind {tmp_path}/cpuinfo /proc/cpuinfo && exec {pull}"
        done = subprocess.run(["unshare", "--mount", "sh", "-c", script], cwd=PROJECT, capture_output=True, text=True)
        if able:
            assert (done.returncode, done.stdout) == (0, "docker.io/library/a:1\n"), done.stderr
        else:
            assert done.returncode == 1
            assert "no image for linux/amd64: it has linux/amd64/v2" in done.stderr
            assert "processor is a linux/amd64/v1" in done.stderr


class TestIndexes:
    def test_an_index_in_an_index(self, cli: Cli, documents: Layout, registry: Registry, tmp_path: Path) -> None:
        """From a real registry; by its own platform's name, too, and again with one HEAD."""
        inner = documents.index(documents.image(image("linux/s390x")), documents.image(image("linux/amd64")))
        documents.tag(documents.index(documents.image(image("linux/riscv64")), inner))
        reference = documents.upload(registry, "platforms/nested")
        for platform in ("linux/amd64", "linux/riscv64"):
            ok(cli, "pull", "-q", "--platform", platform, reference)
            assert names(cli, reference, tmp_path / "mounted") == {platform.replace("/", "-").encode()}
        log = Log(registry, "platforms/nested")
        ok(cli, "pull", "-q", "--platform", "linux/riscv64", reference)
        assert log.requests() == [("HEAD", "manifests/1")]

    def test_attestations_and_unknown_types(self, cli: Cli, documents: Layout) -> None:
        """They are neither images nor asked for."""
        attestation = documents.document(
            documents.manifest(Image([]), layers=[documents.blob(b"{}", "application/vnd.in-toto+json")]),
            platform={"os": "unknown", "architecture": "unknown"},
        )
        new = documents.blob(b"?", "application/vnd.example.new", platform=Image([]).platform_fields)
        mine = documents.image(Image([file_layer("mine")]))
        documents.tag(documents.index(attestation, new, mine))
        with FaultyRegistry(documents.path) as faulty:
            assert ok(cli, "pull", "-q", f"{faulty.host}/a:1") == mine["digest"]
            for other in (attestation, new):
                assert faulty.arrived(other["digest"]) == []

    def test_deeper_than_any(self, cli: Cli, documents: Layout) -> None:
        top = documents.image(image("linux/amd64"))
        for _ in range(5):
            top = documents.index(top)
        documents.tag(top)
        with FaultyRegistry(documents.path) as faulty:
            assert "nests indexes more than 4 deep" in fails(cli, "pull", f"{faulty.host}/a:1")


class TestSha512:
    @pytest.fixture
    def layers(self) -> list[Layer]:
        """The first with a sha512 diffID, the second with a sha256 one."""
        return [Sha512Layer([File("lower")]), Layer([File("upper")], "zstd")]

    @pytest.mark.parametrize("swapped", [False, True])
    def test_everywhere_in_a_layout(
        self, cli: Cli, documents: Layout, store_root: Path, tmp_path: Path, layers: list[Layer], swapped: bool
    ) -> None:
        """Index, manifest, config, layers and a diffID: each has its place in the store, and goes with the image."""
        entry = documents.image(Image(layers[::-1] if swapped else layers), algorithm="sha512")
        documents.tag(documents.index(entry, algorithm="sha512"))
        ok(cli, "load", "-q", "--tag", "a:1", documents.path)
        found = answer(cli, "inspect", "a:1")
        assert found["digest"] == entry["digest"]
        assert {one["digest"].partition(":")[0] for one in found["layers"]} == {"sha512"}
        assert sorted(one["diff_id"].partition(":")[0] for one in found["layers"]) == ["sha256", "sha512"]
        assert names(cli, "a:1", tmp_path / "mounted") == {b"lower", b"upper"}
        assert len(list(store_root.glob("blobs/sha512/*"))) == 5
        assert len(list(store_root.glob("layers/sha512/*"))) == 1
        ok(cli, "rmi", "a:1")
        assert [*store_root.glob("blobs/*/*"), *store_root.glob("layers/*/*"), *store_root.glob("stacks/*/*")] == []

    def test_a_stack_of_one(self, cli: Cli, documents: Layout, store_root: Path, tmp_path: Path) -> None:
        """Its chainID is its only diffID, so a sha512 one; and it runs."""
        documents.tag(documents.image(Image([Sha512Layer([File("only")])])))
        ok(cli, "load", "-q", "--tag", "a:1", documents.path)
        assert len(list(store_root.glob("stacks/sha512/*"))) == 1
        assert names(cli, "a:1", tmp_path / "mounted") == {b"only"}

    def test_mixed_at_a_real_registry(
        self, cli: Cli, documents: Layout, registry: Registry, tmp_path: Path, layers: list[Layer]
    ) -> None:
        """Config and one layer by sha512, the other and the manifest by sha256."""
        manifest = documents.manifest(Image(layers), algorithm="sha512")
        manifest["layers"][1] = documents.blob(layers[1].blob, layers[1].media_type)
        documents.tag(documents.document(manifest))
        reference = documents.upload(registry, "platforms/mixed")
        log = Log(registry, "platforms/mixed")
        ok(cli, "pull", "-q", reference)
        expected = {manifest["config"]["digest"], *(layer["digest"] for layer in manifest["layers"])}
        assert log.blobs() == expected
        assert names(cli, reference, tmp_path / "mounted") == {b"lower", b"upper"}

    @pytest.mark.parametrize("by", ["tag", "digest"])
    def test_a_manifest(self, cli: Cli, documents: Layout, layers: list[Layer], by: str) -> None:
        """By the registry's word for a tag, and by ours; the second time a digest needs no registry."""
        entry = documents.tag(documents.image(Image(layers), algorithm="sha512"))
        with FaultyRegistry(documents.path) as faulty:
            reference = f"{faulty.host}/a" + (":1" if by == "tag" else f"@{entry['digest']}")
            assert ok(cli, "pull", "-q", reference) == entry["digest"]
            assert entry["digest"].startswith("sha512:")
            faulty.requests.clear()
            assert ok(cli, "pull", "-q", reference) == entry["digest"]
            assert [request.method for request in faulty.requests] == (["HEAD"] if by == "tag" else [])

    @pytest.mark.parametrize("what", ["manifest", "config", "layer", "diffID"])
    def test_is_verified(self, cli: Cli, documents: Layout, layers: list[Layer], what: str) -> None:
        """Bytes that are not the digest's are refused, whichever document has it."""
        entry = documents.tag(documents.image(Image(layers), algorithm="sha512"))
        manifest = json.loads((documents.path / "blobs" / entry["digest"].replace(":", "/")).read_bytes())
        if what == "diffID":
            config = json.loads(Image(layers).config_blob)
            config["rootfs"]["diff_ids"][0] = digest_of(b"other", "sha512")
            manifest["config"] = documents.blob(config_of(config), CONFIG)
            documents.tag(documents.document(manifest))
        else:
            digest = {"manifest": entry, "config": manifest["config"], "layer": manifest["layers"][0]}[what]["digest"]
            place = documents.path / "blobs" / digest.replace(":", "/")
            data = place.read_bytes()
            place.write_bytes(
                data[:-1] + bytes([data[-1] ^ 1]) if what != "manifest" else data.replace(b"config", b"Config")
            )
        with FaultyRegistry(documents.path) as faulty:
            line = fails(cli, "pull", "-q", f"{faulty.host}/a:1")
        assert "sha512:" in line
        assert answer(cli, "images", "--format", "json") == []

    @pytest.mark.parametrize(
        ("where", "digest"),
        [("layer", "blake3:" + "0" * 64), ("config", "sha384:" + "0" * 96), ("index", "md5:" + "0" * 32)],
    )
    def test_an_algorithm_that_is_not_supported(self, cli: Cli, documents: Layout, where: str, digest: str) -> None:
        """The line names it, and what would do."""
        manifest = documents.manifest(Image([file_layer("x")]))
        if where == "index":
            entry = documents.document(manifest)
            documents.tag(documents.index({**entry, "digest": digest}))
        else:
            described = manifest["config"] if where == "config" else manifest["layers"][0]
            described["digest"] = digest
            documents.tag(documents.document(manifest))
        with FaultyRegistry(documents.path) as faulty:
            line = fails(cli, "pull", "-q", f"{faulty.host}/a:1")
        assert digest in line
        assert "sha256 and sha512" in line


class TestInline:
    @pytest.mark.parametrize("what", ["manifest", "config", "layer", "all"])
    def test_is_not_asked_for(self, cli: Cli, documents: Layout, tmp_path: Path, what: str) -> None:
        """The registry does not even have it."""
        manifest = documents.manifest(Image([file_layer("lower"), file_layer("upper")]))
        if what in ("config", "all"):
            manifest["config"] = inlined(documents, manifest["config"])
        if what in ("layer", "all"):
            manifest["layers"][1] = inlined(documents, manifest["layers"][1])
        entry = documents.document(manifest, platform=Image([]).platform_fields)
        if what in ("manifest", "all"):
            entry = inlined(documents, entry)
        documents.tag(documents.index(entry))
        with FaultyRegistry(documents.path) as faulty:
            reference = f"{faulty.host}/a:1"
            assert ok(cli, "pull", "-q", reference) == entry["digest"]
        assert names(cli, reference, tmp_path / "mounted") == {b"lower", b"upper"}
        assert answer(cli, "inspect", reference)["config"]["rootfs"]

    @pytest.mark.parametrize("what", ["manifest", "config", "layer"])
    def test_other_bytes(self, cli: Cli, documents: Layout, what: str) -> None:
        """Refused, whatever the registry has."""
        manifest = documents.manifest(Image([file_layer("x")]))
        data = b64encode(b"other").decode()
        if what == "config":
            manifest["config"]["data"] = data
        if what == "layer":
            manifest["layers"][0]["data"] = data
        entry = documents.document(manifest, platform=Image([]).platform_fields)
        documents.tag(documents.index({**entry, "data": data} if what == "manifest" else entry))
        with FaultyRegistry(documents.path) as faulty:
            line = fails(cli, "pull", "-q", f"{faulty.host}/a:1")
        assert ".data is not what digest and size beside it say" in line


class TestOldAndOdd:
    def docker_manifest(self, documents: Layout, config: bytes, media_type: str, **changes: object) -> dict[str, Any]:
        layer = file_layer("x")
        return {
            "schemaVersion": 2,
            "mediaType": DOCKER_MANIFEST,
            "config": documents.blob(config, media_type),
            "layers": [documents.blob(layer.blob, DOCKER_LAYER)],
            **changes,
        }

    def test_an_image_of_an_old_docker(self, cli: Cli, documents: Layout, registry: Registry, tmp_path: Path) -> None:
        """Its config is an octet-stream without a platform, with null where nothing is, and what Docker kept there."""
        config = {
            "container": "0" * 64,
            "container_config": {"Cmd": ["/bin/sh"]},
            "created": None,
            "history": None,
            "config": {"Cmd": None, "Env": None, "Volumes": None},
            "rootfs": {"type": "layers", "diff_ids": [file_layer("x").diff_id]},
        }
        documents.tag(
            documents.document(self.docker_manifest(documents, config_of(config), "application/octet-stream"))
        )
        reference = documents.upload(registry, "platforms/old")
        digest = ok(cli, "pull", "-q", reference)
        assert names(cli, reference, tmp_path / "mounted") == {b"x"}
        [listed] = answer(cli, "images", "--format", "json")
        assert listed["platform"] == Image([]).platform
        log = Log(registry, "platforms/old")
        assert ok(cli, "pull", "-q", reference) == digest
        assert log.requests() == [("HEAD", "manifests/1")]

    def test_layers_that_are_null(self, cli: Cli, documents: Layout, tmp_path: Path) -> None:
        """What Go writes for an empty list: an image without layers."""
        config = json.loads(Image([]).config_blob)
        config["rootfs"]["diff_ids"] = None
        manifest = documents.manifest(Image([]), config=documents.blob(config_of(config), CONFIG), layers=None)
        documents.tag(documents.document(manifest))
        with FaultyRegistry(documents.path) as faulty:
            ok(cli, "pull", "-q", f"{faulty.host}/a:1")
            assert names(cli, f"{faulty.host}/a:1", tmp_path / "mounted") == set()

    def test_layers_that_the_config_does_not_know(self, cli: Cli, documents: Layout) -> None:
        """Null layers are no way around the count."""
        documents.tag(documents.document(documents.manifest(Image([file_layer("x")]), layers=None)))
        with FaultyRegistry(documents.path) as faulty:
            assert "0 layers and its config 1" in fails(cli, "pull", "-q", f"{faulty.host}/a:1")

    @pytest.mark.parametrize("media_type", [CONFIG, "application/vnd.oci.empty.v1+json"])
    def test_a_config_that_is_an_empty_object(self, cli: Cli, documents: Layout, media_type: str) -> None:
        """An artifact's; no image, whatever it is called."""
        documents.tag(documents.document(documents.manifest(Image([]), config=documents.blob(b"{}", media_type))))
        with FaultyRegistry(documents.path) as faulty:
            line = fails(cli, "pull", "-q", f"{faulty.host}/a:1")
        assert ("config.rootfs" if media_type == CONFIG else "artifact") in line

    def test_a_config_that_was_damaged_on_the_way(self, cli: Cli, documents: Layout) -> None:
        """It is asked for once more."""
        manifest = documents.manifest(Image([file_layer("x")]))
        entry = documents.tag(documents.document(manifest))
        config = manifest["config"]["digest"]
        with FaultyRegistry(documents.path, {Fault.WRONG_BLOB}, only=config, times=1) as faulty:
            assert ok(cli, "pull", "-q", f"{faulty.host}/a:1") == entry["digest"]
            assert len(faulty.arrived(config)) == 2

    def test_what_a_document_says_reaches_no_terminal(self, cli: Cli, documents: Layout) -> None:
        """An error quotes it, without the bytes that a terminal obeys."""
        manifest = documents.manifest(
            Image([]), artifactType="\x1b]0;title\x07\u202e", config=documents.blob(b"{}", "x/y")
        )
        documents.tag(documents.document(manifest))
        named = documents.image(image("linux/\x1b[31mred"))
        documents.tag(documents.index(named), "2")
        with FaultyRegistry(documents.path) as faulty:
            for tag, shown in (("1", r"\x1b]0;title\x07\u202e"), ("2", r"linux/\x1b[31mred")):
                line = fails(cli, "pull", "-q", f"{faulty.host}/a:{tag}")
                assert shown in line
                assert line.isprintable()

    @pytest.mark.parametrize(
        ("stated", "header", "words"),
        [
            (MANIFEST, INDEX, "calls itself"),
            (DOCKER_MANIFEST, MANIFEST, "calls itself"),
            (MANIFEST, "application/vnd.docker.distribution.manifest.v1+prettyjws", "calls itself"),
        ],
    )
    def test_header_and_document_disagree(
        self, cli: Cli, documents: Layout, stated: str, header: str, words: str
    ) -> None:
        """CVE-2021-41190, over HTTP."""
        documents.tag(documents.document(documents.manifest(Image([file_layer("x")]), mediaType=stated)))
        with OtherHeader(documents.path, header) as faulty:
            line = fails(cli, "pull", "-q", f"{faulty.host}/a:1")
        assert words in line
        assert stated in line
        assert header in line
        assert answer(cli, "images", "--format", "json") == []

    def test_a_header_with_parameters(self, cli: Cli, documents: Layout) -> None:
        """It says the same, and more."""
        entry = documents.tag(documents.document(documents.manifest(Image([file_layer("x")]))))
        with OtherHeader(documents.path, f"{MANIFEST}; charset=utf-8") as faulty:
            assert ok(cli, "pull", "-q", f"{faulty.host}/a:1") == entry["digest"]

    def test_a_foreign_layer_elsewhere(self, cli: Cli, documents: Layout, tmp_path: Path) -> None:
        """The registry does not have it; one of its URLs does, and the others are none."""
        elsewhere, layer = Layout(tmp_path / "elsewhere"), file_layer("x")
        blob = elsewhere.blob(layer.blob, "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip")
        with FaultyRegistry(elsewhere.path) as other, FaultyRegistry(documents.path) as faulty:
            urls = ["ftp://127.0.0.1/x", f"http://{other.storage}/storage/{blob['digest']}"]
            documents.tag(documents.document(documents.manifest(Image([layer]), layers=[{**blob, "urls": urls}])))
            documents.remove(documents.blob(layer.blob, layer.media_type))
            ok(cli, "pull", "-q", f"{faulty.host}/a:1")
            assert names(cli, f"{faulty.host}/a:1", tmp_path / "mounted") == {b"x"}
            assert len(other.arrived("/storage/")) == 1

    def test_a_foreign_layer(self, cli: Cli, documents: Layout, tmp_path: Path) -> None:
        """Of a media type that was not to be distributed; a registry may have it all the same."""
        layer = file_layer("x")
        foreign = documents.blob(
            layer.blob,
            "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
            urls=["https://example.invalid/x", "ftp://example.invalid/x"],
        )
        documents.tag(documents.document(documents.manifest(Image([layer]), layers=[foreign])))
        with FaultyRegistry(documents.path) as faulty:
            ok(cli, "pull", "-q", f"{faulty.host}/a:1")
            assert names(cli, f"{faulty.host}/a:1", tmp_path / "mounted") == {b"x"}


class OtherHeader(FaultyRegistry):
    """A registry that says of each manifest that it is something else."""

    def __init__(self, layout: Path, content_type: str) -> None:
        super().__init__(layout)
        self._content_type = content_type

    async def _manifest(self, request: web.Request) -> web.Response:
        answer = await super()._manifest(request)
        answer.headers["Content-Type"] = self._content_type
        return answer
