"""The demo image: an OCI image made of this host's own shell and tools, so that a first run needs no network.

Guarantees: one host and one Python give the same bytes, and so the same digests, every time. Three layers show what
stacking is about, one in each compression that the image-spec knows: files added, replaced, removed by a whiteout
and hidden by an opaque one (image-spec, layer.md, "Whiteouts"). Written as image-layout.md says.

Nothing here is hot: `tarfile` and whole layers in memory are good enough for some megabytes.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import shutil
import stat
import subprocess
import tarfile
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import zstandard

from pullpipe.errors import DemoError
from pullpipe.oci import OCI_CONFIG, OCI_INDEX, OCI_LAYER, OCI_MANIFEST
from pullpipe.platforms import Platform
from store.digest import Digest

Compression = Literal["gzip", "zstd", "plain"]

REFERENCE = "demo:1"

_HOST_PATH = "/usr/bin:/bin:/usr/sbin:/sbin"
_TOOLS = ("cat", "env", "hostname", "id", "ls", "mount", "ps", "sleep", "stat")

# What a merged /usr turns into links to it. Added even where no tool's path runs through them, as users expect them.
_USRMERGE = ("/bin", "/sbin", "/lib", "/lib64")

_MEDIA_TYPES: dict[Compression, str] = {
    "gzip": f"{OCI_LAYER}+gzip",
    "zstd": f"{OCI_LAYER}+zstd",
    "plain": OCI_LAYER,
}

# Only what a POSIX shell has built in, so that it works with whichever tools the host had. Fails if a file is not
# as the three layers leave it.
_HELLO = """\
#!/bin/sh
wrong=0

row() { printf '  %-20s %s\\n' "$1" "$2"; }

holds() {
    text='(missing)'
    [ -e "$1" ] && read -r text < "$1"
    [ "$text" = "$2" ] || { wrong=1; text="$text, but should be: $2"; }
    row "$1" "$text"
}

gone() {
    if [ -e "$1" ]; then wrong=1; row "$1" "still here, but $2"; else row "$1" "gone: $2"; fi
}

name='?'
[ -r /proc/sys/kernel/hostname ] && read -r name < /proc/sys/kernel/hostname

echo 'Hello from a stack of three layers.'
echo
echo 'Files'
holds /etc/motd 'from layer 2'
holds /srv/cache/c 'from layer 2'
gone /srv/old.txt 'whiteout in layer 2'
gone /srv/cache/a 'opaque directory in layer 2'
gone /srv/cache/b 'opaque directory in layer 2'
row "$0" 'from layer 3'
echo
echo 'Process'
row 'PID' "$$"
row 'hostname' "$name"
row 'directory' "$PWD"
echo
echo 'Mounts'
shown=0 more=0
if [ -r /proc/self/mounts ]; then
    while read -r source target type options; do
        if [ "$shown" -lt 12 ]; then
            shown=$((shown + 1))
            row "$target" "$type, ${options%%,*}"
        else
            more=$((more + 1))
        fi
    done < /proc/self/mounts
    [ "$more" = 0 ] || row '...' "and $more more"
else
    row '?' '/proc is not mounted'
fi
exit "$wrong"
"""


@dataclass(frozen=True)
class DemoLayer:
    """One layer of the demo image, as it lies in the layout."""

    digest: Digest
    size: int  # bytes, compressed
    compression: Compression
    shows: str


@dataclass(frozen=True)
class DemoImage:
    """The image in the layout: the reference name it has there, its manifest's digest, its layers, lowest first."""

    reference: str
    digest: Digest
    layers: tuple[DemoLayer, ...]


