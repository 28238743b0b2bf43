"""What strace sees of a real peer: the commit that lets a delta out is on the disk before the announcement is sent.

Links are encrypted, so an announcement and the delta that is pulled after it are known by their sizes: nothing else
that this peer sends is nearly as long.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from bottle import QUADRATIC_PLAN
from hospitals import Hospital, all_up, found_quickly, free_port, until, verified, write_plan
from tracing import needs_strace, traced

ROUNDS = 8
NUMBERS = 5000  # of the model, 8 bytes each
ANNOUNCEMENT = 2_000  # bytes: it has more, all smaller messages of such a run have fewer
CONTENT = 20_000  # bytes of one send: about half of a delta

SYNCS = ("fdatasync", "fsync")
SENDS = ("write", "writev", "sendto", "sendmsg")
WRITES = ("pwrite64",)

_CALL = re.compile(r"^(\d+) +(\w+)\((\d+)<(.*?)>(?:, (.*?))?(?:\) += (-?\d+)(?:<.*)?| <unfinished \.\.\.>)$")
_RESUMED = re.compile(r"^(\d+) +<\.\.\. (\w+) resumed>.*\) += (-?\d+)")
_CORE = re.compile(r"\b[0-9a-f]{64}\b")


class Traced(Hospital):
    """A hospital whose peer runs under strace."""

    def command(self, *arguments: str) -> list[str]:
        line = super().command(*arguments)
        return (
            [*traced(self.calls, (*SYNCS, *SENDS, *WRITES), "-D", "-yy", "-s", "4096"), *line]
            if arguments[0] == "up"
            else line
        )

    @property
    def calls(self) -> Path:
        return self.folder / f"{self.name}.calls"


def finished(lines: Sequence[str]) -> Iterator[tuple[str, str, str, int]]:
    """(call, file, arguments, result) at the place where each call returned, whatever other threads did meanwhile."""
    begun: dict[tuple[str, str], tuple[str, str]] = {}
    for line in lines:
        if match := _CALL.match(line):
            thread, call, _, file, arguments, result = match.groups()
            if result is None:
                begun[thread, call] = (file, arguments or "")
            else:
                yield call, file, arguments or "", int(result)
        elif match := _RESUMED.match(line):
            thread, call, result = match.groups()
            if (thread, call) in begun:
                yield call, *begun.pop((thread, call)), int(result)


def large_plan(folder: Path) -> Path:
    """A plan whose deltas are large, though three of their numbers are all that is trained."""
    plan = write_plan(folder, rounds=ROUNDS, deadline=20.0)
    code = QUADRATIC_PLAN.replace("torch.zeros(3)", f"torch.zeros({NUMBERS})").replace(
        "return self.x", "return self.x[:3]"
    )
    (plan / "plan.py").write_text(code)
    return plan


@pytest.mark.slow
@needs_strace
def test_each_delta_is_committed_and_synced_before_its_announcement_is_sent(tmp_path: Path) -> None:
    proposer = Hospital(tmp_path, "lille", f"/ip4/127.0.0.1/tcp/{free_port()}")
    watched = Traced(tmp_path, "caen", None)
    both = [proposer, watched]
    found_quickly(tmp_path, both)
    with all_up(both):
        run = str(proposer.ask("propose", plan=str(large_plan(tmp_path / "plan")), seed=1)["run"])
        until(lambda: any(row["run"] == run for row in watched.ask("list")), 30, watched.last_words)
        watched.ask("approve", run=run)
        for hospital in both:
            until(hospital.report, 60, hospital.last_words)
    sent = [entry.body for entry in watched.entries("delta_sent")]
    assert len(sent) >= ROUNDS and all(body["bytes"] > CONTENT for body in sent)
    until(lambda: "+++ exited" in watched.calls.read_text().splitlines()[-1], 10, "the end of the traced calls")

    cores = {body["core"] for body in sent}
    received = [entry for entry in proposer.entries("delta_received") if entry.body["core"] in cores]
    written: set[str] = set()
    synced: list[str] = []
    announced = pulled = 0
    for call, file, arguments, result in finished(watched.calls.read_text().splitlines()):
        if call in WRITES and file.endswith("audit.db-wal"):
            written |= cores.intersection(_CORE.findall(arguments)) - set(synced)
        elif call in SYNCS and file.endswith("audit.db-wal"):
            assert result == 0
            synced += sorted(written)
            written.clear()
        elif call in SENDS and result > ANNOUNCEMENT and file.startswith("TCP"):
            announced += result < CONTENT
            pulled += result >= CONTENT
            assert max(announced, pulled) <= len(synced), (
                "something left before the commit of its entry was on the disk"
            )
    assert len(synced) == len(cores) == len(sent)
    assert announced == pulled == len(received) > 0, "every announcement was seen"
    verified(watched)
