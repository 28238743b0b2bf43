"""The audit log: an append-only, hash-chained record of what one peer did, under a signed Merkle tree.

See docs/audit-log.md.
"""

from __future__ import annotations

from p2pfl.audit.facts import LogFacts
from p2pfl.audit.findings import Finding, Reconciliation, Sort
from p2pfl.audit.format import (
    MAX_BODY,
    MAX_DOCUMENT,
    MAX_DOCUMENTS,
    MAX_ENTRIES,
    Entry,
    Head,
    NewEntry,
    entry_from_data,
)
from p2pfl.audit.gathering import gather
from p2pfl.audit.kinds import NOTES, Kind, KindNote
from p2pfl.audit.log import AuditLog
from p2pfl.audit.reconcile import reconcile
from p2pfl.audit.show import as_dict, describe, directive_lines
from p2pfl.audit.store import read_entries
from p2pfl.audit.tree import prove_entry
from p2pfl.audit.verify import Verification, verify_log

__all__ = [
    "MAX_BODY",
    "MAX_DOCUMENT",
    "MAX_DOCUMENTS",
    "MAX_ENTRIES",
    "NOTES",
    "AuditLog",
    "Entry",
    "Finding",
    "Head",
    "Kind",
    "KindNote",
    "LogFacts",
    "NewEntry",
    "Reconciliation",
    "Sort",
    "Verification",
    "as_dict",
    "describe",
    "directive_lines",
    "entry_from_data",
    "gather",
    "prove_entry",
    "read_entries",
    "reconcile",
    "verify_log",
]
