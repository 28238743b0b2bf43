"""Owns the text form that member records and charters share when people pass them on by mail or USB stick.

    p2pfl member record v1          first line: what this is
    # name: Lille                   lines for people
    hKRraW5k...                     base64, 76 columns
    signature 12D3KooW... m1Bo...   words, charters only

Mail programs change line ends and add blank lines; both are tolerated, nothing else is.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable
from dataclasses import dataclass

from p2pfl.errors import ConfigError

COLUMNS = 76  # MIME's line length (RFC 2045 6.8): mail programs leave shorter lines alone


@dataclass(frozen=True, slots=True)
class TextForm:
    """The parts of a text file: readable lines without ``# ``, the bytes, and further lines of words."""

    readable: tuple[str, ...]
    body: bytes
    words: tuple[tuple[str, ...], ...] = ()


def to_text(header: str, form: TextForm) -> str:
    """The file's text, ending in a line end."""
    encoded = base64.b64encode(form.body).decode("ascii")
    lines = [header, *(f"# {line}" for line in form.readable)]
    lines += [encoded[start : start + COLUMNS] for start in range(0, len(encoded), COLUMNS)]
    lines += [" ".join(words) for words in form.words]
    return "\n".join(lines) + "\n"


def from_text(text: str, header: str, *, what: str, limit: int, words: int = 0) -> TextForm:
    """The parts of ``text``. ``limit`` is the longest text in characters, ``words`` the most lines of words.

    Raises ConfigError, naming ``what``, for another kind of file, a damaged or a too long one.
    """
    if len(text) > limit:
        raise ConfigError(f"{what} has more than {limit} characters; this is not the file meant here")
    lines = [line.strip() for line in text.split("\n") if line.strip()]
    if not lines or lines[0].lstrip("\ufeff") != header:
        found = repr(lines[0][:40]) if lines else "nothing"
        raise ConfigError(f"{what} begins with {found}, not with {header!r}; check that it is the right file")
    content = [line for line in lines[1:] if not line.startswith("#")]
    encoded = [line for line in content if " " not in line]
    spoken = content[len(encoded) :]
    if any(" " not in line for line in spoken) or len(spoken) > words:
        raise ConfigError(f"{what} has lines where none belong; ask its sender for the file again")
    return TextForm(
        readable=tuple(line.removeprefix("#").strip() for line in lines[1:] if line.startswith("#")),
        body=decode_base64("".join(encoded), what),
        words=tuple(tuple(line.split()) for line in spoken),
    )


def decode_base64(text: str, what: str) -> bytes:
    """Strict base64 (RFC 4648 4): no foreign characters, no loose bits. ConfigError names ``what``."""
    try:
        decoded = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        decoded = b""
    # an empty body, and two spellings of the same bytes, are damage too
    if not decoded or base64.b64encode(decoded).decode("ascii") != text:
        raise ConfigError(f"{what} is damaged (its base64 part); ask its sender for the file again")
    return decoded


def one_line(values: Iterable[str], empty: str) -> str:
    """Values joined for a readable line."""
    return ", ".join(values) or empty
