"""The embedded registry: an OCI image layout on disk, served to any client that can pull.

Guarantees: it only reads; it serves no file outside the layout's blobs, because a digest is matched against its
grammar before it becomes a path; index.json is read anew for each request, so an image added meanwhile is seen.
It does not verify what it serves: a puller must do that anyway, and the digest it is told is the one it asked for.

Follows the OCI distribution-spec 1.1: "Pull" (end-1 to end-3), "Listing Tags" (end-8) and "Error Codes"; and the
image-spec's image-layout.md. A layout does not say which repository a blob belongs to, so any name reaches any blob
by its digest; only tags are looked up by name.
"""

import asyncio
import json
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

_REF_NAME = "org.opencontainers.image.ref.name"

# The algorithms the image-spec registers (descriptor.md, "Registered Algorithms"), with their exact lengths.
_DIGEST = re.compile(r"(?P<algorithm>sha256):(?P<sha256>[a-f0-9]{64})|(sha512):(?P<sha512>[a-f0-9]{128})")

# distribution-spec, "Pulling manifests": the grammar of <name>.
_COMPONENT = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_NAME = rf"{_COMPONENT}(?:/{_COMPONENT})*"

_OCI_INDEX = "application/vnd.oci.image.index.v1+json"
_OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
_MANIFEST_TYPES = frozenset(
    {
        _OCI_INDEX,
        _OCI_MANIFEST,
        "application/vnd.docker.distribution.manifest.list.v2+json",
        "application/vnd.docker.distribution.manifest.v2+json",
    }
)

# distribution-spec, "Pushing Manifests": registries accept at least 4 MiB, and clients stop there. The limit keeps
# a layer that is asked for as a manifest out of memory.
_MANIFEST_LIMIT = 4 * 1024 * 1024
