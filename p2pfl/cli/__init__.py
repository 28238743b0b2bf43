"""The command line. Verbs read as sentences; `p2pfl VERB --help` has an example of each."""

from __future__ import annotations

import sys

__all__ = ["main"]


def main() -> None:
    """Entry point of `p2pfl`; see `p2pfl.cli.app`. Ctrl-C while the modules load is no reason for a traceback."""
    try:
        from p2pfl.cli.app import main as carry_out
    except KeyboardInterrupt:
        sys.exit(130)
    carry_out()
