"""A log that was restored from an older copy, and so is in a later epoch, is read in every form like any other."""

from __future__ import annotations

from pathlib import Path

import pytest
from audit_logs import NOW, owner

from p2pfl.audit import (
    AuditLog,
    NewEntry,
    gather_source,
    json_lines,
    open_part,
    read_entries,
    read_source,
    verify_source,
    write_tiles,
)

LOST = {"epoch": 1, "kept": 1, "lost": [[0, 9, bytes(32)]], "reason": "an older disk"}


@pytest.fixture(params=["", "Hearts of Normandy", "north/1"])
def restored(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Of no consortium, of one, and of one whose name ends like an epoch."""
    path = tmp_path / "audit.db"
    with AuditLog.create(path, owner(), NOW, request.param) as log:
        log.append([NewEntry("epoch_opened", LOST)], NOW, 1)
        log.append([NewEntry("link_up", {"peer": "x", "kind": "tcp"})], NOW)
        assert log.epoch == 1
    return path


@pytest.mark.parametrize("form", ["database", "json", "tlog"])
def test_every_form_of_a_log_in_a_later_epoch_holds(restored: Path, tmp_path: Path, form: str) -> None:
    place = restored
    if form != "database":
        place = tmp_path / form
        with open_part(restored) as part:
            if form == "tlog":
                write_tiles(part, place)
            else:
                place.write_text("".join(json_lines(part)))
    with open_part(restored) as part:
        origin = part.origin
    outcome = verify_source(place, owner().peer_id, origin)
    assert outcome.ok, outcome.problem
    assert (outcome.peer_id, outcome.origin, outcome.entries) == (owner().peer_id, origin, 3)
    assert list(read_source(place)) == list(read_entries(restored))
    assert gather_source(place, owner().peer_id, origin).losses
