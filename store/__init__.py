"""A content-addressed store for container images: blobs, unpacked layers, image records, containers.

It knows nothing of networks, nor of what a manifest means, and can be used alone:

    from store import Digest, Store

    store = Store("/var/lib/pullpipe")            # made when it is not there; mode 0700
    with store.blobs.ingest(digest, size) as ingest:
        os.write(ingest.fileno(), data)           # append; a later run continues from `ingest.present`
        ...                                       # prove size and digest: the store trusts its caller here
        store.flush()
        with store.shared():                      # nothing is swept until the record is there
            store.publish([ingest], [], flushed=True)  # rename, flush the names
            store.images.put(record)              # last of all, so a record names only what is whole

On disk (`ROOT` is itself a valid OCI image layout):

    oci-layout, index.json, blobs/     image-spec's image-layout.md; `store.images`, `store.blobs`
    ingest/                            partial blobs, kept between runs; `store.blobs`
    leases/                            blobs that a push is about to need; `store.leases`
    layers/<algorithm>/<diffID>/       fs/ and layer.json; `store.layers`, `store.trees`
    variants/<algorithm>/<chainID>/    the same, for layers that could only be unpacked on top of their parents
    stacks/<algorithm>/<chainID>/      fs/ and stack.json: which of those an image comes to
    containers/<id>/                   upper, work, config.json; `store.containers`
    reserve                            `store.reserve`
    staging/                           layers in the making; a crash leaves only garbage here
    use.lock, index.lock, …            `store.locks`
    version                            the format's number

What survives a crash, and why, stands in `store.durable`. Every error is a `StoreError` or an `OSError`.
"""

from store.blobs import Ingest
from store.containers import Container
from store.digest import Digest
from store.errors import Corrupt, InUse, InvalidDigest, NotInStore, StoreError, UnusableRoot
from store.images import Entry, ImageRecord, Over
from store.layers import LayerInfo, StackInfo
from store.root import Store
from store.trees import Staging, Trees

__all__ = [
    "Container",
    "Corrupt",
    "Digest",
    "Entry",
    "ImageRecord",
    "InUse",
    "Ingest",
    "InvalidDigest",
    "LayerInfo",
    "NotInStore",
    "Over",
    "StackInfo",
    "Staging",
    "Store",
    "StoreError",
    "Trees",
    "UnusableRoot",
]
