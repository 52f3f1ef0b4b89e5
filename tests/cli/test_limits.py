"""The limits on what a layer may come to (LAYERS.md, rule 33), as a user sets them."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from tests.conftest import Cli
from tests.support.images import File, Image, Layer, write_layout

pytestmark = pytest.mark.needs_root


def test_rule_33_entries(cli: Cli, tmp_path: Path, store_root: Path) -> None:
    """As many as the limit are taken, one more is not; the error names the option that allows more."""
    write_layout(tmp_path / "layout", {"t": Image([Layer([File(f"file-{number}") for number in range(10)])])})
    done = cli("load", "-q", "--max-entries", "9", tmp_path / "layout")
    assert done.returncode == 1
    assert "more than 9 entries" in done.stderr
    assert "--max-entries" in done.stderr
    assert not [path for name in ("staging", "ingest", "layers/sha256") for path in (store_root / name).iterdir()]
    assert cli("load", "-q", "--max-entries", "10", tmp_path / "layout").returncode == 0


def test_rule_33_size_and_ratio(cli: Cli, tmp_path: Path) -> None:
    """A bomb of 2 GiB of zeros, behind the archive's end so that nothing is written: stopped by either limit."""
    layer = Layer([File("file")], None)
    blob = gzip.compress(layer.tar, mtime=0) + 2048 * gzip.compress(bytes(1 << 20), mtime=0)
    layout = tmp_path / "layout"
    write_layout(layout, {"t": Image([layer])})
    _replace_layer(layout, blob)
    for options in (("--max-size", "1"), ("--max-ratio", "10")):
        done = cli("load", "-q", *options, layout)
        assert done.returncode == 1
        assert "unpacks to more than" in done.stderr
        assert options[0] in done.stderr


def _replace_layer(layout: Path, blob: bytes) -> None:
    """Gives the image's only layer another blob; its diffID stays what it was."""
    import hashlib

    def add(data: bytes) -> str:
        digest = hashlib.sha256(data).hexdigest()
        (layout / "blobs" / "sha256" / digest).write_bytes(data)
        return f"sha256:{digest}"

    index = json.loads((layout / "index.json").read_bytes())
    [entry] = index["manifests"]
    manifest = json.loads((layout / "blobs" / entry["digest"].replace(":", "/")).read_bytes())
    manifest["layers"][0] |= {"digest": add(blob), "size": len(blob)}
    data = json.dumps(manifest).encode()
    entry |= {"digest": add(data), "size": len(data)}
    (layout / "index.json").write_text(json.dumps(index))
