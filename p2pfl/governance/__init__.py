"""Who belongs, what was agreed, and what this site approved: member records, address book, charter, plans, approvals.

Pure values, text files and checks; nothing here opens a connection or runs a plan. See docs/governance.md.
"""

from __future__ import annotations

from p2pfl.governance.address_book import AddressBook, Pace, StaleRecord, Verdict
from p2pfl.governance.approvals import Approval, ApprovalBook
from p2pfl.governance.charter import MAX_MEMBERS, Charter, fingerprint, read_document
from p2pfl.governance.charter_acceptance import accept_charter, check_charter
from p2pfl.governance.charter_files import charter_to_text, describe_charter, parse_charter
from p2pfl.governance.charter_rules import LIMITS
from p2pfl.governance.charter_signatures import merge_charters, missing_signatures, new_charter, sign_charter
from p2pfl.governance.plan_settings import PlanSettings
from p2pfl.governance.plan_writing import write_plan
from p2pfl.governance.plans import BUNDLE_LIMIT, Plan, plan_from_bundle, plan_from_files, read_plan
from p2pfl.governance.records import RECORD_LIMIT, make_record, open_record, record_from_text, record_to_text
from p2pfl.governance.texts import TextForm, from_text, to_text
from p2pfl.governance.topologies import accelerated, closing_in_words, weights_in_words

__all__ = [
    "BUNDLE_LIMIT",
    "LIMITS",
    "MAX_MEMBERS",
    "RECORD_LIMIT",
    "AddressBook",
    "Approval",
    "ApprovalBook",
    "Charter",
    "Pace",
    "Plan",
    "PlanSettings",
    "StaleRecord",
    "TextForm",
    "Verdict",
    "accelerated",
    "accept_charter",
    "charter_to_text",
    "check_charter",
    "closing_in_words",
    "describe_charter",
    "fingerprint",
    "from_text",
    "make_record",
    "merge_charters",
    "missing_signatures",
    "new_charter",
    "open_record",
    "parse_charter",
    "plan_from_bundle",
    "plan_from_files",
    "read_document",
    "read_plan",
    "record_from_text",
    "record_to_text",
    "sign_charter",
    "to_text",
    "weights_in_words",
    "write_plan",
]
