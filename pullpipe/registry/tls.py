"""TLS by a host's settings."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from contextlib import contextmanager

from pullpipe.errors import BadConfiguration
from pullpipe.registry.hosts import Tls


def context(tls: Tls) -> ssl.SSLContext:
    """Raises `BadConfiguration` for a file that cannot be used."""
    made = ssl.create_default_context()
    if not tls.verify:
        made.check_hostname = False
        made.verify_mode = ssl.CERT_NONE
    for path in tls.ca:
        with _using(path):
            made.load_verify_locations(path)
    if tls.certificate:
        with _using(tls.certificate):
            made.load_cert_chain(tls.certificate, tls.key or None, password=_no_password)
    return made


@contextmanager
def _using(path: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:  # ssl's errors are among them
        reason = (error.strerror if isinstance(error, OSError) else None) or error
        raise BadConfiguration(f"cannot use {path} for TLS: {reason}; mend it, or what names it") from error


def _no_password() -> str:
    raise ValueError("its key is encrypted")
