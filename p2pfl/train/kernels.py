"""Small pieces of C++ beside the modules that use them, compiled where they run, by torch's own compiler and cache."""

from __future__ import annotations

import ctypes
import threading
from functools import cache
from importlib import resources

REASON_LIMIT = 200  # characters of an error that are passed on
_loading = threading.Lock()


def load(source: str, what: str, *flags: str) -> tuple[ctypes.CDLL | None, str | None]:
    """The library made of this file of the package, or None and why not, in words; tried once per process.

    ``what`` it is for, in words. ``flags`` of the compiler besides those of torch.
    """
    with _loading:
        return _load(source, what, flags)


@cache
def _load(source: str, what: str, flags: tuple[str, ...]) -> tuple[ctypes.CDLL | None, str | None]:
    from torch._inductor.codecache import CppCodeCache

    text = resources.files(__package__).joinpath(source).read_text(encoding="utf-8")
    try:
        return CppCodeCache.load(text, extra_flags=flags), None
    except Exception as error:  # whatever the compiler, the disk or the loader has to say
        reason = " ".join(str(error).split())[:REASON_LIMIT]
        return None, f"the kernel for {what} is not possible ({type(error).__name__}: {reason})"
