"""Images that are shown at directories of the machine, as `mount` does; each is a container without a command.

Whoever may enter the directory sees the tree, but gets no right by it: no setuid bit, file capability or device counts
there.
"""

from __future__ import annotations

import os

from pullpipe import linux, local, stack
from pullpipe.errors import BadArgument
from store import Store


def mount(store: Store, name: str, directory: str, *, writable: bool = False) -> str:
    """Shows the image's stacked layers at the directory, whose real path is returned.

    Raises `NotFound`, `BadArgument`, `KernelRefused`, `StoreError`, `OSError`.
    """
    if not directory:
        raise BadArgument("the directory to mount at has an empty name; give it one, and . for the current one")
    target = os.path.realpath(directory)
    if not os.path.isdir(target):
        raise BadArgument(f"{directory} is not a directory; make it first")
    if any(os.path.commonpath((root, target)) in (root, target) for root in (store.root, os.path.realpath(store.root))):
        raise BadArgument(f"what is mounted at {target} would hide the store at {store.root}; choose another directory")
    if os.path.ismount(target):
        raise BadArgument(f"something is mounted at {target} already; `pullpipe umount {target}` if it is ours")
    with store.shared():
        image = local.find(store, name)
        container, lock = store.containers.create(
            image=image.record.reference,
            manifest=image.record.manifest,
            stack=image.chain_id,
            target=target,
        )
        try:
            stacked = stack.build(store, container)
            if writable:
                stack.mount(stacked, target, flags=stack.SHOWN)
            else:
                stack.mount_read_only(stacked, target)
        except BaseException:
            store.containers.remove(container, lock)
            raise
        finally:
            lock.release()
    return target


def umount(store: Store, directory: str, *, busy: bool = False) -> str:
    """Ends that; also if it is `busy`, but for those who have something open in it. What was written into a writable
    mount stays, as a container.

    Raises `BadArgument`, `KernelRefused`.
    """
    target = os.path.realpath(directory)
    mounted = [
        container for container in store.containers if container.target == target and stack.is_mounted(container)
    ]
    if not mounted:
        raise BadArgument(f"no mount of this store is at {target}; `pullpipe ps` lists them")
    container = mounted[-1]
    linux.umount(target, linux.UMOUNT_NOFOLLOW | (linux.MNT_DETACH if busy else 0))
    if os.listdir(os.path.join(store.containers.path(container), "upper")):
        store.containers.update(container._replace(target="", exit_code=0))
    else:
        store.containers.remove(container)
        local.collect(store)
    return target
