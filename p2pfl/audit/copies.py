"""Where else in a home an erased text still stands: what the peer printed, the reports of its runs, and so on."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

BLOCK = 1 << 20  # bytes read at once

_ITSELF = "audit.db"  # with its write-ahead log: `erase_texts` says whether that is empty
_NUMBERS = (".safetensors",)


def copies_of(texts: Iterable[str], folder: Path) -> list[Path]:
    """The files below ``folder``, other than the log's own, that hold any of the texts, as UTF-8 or as in JSON.

    A file that cannot be read is among them: nobody knows. A copy that is compressed or sealed is not found.
    """
    wanted = {form for text in texts if text for form in (text.encode("utf-8", "replace"), _in_json(text))}
    if not wanted:
        return []
    return sorted(
        path
        for path in folder.rglob("*")
        if path.is_file() and not path.name.startswith(_ITSELF) and path.suffix not in _NUMBERS and _holds(path, wanted)
    )


def _in_json(text: str) -> bytes:
    return json.dumps(text)[1:-1].encode()


def _holds(path: Path, wanted: set[bytes]) -> bool:
    overlap = max(map(len, wanted)) - 1
    tail = b""
    try:
        with path.open("rb") as file:
            while block := file.read(BLOCK):
                tail += block
                if any(item in tail for item in wanted):
                    return True
                tail = tail[-overlap:] if overlap else b""
    except OSError:
        return True
    return False
