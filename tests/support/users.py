"""Real users without rights, for tests that run as root: in a mount namespace of its own, the machine has some.

There /etc/passwd and /etc/subuid know them, and Python and the project can be reached, whatever directory of root's
they are in. Nothing of the machine itself is changed. Their home directories are real: root sees them from outside.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

PROJECT = Path(__file__).parents[2]
_DEVICES = (("fuse", 10, 229), ("net/tun", 10, 200))  # which udev gives to everybody


@dataclass
class User:
    """One of them."""

    name: str
    uid: int
    ids: Sequence[tuple[int, int]] = ()
    """What /etc/subuid and /etc/subgid give them: (first, how many)."""
    home: Path = field(default=Path(), init=False)
    enter: list[str] = field(default_factory=list, init=False)
    """The beginning of a command line that leads into the namespace."""

    def command(self, *words: str | Path, before: Sequence[str] = ()) -> list[str]:
        """The command line that has the user run these words; `before` is put before it, and run by root there."""
        become = ["setpriv", f"--reuid={self.uid}", f"--regid={self.uid}", "--clear-groups"]
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(self.home),
            "USER": self.name,
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTHONPATH": str(PROJECT),
        }
        there = ["env", "-i", f"--chdir={self.home}", *(f"{name}={value}" for name, value in environment.items())]
        return [*self.enter, *before, *become, *there, *map(str, words)]

    def run(
        self, *words: str | Path, before: Sequence[str] = (), stdin: str = "", timeout: float = 60
    ) -> subprocess.CompletedProcess[str]:
        """Has the user run these words."""
        return subprocess.run(
            self.command(*words, before=before),
            input=stdin,
            capture_output=True,
            encoding="utf-8",
            errors="backslashreplace",
            timeout=timeout,
        )

    def pullpipe(
        self, *words: str | Path, before: Sequence[str] = (), stdin: str = ""
    ) -> subprocess.CompletedProcess[str]:
        """Has the user run pullpipe, on the store that is theirs by default."""
        return self.run(sys.executable, "-m", "pullpipe", *words, before=before, stdin=stdin)

    @property
    def store(self) -> Path:
        """That store."""
        return self.home / ".local/share/pullpipe"


class Users:
    """The namespace with these users, alive within its `with` block."""

    def __init__(self, *users: User) -> None:
        self._users = users
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        scratch = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="pullpipe-users-")))
        for user in self._users:
            user.home = Path(tempfile.mkdtemp(prefix=f"pullpipe-{user.name}-"))
            self._stack.callback(shutil.rmtree, user.home)
            os.chown(user.home, user.uid, user.uid)
        process = self._stack.enter_context(
            subprocess.Popen(
                ["unshare", "--mount", "--propagation=private", "sh", "-ec", self._script(scratch)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
            )
        )
        assert process.stdin is not None
        self._stack.callback(process.stdin.close)  # with which it ends
        assert process.stdout is not None
        if process.stdout.readline() != b"ready\n":
            raise RuntimeError("the users' namespace cannot be made; what is wrong stands above")
        for user in self._users:
            user.enter = ["nsenter", f"--mount=/proc/{process.pid}/ns/mnt"]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stack.close()

    def _script(self, scratch: Path) -> str:
        lines = []
        for name, text in {
            "passwd": "".join(f"{u.name}:x:{u.uid}:{u.uid}::{u.home}:/bin/sh\n" for u in self._users),
            "group": "".join(f"{u.name}:x:{u.uid}:\n" for u in self._users),
            "subuid": "".join(f"{u.name}:{first}:{count}\n" for u in self._users for first, count in u.ids),
            "subgid": "".join(f"{u.uid}:{first}:{count}\n" for u in self._users for first, count in u.ids),
        }.items():
            there = Path("/etc") / name
            there.touch()
            (scratch / name).write_text(there.read_text() + text)
            lines.append(f"mount --bind {scratch / name} {there}")
        for number, (name, major, minor) in enumerate(_DEVICES):
            node = scratch / f"device{number}"
            os.mknod(node, 0o020666, os.makedev(major, minor))
            node.chmod(0o666)
            lines.append(f"test ! -e /dev/{name} || mount --bind {node} /dev/{name}")
        lines += _opened([Path(sys.prefix), Path(sys.base_prefix), Path(sys.executable).resolve().parent, PROJECT])
        return "\n".join([f"cd {scratch}", *lines, "echo ready", "exec cat"])


def _opened(paths: Sequence[Path]) -> list[str]:
    """Commands that put a directory which everybody may enter in place of each that others may not."""
    behind: dict[Path, list[Path]] = {}
    for path in paths:
        closed = next((one for one in reversed((path, *path.parents)) if not one.stat().st_mode & 0o001), None)
        if closed is not None:
            behind.setdefault(closed, []).append(path)
    lines = []
    for closed, wanted in behind.items():
        for number, path in enumerate(wanted):
            lines += [f"mkdir kept{number}", f"mount --rbind {shlex.quote(str(path))} kept{number}"]
        lines.append(f"mount -t tmpfs -o mode=755 tmpfs {shlex.quote(str(closed))}")
        for number, path in enumerate(wanted):
            place = shlex.quote(str(path))
            lines += [f"mkdir -p {place}", f"mount --move kept{number} {place}", f"rmdir kept{number}"]
    return lines
