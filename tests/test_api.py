"""The Python API, against a real registry: what docs/python.md says of it."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

import pullpipe
from tests.conftest import PROJECT, require
from tests.runner.rig import BASE
from tests.support.images import File, Image, Layer, write_layout
from tests.support.registry import Registry

pytestmark = pytest.mark.needs_root

TOP = Layer([File("etc/note", b"from the top")], "zstd")


@pytest.fixture(scope="module")
def reference(registry: Registry, tmp_path_factory: pytest.TempPathFactory) -> str:
    """An image with a shell, in a registry."""
    require("busybox")
    layout = tmp_path_factory.mktemp("api")
    config = {"Cmd": ["cat", "/etc/note"], "Env": ["A=1"], "WorkingDir": "/etc", "User": "5"}
    write_layout(layout, {"1": Image([*BASE, TOP], config)})
    return registry.push(layout, "1", to="api/image:1")


@pytest.fixture
def store(store_root: Path) -> pullpipe.Store:
    return pullpipe.open_store(str(store_root))


def test_pull(reference: str, store: pullpipe.Store) -> None:
    """What the image is, what is told meanwhile; and the second time nothing is fetched."""
    events: list[pullpipe.Event] = []
    image = asyncio.run(pullpipe.pull(reference, store, plain_http=True, tell=events.append))
    assert (image.reference, image.command, image.environment) == (reference, ("cat", "/etc/note"), ("A=1",))
    assert (image.working_dir, image.user, image.entrypoint) == ("/etc", "5", ())
    assert [layer.diff_id for layer in image.layers] == [layer.diff_id for layer in (*BASE, TOP)]
    assert image.size == sum(len(layer.blob) for layer in (*BASE, TOP))
    for layer in image.layers:
        told = [event for event in events if event.layer == layer.digest]
        assert (told[0].kind, told[-1].kind) == ("started", "finished")
        assert max(event.bytes for event in told if event.kind == "fetched") == layer.size
    assert pullpipe.images(store) == [image] == [pullpipe.image(reference, store)]
    events.clear()
    assert asyncio.run(pullpipe.pull(reference, store, plain_http=True, tell=events.append)) == image
    assert not [event for event in events if event.kind in ("started", "fetched")]


def test_several_at_once(reference: str, store: pullpipe.Store) -> None:
    """Of the same image, in one program: each layer is fetched once."""
    events: list[pullpipe.Event] = []

    async def pulls() -> list[pullpipe.Image]:
        several = (pullpipe.pull(reference, store, plain_http=True, tell=events.append) for _ in range(4))
        return await asyncio.gather(*several)

    first, *others = asyncio.run(pulls())
    assert others == [first] * 3
    finished = [event.layer for event in events if event.kind == "finished"]
    assert sorted(finished) == sorted(layer.digest for layer in first.layers)


def test_cancelled(reference: str, store: pullpipe.Store) -> None:
    """In the middle of a layer; what is there then is whole, and the next pull goes well."""

    async def cancelled() -> None:
        task = asyncio.current_task()
        assert task

        def tell(_event: pullpipe.Event) -> None:
            task.cancel()

        await pullpipe.pull(reference, store, plain_http=True, tell=tell)

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(cancelled())
    assert pullpipe.images(store) == []
    asyncio.run(pullpipe.pull(reference, store, plain_http=True))
    assert len(pullpipe.images(store)) == 1


def test_mounted_and_run(reference: str, store: pullpipe.Store, tmp_path: Path) -> None:
    asyncio.run(pullpipe.pull(reference, store, plain_http=True))
    (tmp_path / "mnt").mkdir()
    with pullpipe.mounted(reference, str(tmp_path / "mnt"), store) as directory:
        assert Path(directory, "etc", "note").read_text() == "from the top"
    assert list((tmp_path / "mnt").iterdir()) == []

    async def runs() -> tuple[pullpipe.Completed, ...]:
        return await asyncio.gather(
            pullpipe.run(reference, store=store),
            pullpipe.run(reference, "cat", store=store, stdin=b"\0in"),
            pullpipe.run(reference, "sh", "-c", "echo bad >&2; exit 3", store=store, options=["--user", "0"]),
            pullpipe.run(reference, "nothing-like-it", store=store),
        )

    default, fed, failed, missing = asyncio.run(runs())
    assert default == (0, b"from the top", b"")
    assert fed.output == b"\0in"
    assert failed == (3, b"", b"bad\n")
    assert missing.exit_code == 127
    assert missing.errors.startswith(b"pullpipe: error: ")
    assert list(store.containers) == []


def test_mounted_and_busy(reference: str, store: pullpipe.Store, tmp_path: Path) -> None:
    """When the block fails, that is heard of, and nothing stays mounted, whatever it has left open; else, this is."""
    asyncio.run(pullpipe.pull(reference, store, plain_http=True))
    target = tmp_path / "mnt"
    target.mkdir()
    left_open = ExitStack()

    def block(*, fails: bool) -> None:
        with pullpipe.mounted(reference, str(target), store, writable=True) as directory:
            left_open.enter_context(Path(directory, "new").open("w"))
            if fails:
                raise ZeroDivisionError

    with left_open, pytest.raises(ZeroDivisionError):
        block(fails=True)
    assert list(target.iterdir()) == []
    [container] = store.containers
    assert os.listdir(os.path.join(store.containers.path(container), "upper")) == ["new"]
    with left_open, pytest.raises(pullpipe.PullpipeError, match="busy"):
        block(fails=False)
    subprocess.run(["umount", target], check=True)


@pytest.mark.parametrize("named", [(), ("--name=mine",)], ids=["unnamed", "named"])
def test_run_is_cancelled(reference: str, store: pullpipe.Store, tmp_path: Path, named: tuple[str, ...]) -> None:
    """The container ends with it, and is gone."""
    asyncio.run(pullpipe.pull(reference, store, plain_http=True))
    os.mkfifo(tmp_path / "begun")

    async def cancelled() -> None:
        command = ["sh", "-c", "trap '' TERM; echo >/shown/begun; while :; do echo x >>/file; done"]
        options = [f"--volume={tmp_path}:/shown", "--user=0", *named]
        running = asyncio.create_task(pullpipe.run(reference, *command, store=store, options=options))
        await asyncio.to_thread((tmp_path / "begun").read_bytes)
        assert [one for one in store.containers if store.containers.is_running(one)]
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running

    asyncio.run(cancelled())
    assert list(store.containers) == []


def test_errors(reference: str, store: pullpipe.Store) -> None:
    """Their messages are those of the command line."""
    for wrong, why in (("Bad:1", "invalid"), (reference.replace(":1", ":none"), "none")):
        with pytest.raises(pullpipe.PullpipeError, match=why):
            asyncio.run(pullpipe.pull(wrong, store, plain_http=True))
    with pytest.raises(pullpipe.PullpipeError, match="not in the store"):
        pullpipe.image("missing", store)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = pullpipe.nothing


def test_arguments_that_cannot_be_meant(store: pullpipe.Store) -> None:
    """Nothing waits for ever, and no name is taken for an option."""
    for jobs in (0, -1):
        with pytest.raises(pullpipe.PullpipeError, match="give 1 or more"):
            asyncio.run(asyncio.wait_for(pullpipe.pull("127.0.0.1:1/a:1", store, jobs=jobs), 10))
    for name in ("--volume=/etc:/h", "--help", "-d", ""):
        with pytest.raises(pullpipe.PullpipeError, match="invalid image reference"):
            asyncio.run(pullpipe.run(name, "alpine:3.20", "ls", store=store))
    for option in ("-d", "--detach", "--deta", "-itd", "-qd", "-du", "-dw/x"):
        with pytest.raises(pullpipe.PullpipeError, match="leave it away"):
            asyncio.run(pullpipe.run("alpine:3.20", store=store, options=["--rm", option, "root"]))


def test_its_names_can_be_seen() -> None:
    assert set(pullpipe.__all__) <= set(dir(pullpipe))


def test_importing_it_costs_nothing() -> None:
    """The command line pays for no name that it does not use."""
    program = "import sys, pullpipe; print(sorted(m for m in sys.modules if m.startswith(('pullpipe', 'asyncio'))))"
    done = subprocess.run([sys.executable, "-c", program], cwd=PROJECT, capture_output=True, text=True, check=True)
    assert done.stdout == "['pullpipe']\n"


def test_the_page_is_true(reference: str, store_root: Path) -> None:
    """Its program runs as it stands, with another image and another store; its table has every name."""
    page = (PROJECT / "docs" / "python.md").read_text()
    program = re.findall(r"```python\n(.*?)```", page, re.DOTALL)[0]
    program = program.replace("/srv/images", str(store_root)).replace("alpine:3.20", reference)
    program = program.replace("tell=tell", "tell=tell, plain_http=True").replace("/etc/os-release", "/etc/note")
    done = subprocess.run([sys.executable, "-c", program], cwd=PROJECT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("0 from the top\n")
    for name in pullpipe.__all__:
        assert f"`{name}" in page or f"pullpipe.{name}" in page or f" {name}(" in page, name
