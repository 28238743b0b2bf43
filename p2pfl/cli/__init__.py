"""The command line. Verbs read as sentences; `p2pfl VERB --help` has an example of each."""

from p2pfl.cli.app import main

__all__ = ["main"]
