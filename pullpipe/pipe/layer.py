"""One layer, from its blob to a tree in staging in overlayfs's form: for pulls, and for whoever checks their work."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Literal, NamedTuple

from pullpipe.errors import LayerError
from pullpipe.oci import Descriptor
from pullpipe.pipe import settle
from pullpipe.pipe.proof import proven
from pullpipe.pipe.unpack import Channel, Worker, channel
from pullpipe.pipe.whiteouts import set_trusted
from pullpipe.pipe.worker import Job, Limits, Result
from pullpipe.progress import Progress
from pullpipe.trace import Span
from store import Digest, LayerInfo, Staging


class Parents(NamedTuple):
    """The trees below a layer that cannot be unpacked without them, and where to mount them; see `Job`."""

    below: tuple[str, ...] = ()
    mount_point: str = ""


class Unpacker:
    """Unpacks layers by one worker; each into a staging directory, which the caller then describes."""

    def __init__(
        self,
        worker: Worker,
        limits: Limits,
        progress: Progress,
        *,
        ignore_owners: bool = False,
        form: Literal["overlay", "none"] = "overlay",  # "none": nothing is written
    ) -> None:
        self._worker = worker
        self._limits = limits
        self._progress = progress
        self._ignore_owners = ignore_owners
        self._form = form

    async def follow(
        self,
        blob: int,
        diff_id: Digest,
        layer: Descriptor,
        staging: Staging[LayerInfo],
        words: Channel,
        parents: Parents = Parents(),  # noqa: B008 - it is immutable
    ) -> Result | LayerError:
        """A blob that is arriving in the open file `blob`; through `words` the caller says how much of it is there.

        A `LayerError` is not yet the last word: first the rest has to arrive, and prove to be the right bytes.
        """
        job = Job(
            self._form,
            layer.size,
            layer.digest.algorithm,
            diff_id.algorithm,
            *parents,
            limits=self._limits,
            detailed=self._progress.trace is not None,
            ignore_owners=self._ignore_owners,
        )
        try:
            result = await self._worker.unpack(
                job, blob, staging.files, words, lambda count: self._progress.unpacked(layer, count)
            )
            self._progress.worked(layer, [Span(*span) for span in result.spans])
            return result._replace(warnings=result.warnings + set_trusted(staging.files, result.trusted_attributes()))
        except LayerError as error:
            return error

    async def unpack(
        self,
        blob: int,
        diff_id: Digest,
        layer: Descriptor,
        staging: Staging[LayerInfo],
        parents: Parents = Parents(),  # noqa: B008 - it is immutable
    ) -> Result:
        """A whole blob. Raises `WrongBlob`, `LayerError` or `VerificationError`, as `proven` does."""
        async with channel() as words:
            await words.available(layer.size)
            outcome = await self.follow(blob, diff_id, layer, staging, words, parents)
        return await proven(outcome, blob, diff_id, layer)

    async def unpack_variant(
        self, blob: int, variant: settle.Layer, layer: Descriptor, staging: Staging[LayerInfo], below: Sequence[str]
    ) -> LayerInfo:
        """The same, on top of the trees `below`, the topmost first."""
        mount_point = os.path.join(staging.path, "below")
        os.mkdir(mount_point)
        try:
            parents = Parents(tuple(below) or (mount_point,), mount_point)
            result = await self.unpack(blob, variant.diff_id, layer, staging, parents)
        finally:
            os.rmdir(mount_point)
        set_trusted(staging.files, settle.trusted_below(below, result.brought_up))
        return info_of(variant.diff_id, result)


def info_of(diff_id: Digest, result: Result) -> LayerInfo:
    """What is recorded of the layer."""
    return LayerInfo(
        diff_id=diff_id,
        size=result.size,
        entries=result.entries,
        whiteouts=result.whiteouts,
        opaque_root=result.opaque_root,
        owners_ignored=result.owners_ignored,
        implied=tuple(result.implied),
        presumed=tuple(result.presumed),
        emptied=tuple(result.emptied),
        hiding=tuple(result.hiding),
        unresolved=tuple(result.unresolved),
    )
