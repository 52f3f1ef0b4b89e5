"""From what a reference names to one platform's image: index, manifest, config, each of them proven."""

from __future__ import annotations

from collections.abc import Sequence

from pullpipe import local
from pullpipe.errors import InvalidDocument, NoSuchPlatform
from pullpipe.oci import INDEXES, Descriptor, ImageConfig, Index, Manifest, best, parse_document
from pullpipe.pipe.documents import NESTED_LIMIT, Documents, nested_too_deep
from pullpipe.platforms import Platform, amd64_level
from pullpipe.transports import Document
from store import Digest, ImageRecord


async def resolve(documents: Documents, top: Document, reference: str, platform: Platform) -> local.LocalImage:
    """The platform's image, of what the reference names: a manifest, or an index, with others in it or not.

    Of an index's entries the one that suits the platform best counts, and of its equals the first; only if none does,
    those that name no platform: their configs tell. Raises `InvalidDocument`, `NoSuchPlatform`, `VerificationError` or
    `TransferError`.
    """
    parsed = parse_document(top.data, top.media_type)
    if isinstance(parsed, Manifest):
        manifest, config = parsed, await _config(documents, parsed)
        chosen = Descriptor(manifest.media_type, top.digest, len(top.data), config.platform)
        if not platform.accepts(config.platform):
            raise NoSuchPlatform(f"{reference} is for {config.platform}, not {platform}; choose it with --platform")
    else:
        chosen = await _choose(documents, parsed, platform, reference)
        manifest = await documents.image(chosen)
        config = await _config(documents, manifest)
    # The index's word counts before the config's: many a config says amd64 because its builder's machine was one.
    said = chosen.platform if chosen.platform and chosen.platform.architecture else platform
    record = ImageRecord(reference, chosen.digest, manifest.media_type, chosen.size, top.digest, *said)
    return local.LocalImage(record, manifest, config)


async def _choose(documents: Documents, index: Index, platform: Platform, reference: str) -> Descriptor:
    entries = await _manifests(documents, index, platform, NESTED_LIMIT, set())
    chosen = best(entries, platform)
    if chosen is None:
        entries = [await _named(documents, entry) for entry in entries]
        chosen = best(entries, platform)
    if chosen is None:
        raise _no_image(reference, platform, entries)
    return chosen


async def _manifests(
    documents: Documents, index: Index, platform: Platform, depth: int, seen: set[Digest]
) -> list[Descriptor]:
    """The manifests of the index in their order, with those of indexes in it that name this platform or none."""
    if depth == 0:
        raise nested_too_deep()
    found = []
    for entry in index.images:
        if entry.media_type not in INDEXES or (entry.platform and not platform.accepts(entry.platform)):
            found.append(entry)
        elif entry.digest not in seen:
            seen.add(entry.digest)
            below = await _manifests(documents, await documents.index(entry), platform, depth - 1, seen)
            found += [one._replace(platform=one.platform or entry.platform) for one in below]
    return found


async def _named(documents: Documents, entry: Descriptor) -> Descriptor:
    """The entry with its platform, by its config if it names none; what is no image has none."""
    if entry.platform is not None:
        return entry
    try:
        config = await _config(documents, await documents.image(entry))
    except InvalidDocument:
        return entry
    return entry._replace(platform=config.platform)


async def _config(documents: Documents, manifest: Manifest) -> ImageConfig:
    return ImageConfig.parse(await documents.config(manifest.config), layers=len(manifest.layers))


def _no_image(reference: str, platform: Platform, entries: Sequence[Descriptor]) -> NoSuchPlatform:
    offered = sorted({str(entry.platform) for entry in entries if entry.platform})
    there = f"it has {', '.join(offered)}; choose one with --platform" if offered else "it has none at all"
    if (
        platform == ("linux", "amd64", "")
        and amd64_level()
        and any(name.startswith("linux/amd64/") for name in offered)
    ):
        there += f" (this machine's processor is a linux/amd64/v{amd64_level()})"
    return NoSuchPlatform(f"{reference} has no image for {platform}: {there}")
