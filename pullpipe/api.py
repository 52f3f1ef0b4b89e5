"""The Python API, as `import pullpipe` has it. What stands in its `__all__` keeps its name and its meaning.

It is a door as the command line is: it reads the same settings, credentials and variables of the environment.
"""

from __future__ import annotations

import asyncio
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Literal, NamedTuple

from pullpipe import linux, local, modules, mounts, rootless
from pullpipe.environment import default_root, hosts, token_cache
from pullpipe.errors import BadArgument, NeedsRoot
from pullpipe.local import LocalImage
from pullpipe.oci import Descriptor
from pullpipe.platforms import Platform
from pullpipe.progress import Progress
from pullpipe.reference import Reference
from store import Store

_DETACH = re.compile(r"(?s)-[itq]*d.*|--det(a|ac|ach)?")  # as `pullpipe run` understands it: -du root


class Layer(NamedTuple):
    """One layer of an image."""

    digest: str  # of its blob
    diff_id: str  # of its tar stream
    size: int  # bytes of the blob


class Image(NamedTuple):
    """An image of a store."""

    reference: str  # in full: docker.io/library/alpine:3.20
    digest: str  # of its manifest
    platform: str  # linux/amd64
    layers: tuple[Layer, ...]  # the lowest first
    entrypoint: tuple[str, ...]
    command: tuple[str, ...]
    environment: tuple[str, ...]  # NAME=VALUE
    working_dir: str
    user: str

    @property
    def size(self) -> int:
        """Bytes of its layers' blobs."""
        return sum(layer.size for layer in self.layers)


class Event(NamedTuple):
    """What a pull tells while it works."""

    kind: Literal["waiting", "started", "fetched", "unpacked", "finished", "note"]
    layer: str = ""  # the digest of its blob; empty for a note
    bytes: int = 0  # so far: of the blob, when fetched; of the tar stream, when unpacked
    size: int = 0  # of the blob, in bytes
    text: str = ""  # of a note


class Completed(NamedTuple):
    """A command that has ended."""

    exit_code: int  # the command's; 128+N if signal N ended it; 125 to 127 if it could not be started
    output: bytes
    errors: bytes  # what it wrote to standard error, or pullpipe's one line


def open_store(root: str | None = None) -> Store:
    """The store in this directory, or the one that the command line uses. Raises `StoreError`, `OSError`."""
    return Store(root or default_root())


def become_root() -> None:
    """Without root: enters a user namespace, where this process has root's rights over its own store, and a mount
    namespace: what is `mounted` from here on is seen by this process and those that it starts.

    All but `images`, `image` and `run` need it, of users who are not root. To be called before there are threads, and
    once. Raises `NeedsRoot`.
    """
    if os.geteuid() != 0:
        os.environ.setdefault("HOME", os.path.expanduser("~"))  # inside, that would be root's
        rootless.enter()
        linux.unshare(linux.CLONE_NEWNS)  # the machine's mounts are not that root's to add to
        linux.keep_mounts_here()


async def pull(
    reference: str,
    store: Store,
    *,
    platform: str | None = None,
    credentials: tuple[str, str] | None = None,
    plain_http: bool = False,
    jobs: int = 4,
    keep_blobs: bool = True,
    tell: Callable[[Event], None] | None = None,
) -> Image:
    """Has the image in the store as its registry has it now. What is there already is not fetched.

    `credentials` are a user and a password, instead of those in auth files; `jobs` is how many layers are in flight, at
    least 1; without `keep_blobs` only unpacked layers are kept; `tell` hears of each event. Cancelled, it leaves the
    store as it was, with what can be continued. Raises `PullpipeError`, `StoreError`, `OSError`.
    """
    from pullpipe.pipe.pull import Options
    from pullpipe.pipe.pull import pull as pull_from
    from pullpipe.registry.client import Network, RegistryClient
    from pullpipe.registry.credentials import Credentials, Keyring, auth_files
    from pullpipe.registry.proxies import Proxies

    if os.geteuid() != 0:
        raise NeedsRoot("to unpack layers takes root's rights; call pullpipe.become_root() first")
    if jobs < 1:
        raise BadArgument(f"jobs is {jobs}, and no layer would ever be pulled; give 1 or more")
    wanted = local.to_pull(store, reference)
    known = hosts()
    places = known.endpoints(wanted, plain_http=plain_http)
    keyring = Keyring(
        auth_files(os.environ),
        helpers=known.credential_helpers,
        given=Credentials(*credentials) if credentials else None,
        registry=places[-1].registry,
    )
    network = Network(keyring, token_cache(), Proxies.of(os.environ))
    progress = _Teller(tell) if tell else Progress()
    of = Platform.parse(platform) if platform else Platform.of_this_machine()
    options = Options(of, jobs=jobs, keep_blobs=keep_blobs)
    async with RegistryClient(wanted, places, network, progress.note) as client:
        pulled = await pull_from(client, wanted.wanted, str(wanted), store, options, progress)
    return _image(local.load(store, pulled.record))


