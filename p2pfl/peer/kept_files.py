"""Reading what homes have kept of a run: nothing of it is believed before it is checked. Runs no plan code."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from p2pfl.audit import RunFacts
from p2pfl.crypto import sha256, unpack
from p2pfl.errors import ConfigError, RemoteError
from p2pfl.files import read_bounded
from p2pfl.gossip import Proposal, open_proposal
from p2pfl.gossip.messages import open_core
from p2pfl.governance import plan_from_bundle
from p2pfl.peer.keeping import unframed

Which = tuple[str, int, int]
"""A member's delta: peer, round, step."""
Message = tuple[bytes, str]
"""Payload and the digest of the result that its sender signed."""

ALTERED = "altered"
FILE_LIMIT = 1 << 31  # bytes of one kept file; a worker's frame is half of that
_NAME = re.compile(r"[0-9a-f]{64}\.(delta|mixed)|proposal|base|names")
NAMES_LIMIT = 16 << 20
MAX_NAMES = 1 << 20


def kept_folders(places: Iterable[Path], run: str) -> list[Path]:
    """Where deltas of this run are kept: in homes, in copies of a folder ``kept``, or of the run's own below it."""
    tried = [folder for place in places for folder in (place / "kept" / run, place / run, place)]
    return [folder for folder in dict.fromkeys(tried) if (folder / "base").is_file()]


class Missing(Exception):
    """What a mixing needs is not here, or is not what was signed."""

    def __init__(self, why: str, delta: Which | None = None) -> None:
        super().__init__(why)
        self.why = why
        self.delta = delta


class Kept:
    """The kept files of one run, wherever they lie; nothing of them is believed before it is checked."""

    def __init__(self, run: str, folders: Sequence[Path], facts: Mapping[str, RunFacts]) -> None:
        self.run = run
        self._folders = folders
        self.proposal = self._proposal()
        self.plan = plan_from_bundle(self.proposal.bundle)
        plans = {item.started.plan for item in facts.values() if item.started is not None}
        if plans - {self.plan.digest} or self.proposal.plan != self.plan.digest:
            raise ConfigError("the kept proposal is of another plan than the logs name; the folder is of another run")
        self._bases = {channel.name: channel.base for channel in self.proposal.channels}
        self.base = self._base()
        self._names = self._read_names()

    def _proposal(self) -> Proposal:
        for data in self._files("proposal"):
            try:
                _, proposal = open_proposal(data)
            except RemoteError:
                continue
            if proposal.run == self.run:
                return proposal
        raise ConfigError("no whole proposal of this run is kept; copy the folder again")

    def _base(self) -> bytes:
        """What deltas of the model channel, the first one, stand on."""
        for data in self._files("base"):
            if sha256(data) == self.proposal.channels[0].base:
                return data
        raise ConfigError("the kept first parameters are not those of the run; copy the whole folder again")

    def _read_names(self) -> list[tuple[str, int]]:
        for data in self._files("names"):
            try:
                rows = unpack(data, what="names of parameters", limit=NAMES_LIMIT, max_items=MAX_NAMES)
                return [(str(name), int(count)) for name, count in rows]
            except (RemoteError, ValueError, TypeError, OverflowError):
                continue  # only for people; the index is left
        return []

    def _files(self, name: str) -> Iterable[bytes]:
        if not _NAME.fullmatch(name):
            return  # a log may name anything; no way out of the folder
        for folder in self._folders:
            if (folder / name).is_file():
                yield read_bounded(folder / name, FILE_LIMIT)

    def deltas(self, core: str, which: Which, channel: str) -> Iterator[Message]:
        """The copies of this core's delta, which is of this member and place and signed; what they rebuild to is not
        checked against that yet. Raises Missing if there is none."""
        why, found = "no delta", False
        for data in self._files(f"{core}.delta"):
            signed, payload = unframed(data)
            try:
                envelope, opened = open_core(signed)
            except RemoteError:
                why = ALTERED
                continue
            if envelope.digest != core:
                why = ALTERED
                continue
            if (envelope.signer, opened.round, opened.step, opened.channel, opened.run) != (*which, channel, self.run):
                raise Missing("signed for another place", which)
            if opened.base != self._bases.get(channel):
                raise Missing("signed for another base", which)
            found = True
            yield payload, opened.result
        if not found:
            raise Missing(why, which)

    def left(self, digest: str | None) -> bytes | None:
        """The parameters that a mixing left, if they are here."""
        for data in self._files(f"{digest}.mixed"):
            if sha256(data) == digest and len(data) == len(self.base):
                return data
        return None

    def name(self, index: int) -> tuple[str | None, int]:
        """The tensor of an entry of the vector, and the entry's index within it."""
        start = 0
        for name, count in self._names:
            if index < start + count:
                return name, index - start
            start += count
        return None, index
