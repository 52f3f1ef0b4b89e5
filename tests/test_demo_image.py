"""The demo image: valid to other tools, the same each time, and what its layers promise comes out of a stack."""

from __future__ import annotations

import gzip
import io
import json
import os
import shutil
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import zstandard

from pullpipe import demo
from pullpipe.demo import DemoImage, DemoLayer, build_image
from pullpipe.errors import DemoError
from pullpipe.platforms import Platform
from store.digest import Digest


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("demo") / "layout"


@pytest.fixture(scope="module")
def image(layout: Path) -> DemoImage:
    return build_image(layout)


def blob(layout: Path, digest: Digest) -> bytes:
    return (layout / "blobs" / digest.algorithm / digest.hex).read_bytes()


def documents(layout: Path, image: DemoImage) -> tuple[dict[str, Any], dict[str, Any]]:
    manifest = json.loads(blob(layout, image.digest))
    return manifest, json.loads(blob(layout, Digest.parse(manifest["config"]["digest"])))


INFLATE: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.decompress,
    "zstd": lambda data: zstandard.ZstdDecompressor().decompress(data),
    "plain": bytes,
}


def members(layout: Path, layer: DemoLayer) -> dict[str, tarfile.TarInfo]:
    tar = INFLATE[layer.compression](blob(layout, layer.digest))
    with tarfile.open(fileobj=io.BytesIO(tar), mode="r:") as archive:
        return {member.name: member for member in archive}


def test_every_blob_has_the_digest_and_size_it_is_named_by(layout: Path, image: DemoImage) -> None:
    """index.json leads to the manifest, that to the config and the layers, the config to the diffIDs."""
    index = json.loads((layout / "index.json").read_bytes())
    (entry,) = index["manifests"]
    assert entry["annotations"] == {"org.opencontainers.image.ref.name": image.reference}
    assert entry["digest"] == str(image.digest)

    manifest, config = documents(layout, image)
    for descriptor in [entry, manifest["config"], *manifest["layers"]]:
        digest = Digest.parse(descriptor["digest"])
        assert digest.matches(blob(layout, digest))
        assert descriptor["size"] == len(blob(layout, digest))
    assert [(str(layer.digest), layer.size) for layer in image.layers] == [
        (descriptor["digest"], descriptor["size"]) for descriptor in manifest["layers"]
    ]
    assert config["rootfs"]["diff_ids"] == [
        str(Digest.of(INFLATE[layer.compression](blob(layout, layer.digest)))) for layer in image.layers
    ]


def test_there_is_a_layer_in_each_compression(layout: Path, image: DemoImage) -> None:
    manifest, _ = documents(layout, image)
    assert [layer.compression for layer in image.layers] == ["gzip", "zstd", "plain"]
    assert [descriptor["mediaType"].rpartition(".")[2] for descriptor in manifest["layers"]] == [
        "tar+gzip",
        "tar+zstd",
        "tar",
    ]


def test_building_twice_gives_the_same_image(tmp_path: Path, image: DemoImage) -> None:
    assert build_image(tmp_path / "again") == image


def test_an_existing_layout_is_left_alone(layout: Path, image: DemoImage) -> None:
    with pytest.raises(FileExistsError):
        build_image(layout)


def test_layers_carry_the_files_and_the_whiteouts(layout: Path, image: DemoImage) -> None:
    base, changes, hello = (members(layout, layer) for layer in image.layers)
    assert {"etc/motd", "etc/passwd", "srv/old.txt", "srv/cache/a", "srv/cache/b"} <= base.keys()
    assert base["tmp"].mode == 0o1777
    assert {"etc/motd", "srv/.wh.old.txt", "srv/cache/.wh..wh..opq", "srv/cache/c"} <= changes.keys()
    assert hello["usr/local/bin/hello"].mode == 0o755


def test_no_member_comes_before_its_parent_or_through_a_link(layout: Path, image: DemoImage) -> None:
    for layer in image.layers:
        directories = {""}
        for name, member in members(layout, layer).items():
            assert name.rpartition("/")[0] in directories
            if member.isdir():
                directories.add(name)


