"""Tokens on disk: for whom, for how long, and who can read them."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pullpipe.registry.tokens import TokenCache

HOST = "registry.example:5000"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the file is to be; its directory is not there yet."""
    return tmp_path / "cache" / "pullpipe" / "tokens.json"


@pytest.fixture
def tokens(path: Path) -> TokenCache:
    """With one token for `a/b`."""
    tokens = TokenCache(str(path))
    tokens.put(HOST, "a/b", "secret", 300, owner="u")
    assert tokens.get(HOST, "a/b", owner="u") == "secret"
    return tokens


def kept(path: Path, repository: str = "a/b", *, registry: str = HOST, owner: str = "u") -> str | None:
    """What another run finds."""
    return TokenCache(str(path)).get(registry, repository, owner=owner)


class TestWhose:
    def test_next_run(self, tokens: TokenCache, path: Path) -> None:
        assert kept(path) == "secret"

    def test_nobody_elses(self, tokens: TokenCache, path: Path) -> None:
        assert kept(path, "a") is None
        assert kept(path, "a/b/c") is None
        assert kept(path, registry="other.example") is None
        assert [kept(path, owner=owner) for owner in ("", "v", "uu")] == [None, None, None]

    def test_each_its_own(self, tokens: TokenCache, path: Path) -> None:
        tokens.put(HOST, "a/b", "anonymous", 300, owner="")
        tokens.put(HOST, "c", "third", 300, owner="u")
        tokens.put(HOST, "a/b", "another's", 300, owner="v")
        tokens.put("docker.io", "a/b", "fourth", 300, owner="u")
        assert kept(path) == "secret"
        assert kept(path, owner="") == "anonymous"
        assert kept(path, owner="v") == "another's"
        assert kept(path, "c") == "third"
        assert kept(path, registry="docker.io") == "fourth"

    def test_replaced(self, tokens: TokenCache, path: Path) -> None:
        tokens.put(HOST, "a/b", "newer", 300, owner="u")
        assert kept(path) == "newer"
        assert "secret" not in path.read_text()

    def test_forgotten(self, tokens: TokenCache, path: Path) -> None:
        """One repository's, or all of a registry's, with and without a user."""
        tokens.put(HOST, "a/b", "anonymous", 300, owner="")
        tokens.put(HOST, "c", "third", 300, owner="u")
        tokens.put("other.example", "c", "fourth", 300, owner="u")
        tokens.forget(HOST, "a/b")
        assert [kept(path), kept(path, owner=""), kept(path, "c")] == [None, None, "third"]
        tokens.forget(HOST)
        assert kept(path, "c") is None
        assert kept(path, "c", registry="other.example") == "fourth"
        assert "third" not in path.read_text()

    def test_none_kept(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Without a path, and no file is made by forgetting."""
        monkeypatch.chdir(tmp_path)
        for tokens in (TokenCache(), TokenCache(str(tmp_path / "cache" / "tokens.json"))):
            tokens.forget(HOST)
        TokenCache().put(HOST, "a", "t", 300, owner="u")
        assert TokenCache().get(HOST, "a", owner="u") is None
        assert list(tmp_path.iterdir()) == []


class TestHowLong:
    def test_until_shortly_before_its_end(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """By the clock that a reboot does not set back."""
        now = time.time()
        monkeypatch.setattr(time, "time", lambda: now)
        TokenCache(str(path)).put(HOST, "a/b", "secret", 60, owner="u")
        for seconds, expected in ((0, "secret"), (49, "secret"), (51, None), (61, None)):
            monkeypatch.setattr(time, "time", lambda seconds=seconds: now + seconds)
            assert kept(path) == expected, seconds

    @pytest.mark.parametrize("seconds", [0, 10, -5, float("nan"), float("-inf")])
    def test_too_short(self, path: Path, seconds: float) -> None:
        TokenCache(str(path)).put(HOST, "a/b", "secret", seconds, owner="u")
        assert not path.exists()

    def test_expired_ones_leave_the_file(self, tokens: TokenCache, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        now = time.time()
        monkeypatch.setattr(time, "time", lambda: now + 400)
        tokens.put(HOST, "c", "third", 300, owner="u")
        assert "third" in path.read_text()
        assert "secret" not in path.read_text()


class TestWhoCanRead:
    def test_nobody_else(self, path: Path) -> None:
        """Whatever the umask, and already when the file gets its name."""
        program = (
            "import os, sys\n"
            "from pullpipe.registry.tokens import TokenCache\n"
            "def show(event, arguments):\n"
            "    if event == 'os.rename':\n"
            "        print(oct(os.stat(arguments[0]).st_mode & 0o777))\n"
            "sys.addaudithook(show)\n"
            "os.umask(0)\n"
            "TokenCache(sys.argv[1]).put('h', 'a', 'secret', 300, owner='u')"
        )
        done = subprocess.run([sys.executable, "-c", program, path], capture_output=True, text=True, check=True)
        assert done.stdout == "0o600\n"
        assert {stat.S_IMODE(one.stat().st_mode) for one in path.parent.iterdir()} == {0o600}
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700

    def left_alone(self, path: Path) -> None:
        """It is not read, and neither written nor replaced."""
        before = path.lstat()
        tokens = TokenCache(str(path))
        assert tokens.get(HOST, "a/b", owner="u") is None
        tokens.put(HOST, "c", "third", 300, owner="u")
        tokens.forget(HOST)
        assert tokens.get(HOST, "c", owner="u") is None
        after = path.lstat()
        assert (after.st_ino, after.st_mode, after.st_mtime_ns) == (before.st_ino, before.st_mode, before.st_mtime_ns)

    @pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o620, 0o602])
    def test_others_can_read_or_write(self, tokens: TokenCache, path: Path, mode: int) -> None:
        path.chmod(mode)
        self.left_alone(path)

    def test_symlink(self, tokens: TokenCache, path: Path) -> None:
        elsewhere = path.rename(path.with_name("elsewhere"))
        path.symlink_to(elsewhere)
        self.left_alone(path)
        assert "secret" in elsewhere.read_text()
        assert "third" not in elsewhere.read_text()

    @pytest.mark.needs_root
    def test_anothers(self, tokens: TokenCache, path: Path) -> None:
        os.chown(path, 1234, 1234)
        self.left_alone(path)

    @pytest.mark.needs_root
    def test_anothers_directory(self, tokens: TokenCache, path: Path) -> None:
        """Root, at work in a user's home, leaves nothing there that the user could not read."""
        os.chown(path.parent, 1234, 1234)
        tokens.put(HOST, "c", "third", 300, owner="u")
        assert kept(path, "c") is None

    @pytest.mark.parametrize("mode", [0o777, 0o720])
    def test_directory_that_others_write_to(self, tokens: TokenCache, path: Path, mode: int) -> None:
        path.parent.chmod(mode)
        tokens.put(HOST, "c", "third", 300, owner="u")
        assert kept(path, "c") is None

    @pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
    def test_no_file(self, path: Path, make: Callable[[Path, int], None]) -> None:
        """Also one that would make a reader wait."""
        path.parent.mkdir(parents=True)
        make(path, 0o600)
        self.left_alone(path)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "nonsense",
        "null",
        "5",
        "{}",
        '{"abcde": 1}',
        "[5]",
        "[[]]",
        '[["a"]]',
        f'[["{HOST}", "a/b", true, 5, 9e99]]',
        f'[["{HOST}", "a/b", true, "secret", "later"]]',
        f'[["{HOST}", "a/b", true, "secret", null]]',
        f'[["{HOST}", "a/b", true, "line\\nbreak", 9e99]]',
        f'[["{HOST}", "a/b", true, "\u00fc", 9e99]]',
        "[" * 100_000,
        "[" + " " * (1 << 20) + "]",
        "\udcff",
    ],
    ids=lambda text: repr(text[:40]),
)
def test_broken(path: Path, text: str) -> None:
    """It counts as empty, and the next token mends it."""
    path.parent.mkdir(parents=True, mode=0o700)
    path.write_bytes(text.encode(errors="surrogateescape"))
    path.chmod(0o600)
    assert kept(path) is None
    TokenCache(str(path)).put(HOST, "a/b", "newer", 300, owner="u")
    assert kept(path) == "newer"


