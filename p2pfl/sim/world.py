"""A consortium under a virtual clock: real machines, simulated processes, links, disks and misfortune."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from p2pfl.audit import Verification
from p2pfl.crypto import pack, sha256
from p2pfl.errors import ConfigError
from p2pfl.gossip import ArgumentProblem, Machine, Proposal, State
from p2pfl.gossip.messages import Core
from p2pfl.sim.clock import EVENT_LIMIT, Clock
from p2pfl.sim.compute import ComputeModel
from p2pfl.sim.disk import Disk
from p2pfl.sim.draws import raw, uniform
from p2pfl.sim.faults import Fault
from p2pfl.sim.links import LinkModel
from p2pfl.sim.members import Member
from p2pfl.sim.network import Network
from p2pfl.sim.site import Site
from p2pfl.sim.tags import CheapKit, Kit, RealKit
from p2pfl.sim.trace import Trace
from p2pfl.sim.training import StubTraining, Trainer
from p2pfl.sim.triggers import Triggers, When
from p2pfl.topology import build_graph
from p2pfl.types import CATCH_UP_ROUNDS, ChannelSpec, Digest, PeerId, Roster
from p2pfl.types import Member as RosterMember

KITS: Mapping[str, type[CheapKit] | type[RealKit]] = {"cheap": CheapKit, "real": RealKit}


class VirtualConsortium:
    """One run of ``sites`` members, numbered from 0 in the charter's order, from the proposal to the end.

    The same arguments give the same run, byte for byte (with real signatures: event for event, since content keys are
    random). ``training`` is "stub" or makes a loaded trainer for a site number. ``linked``: "all" pairs keep links, or
    only those of the "graph". ``staleness`` above 0: an asynchronous run. ``content_bytes``: simulated size of each
    delta, which is then pulled; 0 sends the real bytes, inside announcements where they fit. ``closing_bytes``: of
    those of closing rounds, where it is another. ``argument_problem`` and
    ``tolerance`` are what the plan says about a change of arguments (by default: all is allowed) and about distances at
    the end. ``local_steps``: of all sites, or of each. ``folder`` takes audit logs (``audited``) and real sessions'
    files.
    """

    def __init__(
        self,
        sites: int = 6,
        *,
        topology: str | Mapping[str, Any] = "ring",
        rounds: int = 8,
        closing_rounds: int = 0,
        seed: int = 0,
        links: LinkModel | None = None,
        compute: ComputeModel | None = None,
        signatures: str = "cheap",
        training: str | Callable[[int], Trainer] = "stub",
        linked: str = "all",
        samples: Sequence[int] | None = None,
        deadline: float = 30.0,
        patience: float = 60.0,
        catch_up_rounds: int = CATCH_UP_ROUNDS,
        approve_after: float = 0.5,
        local_steps: int | Sequence[int] = 1,
        staleness: int = 0,
        content_bytes: int = 0,
        closing_bytes: int | None = None,
        minimum_contributors: int = 1,
        argument_problem: ArgumentProblem = lambda arguments: None,
        tolerance: float | None = None,
        folder: Path | None = None,
        audited: bool = False,
    ) -> None:
        _check(signatures, training, linked)
        self.seed, self.approve_after = seed, approve_after
        self.local_steps = [local_steps] * sites if isinstance(local_steps, int) else list(local_steps)
        if len(self.local_steps) != sites:
            raise ConfigError(f"local steps of {len(self.local_steps)} sites for {sites}; give one number, or one each")
        self.content_bytes, self.audited, self.staleness = content_bytes, audited, staleness
        self._rounds, self._closing_bytes = rounds, closing_bytes
        self.argument_problem, self.tolerance = argument_problem, tolerance
        self.compute, self.clock = compute or ComputeModel(), Clock()
        self.kit: Kit = KITS[signatures]()
        self.network = Network(self.clock, links or LinkModel(), seed)
        self.trace = Trace(whole=self.kit.repeatable)
        self.triggers = Triggers(self)
        self.approving: Collection[int] = range(sites)
        self.refused: list[tuple[int, str]] = []  # flooded statements that must not travel: (site, why)
        self.commands: list[tuple[int, Any, bool]] = []  # users' commands: (site, event, whether it was possible)
        self._training = training
        self._backups: dict[int, tuple[Disk, Path | None]] = {}
        self.peers: list[PeerId] = [self.kit.identity(seed, number).peer_id for number in range(sites)]
        self.numbers = {peer: number for number, peer in enumerate(self.peers)}
        self.roster = _roster(self.peers, minimum_contributors)
        spec = {"kind": topology} if isinstance(topology, str) else dict(topology)
        self.proposal, self.initial = self._propose(spec, rounds, closing_rounds, deadline, patience, catch_up_rounds)
        self.sites = self._sites(samples, folder)
        self._wire(spec if linked == "graph" else {"kind": "full"}, rounds + closing_rounds)

    def bytes_of(self, round_: int) -> int:
        """Simulated size of a delta of this round, of the rounds as they were planned; 0: that of its real bytes."""
        closing = self._closing_bytes is not None and round_ >= self._rounds
        return self._closing_bytes or 0 if closing else self.content_bytes

    def _propose(
        self,
        topology: dict[str, Any],
        rounds: int,
        closing_rounds: int,
        deadline: float,
        patience: float,
        catch_up_rounds: int,
    ) -> tuple[Proposal, bytes]:
        trainer = self.new_trainer(0)
        initial = trainer.initial(self.seed)
        rows = trainer.begin(initial, bytes(32), bytes(32), 1.0)
        channels = tuple(ChannelSpec(row["name"], row["size"], Digest(row["base"])) for row in rows)
        proposal = Proposal(
            charter=self.roster.charter, plan=sha256(b"plan of a simulation"), bundle=pack("simulation"),
            proposer=self.peers[0], nonce=raw(16, self.seed, "nonce"), initial=sha256(initial),
            initial_size=len(initial), channels=channels, seed=self.seed % 2**31, topology=topology,
            rounds=rounds, closing_rounds=closing_rounds, deadline=float(deadline), patience=float(patience),
            staleness=self.staleness,
            catch_up_rounds=catch_up_rounds,
        )  # fmt: skip
        return proposal, initial

    def _sites(self, samples: Sequence[int] | None, folder: Path | None) -> list[Site]:
        numbers = range(len(self.peers))
        counts = samples or [20 + int(180 * uniform(self.seed, "samples", number)) for number in numbers]
        return [Site(self, number, counts[number], folder and folder / f"site-{number}") for number in numbers]

    def _wire(self, graph: dict[str, Any], rounds: int) -> None:
        for site in self.sites:
            self.network.add(site)
        edges = build_graph(graph, self.peers, rounds).edges
        self.network.want(sorted((self.numbers[one], self.numbers[other]) for one, other in edges))

    def new_trainer(self, number: int) -> Trainer:
        """A worker for a site, before any run."""
        if callable(self._training):
            return self._training(number)
        return StubTraining(self.seed, number, staleness=self.staleness)

    # --- what happens

    def begin(self, approving: Collection[int] | None = None) -> None:
        """All processes start; the proposal is known; these sites' users (None: all) approve it after a while."""
        if approving is not None:
            self.approving = approving
        for site in self.sites:
            site.start()

    def inject(self, fault: Fault, when: When) -> None:
        """Have a fault strike."""
        self.triggers.add(fault, when)

    def corrupt(self, number: int, member: Member) -> None:
        """From now on this site's shell is hostile."""
        self.sites[number].member = member

    def run(
        self,
        until: Callable[[], bool] | None = None,
        *,
        limit_seconds: float | None = None,
        limit_events: int = EVENT_LIMIT,
    ) -> bool:
        """See `Clock.run`; without ``until``, to the point where nothing is left to do."""
        return self.clock.run(until, limit_seconds=limit_seconds, limit_events=limit_events)

    def take_backup(self, number: int) -> None:
        """Copy a site's disk as it is now."""
        site = self.sites[number]
        self._backups[number] = (site.disk.copy(), site.audit.backup() if site.audit else None)

    def put_back(self, number: int, *, empty: bool) -> None:
        """The disk of a site that is not running becomes its last backup, or an empty one."""
        site = self.sites[number]
        disk, file = (Disk(), None) if empty else self._backups.get(number, (Disk(), None))
        site.disk = disk.copy()
        if site.audit is not None:
            site.audit.put_back(file)

    # --- what came of it

    @property
    def now(self) -> float:
        """Virtual time in seconds."""
        return self.clock.now

    def site_of(self, peer: PeerId) -> Site:
        """A site by its peer id."""
        return self.sites[self.numbers[peer]]

    def done(self) -> bool:
        """Every site's part is done, or the site is gone for good."""
        return all(site.finished for site in self.sites)

    def states(self) -> list[State | None]:
        """Where each machine stands; None where none runs."""
        return [site.state for site in self.sites]

    @property
    def machines(self) -> list[Machine]:
        """The machines in order of the sites; after a crash the one that died, or its successor."""
        return [site.running for site in self.sites]

    def entries(self, number: int, kind: str) -> list[Mapping[str, Any]]:
        """Bodies of the committed log entries of one kind at one site."""
        return self.sites[number].disk.rows(kind)

    def cores(self, number: int) -> list[Core]:
        """All cores that a site's honest shell ever signed, in order."""
        return self.sites[number].cores

    def contradictions(self) -> list[tuple[int, Core, Core]]:
        """Pairs of different cores that one site's honest shell signed for one place: there must be none."""
        found = []
        for site in self.sites:
            first: dict[tuple[int, int, str, str], Core] = {}
            for core in site.cores:
                if first.setdefault(core.key, core) != core:
                    found.append((site.number, first[core.key], core))
        return found

    def statements(self, number: int) -> list[bytes]:
        """The flooded statements that a site keeps."""
        return self.sites[number].disk.statements

    def settled(self) -> bool:
        """Every participant ended with a model, and no edge stayed open or became bias."""
        started = [site.machine for site in self.sites if site.machine and site.machine.context.start]
        shares = started[0].context.running.shares if started else {}
        sites = [self.site_of(peer) for peer in shares]
        return bool(sites) and all(site.result is not None and not site.disk.rows("edge_unsettled") for site in sites)

    def imbalance(self) -> float:
        """max |sum_i pi_i (x_i - x_0 - own displacements_i)| of stub trainings: rounding once all is settled.

        ``pi``: the law of the schedule.

        A site that never trained here counts with nothing; a dead one with what its last process held.
        """
        started = next((site.machine for site in self.sites if site.machine and site.machine.context.start), None)
        if started is None:
            raise ConfigError("no run has begun; let it run first")
        total: torch.Tensor = torch.zeros(1, dtype=torch.float64)
        for peer, share in started.context.law.items():
            site = self.site_of(peer)
            trainer = site.result or (site.trainer if site.begun else None)
            if isinstance(trainer, StubTraining):
                total = total + share * (trainer.vector - trainer.expected())
        return float(total.abs().max())

    def verify_logs(self) -> list[Verification]:
        """Check every site's audit log as an outsider would."""
        return [site.audit.verify() for site in self.sites if site.audit is not None]

    def close(self) -> None:
        """Close the audit logs."""
        for site in self.sites:
            if site.audit is not None:
                site.audit.close()


def _check(signatures: str, training: object, linked: str) -> None:
    if signatures not in KITS or linked not in ("all", "graph"):
        raise ConfigError('give signatures "cheap" or "real", and linked "all" or "graph"')
    if training != "stub" and not callable(training):
        raise ConfigError('give training "stub" or a function that makes a trainer for a site number')


def _roster(peers: Sequence[PeerId], minimum: int) -> Roster:
    members = tuple(RosterMember(peer, f"site-{number}", (), True, (), 1, 2**40) for number, peer in enumerate(peers))
    charter = sha256(b"charter of a simulation")
    return Roster(charter, members, len(peers) // 2 + 1, minimum_contributors=minimum)
