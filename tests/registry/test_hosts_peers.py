"""registries.conf as skopeo understands it: it asks the places that pullpipe names, in their order.

Prefixes with a tag or a digest are left out: its manual has them, skopeo 1.9 does not heed them.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from pullpipe.errors import Blocked
from pullpipe.reference import Reference
from pullpipe.registry.hosts import Hosts, Paths
from tests.conftest import require
from tests.support.hostile import Fault, FaultyRegistry
from tests.support.images import write_layout

DIGEST = "@sha256:" + "0" * 64


@pytest.fixture(scope="module")
def nothing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FaultyRegistry]:
    """A registry of several names that has no image: whoever asks it goes on to the next place."""
    require("skopeo")
    layout = tmp_path_factory.mktemp("nothing")
    write_layout(layout, {})
    with FaultyRegistry(layout, {Fault.NAME_UNKNOWN}) as running:
        yield running


def skopeo_asks(home: Path, image: str, registry: FaultyRegistry) -> list[tuple[str, str]] | str:
    """The host and the repository of each question for a manifest; or that the image is blocked."""
    registry.requests.clear()
    command = ["skopeo", "inspect", "--raw", f"docker://{image}"]
    done = subprocess.run(command, env={**os.environ, "HOME": str(home)}, capture_output=True, text=True, timeout=60)
    assert done.returncode, "nothing is there"
    if " is blocked in " in done.stderr:
        return "blocked"
    asked = [
        (request.headers["Host"], found[1])
        for request in registry.requests
        if (found := re.fullmatch(r"/v2/(.+)/manifests/[^/]+", request.path))
    ]
    assert asked, done.stderr
    return asked


def pullpipe_asks(home: Path, image: str) -> list[tuple[str, str]] | str:
    """The same, of those that are believed for tags if it is a tag."""
    reference = Reference.parse(image)
    try:
        places = Hosts(Paths(podman=(f"{home}/.config/containers",))).endpoints(reference)
    except Blocked:
        return "blocked"
    return [(place.host, place.repository) for place in places if place.tags or reference.digest]


def registry(*lines: str) -> str:
    return "\n".join(["[[registry]]", "insecure = true", *lines, ""])


def mirror(*lines: str) -> str:
    return "\n".join(["[[registry.mirror]]", "insecure = true", *lines, ""])


MIRRORED = (
    registry('prefix = "a.invalid/foo"', 'location = "ONE/x"')
    + mirror('location = "TWO/m/n"')
    + mirror('location = "THREE"', 'pull-from-mirror = "digest-only"')
    + mirror('location = "THREE/t"', 'pull-from-mirror = "tag-only"')
    + mirror('location = "ONE/all"', 'pull-from-mirror = "all"')
)
BY_DIGEST = registry('prefix = "a.invalid"', 'location = "ONE"', "mirror-by-digest-only = true") + mirror(
    'location = "TWO"'
)
PREFIXES = "".join(
    registry(f'prefix = "{prefix}"', f'location = "{location}"')
    for prefix, location in {
        "a.invalid": "ONE/host",
        "a.invalid/foo": "TWO/path",
        "a.invalid/foo/bar": "THREE/deeper",
        "*.b.invalid": "ONE/sub",
        "xy.b.invalid": "TWO/exact",
        "*.xy.b.invalid": "THREE/subsub",
        "c.invalid:5000": "ONE/port",
        "docker.io": "TWO/hub",
        "docker.io/library/alpine": "THREE/alpine",
        "d.invalid/": "ONE/slash/",
        "ONE": "ONE",
    }.items()
)
BLOCKING = (
    registry('location = "a.invalid"', "blocked = true")
    + registry('prefix = "a.invalid/free"', 'location = "ONE/free"')
    + registry('location = "ONE/bad"', "blocked = true")
    + registry('location = "ONE"')
    + registry('prefix = "*.invalid"', "blocked = true")
)
TWICE = registry('prefix = "a.invalid"', 'location = "ONE/1"') + registry('prefix = "a.invalid"', 'location = "ONE/2"')
VERSION_1 = '[registries.search]\nregistries = ["a.invalid"]\n[registries.insecure]\nregistries = ["ONE"]\n'
VERSION_1 += '[registries.block]\nregistries = ["TWO"]\n'


@pytest.mark.parametrize(
    ("text", "images"),
    [
        (MIRRORED, ["a.invalid/foo/bar:1", "a.invalid/foo/bar", f"a.invalid/foo/bar{DIGEST}"]),
        (MIRRORED.replace('location = "THREE"', 'location = "THREE/d"'), ["a.invalid/foo:1", f"a.invalid/foo{DIGEST}"]),
        (BY_DIGEST, ["a.invalid/foo/bar:1", f"a.invalid/foo/bar{DIGEST}"]),
        (
            PREFIXES,
            [
                "a.invalid/x",
                "a.invalid/foobar",
                "a.invalid/foo",
                "a.invalid/foo/x:1",
                "a.invalid/foo/bar:1",
                "a.invalid/foo/bar/baz:1",
                f"a.invalid/foo/bar/baz{DIGEST}",
                "y.b.invalid/x",
                "xy.b.invalid/x",
                "y.xy.b.invalid/x",
                "z.y.xy.b.invalid/x",
                "c.invalid:5000/x",
                "alpine",
                "docker.io/me/app",
                "debian",
                "d.invalid/x",
                "ONE/x",
            ],
        ),
        (
            BLOCKING,
            [
                "a.invalid/x",
                "a.invalid/free/x",
                "ONE/bad:1",
                "ONE/bad/x",
                "ONE/badly",
                "b.c.invalid/x:1",
                "b.invalid:1/x",
            ],
        ),
        (TWICE, ["a.invalid/x"]),
        (VERSION_1, ["ONE/x", "TWO/x"]),
    ],
)
def test_podmans_file(tmp_path: Path, nothing: FaultyRegistry, text: str, images: list[str]) -> None:
    """Mirrors in their order, then the place itself, each with the repository's name there."""
    file = tmp_path / ".config/containers/registries.conf"
    file.parent.mkdir(parents=True)
    file.write_text(_named(text, nothing))
    for image in (_named(image, nothing) for image in images):
        assert pullpipe_asks(tmp_path, image) == skopeo_asks(tmp_path, image, nothing), image


