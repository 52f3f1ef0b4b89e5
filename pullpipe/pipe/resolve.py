"""From what a reference names to one platform's image: index, manifest, config, each of them proven."""

from __future__ import annotations

from pullpipe import local
from pullpipe.errors import InvalidDocument, NoSuchPlatform, VerificationError
from pullpipe.oci import DOCUMENT_LIMIT, Descriptor, ImageConfig, Index, Manifest, Platform, parse_document
from pullpipe.transports import Source
from store import Digest, ImageRecord

_NESTED_LIMIT = 4  # an index may name an index, and not for ever


async def resolve(
    source: Source, wanted: str, reference: str, platform: Platform
) -> tuple[local.LocalImage, dict[Digest, bytes]]:
    """Follows indexes to the platform's manifest; returns the image, and all documents on the way with their digests.

    Raises `InvalidDocument`, `NoSuchPlatform`, `VerificationError` or `TransferError`.
    """
    document = await source.document(wanted)
    resolved = document.digest
    documents = {document.digest: document.data}
    parsed = parse_document(document.data, document.media_type)
    for _ in range(_NESTED_LIMIT):
        if isinstance(parsed, Manifest):
            break
        chosen = parsed.choose(platform, reference)
        document = await source.document(str(chosen.digest))
        if document.digest != chosen.digest or len(document.data) != chosen.size:
            raise VerificationError(f"the manifest {chosen.digest} is not what the index of {reference} promises")
        documents[document.digest] = document.data
        parsed = parse_document(document.data, document.media_type)
    if isinstance(parsed, Index):
        raise InvalidDocument(f"{reference} nests indexes more than {_NESTED_LIMIT} deep")
    documents[parsed.config.digest] = data = await _small_blob(source, parsed.config)
    config = ImageConfig.parse(data, layers=len(parsed.layers))
    if resolved == document.digest and not platform.accepts(config.platform):
        # A lone manifest says only in its config what it is for; an index's word counts for its entries.
        raise NoSuchPlatform(f"{reference} is for {config.platform}, not {platform}; choose it with --platform")
    record = ImageRecord(reference, document.digest, parsed.media_type, len(document.data), resolved, *config.platform)
    return local.LocalImage(record, parsed, config), documents


async def _small_blob(source: Source, descriptor: Descriptor) -> bytes:
    """A config, in memory, proven."""
    if descriptor.size > DOCUMENT_LIMIT:
        raise InvalidDocument(
            f"the config {descriptor.digest} claims {descriptor.size} bytes; {DOCUMENT_LIMIT} is the limit"
        )
    data = b""
    async with source.blob(descriptor, 0) as pieces:
        async for piece in pieces:
            data += piece
            if len(data) > descriptor.size:
                break
    if len(data) != descriptor.size or not descriptor.digest.matches(data):
        raise VerificationError(
            f"the config's bytes do not have the digest {descriptor.digest}; the source is damaged or lying"
        )
    return data
