"""Verified statements of runs, for neighbours that missed them and for a restart. Owns ``runs/<run>/statements``."""

from __future__ import annotations

from p2pfl.crypto import sha256
from p2pfl.files import write_atomic
from p2pfl.gossip import kind_kept
from p2pfl.peer.home import Home

LIMIT = 256  # kept per run: four per member


class Statements:
    """One file per statement, in the order in which they came; those of runs that have a machine also in memory."""

    def __init__(self, home: Home) -> None:
        self._home = home
        self._kept: dict[str, list[bytes]] = {}

    def known(self, run: str) -> list[bytes]:
        """Of a run that this process has taken part in so far; empty for another one."""
        return list(self._kept.get(run, ()))

    def all(self, run: str) -> list[bytes]:
        """Of any run, also of one that was over before this process began."""
        return self.known(run) or self._stored(run)

    def load(self, run: str) -> list[bytes]:
        """After a restart: a run is taken up again."""
        self._kept[run] = self._stored(run)
        return self.known(run)

    def keep(self, run: str, data: bytes) -> None:
        """Store a verified statement; of directives only the newest one, which says all that its predecessors did."""
        kept = self._kept.setdefault(run, [])
        if data in kept or len(kept) >= LIMIT:
            return
        folder = self._home.run_folder(run) / "statements"
        folder.mkdir(exist_ok=True, mode=0o700)
        older = [item for item in kept if kind_kept(item) == "directive"] if kind_kept(data) == "directive" else []
        kept.append(data)
        write_atomic(folder / f"{len(kept):04d}-{sha256(data)[:16]}", data)
        for item in older:
            kept.remove(item)
            for file in folder.glob(f"????-{sha256(item)[:16]}"):
                file.unlink()

    def _stored(self, run: str) -> list[bytes]:
        folder = self._home.path / "runs" / run / "statements"
        return [file.read_bytes() for file in sorted(folder.glob("????-" + 16 * "?"))]
