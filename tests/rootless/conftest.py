"""What the tests without root share: users, as whom they run everything, and images for them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from tests.conftest import require
from tests.support.images import Entry, Image, Layer, host_shell_layers, write_layout
from tests.support.users import User, somewhere

Give = Callable[..., Path]

_USERS = (
    User("alice", 30001, [(3_000_000, 65536)]),
    User("bob", 30002),
    User("carol", 30003, [(4_000_000, 10), (4_100_000, 100)]),
    User("dave", 30004, [(5_000_000, 10), (5_000_000, 10)]),
)


@pytest.fixture(scope="session")
def users() -> Iterator[Mapping[str, User]]:
    for tool in ("unshare", "nsenter", "setpriv", "newuidmap"):
        require(tool)
    with somewhere(*_USERS) as there:
        yield {user.name: user for user in there}


@pytest.fixture
def alice(users: Mapping[str, User]) -> Iterator[User]:
    """Who has 65536 ids, as useradd gives them."""
    with users["alice"].at_a_new_home() as user:
        yield user


@pytest.fixture
def bob(users: Mapping[str, User]) -> Iterator[User]:
    """Who has no id but their own."""
    with users["bob"].at_a_new_home() as user:
        yield user


@pytest.fixture
def carol(users: Mapping[str, User]) -> Iterator[User]:
    """Who has 110, in two lots."""
    with users["carol"].at_a_new_home() as user:
        yield user


@pytest.fixture
def dave(users: Mapping[str, User]) -> Iterator[User]:
    """Whom /etc/subuid gives the same ids twice, by mistake."""
    with users["dave"].at_a_new_home() as user:
        yield user


@pytest.fixture(scope="session")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Image:
    """A shell and Debian's busybox."""
    require("busybox")
    return Image(host_shell_layers())


@pytest.fixture
def give(shell: Image) -> Give:
    """A function that loads an image of the shell and these entries, in a layer each, into a user's store, as `test`.

    Returns the layout that it came from, which everybody can read.
    """

    def give(user: User, *layers: list[Entry], options: tuple[str, ...] = ()) -> Path:
        layout = readable_layout(user, Image([*shell.layers, *map(Layer, layers)]))
        done = user.pullpipe("load", "--quiet", "--durability=none", *options, "-t", "test", layout)
        assert done.returncode == 0, done.stderr
        return layout

    return give


def readable_layout(user: User, image: Image) -> Path:
    """An OCI layout with the image `t` in the user's home."""
    layout = user.home / "layout"
    write_layout(layout, {"t": image})
    for directory, _, _ in os.walk(layout):
        os.chmod(directory, 0o755)
    return layout
