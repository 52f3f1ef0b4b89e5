"""The settings that docs/ shows: what pullpipe makes of them, and Docker's registry."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest

from pullpipe.errors import Blocked
from pullpipe.reference import Reference
from pullpipe.registry.hosts import Endpoint, Hosts, Paths
from tests.cli.rig import file_layer, layout_of, ok
from tests.conftest import PROJECT, Cli, require
from tests.support.registry import Registry

HUB = "https://registry-1.docker.io/v2/library/alpine tags"

# Of each heading with TOML: images, and the places that are asked for them.
PLACES: dict[str, dict[str, dict[str, list[str]]]] = {
    "fleet.md": {
        "Docker's registry as a pull-through cache": {
            "alpine": ["http://cache.example.com:5000/v2/library/alpine?ns=docker.io", HUB],
        },
        "Harbor, Zot: a path for each registry": {
            "alpine": ["https://harbor.example.com/v2/hub/library/alpine?ns=docker.io", HUB],
            "quay.io/a/b:1": ["https://harbor.example.com/v2/quay/a/b?ns=quay.io", "https://quay.io/v2/a/b tags"],
        },
        "Dragonfly": {
            "alpine": [
                "http://127.0.0.1:4001/v2/library/alpine?ns=docker.io X-Dragonfly-Registry: https://index.docker.io",
                HUB,
            ],
        },
        "Spegel": {
            "alpine": [
                "http://10.0.0.7:30020/v2/library/alpine?ns=docker.io tags",
                "http://10.0.0.7:30021/v2/library/alpine?ns=docker.io tags",
                HUB,
            ],
        },
        "A machine that feeds its neighbours": {
            "alpine": [
                "http://10.0.0.7:5000/v2/library/alpine?ns=docker.io",
                "http://10.0.0.8:5000/v2/library/alpine?ns=docker.io",
                HUB,
            ],
        },
    },
    "registries.md": {
        "Our own file": {
            "alpine": ["https://cache.example.com/v2/hub/library/alpine?ns=docker.io tags cache-ca.pem", HUB],
            "registry.example.com/team/a": ["https://registry.example.org:5000/v2/archive/team/a tags"],
            "registry.example.com/other/a": ["https://registry.example.com/v2/other/a tags"],
            "builds.example.com/a": ["http://builds.example.com/v2/a tags /run/registry.sock"],
            "untrusted.example/a": [],
            "sub.untrusted.example/a": [],
        },
    },
}


def blocks(page: str, language: str) -> dict[str, str]:
    """The page's blocks of this language, by their headings; there is one under each."""
    found: dict[str, str] = {}
    for section in re.split(r"^## ", (PROJECT / "docs" / page).read_text(), flags=re.MULTILINE):
        for text in re.findall(rf"^```{language}\n(.*?)^```$", section, re.MULTILINE | re.DOTALL):
            assert found.setdefault(section.partition("\n")[0], text) == text
    return found


def described(place: Endpoint, directory: Path) -> str:
    """In one line: the URL, whether it is believed in tags, and what else there is."""
    [scheme] = place.schemes
    url = f"{scheme}://{place.host}{place.path}/{place.repository}"
    url += f"?ns={place.namespace}" if place.namespace else ""
    rest = [*(os.path.relpath(file, directory) for file in place.tls.ca), place.socket]
    headers = [f"{name}: {value}" for name, value in place.headers.items()]
    return " ".join([url, *(["tags"] if place.tags else []), *headers, *filter(None, rest)])


@pytest.mark.parametrize("page", sorted(path.name for path in (PROJECT / "docs").glob("*.md")))
def test_settings(page: str, tmp_path: Path) -> None:
    """Every one of them, by its heading."""
    found = blocks(page, "toml")
    assert found.keys() == PLACES.get(page, {}).keys()
    for heading, text in found.items():
        for image, expected in PLACES[page][heading].items():
            assert asked(text, image, tmp_path) == expected, heading


def asked(text: str, image: str, directory: Path) -> list[str]:
    """The places for the image by these settings, which may be containerd's; none where it is blocked."""
    reference = Reference.parse(image)
    if "[host." in text:
        file = directory / "certs.d" / reference.registry / "hosts.toml"
        paths = Paths(containerd=(str(directory / "certs.d"),))
    else:
        file = directory / "registries.conf"
        paths = Paths(own=(str(file),))
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    try:
        return [described(place, directory) for place in Hosts(paths).endpoints(reference)]
    except Blocked:
        return []


@pytest.mark.needs_root
def test_dockers_registry(registry: Registry, cli: Cli, tmp_path: Path) -> None:
    """It starts with its settings, but for places; and by the machine's next to them a pull goes through it."""
    require("docker-registry")
    reference = registry.push(layout_of(tmp_path / "layout", file_layer("a")), "image", to="docs/fleet:1")
    [(heading, text)] = blocks("fleet.md", "yaml").items()
    for shown, real in {
        "/var/lib/docker-registry": str(tmp_path / "storage"),
        " :5000": " 127.0.0.1:0",
        "https://registry-1.docker.io": registry.url,
    }.items():
        assert text.count(shown) == 1
        text = text.replace(shown, real)
    with Registry(tmp_path / "cache", config=text) as cache:
        settings = Path(os.environ["XDG_CONFIG_HOME"]) / "pullpipe" / "registries.conf"
        settings.parent.mkdir()
        shown = blocks("fleet.md", "toml")[heading]
        settings.write_text(shown.replace("docker.io", registry.host).replace("cache.example.com:5000", cache.host))
        digest = ok(cli, "pull", "--quiet", reference)
        assert re.search(rf'"GET /v2/docs/fleet/manifests/{digest}\S* HTTP/1.1" 200 ', cache.log)
        assert (tmp_path / "storage" / "docker/registry/v2/repositories/docs/fleet").is_dir()


@pytest.mark.needs_root
def test_the_store_is_as_its_page_says(cli: Cli, store_root: Path, tmp_path: Path) -> None:
    """Every file of a store that has been used, and every field of its documents."""
    page = (PROJECT / "docs" / "store.md").read_text()
    ok(cli, "load", "--quiet", "-t", "a:1", layout_of(tmp_path / "layout", file_layer("a")))
    cli("run", "--name=c", "a:1", "true")
    for path in store_root.iterdir():
        assert path.name in page or path.name.endswith(".lock"), path.name
    for name in ("layer.json", "stack.json", "config.json"):
        [found] = store_root.glob(f"*/**/{name}")
        for field in json.loads(found.read_bytes()):
            assert f"`{field}`" in page, (name, field)


def test_links_lead_somewhere() -> None:
    """Between the pages, and to files."""
    pages = [PROJECT / "README.md", PROJECT / "SECURITY.md", *(PROJECT / "docs").glob("*.md")]
    for page in pages:
        for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
            assert "://" in target or (page.parent / target).exists(), (page.name, target)
