"""A rule's own numbers, as plans give them: known, finite, within their range."""

from __future__ import annotations

from collections.abc import Mapping

from p2pfl.errors import ConfigError
from p2pfl.train.rules.interface import Setting


def checked_numbers(rule: str, settings: Mapping[str, Setting], values: Mapping[str, object]) -> dict[str, float]:
    """The values as floats. ConfigError for one that the rule does not have, or out of its range."""
    found = {}
    for name, value in values.items():
        if name not in settings:
            known = ", ".join(sorted(settings)) or "none"
            raise ConfigError(f"rule {rule} has no setting {str(name)[:60]!r}; its settings are: {known}")
        setting = settings[name]
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ConfigError(f"rule setting {name} is {str(value)[:60]!r}; write {setting.allowed}")
        if not setting.holds(value):
            raise ConfigError(f"rule setting {name} is {value}; write {setting.allowed}")
        found[name] = float(value)
    return found
