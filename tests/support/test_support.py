"""The rig itself: what the other tests trust has to be able to fail."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Literal

import aiohttp
import pytest

from tests.conftest import Cli, require
from tests.support.hostile import BASIC, Fault, FaultyRegistry
from tests.support.images import (
    Compression,
    Device,
    Dir,
    Entry,
    Fifo,
    File,
    Hardlink,
    Image,
    Layer,
    Opaque,
    Symlink,
    Whiteout,
    host_shell_layers,
    write_docker_archive,
    write_layout,
)
from tests.support.processes import PATIENCE
from tests.support.registry import Authority, Registry
from tests.support.tree import difference, snapshot

BLOB = os.urandom(100_000)


def skopeo_inspect(*arguments: str) -> dict[str, Any]:
    command = ["skopeo", "inspect", "--tls-verify=false", *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    document: dict[str, Any] = json.loads(done.stdout)
    return document


@pytest.fixture
def layout(tmp_path: Path) -> Path:
    """A layout with one image, `small`, of one incompressible layer."""
    write_layout(tmp_path / "layout", {"small": Image([Layer([File("blob", BLOB)])], {"Cmd": ["/bin/sh"]})})
    return tmp_path / "layout"


def layer_of(layout: Path, tag: str = "small") -> tuple[str, bytes]:
    """The digest and the bytes of an image's only layer."""
    index = json.loads((layout / "index.json").read_bytes())
    [manifest] = [
        one["digest"] for one in index["manifests"] if one["annotations"]["org.opencontainers.image.ref.name"] == tag
    ]
    blobs = layout / "blobs"
    [layer] = json.loads((blobs / manifest.replace(":", "/")).read_bytes())["layers"]
    return layer["digest"], (blobs / layer["digest"].replace(":", "/")).read_bytes()


class TestRegistry:
    def test_busybox_as_it_is(self, registry: Registry, shared_images: Path) -> None:
        """A plain push changes no byte: the manifest's digest is the layout's."""
        layout = shared_images / "busybox"
        reference = registry.push(layout, "busybox", to="support/busybox:1")
        [entry] = json.loads((layout / "index.json").read_bytes())["manifests"]
        assert skopeo_inspect(f"docker://{reference}")["Digest"] == entry["digest"]

    @pytest.mark.parametrize(
        ("compression", "form", "media_type"),
        [
            ("gzip", "oci", "application/vnd.oci.image.layer.v1.tar+gzip"),
            ("zstd", "oci", "application/vnd.oci.image.layer.v1.tar+zstd"),
            (None, "v2s2", "application/vnd.docker.image.rootfs.diff.tar.gzip"),
            ("gzip", "v2s2", "application/vnd.docker.image.rootfs.diff.tar.gzip"),
        ],
    )
    def test_converted(
        self,
        registry: Registry,
        layout: Path,
        compression: Literal["gzip", "zstd"] | None,
        form: Literal["oci", "v2s2"],
        media_type: str,
    ) -> None:
        """The asked-for form arrives although the same content was pushed in other forms before."""
        reference = registry.push(layout, "small", to="support/all:1", compression=compression, format=form)
        manifest = skopeo_inspect("--raw", f"docker://{reference}")
        assert [layer["mediaType"] for layer in manifest["layers"]] == [media_type]

    @pytest.mark.parametrize("compression", [None, "zstd"])
    def test_index(self, registry: Registry, tmp_path: Path, compression: Compression) -> None:
        """All platforms of an index are pushed."""
        platforms = ["linux/amd64", "linux/arm64", "linux/arm/v7"]
        images = [Image([Layer([File("arch", name.encode())])], platform=name) for name in platforms]
        write_layout(tmp_path / "many", {"many": images})
        to = f"support/many:{compression}"
        reference = registry.push(tmp_path / "many", "many", to=to, compression=compression)
        index = skopeo_inspect("--raw", f"docker://{reference}")
        found = [one["platform"] for one in index["manifests"]]
        assert found == [image.platform_fields for image in images]

    def test_basic_authentication(self, layout: Path, tmp_path: Path) -> None:
        """The registry turns away who has no password, and push uses it."""
        require("docker-registry")
        require("skopeo")
        with Registry(tmp_path / "registry", users={"u": "p"}) as private:
            reference = private.push(layout, "small", to="private:1")
            refused = subprocess.run(
                ["skopeo", "inspect", "--tls-verify=false", f"docker://{reference}"], capture_output=True
            )
            assert refused.returncode != 0
            assert b"authentication required" in refused.stderr
            assert skopeo_inspect("--creds=u:p", f"docker://{reference}")["Name"] == reference[: -len(":1")]
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", private.port))

    @pytest.mark.needs_root
    def test_tls(self, cli: Cli, layout: Path, tmp_path: Path) -> None:
        """It proves itself by an authority of its own, which nobody trusts who was not told to."""
        require("docker-registry")
        require("openssl")
        authority = Authority(tmp_path / "authority")
        with Registry(tmp_path / "registry", authority=authority) as encrypted:
            reference = encrypted.push(layout, "small", to="encrypted:1")
            refused = cli("pull", reference)
            assert (refused.returncode, "certificate" in refused.stderr) == (1, True)
            done = cli("pull", "-q", reference, env={"SSL_CERT_FILE": str(authority.path)})
            assert done.returncode == 0, done.stderr

    @pytest.mark.needs_root
    def test_cache_of_another_registry(self, cli: Cli, registry: Registry, layout: Path, tmp_path: Path) -> None:
        """What it does not have it gets there, and gives it out again."""
        reference = registry.push(layout, "small", to="support/cached:1")
        with Registry(tmp_path / "cache", upstream=registry.url) as cache:
            assert cli("pull", "-q", reference.replace(registry.host, cache.host)).returncode == 0
            digest, _ = layer_of(layout)
            assert f"/blobs/{digest}" in cache.log


