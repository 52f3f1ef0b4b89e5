"""What a container sees and may do, told from inside: `python -m tests.support.contained [OPTION…]`.

It makes an image with a shell, and runs this machine's Python in it by `pullpipe run OPTION…`.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.conftest import PROJECT
from tests.runner.rig import BASE, host_python
from tests.support.images import Image, write_layout

# Runs inside. A call that the filter refuses fails with EPERM before the kernel looks at its arguments, which are none.
REPORT = """
import ctypes, json, os, select, signal, sys
libc = ctypes.CDLL(None, use_errno=True)

def row(name, *what): print(f"{name:22}", *what)

status = dict(line.split(":", 1) for line in open("/proc/self/status"))
row("processes", *sorted((n for n in os.listdir("/proc") if n.isdigit()), key=int))
own = [n for n, host in json.loads(sys.argv[1]).items() if os.readlink(f"/proc/self/ns/{n}") != host]
row("namespaces of its own", *own)
row("user namespace", open("/proc/self/uid_map").read().split())
row("seccomp", {"0": "off", "2": "filtering"}[status["Seccomp"].strip()])
row("no new privileges", status["NoNewPrivs"].strip())
for name in "CapEff", "CapBnd", "CapInh", "CapAmb":
    bits = int(status[name], 16)
    row(name, f"{bits:#x}", *(n for i, n in enumerate(json.loads(sys.argv[2])) if bits >> i & 1))
try: row("LSM profile", open("/proc/self/attr/current").read().strip())
except OSError: row("LSM profile", "none")
row("descriptors", *sorted(n for n in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{n}")))
row("devices", *sorted(n for n in os.listdir("/dev") if os.stat(f"/dev/{n}").st_mode & 0o130000 == 0o020000))
mounts = [line.split() for line in open("/proc/self/mountinfo")]
row("mounts, writable", *sorted(m[4] for m in mounts if "rw" in m[5].split(",")))
row("mounts, read-only", *sorted(m[4] for m in mounts if "ro" in m[5].split(",")))
row("may make devices in", *(m[4] for m in mounts if "nodev" not in m[5].split(",") and os.path.isdir(m[4])))
row("network devices", *sorted(os.listdir("/sys/class/net")))

blocked = []
for number, name in json.loads(sys.argv[3]):
    child = os.fork()
    if child == 0:
        signal.alarm(1)
        libc.syscall(number, *[ctypes.c_long(0)] * 6)
        os._exit(1 if ctypes.get_errno() == 1 else 0)
    if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1: blocked.append(name)
row("calls that say EPERM", len(blocked), "of", len(json.loads(sys.argv[3])))
print(*blocked)
"""
# Those that would end, stop or split the process, whatever says yes or no to them.
_LEFT_OUT = {"exit", "exit_group", "fork", "vfork", "clone", "rt_sigreturn", "pause", "reboot", "kexec_load", "vhangup"}


def main() -> None:
    import ctypes

    from pullpipe.runner import capabilities

    library = ctypes.CDLL("libseccomp.so.2")
    library.seccomp_syscall_resolve_num_arch.restype = ctypes.c_char_p
    names = ((number, library.seccomp_syscall_resolve_num_arch(0, number)) for number in range(500))
    calls = [(number, name.decode()) for number, name in names if name and name.decode() not in _LEFT_OUT]
    namespaces = {path.name: str(path.readlink()) for path in Path("/proc/self/ns").iterdir()}
    with tempfile.TemporaryDirectory() as directory:
        write_layout(Path(directory, "layout"), {"t": Image(BASE)})
        pullpipe = [sys.executable, "-m", "pullpipe", "--root", f"{directory}/root"]
        subprocess.run([*pullpipe, "load", "-q", "-t", "test", f"{directory}/layout"], cwd=PROJECT, check=True)
        run = [*pullpipe, "run", "--rm", *host_python(), *sys.argv[1:], "test", "python", "-S", "-c", REPORT]
        documents = [json.dumps(one) for one in (namespaces, capabilities.NAMES, calls)]
        sys.exit(subprocess.run([*run, *documents], cwd=PROJECT).returncode)


if __name__ == "__main__":
    main()
