"""The ten worst seeds of the fault matrix (tests/sim/worst.txt) again, with real processes over tcp.

Sites, graph, victim, state, round and fault are those of the row. Where reality is not the simulator:

- A peer is seen in a state when its status says so over the control socket, asked every millisecond; the signal is on
  its way within some milliseconds more, so a commit or a mixing that lasts as long may just be over: by
  the logs the ended processes were in the state, or in the commit after it. A state that was missed in its round is
  taken in a later one (up to ``MISSED``); "catching up" and "closing", which come once, as soon as they are told of.
- Seconds are counted in rounds of the others (a virtual round takes ``ROUND`` seconds): how long a process is stopped,
  or down before it starts. A start takes longer than a round here, so there are more rounds after the one struck.
- "Disk lost": everything in the home but what a hospital keeps in its safe (``SAFE``); the simulator's empty
  site knows the proposal all the same, here a neighbour must tell it while the run is open. "Backup": the home as it was
  while its process was stopped for the copy. "Full disk": the process may not let files grow (RLIMIT_FSIZE).
- A process stopped for long loses its links after 15 s by the wall clock, as in the simulator; here the others are
  mostly done by then, and have only stopped to wait for it.
"""

from __future__ import annotations

import contextlib
import json
import resource
import shutil
import signal
import socket
import time
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from bottle import Quadratic
from hospitals import STOP_TIME, TAG, Hospital, all_up, free_port, until, verified, write_plan
from matrix import CLOSING_ROUNDS, FAULTS, FORGETFUL, Case, lead_to, world_of
from worst import rows

from p2pfl.audit import read_entries, verify_log
from p2pfl.errors import P2PFLError
from p2pfl.gossip import State
from p2pfl.peer import found_consortium, open_home
from p2pfl.peer.control import short_path
from p2pfl.sim import Crash, Fault, FullDisk, InState, Pause
from p2pfl.sim.triggers import Triggers

ROUND = 1.1  # virtual seconds of an undisturbed round in the matrix
ROUNDS = 30
DEADLINE = 5.0
PATIENCE = 8.0  # seconds for approvals
MISSED = 3  # rounds in which a short state may not have been seen
LOOK = 0.001  # seconds between two looks at the status
LIMIT = 60.0  # seconds for anything to happen
SAFE = ("home.toml", "identity.key", "tls.key", "member.record", "charter", "data.json")
ONCE = {State.CATCHING_UP: "catching up", State.CLOSING: "closing"}  # and the event that tells of it
pytestmark = [pytest.mark.slow, pytest.mark.timeout(150)]


@dataclass
class Scene:
    """A row of the table with its processes."""

    case: Case
    hospitals: list[Hospital]
    victim: Hospital
    when: InState
    fault: Fault
    lead: Pause | None  # what brings the victim into the state
    topology: dict[str, Any]
    former: list[Path] = field(default_factory=list)  # logs of disks that are lost

    @property
    def others(self) -> list[Hospital]:
        return [hospital for hospital in self.hospitals if hospital is not self.victim]