def build_image(layout: Path) -> DemoImage:
    """Makes an OCI image layout in the directory `layout`, which is created if need be, with the demo image in it.

    Raises `DemoError` when the host lacks what it takes, `FileExistsError` when `layout` already is an image
    layout, `OSError` when a file cannot be read or written.
    """
    base = _base()
    blobs = layout / "blobs" / "sha256"
    blobs.mkdir(parents=True, exist_ok=True)
    with (layout / "oci-layout").open("x") as marker:
        json.dump({"imageLayoutVersion": "1.0.0"}, marker)

    def add_blob(content: bytes) -> Digest:
        digest = Digest.of(content)
        (blobs / digest.hex).write_bytes(content)
        return digest

    def add_layer(tree: Mapping[str, _Node], compression: Compression, shows: str) -> tuple[DemoLayer, Digest]:
        tar = _tar(tree)
        blob = _compress(tar, compression)
        return DemoLayer(add_blob(blob), len(blob), compression, shows), Digest.of(tar)

    added = [
        add_layer(base, "gzip", "the base: /bin/sh and tools of this host, with the libraries they need"),
        add_layer(
            _changes(),
            "zstd",
            "replaces /etc/motd, removes /srv/old.txt (whiteout) and all older files in /srv/cache (opaque)",
        ),
        add_layer(_hello(), "plain", "adds /usr/local/bin/hello, which reports what it sees"),
    ]
    layers = tuple(layer for layer, _ in added)
    target = {field: value for field, value in Platform.of_this_machine()._asdict().items() if value}
    config = _json(
        {
            "created": "1970-01-01T00:00:00Z",
            **target,
            "config": {
                "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
                "Cmd": ["/usr/local/bin/hello"],
                "WorkingDir": "/",
                "Labels": {"org.opencontainers.image.title": "pullpipe demo"},
            },
            "rootfs": {"type": "layers", "diff_ids": [str(diff_id) for _, diff_id in added]},
            "history": [
                {"created": "1970-01-01T00:00:00Z", "created_by": "pullpipe demo", "comment": layer.shows}
                for layer in layers
            ],
        }
    )
    manifest = _json(
        {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": {
                "mediaType": OCI_CONFIG,
                "digest": str(add_blob(config)),
                "size": len(config),
            },
            "layers": [
                {"mediaType": _MEDIA_TYPES[layer.compression], "digest": str(layer.digest), "size": layer.size}
                for layer in layers
            ],
        }
    )
    digest = add_blob(manifest)
    index = {
        "schemaVersion": 2,
        "mediaType": OCI_INDEX,
        "manifests": [
            {
                "mediaType": OCI_MANIFEST,
                "digest": str(digest),
                "size": len(manifest),
                "platform": target,
                "annotations": {"org.opencontainers.image.ref.name": REFERENCE},
            }
        ],
    }
    (layout / "index.json").write_bytes(_json(index))
    return DemoImage(REFERENCE, digest, layers)


def _json(document: dict[str, Any]) -> bytes:
    return json.dumps(document, separators=(",", ":")).encode()


# --- Layers: a tree, as a mapping of paths without a leading slash, becomes a tar, and that a blob.


@dataclass(frozen=True)
class _Node:
    type: bytes  # one of tarfile's type flags
    mode: int
    data: bytes = b""
    target: str = ""


def _directory(mode: int = 0o755) -> _Node:
    return _Node(tarfile.DIRTYPE, mode)


def _file(data: str | bytes, mode: int = 0o644) -> _Node:
    return _Node(tarfile.REGTYPE, mode, data.encode() if isinstance(data, str) else data)


def _symlink(target: str) -> _Node:
    return _Node(tarfile.SYMTYPE, 0o777, target=target)


def _tar(tree: Mapping[str, _Node]) -> bytes:
    """The tree as a tar: root's, in 1970, parents first and none of them left out."""
    parents = {str(parent): _directory() for path in tree for parent in PurePosixPath(path).parents[:-1]}
    whole = {**parents, **tree}
    output = io.BytesIO()
    with tarfile.open(fileobj=output, mode="w") as tar:
        for path in sorted(whole):
            node = whole[path]
            member = tarfile.TarInfo(path)  # owner 0:0, mtime 0
            member.type, member.mode, member.linkname = node.type, node.mode, node.target
            member.size = len(node.data)
            tar.addfile(member, io.BytesIO(node.data))
    return output.getvalue()


