"""capabilities(7): their names, and which of them a container's root has. The rules and the default are Docker's."""

from __future__ import annotations

from collections.abc import Iterable

from pullpipe.errors import BadArgument

NAMES = (  # in the order of their numbers: <linux/capability.h>
    *("CHOWN", "DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID", "SETPCAP"),
    *("LINUX_IMMUTABLE", "NET_BIND_SERVICE", "NET_BROADCAST", "NET_ADMIN", "NET_RAW", "IPC_LOCK", "IPC_OWNER"),
    *("SYS_MODULE", "SYS_RAWIO", "SYS_CHROOT", "SYS_PTRACE", "SYS_PACCT", "SYS_ADMIN", "SYS_BOOT", "SYS_NICE"),
    *("SYS_RESOURCE", "SYS_TIME", "SYS_TTY_CONFIG", "MKNOD", "LEASE", "AUDIT_WRITE", "AUDIT_CONTROL", "SETFCAP"),
    *("MAC_OVERRIDE", "MAC_ADMIN", "SYSLOG", "WAKE_ALARM", "BLOCK_SUSPEND", "AUDIT_READ", "PERFMON", "BPF"),
    "CHECKPOINT_RESTORE",
)
ALL = (1 << len(NAMES)) - 1


def mask(*names: str) -> int:
    """The bit mask of capabilities, in any case, with CAP_ or without, or ALL. Raises `BadArgument`."""
    result = 0
    for name in names:
        bare = name.upper().removeprefix("CAP_")
        if bare != "ALL" and bare not in NAMES:
            raise BadArgument(f"there is no capability {name!r}; capabilities(7) lists them")
        result |= ALL if bare == "ALL" else 1 << NAMES.index(bare)
    return result


def names_of(bits: int) -> list[str]:
    """The capabilities of a bit mask, as kernel headers spell them."""
    return [f"CAP_{name}" for number, name in enumerate(NAMES) if bits >> number & 1]


DEFAULT = mask(
    *("CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID", "SETPCAP", "NET_BIND_SERVICE"),
    *("NET_RAW", "SYS_CHROOT", "MKNOD", "AUDIT_WRITE", "SETFCAP"),
)
SYS_CHROOT = mask("SYS_CHROOT")
SYS_PTRACE = mask("SYS_PTRACE")


def chosen(add: Iterable[str], drop: Iterable[str]) -> int:
    """The default, with these added and those taken away; `ALL` means all others. Raises `BadArgument`."""
    added, dropped = mask(*add), mask(*drop)
    if added == ALL:  # but for those that are named
        return ALL & ~dropped if dropped != ALL else ALL
    return added if dropped == ALL else DEFAULT & ~dropped | added
