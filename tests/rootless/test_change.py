"""Images made of others by a user who is not root: the same images that root makes."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.cli.rig import answer, ok
from tests.conftest import Cli
from tests.rootless.conftest import Give
from tests.rootless.test_jobs import LAYERS, done
from tests.support.users import User

pytestmark = pytest.mark.needs_root


def inspected(user: User, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(done(user, "inspect", name))
    return found


def layers(inspected: dict[str, Any]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = inspected["manifest"]["layers"]
    return found


def test_the_same_as_roots(alice: User, give: Give, cli: Cli, tmp_path: Path) -> None:
    """A container's changes, a directory of the user's own, everything in one: by their digests."""
    layout = give(alice, *LAYERS)
    ok(cli, "load", "--quiet", "--durability=none", "-t", "test", layout)
    change = (
        "rm /srv/cache/new /lib/b; rm -r /home/u; mkdir /home/u; chown 5:6 /home/u; ln /bin/su /home/u/su; "
        "chmod 4711 /bin/su; mkfifo /home/u/p; "
        "touch -d @1000000000 /home /home/u /home/u/p /lib /srv/cache /bin / /usr/lib"
    )
    done(alice, "run", "--name=c", "test", "sh", "-c", change)
    ok(cli, "run", "--name=c", "test", "sh", "-c", change)
    for words in (
        ["commit", "--quiet", "c", "committed:1"],
        ["squash", "--quiet", "-t", "squashed:1", "committed:1"],
        ["layer", "drop", "--quiet", "-t", "dropped:1", "committed:1", "1"],
    ):
        name = done(alice, *words)
        assert ok(cli, *words) == name
        assert layers(inspected(alice, name)) == layers(answer(cli, "inspect", name)), words
    done(alice, "export", "-o", "mine.tar", "committed:1")
    ok(cli, "export", "-o", tmp_path / "roots.tar", "committed:1")
    listed = [
        subprocess.run(["tar", "--numeric-owner", "-tvf", path], check=True, capture_output=True).stdout
        for path in (alice.home / "mine.tar", tmp_path / "roots.tar")
    ]
    assert listed[0] == listed[1]


def test_a_directory_of_the_users_own(alice: User, give: Give) -> None:
    """Its files are root's in the image, as everything of the user's is in there; and away again."""
    give(alice)
    (alice.home / "files" / "opt").mkdir(parents=True)
    (alice.home / "files" / "opt" / "tool").write_text("from alice\n")
    for path in ("files", "files/opt", "files/opt/tool"):
        os.chown(alice.home / path, alice.uid, alice.uid)
    before = inspected(alice, "test")["digest"]
    done(alice, "layer", "add", "--quiet", "-t", "new:1", "test", "files")
    assert (
        done(alice, "run", "--rm", "new:1", "sh", "-c", "cat /opt/tool; stat -c %u:%g /opt/tool") == "from alice\n0:0"
    )
    done(alice, "layer", "drop", "--quiet", "new:1", "2")
    assert inspected(alice, "new:1")["digest"] == before
