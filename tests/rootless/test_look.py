"""What is in images, without root: files of any owner, and whiteouts as overlayfs knows them in a user namespace."""

from __future__ import annotations

import pytest

from tests.rootless.conftest import Give
from tests.support.images import Dir, File, Opaque, Whiteout
from tests.support.users import User

pytestmark = pytest.mark.needs_root


def test_look(give: Give, alice: User) -> None:
    """Modes, owners and contents are the image's, however little the user may read of them outside."""
    lower = [Dir("closed", mode=0, uid=7), File("closed/in", b"in", 0, uid=1000), File("old"), File("cache/a")]
    give(alice, [*lower], [Whiteout("old"), Opaque("cache"), File("cache/b", uid=33)])

    def see(*words: str) -> list[str]:
        done = alice.pullpipe(*words)
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout.splitlines()

    assert see("ls", "test", "closed") == [
        "  2 d--------- 7/0           0 1970-01-01 00:00 closed/",
        "  2 ---------- 1000/0        2 1970-01-01 00:00 closed/in",
    ]
    assert see("cat", "test", "closed/in") == ["in"]
    assert [line.split()[0] for line in see("ls", "test#3")] == ["opaque", "-rw-r--r--", "whiteout"]
    assert see("diff", "test#3") == ["D /cache/a", "A /cache/b", "D /old"]
