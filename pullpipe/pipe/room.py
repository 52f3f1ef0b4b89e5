"""Is there room for what is to come?"""

from __future__ import annotations

from collections.abc import Iterable

from pullpipe.errors import NoRoom
from pullpipe.oci import Descriptor
from pullpipe.progress import human_size
from store import Store


def check_room(store: Store, blobs: Iterable[Descriptor]) -> None:
    """Raises `NoRoom` when not even these blobs will fit; what they unpack to nobody knows yet.

    To be asked for all before the first is fetched, and for each when its turn has come: others may have filled the
    file system, and the layers before it.
    """
    needed = sum(max(blob.size - store.blobs.arrived(blob.digest), 0) for blob in blobs)
    free = store.free()
    if free is not None and needed > free:
        raise NoRoom(
            f"{human_size(needed)} are to be fetched, and {human_size(free)} are free at {store.root}; "
            "free some space (`pullpipe df` tells what takes it), or name another place with --root"
        )
