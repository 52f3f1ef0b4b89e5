"""What the environment says of where things are, for both doors: the command line and the Python API.

Imports are late, because every command comes by here.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from store import namespace

if TYPE_CHECKING:
    from pullpipe.registry.hosts import Hosts
    from pullpipe.registry.tokens import TokenCache


def default_root() -> str:
    """Where the store is unless the user says otherwise."""
    if root := os.environ.get("PULLPIPE_ROOT"):
        return root
    if namespace.user() == 0:  # whoever we have become since: the store is the same before and after
        return "/var/lib/pullpipe"
    return os.path.join(os.environ.get("XDG_DATA_HOME") or os.path.expanduser("~/.local/share"), "pullpipe")


def hosts() -> Hosts:
    """What the user's and the machine's files say of registries."""
    from pullpipe.registry.hosts import Hosts, Paths

    return Hosts(Paths.usual(os.environ, os.path.expanduser("~")))


def token_cache() -> TokenCache:
    """The tokens that earlier runs left."""
    from pullpipe.registry.tokens import TokenCache

    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return TokenCache(os.path.join(cache, "pullpipe", "tokens.json"))
