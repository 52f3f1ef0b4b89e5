"""An image that is being changed: its config and its manifest, with all fields that pullpipe does not know.

Nothing here touches the store; `pullpipe.change.record` makes an image of it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from copy import deepcopy
from datetime import UTC, datetime
from typing import Any, NamedTuple

from pullpipe.change.form import compact, form_of
from pullpipe.change.layer import NewLayer
from pullpipe.errors import BadArgument
from pullpipe.oci import DOCKER_MANIFEST, OCI_CONFIG, OCI_LAYER, OCI_MANIFEST
from pullpipe.platforms import Platform
from store import Digest

_DOCKER_LAYER = "application/vnd.docker.image.rootfs.diff.tar"
_SUFFIXES = {"gzip": "gzip", "zstd": "zstd", "none": ""}


class Note(NamedTuple):
    """What the image's history says of a change."""

    created: float  # seconds since 1970
    by: str  # the command
    comment: str = ""
    author: str = ""

    def entry(self) -> dict[str, Any]:
        """Of the config's `history`."""
        fields = {"created": rfc3339(self.created), "created_by": self.by}
        fields |= {"author": self.author} if self.author else {}
        return fields | ({"comment": self.comment} if self.comment else {})


class Changes(NamedTuple):
    """Of a config; what is None stays, but a variable or label that is None goes."""

    env: Mapping[str, str | None] = {}
    labels: Mapping[str, str | None] = {}
    entrypoint: Sequence[str] | None = None
    cmd: Sequence[str] | None = None
    working_dir: str | None = None
    user: str | None = None
    stop_signal: str | None = None


