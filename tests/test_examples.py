"""examples/: every one of them does what it says, run as a user runs it."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.cli.rig import Log, digest_of, file_layer, layout_of, ok
from tests.conftest import PROJECT, Cli, require
from tests.rootless.conftest import readable_layout
from tests.support.images import Image, host_shell_layers
from tests.support.program import on_path
from tests.support.registry import Registry
from tests.support.users import User, somewhere

pytestmark = pytest.mark.needs_root

EXAMPLES = PROJECT / "examples"


def example(name: str, *words: str | Path, path: str, root: Path, cwd: Path, umask: int = -1) -> str:
    """What it prints."""
    environment = {**os.environ, "PATH": path, "PULLPIPE_ROOT": str(root)}
    done = subprocess.run(
        [EXAMPLES / name, *words], cwd=cwd, env=environment, capture_output=True, text=True, timeout=60, umask=umask
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def path(tmp_path: Path) -> str:
    """A PATH with pullpipe."""
    return on_path(tmp_path / "bin")


@pytest.fixture
def base(registry: Registry, tmp_path: Path) -> str:
    """An image of two layers in a registry."""
    layout = layout_of(tmp_path / "layout", file_layer("lower"), file_layer("upper"))
    return registry.push(layout, "image", to="examples:1")


def git(*words: str, cwd: Path) -> None:
    who = {f"GIT_{role}_{what}": "a@b" for role in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    when = {f"GIT_{role}_DATE": "1700000000 +0000" for role in ("AUTHOR", "COMMITTER")}
    subprocess.run(["git", *words], cwd=cwd, env={**os.environ, **who, **when}, check=True, capture_output=True)


def test_image_of_commit(base: str, path: str, cli: Cli, store_root: Path, tmp_path: Path) -> None:
    """The same twice: from another clone, with another umask, at another time, in another store."""
    require("git")
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    (first / "run").write_text("#!/bin/sh\n")
    (first / "run").chmod(0o755)
    git("init", "--quiet", cwd=first)
    git("add", "run", cwd=first)
    git("commit", "--quiet", "--message", "first", cwd=first)
    subprocess.run(["sh", "-c", f"umask 077; git clone --quiet {first} {second}"], check=True)
    (second / "not-committed").touch()
    for clone, root, umask in (first, store_root, 0o022), (second, tmp_path / "other", 0o077):
        printed = example("image-of-commit.sh", base, "app:1", path=path, root=root, cwd=clone, umask=umask)
        assert printed == "docker.io/library/app:1\n"
    one = json.loads(ok(cli, "inspect", "app:1"))
    assert one["config"]["created"] == "2023-11-14T22:13:20Z"
    assert re.sub("[0-9-]{10} [0-9:]{5}", "TIME", ok(cli, "ls", "app:1#3")).splitlines() == [
        "drwxr-xr-x 0/0           0 TIME app/",
        "-rwxr-xr-x 0/0          10 TIME app/run",
    ]
    assert json.loads(ok(cli, "--root", tmp_path / "other", "inspect", "app:1"))["digest"] == one["digest"]


def test_feed_neighbours(base: str, path: str, registry: Registry, store_root: Path, tmp_path: Path, cli: Cli) -> None:
    """Two others have the image by its own name, and no other; its registry has been asked for each blob once."""
    log = Log(registry, "examples")
    others = [tmp_path / "b", tmp_path / "c"]
    commands = [f"env PULLPIPE_ROOT={root}" for root in others]
    printed = example("feed_neighbours.py", "127.0.0.1", base, *commands, path=path, root=store_root, cwd=tmp_path)
    digest = digest_of(tmp_path / "layout")
    assert printed.splitlines() == [f"{command} has {base}" for command in commands]
    for root in others:
        [image] = json.loads(ok(cli, "--root", root, "images", "--format=json"))
        assert (image["reference"], image["digest"]) == (base, digest)
    asked = [path for _, path in log.requests("pullpipe") if path.startswith("blobs/")]
    assert len(asked) == len(set(asked)) == 3


def test_layer_times(base: str, path: str, store_root: Path, tmp_path: Path) -> None:
    """A line for each layer, a column for each stage, and no time longer than the whole."""
    header, *layers = example("layer_times.py", base, path=path, root=store_root, cwd=tmp_path).splitlines()
    assert header.split() == [
        "recv",
        "store",
        "read",
        "hash",
        "blob",
        "inflate",
        "hash",
        "tar",
        "parse",
        "write",
        "all",
    ]
    assert len(layers) == 2
    for line in layers:
        _, _, *times = line.split()
        assert len(times) == 9
        assert all(0 <= float(time) <= float(times[-1]) for time in times)
    assert not store_root.exists()


def test_ci_job(registry: Registry, tmp_path: Path) -> None:
    """Of a user: results stay, sources do not change, and the command's code is the job's."""
    for tool in ("unshare", "setpriv", "newuidmap", "busybox"):
        require(tool)
    with somewhere(User("alice", 71001, [(6_000_000, 65536)])) as [user], user.at_a_new_home() as alice:
        image = registry.push(readable_layout(alice, Image(host_shell_layers())), "t", to="examples/ci:1")
        sources = alice.home / "sources"
        sources.mkdir()
        (sources / "a").write_text("tested\n")
        for mine in sources, alice.home:
            os.chown(mine, alice.uid, alice.uid)
        path = on_path(alice.home / "bin")

        def job(script: str) -> tuple[int, str]:
            command = [
                "env",
                f"--chdir={sources}",
                f"PATH={path}",
                str(EXAMPLES / "ci-job.sh"),
                image,
                "sh",
                "-c",
                script,
            ]
            done = alice.run(*command)
            return done.returncode, done.stdout

        code, printed = job("cp a /results/; touch b; id -u; ls /sys/class/net; exit 7")
        assert (code, printed.splitlines()[1:]) == (7, ["0", "lo"])
        assert sorted(os.listdir(sources)) == ["a", "results"]
        assert (sources / "results/a").read_text() == "tested\n"
        assert (sources / "results/a").stat().st_uid == alice.uid
