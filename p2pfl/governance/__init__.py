"""Charter, member records, plans and approvals. Knows no network."""

from p2pfl.governance.approvals import ApprovalBook
from p2pfl.governance.charter import (
    Charter,
    fingerprint,
    merge_charters,
    missing_signatures,
    new_charter,
    sign_charter,
)
from p2pfl.governance.charter_checks import accept_charter, check_charter
from p2pfl.governance.charter_files import charter_to_text, parse_charter
from p2pfl.governance.plans import Plan, PlanSettings, plan_from_bundle, read_plan
from p2pfl.governance.records import make_record, open_record, record_from_text, record_to_text

__all__ = [
    "ApprovalBook",
    "Charter",
    "Plan",
    "PlanSettings",
    "accept_charter",
    "charter_to_text",
    "check_charter",
    "fingerprint",
    "make_record",
    "merge_charters",
    "missing_signatures",
    "new_charter",
    "open_record",
    "parse_charter",
    "plan_from_bundle",
    "read_plan",
    "record_from_text",
    "record_to_text",
    "sign_charter",
]
