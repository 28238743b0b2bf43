"""The protocol's states, and the one table of legal steps.

States of one peer in one run:

    proposing     a proposal is known; approvals, the start record and its signatures are being collected
    training      the worker runs the local steps of a round
    announcing    the round's messages are encoded, sealed and committed to the log
    collecting    waiting for the neighbours' messages, until the round's deadline at most
    mixing        the worker mixes what came
    absent        takes no part in this round (training failed), or in the rest of the run (restart, not a participant)
    catching up   the others are further; skipped rounds are written down, neighbours' states are taken
    paused        the user stopped the peer between two rounds
    closing       the last rounds settle, the closing statement is written
    done          the own statement is out; late neighbours are still answered

``TABLE[state][event]`` is the set of states the machine may be in afterwards. An event that is not listed is
illegal in that state: a local one raises IllegalStep and changes nothing. Remote messages are legal everywhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

from p2pfl.gossip import events


class State(StrEnum):
    """Where one peer stands in one run."""

    PROPOSING = "proposing"
    TRAINING = "training"
    ANNOUNCING = "announcing"
    COLLECTING = "collecting"
    MIXING = "mixing"
    ABSENT = "absent"
    CATCHING_UP = "catching up"
    PAUSED = "paused"
    CLOSING = "closing"
    DONE = "done"


_S = State
_ROUND_START = frozenset({_S.TRAINING, _S.ANNOUNCING})
_NEXT_ROUND = _ROUND_START | {_S.CATCHING_UP, _S.PAUSED, _S.CLOSING}

_BACK = _NEXT_ROUND | {_S.COLLECTING, _S.MIXING}

_ANYWHERE: tuple[type[events.Event], ...] = (
    events.AnnouncementReceived,
    events.OfferReceived,
    events.StatementReceived,
    events.LinkUp,
    events.LinkDown,
    events.Received,
    events.Committed,
)


def _row(
    state: State, steps: Mapping[type[events.Event], frozenset[State]]
) -> dict[type[events.Event], frozenset[State]]:
    row = {event: frozenset({state}) for event in _ANYWHERE}
    for event, states in steps.items():
        row[event] = states
    return row


def _stay(state: State, *others: State) -> frozenset[State]:
    return frozenset({state, *others})


def _round_row(
    state: State, steps: Mapping[type[events.Event], frozenset[State]]
) -> dict[type[events.Event], frozenset[State]]:
    commands = {
        events.Pause: _stay(state),
        events.Resume: _stay(state),
        events.Leave: frozenset({_S.ABSENT}),
        events.Direct: _stay(state),
        events.TimerFired: _stay(state),
        # a neighbour shows that our key signs elsewhere, or an own closing statement that this disk does not know
        events.StatementReceived: _stay(state, _S.ABSENT, _S.DONE),
    }
    return _row(state, {**commands, **steps})


TABLE: Mapping[State, Mapping[type[events.Event], frozenset[State]]] = {
    _S.PROPOSING: _row(
        _S.PROPOSING,
        {
            events.Proposed: _stay(_S.PROPOSING),
            events.Approve: _stay(_S.PROPOSING),
            events.TimerFired: _stay(_S.PROPOSING, _S.DONE),
            events.Committed: _stay(_S.PROPOSING, _S.ABSENT, _S.DONE, _S.CATCHING_UP, *_ROUND_START),
            events.Leave: frozenset({_S.DONE}),
        },
    ),
    _S.TRAINING: _round_row(
        _S.TRAINING,
        # asynchronous, and the others are done: there is no round left to sign for
        {events.Trained: frozenset({_S.ANNOUNCING, _S.CATCHING_UP}), events.TrainingFailed: frozenset({_S.ABSENT})},
    ),
    _S.ANNOUNCING: _round_row(
        _S.ANNOUNCING,
        {
            events.Encoded: _stay(_S.ANNOUNCING),
            events.Committed: _stay(_S.ANNOUNCING, _S.COLLECTING, _S.MIXING),
        },
    ),
    _S.COLLECTING: _round_row(
        _S.COLLECTING,
        {
            events.AnnouncementReceived: _stay(_S.COLLECTING, _S.MIXING),
            events.StatementReceived: _stay(_S.COLLECTING, _S.MIXING, _S.ABSENT, _S.DONE),
            events.Received: _stay(_S.COLLECTING, _S.MIXING),
            events.LinkDown: _stay(_S.COLLECTING, _S.MIXING),
            events.TimerFired: _stay(_S.COLLECTING, _S.MIXING),
        },
    ),
    _S.MIXING: _round_row(_S.MIXING, {events.Mixed: _NEXT_ROUND}),
    _S.ABSENT: _row(
        _S.ABSENT,
        {
            events.AnnouncementReceived: _stay(_S.ABSENT, _S.CATCHING_UP),
            events.StatementReceived: _stay(_S.ABSENT, _S.CATCHING_UP, _S.DONE),
            events.Committed: _stay(_S.ABSENT, _S.DONE),
            events.TimerFired: _stay(_S.ABSENT, _S.CATCHING_UP),
            events.Received: _stay(_S.ABSENT, _S.CATCHING_UP),
            events.LinkDown: _stay(_S.ABSENT, _S.CATCHING_UP),
            # the worker may still answer for the round that was left
            events.Trained: _stay(_S.ABSENT),
            events.TrainingFailed: _stay(_S.ABSENT),
            events.Encoded: _stay(_S.ABSENT),
            events.Mixed: _stay(_S.ABSENT),
            events.Adopted: _stay(_S.ABSENT),
            events.Approve: _stay(_S.ABSENT),  # of a run that began without this site
            events.Pause: _stay(_S.ABSENT),
            events.Resume: _stay(_S.ABSENT),
            events.Leave: _stay(_S.ABSENT),
            events.Direct: _stay(_S.ABSENT),
        },
    ),
    _S.CATCHING_UP: _round_row(
        _S.CATCHING_UP,
        {
            events.Committed: _stay(_S.CATCHING_UP, _S.CLOSING, _S.PAUSED, *_ROUND_START),
            events.Adopted: _stay(_S.CATCHING_UP),
            # back from a restart: the last neighbour's word, or the end of the patience for it
            events.Resumed: _BACK,
            events.StatementReceived: _BACK | {_S.ABSENT, _S.DONE},
            events.TimerFired: _BACK,
        },
    ),
    _S.PAUSED: _round_row(
        _S.PAUSED,
        {
            events.Resume: _NEXT_ROUND,
            # paused because too few contribute: a heartbeat, or its absence for a week, ends it
            events.StatementReceived: _NEXT_ROUND | {_S.ABSENT, _S.DONE},
            events.TimerFired: _NEXT_ROUND | {_S.ABSENT},
        },
    ),
    _S.CLOSING: _row(
        _S.CLOSING,
        {
            events.StatementReceived: _stay(_S.CLOSING, _S.DONE),
            events.TimerFired: _stay(_S.CLOSING),
            events.Mixed: _stay(_S.CLOSING),
            events.Committed: _stay(_S.CLOSING, _S.DONE),
            events.Pause: _stay(_S.CLOSING),
            events.Resume: _stay(_S.CLOSING),
            events.Leave: _stay(_S.CLOSING),
            events.Direct: _stay(_S.CLOSING),
        },
    ),
    _S.DONE: _row(
        _S.DONE,
        {
            events.TimerFired: _stay(_S.DONE),
            events.Leave: _stay(_S.DONE),
            # the own part is over, the others' may be paused
            events.Direct: _stay(_S.DONE),
            # a site that left a round and closed: the worker's answer comes when it comes
            events.Trained: _stay(_S.DONE),
            events.TrainingFailed: _stay(_S.DONE),
            events.Encoded: _stay(_S.DONE),
            events.Mixed: _stay(_S.DONE),
            events.Adopted: _stay(_S.DONE),
        },
    ),
}