class TestImages:
    def test_layer_extracted_by_gnu_tar(self, tmp_path: Path) -> None:
        """Names, types and attributes are what was asked for, by GNU tar's reading."""
        entries: list[Entry] = [
            Dir("d", mode=0o700, mtime_ns=1_000_000_007),
            File("d/file", b"data", 0o4755, mtime_ns=-1, xattrs={"user.x": b"\xff\0\n"}),
            File(b"d/\xff", b""),
            Symlink("d/link", "../../anywhere"),
            Hardlink("d/hard", "d/file"),
            Fifo("d/fifo"),
            Whiteout("d/gone"),
            Opaque("d"),
            Opaque(""),
        ]
        (tmp_path / "layer.tar").write_bytes(Layer(entries).tar)
        out = tmp_path / "out"
        out.mkdir()
        command = ["tar", "-x", "--xattrs", "--xattrs-include=*", "-p", "-f", "../layer.tar"]
        subprocess.run(command, cwd=out, check=True, env={**os.environ, "LC_ALL": "C"})
        tree = snapshot(out)
        assert sorted(tree.keys() - {b"."}) == [
            b".wh..wh..opq",
            b"d",
            b"d/.wh..wh..opq",
            b"d/.wh.gone",
            b"d/fifo",
            b"d/file",
            b"d/hard",
            b"d/link",
            b"d/\xff",
        ]
        file = tree[b"d/file"]
        assert (file.type, file.mode, file.mtime_ns) == ("file", 0o4755, -1)
        assert file.xattrs == (("user.x", b"\xff\0\n"),)
        assert file.links == {b"d/hard"}
        assert tree[b"d/link"].target == b"../../anywhere"
        assert (tree[b"d"].mode, tree[b"d"].mtime_ns) == (0o700, 1_000_000_007)
        assert tree[b"d/fifo"].type == "fifo"

    @pytest.mark.needs_root
    def test_device(self, tmp_path: Path) -> None:
        (tmp_path / "layer.tar").write_bytes(Layer([Device("null", 1, 3), Device("b", 7, 300, "block")]).tar)
        subprocess.run(["tar", "-xf", "layer.tar"], cwd=tmp_path, check=True)
        tree = snapshot(tmp_path)
        assert (tree[b"null"].type, tree[b"null"].device) == ("character device", (1, 3))
        assert (tree[b"b"].type, tree[b"b"].device) == ("block device", (7, 300))

    def test_layout_is_valid(self, tmp_path: Path) -> None:
        """umoci reads an image of all compressions it knows, and unpacks what was put in."""
        require("umoci")
        layers = [Layer([File("a", b"1")]), Layer([File("b", b"2"), Whiteout("a")], compression=None)]
        write_layout(tmp_path / "layout", {"tag": Image(layers)})
        command = ["umoci", "unpack", "--rootless", "--image", "layout:tag", "bundle"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert snapshot(tmp_path / "bundle" / "rootfs").keys() == {b".", b"b"}

    @pytest.mark.parametrize("compression", [None, "gzip"])
    def test_docker_archive(self, tmp_path: Path, compression: Compression) -> None:
        """skopeo reads the archive, also one that has the same layer twice, and finds the contents."""
        require("skopeo")
        one = Layer([File("a", b"1")], compression)
        other = Layer([File("b", b"2")], compression)
        image = Image([one, other, one], {"Cmd": ["true"]})
        write_docker_archive(tmp_path / "image.tar", image, "example/image:1")
        source = f"docker-archive:{tmp_path}/image.tar:example/image:1"
        layers = skopeo_inspect(source)["Layers"]
        assert layers == [one.diff_id, other.diff_id, one.diff_id]
        copy = ["skopeo", "copy", "--quiet", "--insecure-policy", source, f"dir:{tmp_path}/copy"]
        done = subprocess.run(copy, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr

    @pytest.mark.needs_root
    def test_host_shell_runs(self, tmp_path: Path) -> None:
        [layer] = host_shell_layers()
        subprocess.run(["tar", "-x"], cwd=tmp_path, input=layer.tar, check=True)
        done = subprocess.run(
            ["chroot", str(tmp_path), "/bin/sh", "-c", "id && cat /etc/passwd"], capture_output=True, text=True
        )
        assert "uid=0(root)" in done.stdout
        assert "nobody:" in done.stdout


class TestTree:
    @pytest.fixture
    def tree(self, tmp_path: Path) -> Path:
        root = tmp_path / "tree"
        (root / "d").mkdir(parents=True)
        (root / "d" / "file").write_text("text")
        os.link(root / "d" / "file", root / "hard")
        (root / "link").symlink_to("d/file")
        return root

    def test_nothing_changed(self, tree: Path) -> None:
        assert difference(snapshot(tree), snapshot(tree)) == []

    def test_mode(self, tree: Path) -> None:
        before = snapshot(tree)
        (tree / "d").chmod(0o1700)
        assert difference(before, snapshot(tree)) == [f"d: mode {before[b'd'].mode:04o} != 1700"]

    def test_xattr(self, tree: Path) -> None:
        before = snapshot(tree)
        os.setxattr(tree, "user.x", b"1")
        assert difference(before, snapshot(tree)) == [".: xattrs () != (('user.x', b'1'),)"]

    @pytest.mark.needs_root
    def test_overlay_xattrs_do_not_count(self, tree: Path) -> None:
        before = snapshot(tree)
        os.setxattr(tree / "d", "trusted.overlay.opaque", b"y")
        assert difference(before, snapshot(tree)) == []
        os.setxattr(tree / "link", "trusted.other", b"y", follow_symlinks=False)
        assert difference(before, snapshot(tree)) == ["link: xattrs () != (('trusted.other', b'y'),)"]

    def test_broken_hardlink(self, tree: Path) -> None:
        """A copy with equal contents and times is still not the same inode."""
        before = snapshot(tree)
        times = (tree / "d").stat()
        top = tree.stat()
        (tree / "hard").rename(tree / "old")
        subprocess.run(["cp", "-p", "old", "hard"], cwd=tree, check=True)
        (tree / "old").unlink()
        os.utime(tree / "d", ns=(times.st_atime_ns, times.st_mtime_ns))
        os.utime(tree, ns=(top.st_atime_ns, top.st_mtime_ns))
        assert difference(before, snapshot(tree)) == [
            "d/file: links frozenset({b'hard'}) != frozenset()",
            "hard: links frozenset({b'd/file'}) != frozenset()",
        ]

    def test_content_target_and_absence(self, tree: Path) -> None:
        before = snapshot(tree)
        (tree / "d" / "file").write_text("TEXT")
        (tree / "link").unlink()
        (tree / "new").mkdir()
        lines = difference(before, snapshot(tree))
        assert any(line.startswith("d/file: sha256 ") for line in lines)
        assert "link: only in the first (symlink)" in lines
        assert "new: only in the second (directory)" in lines

    def test_beyond_path_max(self, tmp_path: Path) -> None:
        """Directories nested deeper than one path can name are found."""
        here = os.open(tmp_path, os.O_RDONLY)
        for _ in range(20):
            os.mkdir("x" * 255, dir_fd=here)
            below = os.open("x" * 255, os.O_RDONLY, dir_fd=here)
            os.close(here)
            here = below
        os.close(here)
        assert max(map(len, snapshot(tmp_path))) == 20 * 256 - 1


class TestFaultyRegistry:
    def get(
        self,
        faulty: FaultyRegistry,
        path: str,
        headers: dict[str, str] | None = None,
        *,
        method: str = "GET",
        timeout: float = PATIENCE,
    ) -> tuple[int, dict[str, str], bytes]:
        """One raw request: status, headers, body as sent."""

        async def fetch() -> tuple[int, dict[str, str], bytes]:
            limits = aiohttp.ClientTimeout(sock_read=timeout)
            async with (
                aiohttp.ClientSession(auto_decompress=False, timeout=limits) as session,
                session.request(method, f"http://{faulty.host}{path}", headers=headers) as response,
            ):
                body = await response.read()
                return response.status, {name.lower(): v for name, v in response.headers.items()}, body

        return asyncio.run(fetch())

    def blob(
        self, layout: Path, *faults: Fault, headers: dict[str, str] | None = None, timeout: float = PATIENCE
    ) -> tuple[int, dict[str, str], bytes]:
        with FaultyRegistry(layout, faults) as faulty:
            return self.get(faulty, f"/v2/any/name/blobs/{layer_of(layout)[0]}", headers, timeout=timeout)

    def test_without_faults(self, layout: Path) -> None:
        """It is a registry: skopeo copies the image out of it, digests checked."""
        require("skopeo")
        with FaultyRegistry(layout) as faulty:
            reference = f"docker://{faulty.host}/any/name:small"
            target = f"dir:{layout.parent}/copy"
            copy = ["skopeo", "copy", "-q", "--insecure-policy", "--src-tls-verify=false", reference, target]
            done = subprocess.run(copy, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
            digest, data = layer_of(layout)
            assert (layout.parent / "copy" / digest.removeprefix("sha256:")).read_bytes() == data
            assert len(faulty.arrived(digest, at=faulty.host)) == 1

    def test_range(self, layout: Path) -> None:
        _, data = layer_of(layout)
        status, headers, body = self.blob(layout, headers={"Range": "bytes=10-19"})
        assert (status, headers["content-range"], body) == (206, f"bytes 10-19/{len(data)}", data[10:20])
        status, _, body = self.blob(layout, headers={"Range": "bytes=10-"})
        assert (status, body) == (206, data[10:])

    def test_range_ignored(self, layout: Path) -> None:
        status, _, body = self.blob(layout, Fault.RANGE_IGNORED, headers={"Range": "bytes=10-19"})
        assert (status, body) == (200, layer_of(layout)[1])

    def test_range_shifted_and_refused(self, layout: Path) -> None:
        status, headers, body = self.blob(layout, Fault.RANGE_SHIFTED, headers={"Range": "bytes=10-19"})
        assert (status, body) == (206, layer_of(layout)[1][11:21])
        assert headers["content-range"].startswith("bytes 11-20/")
        assert self.blob(layout, Fault.RANGE_REFUSED, headers={"Range": "bytes=10-19"})[0] == 416

    def test_wrong_blob(self, layout: Path) -> None:
        _, data = layer_of(layout)
        status, _, body = self.blob(layout, Fault.WRONG_BLOB)
        assert (status, len(body), body[:-1]) == (200, len(data), data[:-1])
        assert body != data

    @pytest.mark.parametrize("fault", [Fault.TRUNCATED_BLOB, Fault.RESET_BLOB])
    def test_broken_connection(self, layout: Path, fault: Fault) -> None:
        with pytest.raises(aiohttp.ClientError):
            self.blob(layout, fault)

    def test_stalled_blob(self, layout: Path) -> None:
        with pytest.raises(TimeoutError):
            self.blob(layout, Fault.STALLED_BLOB, timeout=1)

    def test_short_blob(self, layout: Path) -> None:
        _, data = layer_of(layout)
        status, headers, body = self.blob(layout, Fault.SHORT_BLOB)
        assert (status, body) == (200, data[: len(data) // 2])
        assert headers["content-length"] == str(len(data) // 2)

    def test_length_and_encoding(self, layout: Path) -> None:
        _, headers, body = self.blob(layout, Fault.NO_CONTENT_LENGTH)
        assert "content-length" not in headers
        assert body == layer_of(layout)[1]
        _, headers, body = self.blob(layout, Fault.GZIP_ENCODED_BLOB)
        assert headers["content-encoding"] == "gzip"
        assert body != layer_of(layout)[1]

    def test_only_one_blob(self, layout: Path) -> None:
        digest, data = layer_of(layout)
        with FaultyRegistry(layout, {Fault.WRONG_BLOB}, only="sha256:other") as faulty:
            assert self.get(faulty, f"/v2/x/blobs/{digest}")[2] == data
            faulty.only = digest
            assert self.get(faulty, f"/v2/x/blobs/{digest}")[2] != data

    def test_wrong_manifest(self, layout: Path) -> None:
        with FaultyRegistry(layout, {Fault.WRONG_MANIFEST}) as faulty:
            _, headers, body = self.get(faulty, "/v2/x/manifests/small")
        assert headers["docker-content-digest"] != f"sha256:{hashlib.sha256(body).hexdigest()}"
        assert headers["content-type"] == json.loads(body)["mediaType"]

    @pytest.mark.parametrize(
        ("fault", "status", "header"),
        [
            (Fault.UNAUTHORIZED_WITHOUT_CHALLENGE, 401, None),
            (Fault.NAME_UNKNOWN, 404, None),
            (Fault.HTML_ERROR, 500, None),
            (Fault.TOO_MANY_REQUESTS, 429, "retry-after"),
            (Fault.UNAVAILABLE, 503, "retry-after"),
        ],
    )
    def test_errors_heal(self, layout: Path, fault: Fault, status: int, header: str | None) -> None:
        with FaultyRegistry(layout, {fault}, times=2) as faulty:
            answers = [self.get(faulty, "/v2/x/manifests/small") for _ in range(3)]
        assert [answer[0] for answer in answers] == [status, status, 200]
        assert "www-authenticate" not in answers[0][1]
        assert header is None or header in answers[0][1]

    def test_no_head(self, layout: Path) -> None:
        digest, data = layer_of(layout)
        with FaultyRegistry(layout) as faulty:
            status, headers, _ = self.get(faulty, f"/v2/x/blobs/{digest}", method="HEAD")
            assert (status, headers["content-length"]) == (200, str(len(data)))
            faulty.faults.add(Fault.NO_HEAD)
            assert self.get(faulty, f"/v2/x/blobs/{digest}", method="HEAD")[0] == 405

    def test_bearer(self, layout: Path) -> None:
        """A token opens the repository it was given for, and no other; credentials count only if wanted."""
        manifest, scope = "/v2/a/b/manifests/small", "/token?service=faulty&scope=repository:a/b:pull"
        with FaultyRegistry(layout, {Fault.BEARER}) as faulty:
            status, headers, _ = self.get(faulty, manifest)
            assert status == 401
            assert f'realm="http://{faulty.host}/token"' in headers["www-authenticate"]
            assert 'scope="repository:a/b:pull"' in headers["www-authenticate"]
            token = json.loads(self.get(faulty, scope)[2])["token"]
            bearer = {"Authorization": f"Bearer {token}"}
            assert self.get(faulty, manifest, bearer)[0] == 200
            assert self.get(faulty, "/v2/other/manifests/small", bearer)[0] == 401

            faulty.faults.add(Fault.EXPIRED_TOKEN)
            assert self.get(faulty, manifest, bearer)[0] == 200
            assert self.get(faulty, f"/v2/a/b/blobs/{layer_of(layout)[0]}", bearer)[0] == 401

            faulty.faults = {Fault.BEARER_WITH_CREDENTIALS}
            assert self.get(faulty, scope)[0] == 401
            assert self.get(faulty, scope, {"Authorization": BASIC})[0] == 200

    def test_redirect(self, layout: Path) -> None:
        """The other host is seen, and whether Authorization came along."""
        digest, data = layer_of(layout)
        with FaultyRegistry(layout, {Fault.REDIRECTED_BLOB}) as faulty:
            path = f"/v2/x/blobs/{digest}"
            assert self.get(faulty, path, {"Authorization": "Basic c2VjcmV0"})[2] == data
            [asked] = faulty.arrived(path, at=faulty.host)
            [stored] = faulty.arrived("/storage/", at=faulty.storage)
        assert faulty.host.split(":")[0] != faulty.storage.split(":")[0]
        assert "Authorization" in asked.headers
        assert "Authorization" not in stored.headers  # aiohttp keeps it at home


class TestCli:
    @pytest.fixture
    def program(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        """A shell script that stands in for Python."""
        script = tmp_path / "program"
        script.touch(0o755)
        monkeypatch.setattr(sys, "executable", str(script))
        return script

    def test_result(self, program: Path, cli: Cli, store_root: Path) -> None:
        program.write_text('#!/bin/sh\necho "$@" $MORE; cat >&2; exit 3\n')
        done = cli("ls", store_root / "x", stdin="typed", env={"MORE": "more"})
        assert done.stdout == f"-m pullpipe --root {store_root} ls {store_root}/x more\n"
        assert (done.stderr, done.returncode) == ("typed", 3)

    def test_timeout_ends_the_workers(self, program: Path, cli: Cli, tmp_path: Path) -> None:
        """Also a worker that outlives its parent and holds the pipes."""
        program.write_text(f"#!/bin/sh\nsleep 60 & echo $! > {tmp_path}/worker; wait\n")
        with pytest.raises(subprocess.TimeoutExpired):
            cli(timeout=3)
        status = Path("/proc", (tmp_path / "worker").read_text().strip(), "stat")
        deadline = time.monotonic() + PATIENCE
        while status.exists() and ") Z " not in status.read_text():  # its new parent may reap it late
            assert time.monotonic() < deadline
            time.sleep(0.01)


class TestStoreRoot:
    @pytest.mark.needs_root
    def test_mount_left_behind(self, tmp_path: Path) -> None:
        """A mount that a test forgets is undone, and fails the test."""
        (tmp_path / "test_it.py").write_text(
            "import subprocess\n"
            "from tests.conftest import *\n"
            "def test_it(store_root):\n"
            "    point = store_root / 'a b'\n"
            "    point.mkdir(parents=True)\n"
            "    subprocess.run(['mount', '-t', 'tmpfs', 'none', point], check=True)\n"
        )
        project = Path(__file__).parents[2]
        command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-c", "/dev/null"]
        command += ["--rootdir=.", f"--basetemp={tmp_path}/inner", "test_it.py"]
        done = subprocess.run(
            command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(project)}, capture_output=True, text=True
        )
        assert "mounts were left behind" in done.stdout
        assert str(tmp_path) not in Path("/proc/self/mountinfo").read_text()
        assert list((tmp_path / "inner").glob("test_it*"))
        assert not list((tmp_path / "inner").glob("*/root"))
