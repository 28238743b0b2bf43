"""What the logs' witnesses have found, for `p2pfl doctor`: read from the home's files, also while it runs."""

from __future__ import annotations

from collections.abc import Mapping

from p2pfl.audit import WitnessStore
from p2pfl.peer.findings import BROKEN, LOOK, OK, Finding
from p2pfl.peer.home import Home

STALE = 7 * 24 * 3600  # seconds; a site that takes part in runs is cosigned every round


def log_findings(home: Home, names: Mapping[str, str], now: int) -> list[Finding]:
    """Evidence against members' logs, and who has cosigned this site's own last. ``now`` is Unix seconds."""
    if not home.witness_store.exists():
        return [Finding("witnesses", OK, "this peer has not run yet: nobody has seen its log")]
    store = WitnessStore(home.witness_store)
    try:
        found = [
            Finding(
                "log", BROKEN,
                f"the log of {names.get(item.log, item.log)} contradicts itself ({item.claim}): keep "
                f"{home.evidence / item.file}, show it to the others, and talk to that site",
            )
            for item in store.findings()
        ]  # fmt: skip
        cosigned = store.cosigned()
    finally:
        store.close()
    if not cosigned:
        return [*found, Finding("witnesses", LOOK, "no member has cosigned this site's log yet")]
    witness, _, size, _, seconds = max(cosigned, key=lambda row: row[4])
    whose = f"{names.get(witness, witness)} has cosigned this site's log last"
    text = f"{whose}, its first {size} entries, {_ago(now - seconds)}"
    return [*found, Finding("witnesses", LOOK if now - seconds > STALE else OK, text)]


def keeping_findings(home: Home) -> list[Finding]:
    """Whether parameters of partners lie, or come to lie, on this disk in clear."""
    keep, kept = home.settings.keep, home.kept
    runs = sum(1 for _ in kept.iterdir()) if kept.is_dir() else 0
    if keep.deltas:
        text = (
            f"deltas are kept in clear in {kept}, {keep.limit} bytes at most: parameters of this site's partners, too"
        )
        return [Finding("kept deltas", LOOK, f"{text}; guard it like the data, and let the partners know")]
    if runs:
        return [
            Finding(
                "kept deltas", LOOK, f"no longer kept, but {kept} has {runs} runs in clear; delete what is not needed"
            )
        ]
    return []


def _ago(seconds: int) -> str:
    hours = max(seconds, 0) // 3600
    return "within the last hour" if not hours else f"{hours} hours ago" if hours < 48 else f"{hours // 24} days ago"
