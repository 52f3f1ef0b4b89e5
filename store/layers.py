"""What is recorded of unpacked layers, and of the stacks that they make.

layers/     keyed by diffID: a layer alone, unpacked without its parents, whiteouts in overlay form
variants/   keyed by chainID: a layer that could only be unpacked on top of its parents
stacks/     keyed by chainID: which of those directories an image comes to, and a tree of directories alone, with the
            attributes that no layer of its own could know
"""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from store.digest import Digest


class LayerInfo(NamedTuple):
    """What is recorded of a layer, or a variant of it. Paths are relative, and bytes as `os.fsdecode` gives them."""

    diff_id: Digest
    size: int  # bytes of file content
    entries: int  # tar entries applied, whiteouts included
    whiteouts: int  # names hidden, opaque directories not counted
    opaque_root: bool  # hides every layer below
    owners_ignored: bool  # files of some owners, whom the user namespace did not have, were made root's
    implied: tuple[str, ...]  # directories that no entry described, "" the root
    presumed: tuple[str, ...]  # directories that were needed first, and then described or replaced by an entry
    emptied: tuple[str, ...]  # implied ones that are opaque, and else what they were
    hiding: tuple[str, ...]  # directories with whiteouts
    unresolved: tuple[str, ...]  # hard links to what is not in this layer, as messages

    def to_json(self) -> bytes:
        """The document on disk."""
        return json.dumps({**self._asdict(), "diff_id": str(self.diff_id)}, indent=1).encode()

    @classmethod
    def from_json(cls, data: bytes) -> LayerInfo:
        """Raises `ValueError`, `KeyError` or `TypeError` when it is not such a document."""
        fields: dict[str, Any] = json.loads(data)
        return cls(
            diff_id=Digest.parse(fields["diff_id"]),
            size=int(fields["size"]),
            entries=int(fields["entries"]),
            whiteouts=int(fields["whiteouts"]),
            opaque_root=bool(fields["opaque_root"]),
            owners_ignored=bool(fields.get("owners_ignored")),
            implied=tuple(map(str, fields["implied"])),
            presumed=tuple(map(str, fields.get("presumed", ()))),
            emptied=tuple(map(str, fields["emptied"])),
            hiding=tuple(map(str, fields["hiding"])),
            unresolved=tuple(map(str, fields["unresolved"])),
        )


class StackInfo(NamedTuple):
    """What is recorded of a stack."""

    lower: tuple[str, ...]  # directories relative to the store's root, the topmost first
    layers: tuple[Digest, ...]  # diffIDs of the layers among them
    variants: tuple[Digest, ...]  # chainIDs of the variants among them

    def to_json(self) -> bytes:
        """The document on disk."""
        fields = {
            "lower": self.lower,
            "layers": list(map(str, self.layers)),
            "variants": list(map(str, self.variants)),
        }
        return json.dumps(fields, indent=1).encode()

    @classmethod
    def from_json(cls, data: bytes) -> StackInfo:
        """Raises `ValueError`, `KeyError` or `TypeError` when it is not such a document."""
        fields: dict[str, Any] = json.loads(data)
        return cls(
            lower=tuple(map(str, fields["lower"])),
            layers=tuple(map(Digest.parse, fields["layers"])),
            variants=tuple(map(Digest.parse, fields["variants"])),
        )