class Draft(NamedTuple):
    """The documents as JSON objects, and how they were written."""

    config: dict[str, Any]
    manifest: dict[str, Any]
    config_as: bytes  # the original, whose form it keeps
    manifest_as: bytes
    platform: Platform
    top: NewLayer | None = None  # which the store does not have

    @classmethod
    def of(cls, manifest: bytes, config: bytes, platform: Platform) -> Draft:
        """To change an image, whose documents have been read before and are in order."""
        return cls(json.loads(config), json.loads(manifest), config, manifest, platform)

    @classmethod
    def empty(cls, platform: Platform) -> Draft:
        """An image without layers."""
        config: dict[str, Any] = {"architecture": platform.architecture, "os": platform.os}
        if platform.variant:
            config["variant"] = platform.variant
        config |= {"config": {}, "rootfs": {"type": "layers", "diff_ids": []}, "history": []}
        manifest: dict[str, Any] = {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": {"mediaType": OCI_CONFIG},
            "layers": [],
        }
        return cls(config, manifest, compact(config), compact(manifest), platform)

    @property
    def height(self) -> int:
        """How many layers it has."""
        return len(self.config["rootfs"].get("diff_ids") or ())

    def with_layer(self, layer: NewLayer, note: Note) -> Draft:
        """One more, on top. Raises `BadArgument` for what the manifest's kind does not have."""
        draft = self._copy()
        docker = draft.manifest.get("mediaType") == DOCKER_MANIFEST
        if docker and layer.compression == "zstd":
            raise BadArgument("an image with a manifest of Docker's has no zstd layers; choose --compression gzip")
        suffix = _SUFFIXES[layer.compression]
        media_type = (f"{_DOCKER_LAYER}.{suffix}" if docker else f"{OCI_LAYER}+{suffix}").rstrip(".+")
        descriptor = {"mediaType": media_type, "size": layer.size, "digest": str(layer.digest)}
        draft.manifest["layers"] = [*(draft.manifest["layers"] or ()), _ordered_as(descriptor, draft.manifest)]
        draft._note(note)
        draft.config["rootfs"]["diff_ids"] = [*(draft.config["rootfs"].get("diff_ids") or ()), str(layer.diff_id)]
        return draft._replace(top=layer)

    def without_layer(self, number: int) -> Draft:
        """One less; 1 is the lowest. As old as what is left. Raises `BadArgument`."""
        if not 1 <= number <= self.height:
            raise BadArgument(f"there is no layer {number}: the image has {self.height}, and 1 is the lowest")
        if self.height == 1:
            raise BadArgument("this is the image's only layer, and without one it would be empty; `rmi` removes it")
        draft = self._copy()
        del draft.manifest["layers"][number - 1]
        del draft.config["rootfs"]["diff_ids"][number - 1]
        if (entries := self._entries()) is not None:
            history = draft.config["history"]
            del history[entries[number - 1]]
            if isinstance(created := history[-1].get("created"), str):  # nobody checks a history
                draft.config["created"] = created
            else:
                draft.config.pop("created", None)
        return draft

    def with_one_layer(self, layer: NewLayer, note: Note) -> Draft:
        """This one in place of all; of the history nothing is left but the note."""
        draft = self._copy()
        draft.manifest["layers"], draft.config["rootfs"]["diff_ids"], draft.config["history"] = [], [], []
        return draft.with_layer(layer, note)

    def changed(self, changes: Changes, note: Note | None) -> Draft:
        """With another config; noted in the history, unless that is done elsewhere."""
        draft = self._copy()
        if draft.config.get("config") is None:
            draft.config["config"] = {}
        settings = draft.config["config"]
        values = {
            "Entrypoint": changes.entrypoint,
            "Cmd": changes.cmd,
            "WorkingDir": changes.working_dir,
            "User": changes.user,
            "StopSignal": changes.stop_signal,
        }
        for name, value in values.items():
            if value:
                settings[name] = value if isinstance(value, str) else list(value)
            elif value is not None:
                settings.pop(name, None)
        _set_variables(settings, changes.env)
        _set_labels(settings, changes.labels)
        if note is not None and (draft.config != self.config or note.comment or note.author):
            draft._note(note, empty=True)
        return draft

    def documents(self) -> tuple[bytes, bytes]:
        """(manifest, config) as bytes."""
        config = form_of(self.config_as)(self.config)
        descriptor = self.manifest["config"]
        if "data" in descriptor:
            del descriptor["data"]
        descriptor |= {"digest": str(Digest.of(config)), "size": len(config)}
        return form_of(self.manifest_as)(self.manifest), config

    def _copy(self) -> Draft:
        return self._replace(config=deepcopy(self.config), manifest=deepcopy(self.manifest))

    def _entries(self) -> list[int] | None:
        """The place of each layer's entry in the history; None where that says nothing of the layers, or is wrong."""
        history = self.config.get("history") or []
        if not isinstance(history, list) or not all(isinstance(entry, dict) for entry in history):
            return None
        filled = [place for place, entry in enumerate(history) if not entry.get("empty_layer")]
        return filled if len(filled) == self.height else None

    def _note(self, note: Note, *, empty: bool = False) -> None:
        """Not where there is no history of the layers by now: what is new could not be told from the rest."""
        if self._entries() is not None:
            entry = note.entry() | ({"empty_layer": True} if empty else {})
            self.config["history"] = [*(self.config.get("history") or ()), entry]
            self.config["created"] = rfc3339(note.created)
        if note.author:
            self.config["author"] = note.author


def rfc3339(seconds: float) -> str:
    """In UTC, as configs have it."""
    return datetime.fromtimestamp(int(seconds), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _ordered_as(descriptor: dict[str, Any], manifest: Mapping[str, Any]) -> dict[str, Any]:
    """With its fields in the order that the config's descriptor has."""
    order = list(manifest["config"])
    return dict(sorted(descriptor.items(), key=lambda item: order.index(item[0]) if item[0] in order else len(order)))


def _set_variables(settings: dict[str, Any], changes: Mapping[str, str | None]) -> None:
    if not changes:
        return
    variables = {text.partition("=")[0]: text for text in settings.get("Env") or ()}
    for name, value in changes.items():
        if value is None:
            variables.pop(name, None)
        else:
            variables[name] = f"{name}={value}"
    settings["Env"] = list(variables.values())


def _set_labels(settings: dict[str, Any], changes: Mapping[str, str | None]) -> None:
    if not changes:
        return
    there = settings.get("Labels")
    labels = {**(there if isinstance(there, dict) else {}), **changes}
    settings["Labels"] = {name: value for name, value in labels.items() if value is not None}
