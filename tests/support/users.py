"""Real users without rights, for tests that run as root: in a mount namespace of its own, the machine has some.

There /etc/passwd and /etc/subuid know them, and Python and the project can be reached, whatever directory of root's
they are in. Nothing of the machine itself is changed. Their home directories are real: root sees them from outside.
All of it takes root, and Debian's packages util-linux and uidmap.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

PROJECT = Path(__file__).parents[2]
_DEVICES = (("fuse", 10, 229), ("net/tun", 10, 200))  # which udev gives to everybody


@dataclass(frozen=True)
class User:
    """One of them."""

    name: str
    uid: int
    ids: Sequence[tuple[int, int]] = ()
    """What /etc/subuid and /etc/subgid give them: (first, how many)."""
    home: Path = Path()
    enter: Sequence[str] = ()
    """The beginning of a command line that leads into the namespace."""

    @contextmanager
    def at_a_new_home(self) -> Iterator[User]:
        """The user with an empty directory for a home, which is removed afterwards."""
        home = Path(tempfile.mkdtemp(prefix=f"pullpipe-{self.name}-"))
        try:
            os.chown(home, self.uid, self.uid)
            yield replace(self, home=home)
        finally:
            shutil.rmtree(home)

    def owner(self, number: int) -> int:
        """The id outside of what is this one in the user's namespace."""
        outside = [self.uid, *(first + one for first, count in self.ids for one in range(count))]
        return outside[number]

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


@contextmanager
def somewhere(*users: User) -> Iterator[list[User]]:
    """The namespace with these users, alive for the length of the block. They have no homes there yet."""
    with tempfile.TemporaryDirectory(prefix="pullpipe-users-") as scratch:
        command = ["unshare", "--mount", "--propagation=private", "sh", "-ec", _script(Path(scratch), users)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            if process.stdout.readline() != b"ready\n":
                raise RuntimeError("the users' namespace cannot be made; what is wrong stands above")
            enter = ("nsenter", f"--mount=/proc/{process.pid}/ns/mnt")
            yield [replace(user, enter=enter) for user in users]
            process.communicate(b"")  # with which it ends


def _script(scratch: Path, users: Sequence[User]) -> str:
    lines = []
    for name, text in {
        "passwd": "".join(f"{user.name}:x:{user.uid}:{user.uid}::/:/bin/sh\n" for user in users),
        "group": "".join(f"{user.name}:x:{user.uid}:\n" for user in users),
        "subuid": "".join(f"{user.name}:{first}:{count}\n" for user in users for first, count in user.ids),
        "subgid": "".join(f"{user.uid}:{first}:{count}\n" for user in users for first, count in user.ids),
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