def _compress(tar: bytes, compression: Compression) -> bytes:
    match compression:
        case "gzip":
            return gzip.compress(tar, compresslevel=6, mtime=0)
        case "zstd":
            return zstandard.ZstdCompressor().compress(tar)
        case "plain":
            return tar


def _base() -> dict[str, _Node]:
    tree = {
        "dev": _directory(),
        "etc/group": _file("root:x:0:\nnogroup:x:65534:\n"),
        "etc/motd": _file("from layer 1\n"),
        "etc/os-release": _file('ID=pullpipe-demo\nNAME="pullpipe demo"\nPRETTY_NAME="pullpipe demo 1"\n'),
        "etc/passwd": _file("root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/nonexistent:/bin/false\n"),
        "proc": _directory(),
        "root": _directory(0o700),
        "srv/cache/a": _file("from layer 1\n"),
        "srv/cache/b": _file("from layer 1\n"),
        "srv/old.txt": _file("from layer 1\n"),
        "sys": _directory(),
        "tmp": _directory(0o1777),
    }
    for path in _USRMERGE:
        if os.path.islink(path):
            _add_from_host(tree, path)
    found = [shutil.which(tool, path=_HOST_PATH) for tool in _TOOLS]
    programs = {"/bin/sh", *(path for path in found if path is not None)}
    for path in programs.union(*map(_libraries, programs)):
        _add_from_host(tree, path)
    return tree


def _changes() -> dict[str, _Node]:
    return {
        "etc/motd": _file("from layer 2\n"),
        "srv/.wh.old.txt": _file(""),
        "srv/cache/.wh..wh..opq": _file(""),
        "srv/cache/c": _file("from layer 2\n"),
    }


def _hello() -> dict[str, _Node]:
    return {"usr/local/bin/hello": _file(_HELLO, 0o755)}


# --- What comes from the host.


def _add_from_host(tree: dict[str, _Node], path: str) -> None:
    """Adds what is at the absolute `path`, and every symlink on the way, so that the same path leads there.

    The tree's own keys never run through a symlink, so nothing in the tar has to be written through one: with a
    merged /usr, /bin/sh is the link `bin` and the file `usr/bin/dash`.
    """
    here, todo = PurePosixPath("/"), deque(PurePosixPath(path).parts[1:])
    while todo:
        part = todo.popleft()
        here = here.parent if part == ".." else here / part
        if os.path.islink(here):
            target = os.readlink(here)
            tree[str(here)[1:]] = _symlink(target)
            todo.extendleft(reversed(PurePosixPath(target).parts))
            here = here.parent
    mode = os.stat(here).st_mode
    if stat.S_ISDIR(mode):
        tree[str(here)[1:]] = _directory()
    else:
        # Without set-user-ID: the image has one user, and `mount` does not need it to list.
        tree[str(here)[1:]] = _file(Path(here).read_bytes(), mode & 0o755)


def _libraries(program: str) -> set[str]:
    """The paths of the ELF interpreter and the shared libraries of `program`; none when it is static."""
    ldd = shutil.which("ldd", path=_HOST_PATH)
    if ldd is None:
        raise DemoError(
            f"cannot make the demo image: it takes `ldd` to find the libraries of {program}; "
            "install it (Debian: libc-bin, Fedora: glibc-common, Alpine: musl-utils) or pull a real image"
        )
    # An environment of its own: a LD_LIBRARY_PATH here would not hold in the container. The exit status is no help,
    # it is 1 for a static program, too.
    listed = subprocess.run(
        [ldd, program], env={"PATH": _HOST_PATH, "LC_ALL": "C"}, capture_output=True, text=True, check=False
    ).stdout
    missing = [line.split()[0] for line in listed.splitlines() if line.endswith("=> not found")]
    if missing:
        raise DemoError(f"cannot make the demo image: {program} needs {', '.join(missing)}, which this host lacks")
    # Lines are "NAME => PATH (ADDRESS)", "PATH (ADDRESS)", or for an interpreter elsewhere "PATH => PATH (ADDRESS)".
    return {word for word in listed.split() if word.startswith("/")}
