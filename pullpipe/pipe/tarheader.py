"""The other direction of `tarstream`: the header of an entry, in pax form, which keeps nanoseconds, long names, large
numbers and extended attributes. The same file makes the same bytes, whoever writes it and whenever."""

from __future__ import annotations

import os
import stat
import tarfile
from collections.abc import Mapping

_TYPES = {
    stat.S_IFREG: tarfile.REGTYPE,
    stat.S_IFDIR: tarfile.DIRTYPE,
    stat.S_IFLNK: tarfile.SYMTYPE,
    stat.S_IFCHR: tarfile.CHRTYPE,
    stat.S_IFBLK: tarfile.BLKTYPE,
    stat.S_IFIFO: tarfile.FIFOTYPE,
}
END = bytes(2 * tarfile.BLOCKSIZE)  # of an archive


def header(
    path: str,
    status: os.stat_result,
    *,
    target: str = "",
    link: str = "",
    attributes: Mapping[str, bytes] | None = None,
    owner: tuple[int, int] | None = None,
    latest: int | None = None,
) -> bytes:
    """Of a file with this status, which is no socket. Its content follows, and then `padding`.

    `target` is where a symlink leads, `link` of what it is a hard link; `owner` and `latest`, in seconds since
    1970, stand for what is not to be told as it is. Users and groups have numbers only.
    """
    info = tarfile.TarInfo(path.rstrip("/"))
    info.type = tarfile.LNKTYPE if link else _TYPES[stat.S_IFMT(status.st_mode)]
    info.linkname = link or target
    info.size = status.st_size if info.type == tarfile.REGTYPE else 0
    info.mode = stat.S_IMODE(status.st_mode)
    info.uid, info.gid = owner or (status.st_uid, status.st_gid)
    info.devmajor, info.devminor = os.major(status.st_rdev), os.minor(status.st_rdev)
    time = status.st_mtime_ns if latest is None else min(status.st_mtime_ns, latest * 10**9)
    info.mtime = time // 10**9
    found = sorted((attributes or {}).items())
    info.pax_headers = {f"SCHILY.xattr.{name}": value.decode("utf-8", "surrogateescape") for name, value in found}
    if time % 10**9:
        seconds = f"{'-' * (time < 0)}{abs(time) // 10**9}.{abs(time) % 10**9:09}"
        info.pax_headers["mtime"] = seconds.rstrip("0")
    return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")


def empty(path: str) -> bytes:
    """Of an empty file of root's, from 1970, that nobody may read."""
    info = tarfile.TarInfo(path)
    info.mode = 0
    return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")


def padding(size: int) -> bytes:
    """What follows so many bytes of content."""
    return bytes(-size % tarfile.BLOCKSIZE)
