"""Two hospitals behind NATs and a third with an open port that introduces them: three `p2pfl up` processes."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bottle import Quadratic
from coturn import Coturn
from hospitals import TAG, Hospital, all_up, until
from nat_lab import KINDS, NatLab

from p2pfl.peer import found_consortium, open_home

NAMES = ("lille", "caen", "rouen")  # the two behind NATs, and who introduces them
PORT = 4101
LINK_TIME = 60.0  # seconds from the processes' start to their link; ICE alone may take 20
TRANSPORTS = ("udp", "tcp", "tls")


@dataclass(frozen=True, slots=True)
class Pairing:
    """What is tried: two kinds of NAT, the TURN transport of both, and whether the first site hides its addresses."""

    first: str
    second: str
    turn: str = "udp"
    relay_only: bool = False

    @classmethod
    def parse(cls, text: str) -> Pairing:
        """``symmetric:full-cone``, with ``:tcp``, ``:tls`` or ``:relay-only`` behind. Raises ValueError."""
        first, _, rest = text.partition(":")
        second, *options = rest.split(":")
        unknown = [part for part in (first, second) if part not in KINDS]
        unknown += [part for part in options if part not in (*TRANSPORTS, "relay-only")]
        if unknown:
            raise ValueError(f"{text}: unknown {', '.join(map(repr, unknown))}; write two of {', '.join(KINDS)}")
        if {first, second} == {"none"}:
            raise ValueError(f"{text}: one of the two must be behind a NAT")
        transports = [part for part in options if part in TRANSPORTS]
        return cls(first, second, (transports or ["udp"])[-1], "relay-only" in options)

    def __str__(self) -> str:
        options = [self.turn] * (self.turn != "udp") + ["relay-only"] * self.relay_only
        return ":".join([self.first, self.second, *options])

    @property
    def expected(self) -> str:
        """The path that must come of it: direct wherever the two NATs allow it at all (RFC 5128, 3.3)."""
        kinds = {self.first, self.second}
        hopeless = "udp-blocked" in kinds or ("symmetric" in kinds and kinds <= {"symmetric", "port-restricted"})
        return "relayed" if self.relay_only or hopeless else "direct"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the two say of their link, and how long it took."""

    link: str
    path: str
    carried: str
    """The path as the routers counted it: where most bytes went."""
    introducer: str
    seconds: float
    """From the start of both processes."""
    introduced_in: float
    """From the moment when both were linked to the introducer."""


class Pair:
    """Three founded homes in a lab. ``first`` and ``second`` have no port.

    ``trust_certificate``: the peers take the lab's self-signed certificate for TURN over tls.
    """

    def __init__(
        self, lab: NatLab, turn: Coturn, folder: Path, pairing: Pairing, *, trust_certificate: bool = True
    ) -> None:
        self.lab = lab
        self.turn = turn
        self.pairing = pairing
        self.patience = LINK_TIME
        public = f"/ip4/{lab.address(NAMES[2])}/tcp/{PORT}"
        trusted = ("env", f"SSL_CERT_FILE={turn.certificate}") if trust_certificate else ()
        self.hospitals = [
            Hospital(folder, name, public if name == NAMES[2] else None, inside=(*lab.inside(name), *trusted))
            for name in NAMES
        ]
        self.first, self.second, self.introducer = self.hospitals
        homes = [hospital.home for hospital in self.hospitals]
        listen = {self.introducer.home: public}
        found_consortium(dict.fromkeys(homes), "nat", {"kind": "full"}, listen=listen, names=NAMES)
        self._settings(self.first, relay_only=pairing.relay_only)
        self._settings(self.second)

    def _settings(self, hospital: Hospital, *, relay_only: bool = False) -> None:
        secret = hospital.home / "turn.password"
        secret.touch(mode=0o600)
        secret.write_text(self.turn.password + "\n")
        lines = [
            "",
            "[webrtc]",
            f'stun = "{self.turn.stun}"',
            f'turn = "{self.turn.turn(self.pairing.turn)}"',
            f'turn_username = "{self.turn.username}"',
            f'turn_password_file = "{secret.name}"',
            f"relay_only = {str(relay_only).lower()}",
        ]
        with (hospital.home / "home.toml").open("a") as file:
            file.write("\n".join(lines) + "\n")

    def give_data(self) -> None:
        """Three numbers to train on at each site, granted."""
        tables = Quadratic.make([8, 4, 6]).write(self.first.folder)
        for hospital, file in zip(self.hospitals, tables, strict=True):
            open_home(hospital.home).registry.add(TAG, file, now=int(time.time()))

    @contextlib.contextmanager
    def up(self) -> Iterator[Outcome]:
        """All three run, and the two are linked. AssertionError with their last words when they are not."""
        with all_up([self.introducer]):
            started = time.time()
            with all_up([self.first, self.second]):
                both = (self.first, self.second)
                until(lambda: all(self._linked(site) for site in both), self.patience, self.last_words)
                yield self._outcome(started)

    def _linked(self, hospital: Hospital) -> float | None:
        """When the link between the two came up, as the hospital's log says."""
        other = self.second if hospital is self.first else self.first
        return self._when(hospital, other)

    def _when(self, hospital: Hospital, other: Hospital) -> float | None:
        entries = [entry for entry in hospital.entries("link_up") if entry.body["peer"] == other.peer_id]
        return entries[0].time / 1000 if entries else None

    def _outcome(self, started: float) -> Outcome:
        shown = self.first.status()
        assert shown is not None, self.last_words()
        ends = [self.member(shown, self.second), self.member(self.second.ask("status"), self.first)]
        for key in ("link", "path"):
            assert ends[0][key] == ends[1][key], f"the two say different things of their link: {ends}"
        linked = max(self._linked(self.first) or 0, self._linked(self.second) or 0)
        ready = max(self._when(site, self.introducer) or 0 for site in (self.first, self.second))
        link, path = str(ends[0]["link"]), str(ends[0]["path"])
        introducers = {str(end["introducer"]) for end in ends}
        return Outcome(
            link, path, self._carried(), "/".join(sorted(introducers)), linked - started, linked - ready
        )  # fmt: skip

    def _carried(self) -> str:
        """Certificates and proofs are several times as long as all checks of addresses that led nowhere."""
        site, other = (self.second, self.first) if self.pairing.first == "none" else (self.first, self.second)
        sent = self.lab.sent(site.name)
        relayed = sum(size for (host, _), size in sent.items() if host == self.turn.address)
        return "relayed" if relayed > sent.get((self.lab.public_address(other.name), "udp"), 0) else "direct"

    @staticmethod
    def member(status: dict[str, Any], other: Hospital) -> dict[str, Any]:
        """What a status says of another site."""
        return next(member for member in status["members"] if member["name"] == other.name)

    def last_words(self) -> str:
        """Why the two are not linked, as they say, and what they printed last."""
        said = ""
        for hospital, other in ((self.first, self.second), (self.second, self.first)):
            with contextlib.suppress(Exception):  # a dead peer says nothing; its log follows
                said += f"\n{hospital.name}: {self.member(hospital.ask('status'), other)['why_not']}"
        return said + "".join(hospital.last_words() for hospital in self.hospitals)


@contextlib.contextmanager
def pair(folder: Path, pairing: Pairing, *, trust_certificate: bool = True) -> Iterator[Pair]:
    """The lab, coturn in it, and three homes; nothing runs yet."""
    kinds = dict(zip(NAMES, (pairing.first, pairing.second, "none"), strict=True))
    with NatLab(kinds) as lab, Coturn(lab, folder) as turn:
        yield Pair(lab, turn, folder, pairing, trust_certificate=trust_certificate)