def images(store: Store) -> list[Image]:
    """All images of the store that can be read, by name."""
    return sorted(map(_image, local.readable(store)))


def image(reference: str, store: Store) -> Image:
    """The image of this name or id. Raises `NotFound`, `InvalidReference`, `BadArgument`."""
    return _image(local.find(store, reference))


@contextmanager
def mounted(reference: str, directory: str, store: Store, *, writable: bool = False) -> Iterator[str]:
    """Shows the image's tree at the directory for the length of the block.

    What is written into a writable one stays, as a container that `commit` makes an image of. Raises `NotFound`,
    `BadArgument`, `NeedsRoot`, and `KernelRefused`: also at the end of the block, when something in it is still open.
    Then it stays mounted, unless the block has failed.
    """
    if os.geteuid() != 0:
        raise NeedsRoot("to mount an image takes root's rights; call pullpipe.become_root() first")
    target = mounts.mount(store, reference, directory, writable=writable)
    try:
        yield target
    except BaseException:
        mounts.umount(store, target, busy=True)  # the failure's own frames may have something open in it
        raise
    mounts.umount(store, target)


async def run(
    reference: str, *command: str, store: Store, options: Sequence[str] = (), stdin: bytes | None = None
) -> Completed:
    """Runs the command in a new container, which is removed afterwards. A process of its own does that, so it may be
    called from any thread, and as often as one likes at a time. Cancelled, it ends the container, and removes it, too.

    `options` are those of `pullpipe run`, but for --detach; without a command, the image's is run. What goes wrong in
    that process is told by its exit code. Raises `InvalidReference`, `BadArgument`, and `NotFound` for an id.
    """
    _ = local.by_id(store, reference) or Reference.parse(reference)  # it stands where an option could
    if any(map(_DETACH.fullmatch, options)):
        raise BadArgument("options has --detach, and this waits for the command's end; leave it away")
    program = [sys.executable, "-P", "-m", "pullpipe", "--root", store.root]
    environment, name = modules.environment(), f"run-{os.urandom(6).hex()}"
    words = ["run", "--rm", "--quiet", f"--name={name}", *(["--interactive"] if stdin is not None else []), *options]
    process = await asyncio.create_subprocess_exec(
        *program,
        *words,
        reference,
        *command,
        stdin=asyncio.subprocess.DEVNULL if stdin is None else asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=environment,
    )
    try:
        output, errors = await process.communicate(stdin)
    except asyncio.CancelledError:
        process.kill()  # and the kernel the container with it
        await process.wait()
        # What a killed one has left goes with the next command, whatever name `options` gave it; with this one at once.
        null = asyncio.subprocess.DEVNULL
        remover = await asyncio.create_subprocess_exec(*program, "rm", name, stdout=null, stderr=null, env=environment)
        await remover.wait()
        raise
    assert process.returncode is not None
    return Completed(process.returncode, output, errors)


def _image(found: LocalImage) -> Image:
    config = found.config
    return Image(
        found.record.reference,
        str(found.record.manifest),
        str(local.platform_of(found.record)),
        tuple(Layer(str(blob.digest), str(diff_id), blob.size) for blob, diff_id in found.layers),
        config.entrypoint,
        config.cmd,
        config.env,
        config.working_dir,
        config.user,
    )


class _Teller(Progress):
    def __init__(self, tell: Callable[[Event], None]) -> None:
        self._tell = tell

    def waiting(self, layer: Descriptor) -> None:
        self._tell(Event("waiting", str(layer.digest), 0, layer.size))

    def started(self, layer: Descriptor) -> None:
        self._tell(Event("started", str(layer.digest), 0, layer.size))

    def fetched(self, layer: Descriptor, count: int) -> None:
        self._tell(Event("fetched", str(layer.digest), count, layer.size))

    def unpacked(self, layer: Descriptor, count: int) -> None:
        self._tell(Event("unpacked", str(layer.digest), count, layer.size))

    def finished(self, layer: Descriptor) -> None:
        self._tell(Event("finished", str(layer.digest), layer.size, layer.size))

    def note(self, text: str) -> None:
        self._tell(Event("note", text=text))
