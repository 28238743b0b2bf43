"""What a declared loss can excuse: the heads that it names, and about as many entries."""

from __future__ import annotations

import pytest

from p2pfl.audit import Entry, LogFacts, Reconciliation, Sort, gather, reconcile
from p2pfl.audit.losses import UNSEEN, read_loss

LOST = bytes(32)
OTHER = b"\1" * 32


def compared(missing: int, kept: int, size: int) -> Reconciliation:
    """Of so many messages of A that B received, A's log has none, and it declares a loss."""
    received = [
        Entry(number, 0, "delta_received", {
            "run": "r", "peer": "A", "round": number, "step": 0, "channel": "model", "core": f"{number}",
        }, LOST)
        for number in range(missing)
    ]  # fmt: skip
    loss = {"epoch": 1, "kept": kept, "lost": [[0, size, LOST]], "reason": "x"}
    own = [
        Entry(0, 0, "round_started", {"run": "r", "round": 0}, LOST),
        Entry(kept, 0, "epoch_opened", loss, LOST),
    ]
    logs: list[LogFacts] = [gather("A", own), gather("B", received)]
    return reconcile(logs)


@pytest.mark.parametrize(("kept", "size"), [(3, 4), (3, 103)])
def test_more_than_was_declared_lost_is_not_excused(kept: int, size: int) -> None:
    """A loss of one entry would else explain a run that was taken out as a whole."""
    most = size - kept + UNSEEN
    outcome = compared(most, kept, size)
    assert not outcome.findings and sum(outcome.explained.values()) == most
    (finding,) = compared(most + 1, kept, size).findings
    assert finding.sort is Sort.UNEXPLAINED and finding.peer == "A" and finding.entries == (("A", kept),)
    assert finding.text == f"lacks {most + 1} entries that others mirror, which is more than its declared losses name"


@pytest.mark.parametrize(
    ("head", "covered"),
    [
        ((2, 9, LOST), True),
        ((2, 10, LOST), True),
        ((2, 10, OTHER), False),  # of the same size, and not the one that was lost
        ((2, 9, OTHER), True),  # the lost head was longer: nobody knows its roots before
        ((2, 11, LOST), False),
        ((2, 4, LOST), False),  # what was kept is proven, not declared lost
        ((1, 9, LOST), False),
        ((3, 6, LOST), True),
        ((3, 7, LOST), True),
        ((3, 8, LOST), False),
    ],
)
def test_a_loss_covers_what_its_witnesses_would_accept(head: tuple[int, int, bytes], covered: bool) -> None:
    body = {"epoch": 4, "kept": 4, "lost": [[2, 10, LOST], [3, 7, LOST]]}
    loss = read_loss(11, 0, body, [])
    assert loss is not None and loss.covers(*head) is covered and loss.size == 10


@pytest.mark.parametrize("row", [[0, 9], [0, 9, "x"], [0, True, LOST], ["0", 9, LOST], (0, 9, LOST), 9, [0, 9, None]])
def test_a_head_in_no_form_of_ours_is_no_loss(row: object) -> None:
    assert read_loss(11, 0, {"epoch": 1, "kept": 4, "lost": [[0, 9, LOST], row]}, []) is None
