"""The shell commands that do for one image what `pullpipe run` does: from the registry to a process in its layers.

They are meant to be read, to be typed one after the other, and to be run as they stand: by root, in bash. What images'
authors have chosen stands in them as quoted words and in comments, each on one line.
"""

from __future__ import annotations

import posixpath
import stat
from collections.abc import Iterator
from typing import NamedTuple

from pullpipe import local
from pullpipe.errors import BadArgument
from pullpipe.local import LocalImage
from pullpipe.look.shell import quoted
from pullpipe.look.unpacking import SAME, Unpacking
from pullpipe.look.view import View, open_file
from pullpipe.oci import Descriptor
from pullpipe.outline import Outline
from pullpipe.pipe.inflate import HEAD, compression_of
from pullpipe.progress import human_size
from pullpipe.reference import Reference
from pullpipe.registry.hosts import origin
from pullpipe.runner import capabilities, command
from pullpipe.runner.command import ACCOUNTS_LIMIT, Command
from store import Digest, Store

_FETCH = """\
# A registry that wants a token says so with its answer, and where to ask for one; public images need no password.
asked=$(curl --silent --show-error --head "$registry/v2/$repository/manifests/{resolved}")
challenge=$(grep --ignore-case '^www-authenticate: bearer ' <<<"$asked" || true)
part() {{ sed --quiet "s/.*$1=\\"\\([^\\"]*\\)\\".*/\\1/p" <<<"$challenge"; }}
token=
if [ "$challenge" ]; then
    answer=$(curl --silent --show-error --fail --get "$(part realm)" \\
        --data-urlencode "service=$(part service)" --data-urlencode "scope=repository:$repository:pull")
    token=$(sed --quiet 's/.*"token": *"\\([^"]*\\)".*/\\1/p' <<<"$answer")
    [ "$token" ] || token=$(sed --quiet 's/.*"access_token": *"\\([^"]*\\)".*/\\1/p' <<<"$answer")
fi
# fetch WHAT FILE
fetch() {{
    curl --silent --show-error --fail --location --output "$2" ${{token:+--header "Authorization: Bearer $token"}} \\
        --header 'Accept: {accept}' "$registry/v2/$repository/$1"
}}"""

_ROOT = """\
    # What programs expect besides files: the kernel's /proc, here of the new process ids, its /sys, and a /dev with
    # a few harmless devices.
    mount -t proc proc proc
    mount -t sysfs -o ro,nosuid,nodev,noexec sysfs sys
    mount -t tmpfs -o nosuid,mode=0755 tmpfs dev
    for name in null zero full random urandom tty; do
        touch dev/$name
        mount --bind /dev/$name dev/$name
    done
    ln --symbolic /proc/self/fd dev/fd
    ln --symbolic fd/0 dev/stdin
    ln --symbolic fd/1 dev/stdout
    ln --symbolic fd/2 dev/stderr

    # The tree is moved over the machine's root, and unshare makes it the command's root below, as chroot(1) would.
    # (pullpipe calls pivot_root(2), and unmounts the old root. By hand that takes an umount in the image.)
    mount --move . /"""


class Made(NamedTuple):
    """What is to be made of the image."""

    planned: Command
    hostname: str = ""  # empty: one is chosen
    plain_http: bool = False  # the registry speaks HTTP without TLS
    left_out: tuple[str, ...] = ()  # what else was asked for, in words


def script(store: Store, image: LocalImage, made: Made) -> str:
    """The commands. Raises `NotInStore`, `BadArgument`, and `RunError` for what would not run."""
    unpacking = Unpacking(store, image)
    parts = [
        _head(image),
        _documents(store, image, made),
        _layers(store, image, unpacking),
        _stack(unpacking),
        _process(unpacking, made),
    ]
    return "\n\n".join("\n".join(lines) for lines in parts) + "\n"


def _directory(image: LocalImage) -> str:
    return Reference.parse(image.record.reference).repository.rpartition("/")[2]