def test_nowhere_to_write(tmp_path: Path) -> None:
    """Without a cache everything goes on."""
    (tmp_path / "file").touch()
    for path in ("/proc/tokens.json", str(tmp_path / "file" / "pullpipe" / "tokens.json"), "tokens.json"):
        tokens = TokenCache(path)
        tokens.put(HOST, "a", "t", 300, owner="u")
        tokens.forget(HOST)
        assert tokens.get(HOST, "a", owner="u") is None


def test_many_at_once(path: Path) -> None:
    """Nobody's token is lost to another's, and a reader never sees half a file."""
    program = (
        "import sys\n"
        "from pullpipe.registry.tokens import TokenCache\n"
        "tokens = TokenCache(sys.argv[1])\n"
        "for number in range(25):\n"
        "    tokens.put('h', f'{sys.argv[2]}/{number}', 'secret', 300, owner='u')\n"
        "    assert tokens.get('h', f'{sys.argv[2]}/0', owner='u') == 'secret'\n"
    )
    writers = [subprocess.Popen([sys.executable, "-c", program, path, str(one)]) for one in range(4)]
    assert [writer.wait() for writer in writers] == [0] * 4
    names = [f"{one}/{number}" for one in range(4) for number in range(25)]
    assert [kept(path, name, registry="h") for name in names] == ["secret"] * 100
