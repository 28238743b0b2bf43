"""Libraries that only some installations have: loaded where they are used, missed in one clear sentence."""

from __future__ import annotations

import importlib
from typing import Any

from p2pfl.errors import ConfigError


def optional(module: str, extra: str) -> Any:
    """The module, or a ConfigError that names the extra of p2pfl-consortium which brings it."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        library = module.partition(".")[0]
        raise ConfigError(f"{library} is not installed; run pip install 'p2pfl-consortium[{extra}]'") from error
