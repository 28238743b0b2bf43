"""The audit log: an append-only, hash-chained record of what one peer did, under a signed Merkle tree.

See docs/audit-log.md.
"""

from __future__ import annotations

from p2pfl.audit.copies import copies_of
from p2pfl.audit.cosigned import (
    COSIGNED_LIMIT,
    Cosigned,
    Witnessed,
    check_cosigned,
    decode_cosigned,
    encode_cosigned,
)
from p2pfl.audit.erasing import Erased, erase_texts
from p2pfl.audit.evidence import EVIDENCE_LIMIT, Evidence, check_evidence, read_evidence
from p2pfl.audit.export import COLUMNS, Part, csv_lines, json_lines, moment, open_part
from p2pfl.audit.facts import LogFacts, Mixing, RunFacts
from p2pfl.audit.findings import Finding, Fork, History, Notice, Reconciliation, Sort
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
from p2pfl.audit.growth import CLAIMS, FORK, MAX_LOST, Answer, Judged, LogMisbehaviour, compare_notes, judge
from p2pfl.audit.kinds import NOTES, Kind, KindNote
from p2pfl.audit.lineage import Lineage, lineage
from p2pfl.audit.log import AuditLog
from p2pfl.audit.reconcile import reconcile
from p2pfl.audit.show import as_dict, describe, directive_lines
from p2pfl.audit.sources import (
    epoch_source,
    gather_source,
    gather_sources,
    is_cut_off,
    is_database,
    is_source,
    is_table,
    part_source,
    read_source,
    roots_source,
    verify_source,
    witnessed_source,
)
from p2pfl.audit.store import read_entries
from p2pfl.audit.tiles import write_tiles
from p2pfl.audit.tree import prove_entry
from p2pfl.audit.verify import Verification, verify_log
from p2pfl.audit.witness import HeldHead, SeenHead, WitnessFinding, WitnessStore

__all__ = [
    "CLAIMS",
    "COLUMNS",
    "COSIGNED_LIMIT",
    "EVIDENCE_LIMIT",
    "FORK",
    "MAX_BODY",
    "MAX_DOCUMENT",
    "MAX_DOCUMENTS",
    "MAX_ENTRIES",
    "MAX_LOST",
    "NOTES",
    "Answer",
    "AuditLog",
    "Cosigned",
    "Entry",
    "Erased",
    "Evidence",
    "Finding",
    "Fork",
    "Head",
    "HeldHead",
    "History",
    "Judged",
    "Kind",
    "KindNote",
    "Lineage",
    "LogFacts",
    "LogMisbehaviour",
    "Mixing",
    "NewEntry",
    "Notice",
    "Part",
    "Reconciliation",
    "RunFacts",
    "SeenHead",
    "Sort",
    "Verification",
    "WitnessFinding",
    "WitnessStore",
    "Witnessed",
    "as_dict",
    "check_cosigned",
    "check_evidence",
    "compare_notes",
    "copies_of",
    "csv_lines",
    "decode_cosigned",
    "describe",
    "directive_lines",
    "encode_cosigned",
    "entry_from_data",
    "epoch_source",
    "erase_texts",
    "gather",
    "gather_source",
    "gather_sources",
    "is_cut_off",
    "is_database",
    "is_source",
    "is_table",
    "json_lines",
    "judge",
    "lineage",
    "moment",
    "open_part",
    "part_source",
    "prove_entry",
    "read_entries",
    "read_evidence",
    "read_source",
    "reconcile",
    "roots_source",
    "verify_log",
    "verify_source",
    "witnessed_source",
    "write_tiles",
]
