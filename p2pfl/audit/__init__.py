"""The audit log: an append-only, hash-chained record of what one peer did, under a signed Merkle tree.

See docs/audit-log.md.
"""

from __future__ import annotations

from p2pfl.audit.evidence import EVIDENCE_LIMIT, Evidence, check_evidence, read_evidence
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
from p2pfl.audit.growth import CLAIMS, Answer, Judged, LogMisbehaviour, compare_notes, judge
from p2pfl.audit.kinds import NOTES, Kind, KindNote
from p2pfl.audit.log import AuditLog
from p2pfl.audit.show import as_dict, describe, directive_lines
from p2pfl.audit.store import read_entries
from p2pfl.audit.tree import prove_entry
from p2pfl.audit.verify import Verification, verify_log
from p2pfl.audit.witness import Finding, HeldHead, WitnessStore

__all__ = [
    "CLAIMS",
    "EVIDENCE_LIMIT",
    "MAX_BODY",
    "MAX_DOCUMENT",
    "MAX_DOCUMENTS",
    "MAX_ENTRIES",
    "NOTES",
    "Answer",
    "AuditLog",
    "Entry",
    "Evidence",
    "Finding",
    "Head",
    "HeldHead",
    "Judged",
    "Kind",
    "KindNote",
    "LogMisbehaviour",
    "NewEntry",
    "Verification",
    "WitnessStore",
    "as_dict",
    "check_evidence",
    "compare_notes",
    "describe",
    "directive_lines",
    "entry_from_data",
    "judge",
    "prove_entry",
    "read_entries",
    "read_evidence",
    "verify_log",
]
