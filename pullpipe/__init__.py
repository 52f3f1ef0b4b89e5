"""pullpipe: pull an OCI or Docker image while unpacking it, stack its layers with overlayfs, run a command in it.

The Python API; docs/python.md shows it:

    store = pullpipe.open_store("/srv/images")
    image = await pullpipe.pull("alpine:3.20", store)
    done = await pullpipe.run("alpine:3.20", "cat", "/etc/os-release", store=store)
"""

TYPE_CHECKING = False  # the one of `typing`, which the command line need not wait for
__version__ = "0.1.0"
__all__ = [
    "Completed",
    "Event",
    "Image",
    "Layer",
    "PullpipeError",
    "Store",
    "StoreError",
    "become_root",
    "image",
    "images",
    "mounted",
    "open_store",
    "pull",
    "run",
]

if TYPE_CHECKING:
    from pullpipe.api import (
        Completed,
        Event,
        Image,
        Layer,
        become_root,
        image,
        images,
        mounted,
        open_store,
        pull,
        run,
    )
    from pullpipe.errors import PullpipeError
    from store import Store, StoreError


def __getattr__(name: str) -> object:
    """Each when it is asked for: the command line starts without them."""
    if name not in __all__:
        raise AttributeError(f"module 'pullpipe' has no attribute {name!r}")
    import importlib

    home = {"PullpipeError": "pullpipe.errors", "Store": "store", "StoreError": "store"}.get(name, "pullpipe.api")
    return getattr(importlib.import_module(home), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
