"""The sans-IO protocol machine: proposals, start records, rounds, late flows, catch-up, closing.

No I/O, no clock, no thread, no randomness of its own, no tensor.
"""

from p2pfl.gossip import effects, events
from p2pfl.gossip.context import ArgumentProblem
from p2pfl.gossip.flood import Flood, kind_kept
from p2pfl.gossip.machine import Machine
from p2pfl.gossip.memory import Restored, readable_state
from p2pfl.gossip.restoring import read_log
from p2pfl.gossip.statements import Proposal, open_proposal, record_digest
from p2pfl.gossip.table import TABLE, State

__all__ = [
    "TABLE",
    "ArgumentProblem",
    "Flood",
    "Machine",
    "Proposal",
    "Restored",
    "State",
    "effects",
    "events",
    "kind_kept",
    "open_proposal",
    "read_log",
    "readable_state",
    "record_digest",
]