def _head(image: LocalImage) -> Iterator[str]:
    directory, platform = _directory(image), quoted(str(local.platform_of(image.record)))
    yield "#!/bin/bash"
    yield f"# {image.record.reference} for {platform}: from the registry to a process, by hand."
    yield "#"
    yield "# For root, in bash, with curl, tar, gzip or zstd, setfattr (Debian's package attr), and mount, setpriv and"
    yield "# unshare of util-linux."
    yield f"# All that it makes is in the new directory {directory}, to be removed like any other. With images that you"
    yield "# trust: tar believes what stands in an archive, where pullpipe locks itself in before it reads one."
    yield "set -eu # stop at the first error; leave this line out when you type"
    yield "umask 022"
    yield f"mkdir {directory}"
    yield f"cd {directory}"


def _documents(store: Store, image: LocalImage, made: Made) -> Iterator[str]:
    record, platform = image.record, quoted(str(local.platform_of(image.record)))
    reference = Reference.parse(record.reference)
    place = origin(reference, plain_http=made.plain_http)
    accept = record.media_type
    if record.resolved != record.manifest:
        accept = f"{Outline.of(store.blobs.read(record.resolved)).media_type}, {accept}"
    yield "# 1. The manifest"
    yield "#"
    yield "# An image is a document that names its parts by their digests. What has the right digest is right, wherever"
    yield "# it came from: so everything is asked for by digest, and checked."
    if reference.tag:
        yield f"# (Ask for the tag {reference.tag} instead, and you get what the registry means by it today.)"
    yield "# (No registry has it, because it came from an archive? `pullpipe serve` is one, at http://127.0.0.1:5000.)"
    yield f"registry={place.schemes[-1]}://{place.host}"
    yield f"repository={place.repository}"
    yield _FETCH.format(resolved=record.resolved, accept=accept)
    if record.resolved != record.manifest:
        yield f"# {reference.tag or 'This'} is an index: a list of manifests, one for each platform."
        yield f"fetch manifests/{record.resolved} index.json"
        yield _check(record.resolved, "index.json")
        yield f"# In it, the one for {platform}:"
        yield f"grep --only-matching --max-count=1 {record.manifest} index.json"
    yield f"fetch manifests/{record.manifest} manifest.json"
    yield _check(record.manifest, "manifest.json")
    yield "cat --show-nonprinting manifest.json && echo"
    yield ""
    yield "# 2. The config"
    yield "#"
    yield "# What to run, as whom, where and with which variables; and the digest of each layer's archive once it is"
    yield "# uncompressed, its diffID."
    yield f"fetch blobs/{image.manifest.config.digest} config.json"
    yield _check(image.manifest.config.digest, "config.json")
    yield "cat --show-nonprinting config.json && echo"


def _check(digest: Digest, file: str) -> str:
    return f"echo '{digest.hex}  {file}' | {digest.algorithm}sum --check"


def _layers(store: Store, image: LocalImage, unpacking: Unpacking) -> Iterator[str]:
    yield "# 3. The layers"
    yield "#"
    yield "# Each is a tar archive of what it adds to those below it, changes in them, or takes away. Here each gets a"
    yield "# directory of its own, so that images can share them. (pullpipe does this with all of them at once, while"
    yield "# they arrive.)"
    yield SAME
    count = len(image.layers)
    for number, (blob, diff_id) in enumerate(image.layers, 1):
        yield ""
        yield f"# Layer {number} of {count}: {human_size(blob.size)}"
        archive = f"{number}.tar"
        compression = _compression(store, blob)
        file = archive + {"gzip": ".gz", "zstd": ".zst", "": ""}[compression]
        yield f"fetch blobs/{blob.digest} {file}"
        yield _check(blob.digest, file)
        if compression:
            yield f"{compression} -dc {file} >{archive}"
            yield f"{_check(diff_id, archive)} # the diffID"
        yield from unpacking.layer(number, archive)


def _compression(store: Store, blob: Descriptor) -> str:
    """By the blob's first bytes, as far as it is kept; else as its media type says."""
    if blob.digest in store.blobs:
        with open(store.blobs.path(blob.digest), "rb") as file:
            return compression_of(file.read(HEAD)).removeprefix("none")
    return next((name for name in ("gzip", "zstd") if blob.media_type.endswith(name)), "")