def scene_of(case: Case, folder: Path) -> Scene:
    """Read from the simulator what the row is, and make the homes."""
    world, number, draw = world_of(case)
    when = lead_to(world, case, number, draw)
    fault = FAULTS[case.fault](world, number, draw)
    assert fault is not None
    lead = _lead(world.triggers)
    hospitals = [Hospital(folder, f"site-{site.number}", f"/ip4/127.0.0.1/tcp/{free_port()}") for site in world.sites]
    topology = dict(world.proposal.topology)
    listen = {hospital.home: str(hospital.listen) for hospital in hospitals}
    names = [hospital.name for hospital in hospitals]
    found_consortium(dict.fromkeys(listen), "worst", topology, listen=listen, names=names)
    tables = Quadratic.make([site.samples // 10 + 4 for site in world.sites]).write(folder)
    for hospital, file in zip(hospitals, tables, strict=True):
        open_home(hospital.home).registry.add(TAG, file, now=int(time.time()))
    return Scene(case, hospitals, hospitals[number], when, fault, lead, topology)


def _lead(triggers: Triggers) -> Pause | None:
    waiting = triggers.waiting
    assert len(waiting) <= 1 and all(isinstance(fault, Pause) for fault in waiting)
    return next((fault for fault in waiting if isinstance(fault, Pause)), None)


# --- what is seen from outside


def status_of(hospital: Hospital) -> dict[str, Any] | None:
    """Its only run, as it says itself; None while it does not answer or knows of none."""
    try:
        with short_path(hospital.home / "control.sock") as path, socket.socket(socket.AF_UNIX) as channel:
            channel.settimeout(5.0)
            channel.connect(path)
            channel.sendall(b'{"verb": "status"}\n')
            answer = json.loads(b"".join(iter(lambda: channel.recv(1 << 16), b"")))
    except (OSError, ValueError):
        return None
    runs: list[dict[str, Any]] = answer["value"]["runs"]
    return runs[0] if runs else None


def reached(scene: Scene, state: State, round_: int | None) -> bool:
    """Whether the victim is there now."""
    status = status_of(scene.victim)
    if status is None:
        return False
    if state is State.PROPOSING:
        return status["state"] == str(state) and bool(scene.victim.entries("plan_approved"))
    if state in ONCE and scene.victim.said(ONCE[state]):
        return True
    return status["state"] == str(state) and status["round"] >= (round_ or 0)


def wait_for(scene: Scene, state: State, round_: int | None) -> None:
    """Until the victim is in the state."""
    end = time.monotonic() + LIMIT
    while not reached(scene, state, round_):
        assert time.monotonic() < end and scene.victim.running(), scene.victim.last_words()
        time.sleep(LOOK)


def others_at(scene: Scene) -> int:
    """The furthest round of the others; ``ROUNDS`` and more when one of them is through."""
    rounds = [0]
    for other in scene.others:
        status = status_of(other)
        if status is not None:
            rounds.append(10 * ROUNDS if status["state"] == str(State.DONE) else status["round"])
    return max(rounds)


def let_pass(scene: Scene, seconds: float) -> None:
    """So many virtual seconds, counted in rounds of the others; none while the run has not begun."""
    if scene.when.state is not State.PROPOSING:
        target = others_at(scene) + round(seconds / ROUND)
        until(lambda: others_at(scene) >= min(target, ROUNDS), LIMIT, scene.others[0].last_words)


# --- what happens to it


def stop_for(scene: Scene, seconds: float) -> None:
    """SIGSTOP, and SIGCONT after a while."""
    scene.victim.send(signal.SIGSTOP)
    let_pass(scene, seconds)
    scene.victim.send(signal.SIGCONT)


def was_near(scene: Scene) -> None:
    """By the log of the ended process: it was in the round of the row or, where its state was missed, the next ones."""
    verified(scene.victim)
    stored = [entry.body["round"] for entry in scene.victim.entries("state_stored")]
    if scene.when.round is not None:
        assert scene.when.round - 1 <= stored[-1] <= scene.when.round + MISSED
    elif scene.when.state is State.CLOSING:
        assert stored[-1] >= ROUNDS
    elif scene.when.state is State.PROPOSING:
        assert not stored and scene.victim.entries("plan_approved")
    else:
        assert stored  # that it was catching up, its status said; the line about it may not have left the process


def fill_disk(scene: Scene, seconds: float) -> None:
    """No file of the process grows any more: its next commit must end it, and it starts when there is space."""
    process = scene.victim.process
    assert process is not None
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (0, 0))
    assert process.wait(LIMIT) != 0, "it says that it could not go on"
    was_near(scene)
    let_pass(scene, seconds)
    start_again(scene.victim)


def crash(scene: Scene, fault: Crash, backup: Path) -> None:
    """SIGKILL; then the disk is what the fault makes of it, and it starts again unless it is gone for good."""
    victim = scene.victim
    victim.kill()
    was_near(scene)
    if fault.disk != "kept":
        lost = victim.folder / "lost"
        victim.home.rename(lost)
        scene.former.append(lost / "audit.db")
        if fault.disk == "backup":
            shutil.copytree(backup, victim.home)
        else:
            victim.home.mkdir(mode=0o700)
            for name in SAFE:
                shutil.copy2(lost / name, victim.home / name)
    if fault.back_after is not None:
        let_pass(scene, fault.back_after)
        start_again(victim)


def start_again(victim: Hospital) -> None:
    lives = len(victim.said("up"))
    victim.up()
    until(lambda: len(victim.said("up")) > lives or not victim.running(), LIMIT, victim.last_words)
    assert victim.running(), victim.last_words()


def take_backup(scene: Scene, seconds: float, target: Path) -> None:
    """The home as it was so many virtual seconds after the proposal, of which one goes by before the run begins."""
    wait_for(scene, State.TRAINING, max(0, int((seconds - 1.0) / ROUND)))
    scene.victim.send(signal.SIGSTOP)
    shutil.copytree(scene.victim.home, target, ignore=shutil.ignore_patterns("control.sock"))
    scene.victim.send(signal.SIGCONT)


def strike(scene: Scene, folder: Path) -> None:
    """Bring the victim into its state, and let the fault happen there."""
    fault, backup = scene.fault, folder / "backup"
    if isinstance(fault, Crash) and fault.backup_at is not None:
        take_backup(scene, fault.backup_at, backup)
    if scene.lead is not None:
        wait_for(scene, State.TRAINING, 1)
        stop_for(scene, scene.lead.seconds)
    wait_for(scene, scene.when.state, scene.when.round)
    match fault:
        case Pause(seconds=seconds):
            stop_for(scene, seconds)
        case FullDisk(free_after=seconds):
            assert seconds is not None
            fill_disk(scene, seconds)
        case Crash():
            crash(scene, fault, backup)
        case _:
            raise AssertionError(f"no way to do {fault} to a real process")


def approve_all(scene: Scene, plan: Path, pool: ThreadPoolExecutor) -> None:
    """The first site proposes, as in the matrix; the others approve, one of them perhaps killed meanwhile."""
    options = {"topology": scene.topology, "patience": PATIENCE, "seed": scene.case.seed}
    run = str(scene.hospitals[0].ask("propose", plan=str(plan), **options)["run"])

    def agree(hospital: Hospital) -> None:
        until(lambda: status_of(hospital) is not None, LIMIT, hospital.last_words)
        with contextlib.suppress(P2PFLError):  # the victim may be gone before it answers
            hospital.ask("approve", run=run)

    for hospital in scene.hospitals[1:]:
        pool.submit(agree, hospital)


# --- what must hold


def live(scene: Scene) -> list[Hospital]:
    return [hospital for hospital in scene.hospitals if hospital.running()]


def records(scene: Scene) -> list[Any] | None:
    """The completion records of all whose part is over; None while somebody is at work, or lacks a live one's word.

    A disk that is lost or older takes what its site had heard with it: as in the matrix its own record is not compared.
    """
    keeping = [item for item in live(scene) if item is not scene.victim or scene.case.fault not in FORGETFUL]
    reports = [hospital.report() for hospital in keeping]
    if any(report is None for report in reports):
        return None
    found = [report["completion"] for report in reports if report]
    there = {hospital.peer_id for hospital in keeping}
    stated = all(row["finished"] is not None for record in found for row in record if row["peer"] in there)
    return found if stated and all(record == found[0] for record in found) else None


def victim_is_through(scene: Scene) -> bool:
    """Its part is over, or after the loss of its disk it has no run, or one that it waits in vain to begin."""
    if not scene.victim.running() or scene.victim.report() is not None:
        return True
    status = status_of(scene.victim)
    lost = isinstance(scene.fault, Crash) and scene.fault.disk == "lost"
    return lost and (status is None or status["state"] in (str(State.PROPOSING), str(State.DONE)))


def one_core_for_each_place(scene: Scene) -> None:
    """Over all logs, those of lost disks too: what each site signed, and what reached the others under its name."""
    cores: defaultdict[tuple[Any, ...], set[str]] = defaultdict(set)
    for hospital in scene.hospitals:
        logs = [hospital.home / "audit.db", *(scene.former if hospital is scene.victim else ())]
        for log in logs:
            for entry in read_entries(log, 0):
                body = entry.body
                if entry.kind == "delta_sent":
                    cores[hospital.peer_id, body["round"], body["step"], body["channel"]].add(body["core"])
                elif entry.kind == "delta_received":
                    cores[body["peer"], body["round"], body["step"], body["channel"]].add(body["core"])
    assert len(cores) > ROUNDS
    assert {place: found for place, found in cores.items() if len(found) > 1} == {}


def nobody_lost_standing(scene: Scene) -> None:
    """Nobody is refused for what a fault made it do."""
    for hospital in scene.hospitals:
        verified(hospital)
        assert hospital.entries("equivocation") == []
        assert [entry.body["reason"] for entry in hospital.entries("refused")] == []
        assert "Traceback" not in hospital.log_file.read_text()
    for log in scene.former:
        assert verify_log(log, scene.victim.peer_id).ok


def words(hospitals: Sequence[Hospital]) -> str:
    return "".join(hospital.last_words() for hospital in hospitals)


@pytest.mark.parametrize("case", rows(), ids=lambda case: str(case).replace(" ", "-"))
def test_a_worst_seed_with_real_processes(case: Case, tmp_path: Path) -> None:
    scene = scene_of(case, tmp_path)
    plan = write_plan(
        tmp_path / "plan", rounds=ROUNDS, deadline=DEADLINE, closing_rounds=CLOSING_ROUNDS, local_steps=500
    )
    with all_up(scene.hospitals), ThreadPoolExecutor(len(scene.hospitals)) as pool:
        approve_all(scene, plan, pool)
        strike(scene, tmp_path)
        until(lambda: records(scene) is not None, LIMIT, lambda: words(scene.hospitals))
        until(lambda: victim_is_through(scene), LIMIT, scene.victim.last_words)
        for hospital in live(scene):
            if hospital is not scene.victim:
                report = hospital.report()
                assert report is not None and report["finished"], report
    assert scene.victim.process is not None and scene.victim.process.wait(STOP_TIME) is not None
    one_core_for_each_place(scene)
    nobody_lost_standing(scene)
