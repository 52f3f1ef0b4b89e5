"""How `ls` and `diff` show what is in an image."""

from __future__ import annotations

import os
import stat
import time

from pullpipe.look.view import Entry

FIELDS = {
    "path": "absolute",
    "type": "file, directory, symlink, character device, block device, fifo, or whiteout",
    "mode": "octal, as text",
    "uid": "a number",
    "gid": "a number",
    "size": "bytes of a file; else 0",
    "mtime": "RFC 3339",
    "target": "of a symlink; else null",
    "device": "its number, as MAJOR,MINOR; else null",
    "opaque": "whether it is a directory that hides what the layers below have there",
    "layer": "the number of the layer that it comes from; 0 where none says what it is",
}
_TYPES = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "directory",
    stat.S_IFLNK: "symlink",
    stat.S_IFCHR: "character device",
    stat.S_IFBLK: "block device",
    stat.S_IFIFO: "fifo",
    stat.S_IFSOCK: "socket",
}


def type_of(entry: Entry) -> str:
    """In words."""
    return "whiteout" if entry.is_whiteout else _TYPES[stat.S_IFMT(entry.status.st_mode)]


def is_device(entry: Entry) -> bool:
    """Whether it has a device's number."""
    return stat.S_ISCHR(entry.status.st_mode) or stat.S_ISBLK(entry.status.st_mode)


def device(entry: Entry) -> str:
    """A device's number, as `ls -l` shows it."""
    return f"{os.major(entry.status.st_rdev)},{os.minor(entry.status.st_rdev)}"


def moment(entry: Entry, form: str) -> str:
    """When it was changed, in UTC by strftime(3)'s form; in seconds since 1970 where no calendar goes so far."""
    try:
        return time.strftime(form, time.gmtime(entry.status.st_mtime_ns // 10**9))
    except (OverflowError, OSError, ValueError):
        return str(entry.status.st_mtime_ns // 10**9)


def as_json(entry: Entry) -> dict[str, object]:
    """As `FIELDS` says."""
    status = entry.status
    nanoseconds = status.st_mtime_ns % 10**9
    return {
        "path": entry.absolute,
        "type": type_of(entry),
        "mode": f"{stat.S_IMODE(status.st_mode):04o}",
        "uid": status.st_uid,
        "gid": status.st_gid,
        "size": status.st_size if stat.S_ISREG(status.st_mode) else 0,
        "mtime": moment(entry, "%Y-%m-%dT%H:%M:%S") + (f".{nanoseconds:09}" if nanoseconds else "") + "Z",
        "target": entry.target or None,
        "device": device(entry) if is_device(entry) and not entry.is_whiteout else None,
        "opaque": entry.opaque,
        "layer": entry.layer,
    }
