"""The errors of the store.

    StoreError
    ├── InvalidDigest     a text that is no digest
    ├── Corrupt           what is in the store is not what its name says
    ├── NotInStore        no such blob, layer, image or container
    ├── InUse             something still needs what was to be removed, or holds the lock
    └── UnusableRoot      the directory is not a store this program can use

Each message is one line that says what failed, on what, and what to do.
"""

from __future__ import annotations

import errno

UNREADABLE = frozenset({errno.EIO, errno.EBADMSG, errno.EUCLEAN})  # of a disk or a file system that is damaged


class StoreError(Exception):
    """Anything that the store refuses or cannot do."""


class InvalidDigest(StoreError, ValueError):
    """The text is not `algorithm:hex` of a registered algorithm."""


class Corrupt(StoreError):
    """Bytes in the store do not have the digest, or the form, that they must have."""


class NotInStore(StoreError):
    """No such blob, layer, image or container."""


class InUse(StoreError):
    """Something still needs it, or another process holds its lock."""


class UnusableRoot(StoreError):
    """The root directory is no store, a newer one, or another user's."""
