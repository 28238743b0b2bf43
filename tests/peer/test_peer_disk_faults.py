"""A disk that is full, fails or cannot be written: the peer stops and says so, and goes on once it is mended."""

from __future__ import annotations

import os
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hospitals import Hospital, all_up, found_quickly, free_port, until, verified, write_plan
from mounts import failing_disk, immutable_log, small_disk
from test_peer_kills import NAMES, begin, is_over, one_core_for_each_place, start_again
from test_peer_witnesses import found, grow, up
from test_peer_witnesses import until as soon

import p2pfl
from p2pfl.errors import StoreError
from p2pfl.net import MemoryNetwork
from p2pfl.peer import open_home
from p2pfl.peer.disk import as_store_error, disk_finding, disk_problem

VICTIM = "amiens"
ROUNDS = 100
GOES_ON = 5  # rounds that the others mix meanwhile

KINDS = {
    "full": (small_disk, "No space left on device|disk is full"),
    # ext4 finds no room where it cannot read which blocks are free
    "failing": (failing_disk, "I/O error|Input/output error|Read-only file system|No space left on device"),
    "immutable": (immutable_log, "I/O error|readonly|Operation not permitted"),
}


class OnDisk(Hospital):
    """A hospital whose home lies on a disk of its own; what it prints does not."""

    @property
    def log_file(self) -> Path:
        return self.folder.parent / f"{self.name}.log"


@pytest.mark.slow
@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="mounting disks needs root")
@pytest.mark.timeout(240)
@pytest.mark.parametrize("kind", list(KINDS))
def test_a_peer_whose_disk_fails_stops_and_goes_on_when_it_is_mended(tmp_path: Path, kind: str) -> None:
    make, said = KINDS[kind]
    with make(tmp_path / "disk") as disk:
        victim = OnDisk(disk.folder, VICTIM, None)
        others = [
            Hospital(tmp_path, name, f"/ip4/127.0.0.1/tcp/{free_port()}" if number % 2 == 0 else None)
            for number, name in enumerate(NAMES[:-1])
        ]
        hospitals = [*others, victim]
        found_quickly(tmp_path, hospitals)
        plan = write_plan(tmp_path / "plan", rounds=ROUNDS, deadline=4.0, local_steps=200)
        with all_up(hospitals), ThreadPoolExecutor(4) as pool:
            begin(hospitals, plan, pool)
            until(lambda: len(victim.entries("mixed")) >= 3, 90, victim.last_words)
            disk.spoil()
            until(lambda: not victim.running(), 60, victim.last_words)
            mixed = len(others[0].entries("mixed"))
            it_said_so(victim, said)
            until(lambda: len(others[0].entries("mixed")) >= mixed + GOES_ON, 60, others[0].last_words)
            disk.mend()
            verified(victim)
            one_core_for_each_place(victim, others)
            start_again(victim)
            for hospital in hospitals:
                report = until(hospital.report, 120, hospital.last_words)
                assert report["finished"]
                until(lambda hospital=hospital: is_over(hospital), 60, hospital.last_words)
            one_core_for_each_place(victim, others)
            for hospital in hospitals:
                verified(hospital)


def it_said_so(victim: Hospital, said: str) -> None:
    """On standard error, by exit code, by `status` and by `doctor`."""
    assert victim.process is not None and victim.process.returncode == 1
    assert re.search(said, victim.log_file.read_text().splitlines()[-1]), victim.last_words()
    with ThreadPoolExecutor(2) as pool:
        status, doctor = pool.map(lambda verb: victim.attempt(verb, str(victim.home)), ("status", "doctor"))
    assert status.returncode == 1 and "no peer is running" in status.stderr and "cannot be written" in status.stderr
    assert doctor.returncode == 1
    assert any(line.startswith("broken  disk") for line in doctor.stdout.splitlines()), doctor.stdout


async def test_a_peer_whose_log_cannot_be_written_sends_nothing_more(tmp_path: Path) -> None:
    """Also where a program keeps the peer open that has failed."""
    a, b = found(tmp_path, "ab")
    async with up(a, b, network=MemoryNetwork()) as (first, second):
        await soon(lambda: second.links())
        first._journal.log._connection.execute("PRAGMA query_only = ON")
        with pytest.raises(StoreError, match="readonly"):
            await grow(first)
        await first.failed.wait()
        assert "free or repair the disk" in str(first.failure)
        assert "free or repair the disk" in first.status()["failure"]
        await soon(lambda: not second.links())
        assert not first.links()
    assert p2pfl.verify_log(a / "audit.db").ok


def test_the_disk_of_a_home_is_tried(tmp_path: Path) -> None:
    home = open_home(found(tmp_path, "ab")[0])
    before = sorted(home.path.iterdir())
    assert disk_problem(home) is None
    assert disk_finding(home).check == "disk" and "synced" in disk_finding(home).text
    assert sorted(home.path.iterdir()) == before


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_disks_refusal_is_said_as_such() -> None:
    with pytest.raises(OSError) as full, Path("/dev/full").open("wb", buffering=0) as file:
        file.write(b"x")
    found = as_store_error(full.value)
    assert isinstance(found, StoreError) and "No space left on device; see `p2pfl doctor`" in str(found)
    with pytest.raises(OSError) as missing:
        Path("/proc/nothing-of-this-name").read_bytes()
    assert as_store_error(missing.value) is missing.value
    assert isinstance(as_store_error(PermissionError(1, "not permitted", "file")), StoreError)
    refused = PermissionError(1, "not permitted")  # as a packet filter answers
    assert as_store_error(refused) is refused