def test_the_links_of_a_merged_usr_are_kept(layout: Path, image: DemoImage) -> None:
    base = members(layout, image.layers[0])
    for name in ("bin", "sbin", "lib", "lib64"):
        host = Path("/", name)
        if host.is_symlink():
            assert base[name].issym()
            assert base[name].linkname == str(host.readlink())


def test_a_path_through_links_on_the_host_leads_to_the_same_file(tmp_path: Path) -> None:
    """Relative, absolute and chained links, of files and of directories."""
    real = tmp_path / "usr" / "real"
    real.mkdir(parents=True)
    (real / "tool").write_bytes(b"ELF")
    (real / "tool").chmod(0o4755)
    (tmp_path / "bin").symlink_to("usr/../usr/real")
    (real / "alias").symlink_to(tmp_path / "bin" / "tool")

    tree: dict[str, Any] = {}
    demo._add_from_host(tree, str(tmp_path / "bin" / "alias"))

    root = str(tmp_path)[1:]
    assert {path: (node.target, node.data) for path, node in tree.items()} == {
        f"{root}/bin": ("usr/../usr/real", b""),
        f"{root}/usr/real/alias": (f"{tmp_path}/bin/tool", b""),
        f"{root}/usr/real/tool": ("", b"ELF"),
    }
    assert tree[f"{root}/usr/real/tool"].mode == 0o755  # and not set-user-ID


def test_without_ldd_the_error_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "_HOST_PATH", str(tmp_path))
    with pytest.raises(DemoError, match=r"ldd.*install it"):
        build_image(tmp_path / "layout")
    assert not (tmp_path / "layout").exists()


@pytest.mark.parametrize(
    ("platform", "expected"),
    [
        (Platform("linux", "amd64"), {"architecture": "amd64", "os": "linux"}),
        (Platform("linux", "arm", "v7"), {"architecture": "arm", "os": "linux", "variant": "v7"}),
    ],
)
def test_the_image_is_for_this_machine(
    platform: Platform, expected: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Platform, "of_this_machine", lambda: platform)
    layout = tmp_path / "layout"
    _, config = documents(layout, build_image(layout))
    assert {key: config[key] for key in config.keys() & {"architecture", "os", "variant"}} == expected


@pytest.mark.skipif(os.geteuid() != 0, reason="chroot needs root")
@pytest.mark.skipif(not (shutil.which("skopeo") and shutil.which("umoci")), reason="needs skopeo and umoci")
def test_what_umoci_unpacks_runs_in_a_chroot(layout: Path, image: DemoImage, tmp_path: Path) -> None:
    """The shell, each tool and the report work with nothing but the image's own files."""
    # umoci 0.4 does not know zstd, so skopeo turns all layers into gzip ones first.
    for command in (
        [
            *("skopeo", "copy", "--quiet", "--dest-compress", "--dest-compress-format=gzip"),
            *(f"oci:{layout}:{image.reference}", f"oci:{tmp_path}/gzip:{image.reference}"),
        ],
        ["umoci", "unpack", "--image", f"{tmp_path}/gzip:{image.reference}", f"{tmp_path}/bundle"],
    ):
        subprocess.run(command, check=True, capture_output=True, timeout=60)
    rootfs = tmp_path / "bundle" / "rootfs"

    def run(*command: str) -> str:
        done = subprocess.run(
            ["chroot", rootfs, *command],
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    assert run("/bin/sh", "-c", "echo ok") == "ok\n"
    assert run("cat", "/etc/motd") == "from layer 2\n"
    assert run("id", "-un") == "root\n"
    assert "motd" in run("ls", "/etc")
    report = run("/usr/local/bin/hello")
    assert "whiteout in layer 2" in report
    assert "missing" not in report
    assert "still here" not in report


def test_the_report_fails_on_a_wrong_stack(tmp_path: Path) -> None:
    """On this host, whose files are not the demo's, the script says what is wrong and exits with 1."""
    script = tmp_path / "hello"
    script.write_text(demo._HELLO)
    done = subprocess.run(["/bin/sh", str(script)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "should be: from layer 2" in done.stdout
    assert done.stderr == ""
