"""Words of a shell script, of which images' authors chose some."""

from __future__ import annotations

import os
import shlex


def quoted(text: str) -> str:
    """The text as one word of bash, on one line, with nothing in it that a terminal would obey."""
    if text.isprintable():
        return shlex.quote(text)
    return "$'" + "".join(map(_escaped, text)) + "'"


def _escaped(character: str) -> str:
    if character in "\\'":
        return f"\\{character}"
    if character.isprintable():
        return character
    return "".join(f"\\x{byte:02x}" for byte in os.fsencode(character))