def _stack(unpacking: Unpacking) -> Iterator[str]:
    yield "# 4. The stack"
    yield "#"
    yield "# overlayfs will show these directories as one tree, the first one named on top, and put all that changes"
    yield "# into `upper`. That stands for the root of the tree, so it gets the attributes of the image's."
    yield "mkdir upper work root" + ("" if unpacking.stacked else " 0")
    yield unpacking.root("upper")


def _process(unpacking: Unpacking, made: Made) -> Iterator[str]:
    view, planned, hostname = unpacking.view, made.planned, made.hostname or "pod"
    identity = command.identify(planned.user, planned.groups, lambda path: _content(view, path))
    env = {"HOME": identity.home, "HOSTNAME": hostname, **planned.env}
    lower = ":".join(map(str, unpacking.stacked)) or "0"
    yield "# 5. The process"
    yield "#"
    yield "# A container is a process that sees other mounts, process ids and names than the rest of the machine: those"
    yield "# of namespaces of its own. What is mounted there is gone with the last process in them. The lines up to"
    yield "# INSIDE are what a shell does there before it becomes the image's command. (pullpipe builds more walls: a"
    yield "# filter of system calls, less of /proc and /sys, cgroups.)"
    if made.left_out:
        yield f"# Left out is what else was asked for: {', '.join(made.left_out)}."
    yield "unshare --mount --uts --ipc --pid --fork --kill-child bash -eu 3<&0 <<'INSIDE'"
    yield f"    mount -t overlay overlay -o lowerdir={lower},upperdir=upper,workdir=work root"
    yield f"    hostname {quoted(hostname)}"
    yield "    cd root"
    if missing := [name for name in ("proc", "sys", "dev") if _is_missing(view, name)]:
        yield f"    mkdir {' '.join(missing)}"
    if place := _to_be_made(view, planned.working_dir):
        yield f"    mkdir --parents -- {quoted(place)}"
    yield ""
    yield _ROOT
    yield ""
    yield "    # And now the command: as the image's user, with its variables, and with Docker's capabilities."
    names = ",".join(f"+{name.removeprefix('CAP_').lower()}" for name in capabilities.names_of(capabilities.DEFAULT))
    enter = f'"$(command -v unshare)" --root=. {quoted(f"--wd={planned.working_dir}")}'
    groups = ",".join(map(str, identity.groups))
    if identity.uid == 0:
        yield f"    exec setpriv --bounding-set=-all,{names} --inh-caps=-all \\"
        yield f"        --regid={identity.gid} --groups={groups} env -i -- \\"
    else:
        yield f"    # (It should be a member of these groups, too, and unshare makes it one of none: {groups}.)"
        yield f"    exec setpriv --bounding-set=-all,{names} --inh-caps=-all env -i -- \\"
        enter += f" --setuid={identity.uid} --setgid={identity.gid}"
    for name, value in env.items():
        yield f"        {quoted(f'{name}={value}')} \\"
    yield f"        {enter} -- \\"
    yield f"        {' '.join(map(quoted, planned.argv))} <&3 3<&-"
    yield "INSIDE"


def _content(view: View, path: str) -> bytes:
    """Of a file of accounts."""
    try:
        entry = view.find(path, follow=True)
    except BadArgument:
        return b""
    if not stat.S_ISREG(entry.status.st_mode):
        return b""
    with open(open_file(entry), "rb", 0) as file:
        return file.read(ACCOUNTS_LIMIT)


def _is_missing(view: View, name: str) -> bool:
    """Whether there is no such directory in the root. Raises `BadArgument` where something else has the name."""
    try:
        entry = view.find(f"/{name}")
    except BadArgument:
        return True
    if not entry.is_directory:
        raise BadArgument(f"the image's /{name} is not a directory, so nothing can be mounted there")
    return False


def _to_be_made(view: View, path: str) -> str:
    """What has to be made for the working directory to be there, with symlinks followed; empty if it is."""
    real, names = "", [name for name in posixpath.normpath(f"/{path}").split("/") if name]
    for depth, name in enumerate(names):
        try:
            entry = view.find(f"/{real}/{name}", follow=True)
        except BadArgument:
            return posixpath.join(".", real, *names[depth:])
        if not entry.is_directory:
            raise BadArgument(f"the working directory {path!r} cannot be used: {entry.absolute!r} is not a directory")
        real = entry.path
    return ""
