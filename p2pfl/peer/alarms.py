"""Evidence against other members' logs: kept as a file, in the log, and in the witness store, in this order."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from p2pfl.audit import Evidence, LogMisbehaviour, NewEntry, WitnessFinding, WitnessStore
from p2pfl.crypto import log_origin, open_checkpoint, sha256
from p2pfl.files import write_atomic
from p2pfl.types import PeerId

Commit = Callable[[NewEntry], Awaitable[int]]
Told = Callable[[str, dict[str, Any]], None]

_log = logging.getLogger("p2pfl.witness")


class Alarms:
    """What one peer, ``me``, has evidence of. ``commit`` writes an entry, ``told`` hears (topic, facts)."""

    def __init__(
        self, me: PeerId, consortium: str, store: WitnessStore, folder: Path, commit: Commit, told: Told
    ) -> None:
        self._me, self._consortium, self._store = me, consortium, store
        self._folder, self._commit, self._told = folder, commit, told
        self._sounding: set[PeerId] = set()
        found = store.findings()
        self._files = {item.log: folder / item.file for item in found}
        self.accused: dict[str, str] = {item.log: item.claim for item in found}
        """Members of whose logs there is evidence, and what it shows."""
        self.on_kept: Callable[[Path, PeerId | None], None] = lambda path, sender: None
        """Told of each file that was made, and who had sent the evidence (None: it was found here)."""

    def files(self) -> list[Path]:
        """The evidence kept here, one file for each accused log."""
        return list(self._files.values())

    async def sound(self, shown: LogMisbehaviour, sender: PeerId | None = None) -> None:
        """Keep the first evidence against a log, write it down, tell people. ``sender``: who told it, checked here."""
        owner = PeerId(str(shown.peer))
        if owner in self.accused or owner in self._sounding:
            return
        self._sounding.add(owner)
        origin, milliseconds = log_origin(self._consortium, owner), time.time_ns() // 1_000_000
        found = {"by": self._me, "at": milliseconds, **({} if sender is None else {"from": sender})}
        data = Evidence(shown.claim, owner, origin, shown.notes, shown.answer, found).encode()
        name = f"{shown.claim}-{owner[-12:]}-{sha256(b''.join(shown.notes))[:12]}.json"
        sizes = [open_checkpoint(note, origin, owner).size for note in shown.notes]
        body = {"peer": owner, "claim": shown.claim, "sizes": sizes, "file": f"evidence/{name}"}
        await asyncio.to_thread(self._write, name, data)
        await self._commit(NewEntry("log_misbehaviour", body, (("evidence", data),)))
        await asyncio.to_thread(self._store.find, WitnessFinding(owner, shown.claim, name, milliseconds // 1000))
        self._files[owner] = self._folder / name
        self.accused[owner] = shown.claim  # last: what is cut off before is found again with the next question
        _log.warning("%s", shown)
        self._told("alarm", {"peer": owner, "claim": shown.claim, "file": f"evidence/{name}"})
        self.on_kept(self._folder / name, sender)

    def _write(self, name: str, data: bytes) -> None:
        self._folder.mkdir(exist_ok=True, mode=0o700)
        write_atomic(self._folder / name, data)