def test_podmans_drop_ins(tmp_path: Path, nothing: FaultyRegistry) -> None:
    """A later one replaces what is said of a prefix, mirrors and all. Directories and other names are none."""
    directory = tmp_path / ".config/containers"
    (directory / "registries.conf.d" / "50.conf").mkdir(parents=True)
    files = {
        "registries.conf": MIRRORED + registry('prefix = "b.invalid"', 'location = "ONE/main"'),
        "registries.conf.d/20.conf": registry('prefix = "a.invalid/foo"', 'location = "ONE/20"'),
        "registries.conf.d/10.conf": registry('prefix = "a.invalid/foo"', 'location = "ONE/10"')
        + registry('prefix = "c.invalid"', 'location = "TWO/10"'),
        "registries.conf.d/30.conf.off": registry('prefix = "a.invalid/foo"', 'location = "ONE/30"'),
    }
    for name, text in files.items():
        (directory / name).write_text(_named(text, nothing))
    for image in ("a.invalid/foo/bar:1", "b.invalid/x", "c.invalid/x"):
        assert pullpipe_asks(tmp_path, image) == skopeo_asks(tmp_path, image, nothing), image


def _named(text: str, registry: FaultyRegistry) -> str:
    """Its three names: two of the same address, and one of another."""
    name = f"localhost:{registry.host.partition(':')[2]}"
    return text.replace("ONE", registry.host).replace("TWO", name).replace("THREE", registry.storage)
