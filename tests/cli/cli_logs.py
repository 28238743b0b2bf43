"""Logs of the homes in cli_worlds, written anew, and what their neighbours hold of them."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path

from p2pfl.audit import AuditLog, HeldHead, NewEntry, SeenHead, WitnessStore
from p2pfl.peer import open_home

NOW = 1_700_000_000_000
"""Unix milliseconds."""


def data(name: str) -> NewEntry:
    """An entry that concerns nobody else."""
    return NewEntry("data_registered", {"tag": "toy", "fingerprint": name, "rows": 1})


def write(
    world: Path, name: str, *texts: str, epoch: NewEntry | None = None, more: Sequence[NewEntry] = ()
) -> AuditLog:
    """A log of a home's key, anew, one commit per entry; closed. ``epoch`` opens an epoch at its end, then ``more``.

    The same entries give the same log: no text in it is salted.
    """
    home = open_home(world / name)
    for file in (world / name).glob("audit.db*"):
        file.unlink()
    identity = home.identity(None)
    with AuditLog.create(home.audit, identity, NOW, "north") as log:
        log.append([data("the first")], NOW)
        for text in texts:
            log.append([data(text)], NOW)
        if epoch is not None:
            log.append([epoch], NOW, int(epoch.body["epoch"]))
        for entry in more:
            log.append([entry], NOW)
    return log


def name_of(log: AuditLog) -> str:
    """The owner's peer id."""
    return log.origin.rpartition("/")[2]


def holds(world: Path, witness: str, owner: AuditLog, *, seen: bool = False, epoch: int = 0) -> None:
    """The witness has checked, or only seen, the newest checkpoint of this log."""
    head, peer = owner.head, name_of(owner)
    with contextlib.closing(WitnessStore(world / witness / "witness.db")) as store:
        if seen:
            store.see([SeenHead(peer, peer, epoch, head.size, head.note)])
        else:
            store.accept(peer, store.newest(peer), HeldHead(epoch, head.size, head.root, head.note, NOW // 1000))
