"""What to run, as whom, where and with which environment: the image's config, and what the user says instead.

All of it is the image author's data. It is read inside the container, after its root has become ours, by plain parsing:
no name service and no library of the image is ever loaded.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from pullpipe.errors import BadArgument, CommandNotExecutable, CommandNotFound, RunError
from pullpipe.oci import ImageConfig
from store import namespace

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
ACCOUNTS_LIMIT = 4 << 20  # bytes of an image's /etc/passwd or /etc/group
_ID_LIMIT = (1 << 32) - 2


class Overrides(NamedTuple):
    """What the user says instead of the image; None and empty leave the image's word."""

    arguments: tuple[str, ...] = ()
    entrypoint: str | None = None
    env: tuple[str, ...] = ()  # NAME=VALUE, or NAME to pass on our own
    working_dir: str = ""
    user: str = ""
    groups: tuple[str, ...] = ()  # more of them, names or numbers


class Command(NamedTuple):
    """What to run, not yet looked up in the container."""

    argv: tuple[str, ...]
    env: Mapping[str, str]
    working_dir: str
    user: str
    groups: tuple[str, ...]  # besides the user's own


class Identity(NamedTuple):
    """Whom to run it as."""

    uid: int
    gid: int
    groups: tuple[int, ...]
    home: str


def plan(config: ImageConfig, overrides: Overrides, ambient: Mapping[str, str], *, terminal: bool) -> Command:
    """Docker's rules: arguments replace Cmd; an entrypoint replaces the image's and its Cmd.

    `ambient` is our own environment, for `-e NAME`. Raises `RunError` when nothing is left to run, `BadArgument`.
    """
    if overrides.entrypoint is None:
        argv = (*config.entrypoint, *(overrides.arguments or config.cmd))
    else:
        argv = (*filter(None, (overrides.entrypoint,)), *overrides.arguments)
    if not argv:
        raise RunError("the image names no command; say which at the end of the line")
    env = {"PATH": DEFAULT_PATH} | ({"TERM": "xterm"} if terminal else {})
    env |= dict(variable.split("=", 1) for variable in config.env if "=" in variable[1:])
    env = with_variables(env, overrides.env, ambient)
    if any("\0" in text for text in (*argv, *env, *env.values())):
        raise RunError("the command or its environment holds a NUL character; the image is damaged")
    directory = overrides.working_dir or config.working_dir or "/"
    return Command(argv, env, directory, overrides.user or config.user, overrides.groups)


def with_variables(env: Mapping[str, str], variables: Iterable[str], ambient: Mapping[str, str]) -> dict[str, str]:
    """An environment with these, NAME=VALUE, or NAME for what it is in `ambient`, if it is there.

    Raises `BadArgument` for what has no name.
    """
    found = dict(env)
    for variable in variables:
        name, equals, value = variable.partition("=")
        if not name:
            raise BadArgument(f"-e {variable!r} names no variable: NAME=VALUE, or NAME for what it is here")
        if equals:
            found[name] = value
        elif name in ambient:
            found[name] = ambient[name]
    return found


# From here on: inside the container.


def identify(user: str, more_groups: tuple[str, ...] = (), read: Callable[[str], bytes] | None = None) -> Identity:
    """Looks up `USER[:GROUP]` and more groups, names or numbers, in the container's /etc/passwd and /etc/group.

    `read` gives these files' contents where this is not the container. A group that only the image makes the user a
    member of, and that the user namespace does not have, is left out. Raises `RunError`.
    """
    read = read or _read
    name, colon, group = (user or "0").partition(":")
    accounts = _accounts(read("/etc/passwd"), 7)
    account = next((fields for fields in accounts if fields[0] == name), None)
    if account is None and _is_number(name):
        account = next((fields for fields in accounts if fields[2] == name), None)
    if account is None and not _is_number(name):
        raise RunError(f"the image has no user {name!r} in its /etc/passwd; choose one with --user")
    uid = _id(account[2] if account else name, f"user {name!r}")
    gid = _id(account[3], f"user {name!r}") if account else 0
    groups_file = _accounts(read("/etc/group"), 4)
    groups: tuple[int, ...] = ()
    if colon and group:
        gid = _group(group, groups_file, "--user")
    elif account:
        members = [fields for fields in groups_file if account[0] in fields[3].split(",")]
        numbers = (_id(fields[2], f"group {fields[0]!r}") for fields in members)
        groups = tuple(number for number in numbers if namespace.has("group", number))
    more = [_group(one, groups_file, "--group-add") for one in more_groups]
    groups = tuple(sorted({gid, *groups, *more}))
    for what, number in (("user", uid), *(("group", one) for one in groups)):
        if not namespace.has(what, number):
            raise RunError(
                f"the user namespace does not have {what} {number}; choose another with --user, "
                "or give yourself more ids in /etc/subuid and /etc/subgid"
            )
    return Identity(uid, gid, groups, (account[5] if account else "") or "/")


def _group(group: str, groups_file: list[list[str]], option: str) -> int:
    found = next((fields for fields in groups_file if fields[0] == group), None)
    if found is None and not _is_number(group):
        raise RunError(f"the image has no group {group!r} in its /etc/group; choose one with {option}")
    return _id(found[2] if found else group, f"group {group!r}")


def _read(path: str) -> bytes:
    """A file's content, as far as it counts; nothing when there is no such file."""
    try:
        # Without waiting: an image may have a FIFO there.
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return b""
    try:
        return os.read(fd, ACCOUNTS_LIMIT) if stat.S_ISREG(os.fstat(fd).st_mode) else b""
    finally:
        os.close(fd)


def _accounts(content: bytes, fields: int) -> list[list[str]]:
    """The lines of a passwd-like file with enough fields."""
    text = content.decode(errors="surrogateescape")
    return [line.split(":") for line in text.splitlines() if line.count(":") >= fields - 1]


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit()


def _id(text: str, what: str) -> int:
    if not _is_number(text) or len(text) > 10 or int(text) > _ID_LIMIT:
        raise RunError(f"{what} has the number {text[:40]!r}, which is none")
    return int(text)


def enter_working_directory(path: str, *, make: bool = True) -> None:
    """Makes it when it is not there, as Docker does for a new container, and goes there. Raises `RunError`."""
    try:
        if make:
            os.makedirs(path, mode=0o755, exist_ok=True)
        os.chdir(path)
        inside = os.getcwd().startswith("/")
    except OSError as error:
        raise RunError(f"the working directory {path!r} cannot be used: {error.strerror}") from error
    if not inside:  # the kernel says "(unreachable)" for what lies outside of the root (CVE-2024-21626)
        raise RunError(f"the working directory {path!r} lies outside of the container")


def execute(command: Command) -> None:
    """Replaces this process by the command; returns only by raising `RunError`."""
    name = command.argv[0]
    search = [""] if "/" in name else [f"{directory or '.'}/" for directory in command.env["PATH"].split(":")]
    refused: OSError | None = None
    for prefix in search:
        try:
            os.execve(prefix + name, command.argv, command.env)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENOTDIR):
                refused = refused or error
            elif os.path.lexists(prefix + name):
                raise CommandNotFound(
                    f"cannot run {prefix + name}: the interpreter that it needs is missing"
                ) from error
    if refused is not None:
        reason = "not a program for this machine" if refused.errno == errno.ENOEXEC else (refused.strerror or "refused")
        raise CommandNotExecutable(f"cannot run {name!r}: {reason.lower()}") from refused
    where = "in the image" if "/" in name else f"in the image's PATH ({command.env['PATH']})"
    raise CommandNotFound(f"command not found: there is no {name!r} {where}")
