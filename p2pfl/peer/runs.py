"""The runs a peer knows: proposals heard and made, approvals, statements kept for neighbours, restarts.

Owns which runs exist here. Each run has one machine and one runner; what is decided about a run is decided there.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from nacl.exceptions import CryptoError
from nacl.secret import SecretBox

from p2pfl.audit import NewEntry
from p2pfl.crypto import CHUNK, Prekey, open_envelope, sha256, sign_envelope
from p2pfl.errors import (
    ConfigError,
    LinkError,
    P2PFLError,
    PlanError,
    PolicyRefusal,
    RemoteError,
    StoreError,
)
from p2pfl.files import write_atomic
from p2pfl.gossip import Flood, Machine, Proposal, events, kind_kept, open_proposal, readable_state
from p2pfl.gossip.flood import KINDS
from p2pfl.gossip.messages import FLOOD_LIMIT, envelope_frame, open_frame
from p2pfl.gossip.statements import Approval
from p2pfl.gossip.table import State
from p2pfl.governance import Plan, plan_from_bundle
from p2pfl.peer.holdings import Holdings
from p2pfl.peer.home import Home
from p2pfl.peer.plan_checks import local_steps_of, ready_worker
from p2pfl.peer.restore import RestoredRun, restored_run
from p2pfl.peer.runner import FLOOD, RunKeys, Runner, Services
from p2pfl.peer.statements import Statements
from p2pfl.peer.states import States, StoredState
from p2pfl.peer.tasks import Tasks
from p2pfl.peer.worker import START_LIMIT, Worker
from p2pfl.topology import Schedule, build_graph
from p2pfl.types import ChannelSpec, Digest, PeerId, Roster, RunId

OPEN_PROPOSALS = 4  # per proposer; a member cannot fill the others' disks with proposals
RUN_ID_LENGTH = 64  # hexadecimal digits
PREFETCH_LIMIT = 64 * 2**20  # bytes of initial parameters fetched before the site has approved
INITIAL_PATIENCE = 30.0  # seconds; a neighbour may just be fetching them itself
INITIAL_PAUSE = 0.3  # seconds between two rounds of asking
PATIENCE = 24 * 3600.0  # seconds a proposer waits for approvals unless told otherwise


class Runs:
    """All runs of one peer under one charter."""

    def __init__(self, home: Home, roster: Roster, default_topology: Mapping[str, Any], services: Services) -> None:
        self.runners: dict[str, Runner] = {}
        self.plans: dict[str, Plan] = {}
        self._home = home
        self._default_topology = default_topology
        self._roster = roster
        self._services = services
        self._flood = Flood(roster)
        self._statements = Statements(home)
        self._proposals: dict[str, bytes] = {}
        self._tasks = Tasks(services.failed)
        self._fetching = asyncio.Lock()
        self._approving: set[str] = set()
        self._reminded: set[tuple[PeerId, RunId]] = set()  # since the neighbour's link came up
        self.me = services.identity.peer_id

    async def stop(self) -> None:
        """Stop all runs and everything under way for them."""
        await self._tasks.stop()
        for runner in self.runners.values():
            await runner.stop()

    # --- statements

    def hear(self, peer: PeerId, data: bytes) -> None:
        """A flooded statement from a neighbour: verify, keep, hand on. Raises RemoteError."""
        run, statement = open_frame(data, FLOOD_LIMIT)
        known = run in self.runners
        if not known and not self._is_proposal(run, statement):
            return  # about a run whose proposal is not known here; all of it comes again with the next link
        envelope = self._flood.hear(run, statement, asyncio.get_running_loop().time())
        over = self._is_over(run)
        if over and (envelope is None or envelope.kind != "closing"):
            self._remind(peer, run)
        if envelope is None or (over and not known):
            return
        if envelope.kind == "proposal":
            self._hear_proposal(statement)
        else:
            self.runners[run].post(events.StatementReceived(self.runners[run].now(), peer, statement))
        self.forward(data, peer)

    def _is_proposal(self, run: RunId, statement: bytes) -> bool:
        envelope = open_envelope(statement, kinds=KINDS, limit=FLOOD_LIMIT)
        return envelope.kind == "proposal" and open_proposal(statement)[1].run == run

    def forward(self, data: bytes, origin: PeerId | None) -> None:
        """Send a framed statement to all linked members but its origin."""
        for target in self._flood.targets(self._services.host.links, origin):
            self._tasks.spawn(self._send(target, data))

    async def _send(self, peer: PeerId, data: bytes) -> None:
        try:
            await self._services.host.notify(peer, FLOOD, data)
        except LinkError:
            pass  # the statement is sent again when a link is up: see resend

    def flood_own(self, data: bytes) -> None:
        """An own statement: remember it, so that it is not taken for news when it comes back."""
        run, statement = open_frame(data, FLOOD_LIMIT)
        envelope = open_envelope(statement, kinds=KINDS, limit=FLOOD_LIMIT)
        self._flood.own(run, envelope, asyncio.get_running_loop().time())
        self.forward(data, None)

    def resend(self, peer: PeerId) -> None:
        """A link came up: the neighbour may have missed statements of open runs."""
        self._reminded = {pair for pair in self._reminded if pair[0] != peer}
        for run, runner in self.runners.items():
            if runner.machine.closing.complete:
                continue
            for statement in (self._proposals.get(run), *self._statements.known(run)):
                if statement is not None:
                    self._tasks.spawn(self._send(peer, envelope_frame(run, statement)))

    def _is_over(self, run: RunId) -> bool:
        """Complete or expired here, perhaps before a restart: it must not begin a second time."""
        return (self._home.path / "runs" / run / "over").exists()

    def _remind(self, peer: PeerId, run: RunId) -> None:
        """A neighbour, back from a restart, still speaks of a run that is over: it may lack how that ended."""
        if (peer, run) in self._reminded:
            return
        self._reminded.add((peer, run))
        for data in self._statements.all(run):
            self._tasks.spawn(self._send(peer, envelope_frame(run, data)))

    def hear_of_over(self, peer: PeerId, run: RunId) -> None:
        """A member speaks of a run that has no machine here: tell it how that ended, if it was here and is over."""
        if len(run) == RUN_ID_LENGTH and run.isalnum() and self._is_over(run):
            self._remind(peer, run)

    def share_closings(self, peer: PeerId, run: RunId) -> None:
        """Send a neighbour the closing statements of a run that are kept here."""
        for data in self._statements.all(run):
            if kind_kept(data) == "closing":
                self._tasks.spawn(self._send(peer, envelope_frame(run, data)))

    def store_statement(self, run: str, data: bytes) -> None:
        """Keep a verified statement for neighbours that missed it, and for a restart."""
        self._statements.keep(run, data)

    # --- proposals

    def _hear_proposal(self, statement: bytes) -> None:
        _, proposal = open_proposal(statement)
        if proposal.run in self.runners:
            return
        if proposal.charter != self._roster.charter:
            raise RemoteError("proposal under another charter", peer=proposal.proposer)
        if self._open_proposals(proposal.proposer) >= OPEN_PROPOSALS:
            raise RemoteError(f"{OPEN_PROPOSALS} open proposals already", peer=proposal.proposer)
        plan = plan_from_bundle(proposal.bundle)
        if plan.digest != proposal.plan:
            raise RemoteError("proposal whose code does not have the plan hash it names", peer=proposal.proposer)
        self._check_size(proposal.channels)
        total = proposal.rounds + proposal.closing_rounds
        known = build_graph(proposal.topology, self._roster.peer_ids, total)
        problem = plan.settings.graph_problem(len(known), known.number_of_edges(), proposal.topology)
        if problem is not None:
            raise RemoteError(f"proposal that cannot be run: {problem}", peer=proposal.proposer)
        self._adopt(proposal, statement, plan)
        self._tasks.spawn(self._prefetch(proposal))

    def _adopt(self, proposal: Proposal, statement: bytes, plan: Plan, restored: RestoredRun | None = None) -> Runner:
        run = proposal.run
        folder = self._home.run_folder(run)
        if restored is None:
            write_atomic(folder / "proposal", statement)
        machine = Machine(
            self.me,
            self._roster,
            proposal,
            sequence=restored.sequence if restored else 0,
            restored=restored.state if restored else None,
            argument_problem=plan.settings.argument_problem,
            newcomer_problem=plan.settings.newcomer_problem,
            tolerance=plan.settings.training.tolerance,
            halved=plan.settings.halved,
        )
        holdings = Holdings(folder / "holdings", self._services.contents)
        shelf = self._services.shelf
        kept = shelf.open(run, statement) if shelf is not None else None
        runner = Runner(machine, self._services, RunKeys(), States(folder / "state"), holdings, kept)
        for digest, document, position in restored.outbox if restored else ():
            runner.outbox.restore(digest, document, position)
        for digest, _, waiting in restored.state.outgoing if restored else ():
            self._services.contents.restore_ciphertext(digest, waiting)
        self.runners[run], self.plans[run] = runner, plan
        self._proposals[run] = statement
        for peer in self._services.host.links:
            runner.post(events.LinkUp(runner.now(), peer))
        if machine.state is State.PROPOSING:
            waited = max(0.0, time.time() - (folder / "proposal").stat().st_mtime) if restored else 0.0
            runner.do(events.Proposed(runner.now(), waited))
        self._services.told(run, "proposal", {"proposer": proposal.proposer, "plan": plan.settings.plan.name})
        return runner

    def _restored(self, proposal: Proposal) -> RestoredRun:
        """What the log says about this run; only deltas whose ciphertext is still here can be sent again."""
        restored = restored_run(self._services.journal.log, proposal, self._roster, self.me)
        contents = self._services.contents
        kept = tuple(row for row in restored.state.outgoing if contents.restore_ciphertext(row[0], row[2]))
        stored = self._stored_state(proposal.run, restored)
        machine = stored.machine if stored is not None else b""
        return replace(restored, state=replace(restored.state, outgoing=kept, state=machine))

    def _stored_state(self, run: RunId, restored: RestoredRun) -> StoredState | None:
        """The state that the log's newest commit names; None if it is not here, and the site then stays absent."""
        if restored.state_digest is None:
            return None
        stored = States(self._home.run_folder(run) / "state").read(restored.state_digest)
        return stored if stored is not None and readable_state(stored.machine, run) else None

    async def restore(self) -> None:
        """After a restart: take up the runs of which this home has a proposal.

        A run that was approved here and is not closed gets its worker and keys back; one that had begun goes on from
        its last stored state, or stays absent where that is lost.
        """
        folder = self._home.path / "runs"
        if not folder.exists():
            return
        if not folder.is_dir():
            raise StoreError(f"{folder} is no folder; move it away and start again")
        for half_written in folder.glob("**/*.new"):
            half_written.unlink(missing_ok=True)
        for path in sorted(folder.glob("*/proposal")):
            if (path.parent / "over").exists():
                Holdings(path.parent / "holdings", self._services.contents).clear()
                continue
            statement = path.read_bytes()
            try:
                _, proposal = open_proposal(statement)
                if proposal.charter != self._roster.charter or proposal.run != path.parent.name:
                    continue
                restored = self._restored(proposal)
                held = await asyncio.to_thread(Holdings(path.parent / "holdings", self._services.contents).load)
                restored = replace(restored, state=replace(restored.state, holdings=held))
                runner = self._adopt(proposal, statement, plan_from_bundle(proposal.bundle), restored)
            except RemoteError as error:
                raise StoreError(f"{path} is damaged ({error}); move it away and start again") from error
            kept = self._statements.load(proposal.run)
            kept += [data for data in self._on_record(proposal.run, restored) if data not in kept]
            # first the worker, then the statements: they may show at once that the run has begun
            stored = self._stored_state(proposal.run, restored)
            if stored is not None:
                runner.keys.checkpoint = stored.checkpoint
            open_ = runner.machine.state is State.PROPOSING or runner.machine.joining.outside
            approved = open_ and any(self._is_own_approval(data) for data in kept)
            if approved or runner.machine.state is State.CATCHING_UP:
                await self._rearm(runner)
            for data in kept:
                runner.do(events.StatementReceived(runner.now(), self.me, data))
            if runner.machine.state is State.CATCHING_UP:
                runner.do(events.Resumed(runner.now()))

    def _on_record(self, run: RunId, restored: RestoredRun) -> list[bytes]:
        """Own statements that the log has; the peer may have ended before it told them to anybody."""
        own = list(restored.statements)
        if restored.approved is not None:
            plan, samples = restored.approved
            own.insert(0, ("approval", Approval(run, plan, samples, self._prekey(run).public).encode()))
        return [sign_envelope(self._services.identity, kind, payload).encode() for kind, payload in own]

    def _is_own_approval(self, data: bytes) -> bool:
        envelope = open_envelope(data, kinds=KINDS, limit=FLOOD_LIMIT)
        return envelope.kind == "approval" and envelope.signer == self.me

    async def _rearm(self, runner: Runner) -> None:
        try:
            await self._arm(runner)
        except P2PFLError as error:  # this run's matter, not the peer's
            runner.do(events.Leave(runner.now(), f"after a restart: {error}"))

    async def reopen(self, runner: Runner) -> None:
        """The worker of a closed run as it was at the end, to have its model. Raises P2PFLError where that is lost."""
        if runner.keys.checkpoint and runner.machine.closing.finished_here:
            await self._arm(runner)
            await runner.reopen()

    def _open_proposals(self, proposer: PeerId) -> int:
        machines = [runner.machine for runner in self.runners.values()]
        return sum(
            machine.context.proposal.proposer == proposer and machine.state is State.PROPOSING for machine in machines
        )

    def _check_size(self, channels: Sequence[ChannelSpec]) -> None:
        most = self._roster.max_parameters_bytes
        size = max(channel.size for channel in channels)
        if most is not None and size > most:
            raise PolicyRefusal(f"the model has {size} bytes, the charter allows {most}; propose a smaller one")

    async def propose(
        self,
        plan: Plan,
        *,
        seed: int | None = None,
        patience: float = PATIENCE,
        topology: Mapping[str, Any] | None = None,
        rounds: int | None = None,
    ) -> Runner:
        """Make a proposal, flood it, and approve it here. Raises PlanError, PolicyRefusal, DataError, ConfigError."""
        settings = plan.settings
        if self._open_proposals(self.me) >= OPEN_PROPOSALS:
            raise PolicyRefusal(
                f"{OPEN_PROPOSALS} proposals of this site are still open; wait until one starts or expires"
            )
        graph = dict(topology or settings.topology or self._default_topology)
        total = rounds or settings.training.rounds
        shares = {peer: 1 / len(self._roster.members) for peer in self._roster.peer_ids}
        closing, staleness = settings.training.closing_rounds, settings.training.late_rounds
        schedule = Schedule(graph, self._roster.peer_ids, shares, total, closing, staleness)
        schedule.round(0)
        problem = settings.graph_problem(len(schedule.nodes), schedule.graph.number_of_edges(), graph)
        if problem is not None:
            raise ConfigError(f"{problem[0].upper()}{problem[1:]}")
        worker, facts = await ready_worker(plan, self._home)
        try:
            proposal, initial = await self._proposal(plan, worker, graph, total, patience, seed)
            statement = sign_envelope(self._services.identity, "proposal", proposal.encode()).encode()
            open_proposal(statement)  # what the others would refuse is refused here first
            body = {"run": proposal.run, "plan": plan.digest, "seed": proposal.seed}
            await self._services.journal.commit([NewEntry("plan_proposed", body)])
            runner = self._adopt(proposal, statement, plan)
        except BaseException:
            await worker.stop()
            raise
        self.flood_own(envelope_frame(proposal.run, statement))
        self._equip(runner, worker, facts, initial)
        await self._say_yes(runner)
        return runner

    async def _proposal(
        self, plan: Plan, worker: Worker, graph: dict[str, Any], rounds: int, patience: float, seed: int | None
    ) -> tuple[Proposal, bytes]:
        """The proposal and the file with the initial parameters, drawn in the worker."""
        training = plan.settings.training
        seed = secrets.randbelow(2**31) if seed is None else seed
        initial: bytes = await worker.call("initial", timeout=START_LIMIT, seed=seed)
        channels = await _channels(worker, initial)
        self._check_size(channels)
        proposal = Proposal(
            charter=self._roster.charter, plan=plan.digest, bundle=plan.bundle(), proposer=self.me,
            nonce=secrets.token_bytes(16), initial=self._services.contents.put_file(initial),
            initial_size=len(initial), channels=channels, seed=seed, topology=graph, rounds=rounds,
            closing_rounds=training.closing_rounds, deadline=float(training.deadline), patience=float(patience),
            staleness=training.late_rounds,
            catch_up_rounds=training.catch_up_rounds,
        )  # fmt: skip
        return proposal, initial

    # --- approval

    async def approve(self, run: str) -> Runner:
        """The site's yes: fetch the initial parameters, try the plan on the granted data, sign the approval.

        Also to a run that has begun without this site: its proposer then admits it from one of the next rounds on.
        """
        runner = self.runner(run)
        context = runner.machine.context
        self._check_open(runner.machine)
        if context.me in runner.machine.starting.approvals or runner.worker is not None:
            raise ConfigError(f"run {run[:12]} is already approved here; nothing more is needed")
        if run in self._approving:
            raise ConfigError(f"run {run[:12]} is being approved already; wait for it")
        self._approving.add(run)
        try:
            await self._arm(runner)
            await self._say_yes(runner)
        except P2PFLError:
            worker, runner.worker = runner.worker, None
            if worker is not None:
                await worker.stop()
            raise
        finally:
            self._approving.discard(run)
        return runner

    def _check_open(self, machine: Machine) -> None:
        """Raises ConfigError unless a yes is of use now."""
        run = machine.context.proposal.run[:12]
        late = machine.joining.status()
        if machine.state is not State.PROPOSING and (late is None or not machine.joining.outside):
            raise ConfigError(f"run {run} is {machine.state} here; only an open proposal can be approved")
        if machine.closing.complete:
            raise ConfigError(f"run {run} is over; only an open proposal can be approved")
        if late is not None and late["problem"] is not None:
            raise ConfigError(f"run {run} cannot take this site in: {late['problem']}; wait for the next run")

    async def _arm(self, runner: Runner) -> None:
        """Have worker, data, initial parameters and keys at hand for this run. Raises before anything is said."""
        proposal = runner.machine.context.proposal
        initial = await self._initial(proposal)
        plan = self.plans[proposal.run]
        if proposal.staleness != plan.settings.training.late_rounds:
            raise PlanError("the proposal names another policy or staleness than its plan; refuse this run")
        worker, facts = await ready_worker(plan, self._home)
        try:
            if await _channels(worker, initial) != proposal.channels:
                raise PlanError(
                    "the proposal names other channels than its plan and initial parameters have; refuse this run"
                )
        except BaseException:
            await worker.stop()
            raise
        self._equip(runner, worker, facts, initial)

    def _equip(self, runner: Runner, worker: Worker, facts: Mapping[str, int], initial: bytes) -> None:
        run = runner.machine.context.proposal.run
        runner.worker = worker
        runner.keys.prekey = self._prekey(run)
        runner.keys.initial = initial
        runner.keys.local_steps = local_steps_of(self.plans[run], self._home)
        runner.keys.examples = facts["train"]
        runner.keys.has_test = facts["test"] > 0
        runner.keys.sampling = self._services.identity.derive("p2pfl sampling", bytes.fromhex(run))

    async def _say_yes(self, runner: Runner) -> None:
        """Write the approval and the data it lets the plan use down, then sign it."""
        run, tag = (
            runner.machine.context.proposal.run,
            self.plans[runner.machine.context.proposal.run].settings.data.tag,
        )
        dataset = self._home.registry.resolve(tag)
        self._home.approvals.approve(self.plans[run].digest, at=int(time.time()))
        body = {"tag": dataset.tag, "fingerprint": dataset.fingerprint, "rows": dataset.rows, "run": run}
        await self._services.journal.commit([NewEntry("data_registered", body)])
        prekey = runner.keys.prekey
        assert prekey is not None
        runner.do(events.Approve(runner.now(), runner.keys.examples, prekey.public))

    def _prekey(self, run: str) -> Prekey:
        """This run's X25519 key, kept sealed in the run's folder until the run is over."""
        path = self._home.run_folder(run) / "prekey"
        box = SecretBox(self._services.identity.derive("p2pfl prekey", bytes.fromhex(run)))
        if path.exists():
            try:
                return Prekey.from_secret(box.decrypt(path.read_bytes()))
            except CryptoError as error:
                raise StoreError(f"{path} is damaged; leave this run and ask for a new proposal") from error
        prekey = Prekey.generate()
        write_atomic(path, bytes(box.encrypt(prekey.secret)))
        return prekey

    async def _initial(self, proposal: Proposal) -> bytes:
        """The initial parameters, from here or from any neighbour that has them by now."""
        until = asyncio.get_running_loop().time() + INITIAL_PATIENCE
        while True:
            async with self._fetching:  # one at a time: the prefetch may be at work on the same file
                known = self._services.contents.file(proposal.initial)
                tried: list[str] = []
                if known is None:
                    known, tried = await self._ask_all(proposal)
            if known is not None:
                return known
            if asyncio.get_running_loop().time() > until:
                raise LinkError(
                    "couldn't get the initial parameters from any neighbour "
                    f"({'; '.join(tried) or 'no link is up'}); try again when a neighbour that has them is linked"
                )
            await asyncio.sleep(INITIAL_PAUSE)

    async def _ask_all(self, proposal: Proposal) -> tuple[bytes | None, list[str]]:
        tried = []
        chunks = -(-proposal.initial_size // CHUNK)
        for peer in sorted(self._services.host.links):
            try:
                parts = [part async for part in self._services.host.fetch(peer, proposal.initial, chunks, CHUNK)]
            except (LinkError, RemoteError) as error:
                tried.append(f"{peer[-6:]}: {error}")
                continue
            data = b"".join(parts)
            if sha256(data) == proposal.initial:
                await asyncio.to_thread(self._services.contents.put_file, data)
                return data, tried
            tried.append(f"{peer[-6:]}: sent other bytes than the proposal names")
        return None, tried

    async def _prefetch(self, proposal: Proposal) -> None:
        """Have a small file at hand before anybody approves, so that it travels to members further away."""
        if proposal.initial_size <= PREFETCH_LIMIT:
            with contextlib.suppress(LinkError):
                await self._initial(proposal)

    # --- ends

    def runner(self, run: str) -> Runner:
        """The runner of a run, by its id or an unambiguous beginning of it."""
        found = [key for key in self.runners if key.startswith(run)]
        if len(found) != 1:
            known = ", ".join(key[:12] for key in self.runners) or "none"
            raise ConfigError(f"no single run is called {run[:12]!r}; known runs: {known}")
        return self.runners[found[0]]

    def close_files(self, run: str, model: bytes | None, report: Mapping[str, Any]) -> Path:
        """Keep the result of a closed run."""
        folder = self._home.run_folder(run)
        if model is not None:  # None: there is none, or it is stored already
            write_atomic(folder / "model.safetensors", model)
        write_atomic(folder / "report.json", json.dumps(report, indent=1, sort_keys=True).encode())
        self._clear_states(run)
        return folder

    def stored_result(self, run: str) -> tuple[bytes | None, dict[str, Any]] | None:
        """Model and report that `close_files` kept; None when the peer ended before."""
        folder = self._home.run_folder(run)
        if not (folder / "report.json").exists():
            return None
        model = folder / "model.safetensors"
        return model.read_bytes() if model.exists() else None, json.loads((folder / "report.json").read_bytes())

    def mark_over(self, run: str) -> None:
        """Complete: nothing of this run needs to be taken up after a restart; its prekey is deleted."""
        folder = self._home.run_folder(run)
        (folder / "prekey").unlink(missing_ok=True)
        self._flood.forget(RunId(run))
        write_atomic(folder / "over", b"")
        if self._services.shelf is not None:
            self._services.shelf.close(run)
        if run in self.runners:
            self.runners[run].holdings.retire()
        self._clear_states(run)

    def _clear_states(self, run: str) -> None:
        """Complete, and the result is stored: what a restart would go on from is no longer needed."""
        folder = self._home.run_folder(run)
        if (folder / "over").exists() and (folder / "report.json").exists():
            States(folder / "state").clear()


async def _channels(worker: Worker, initial: bytes) -> tuple[ChannelSpec, ...]:
    """Name, size and base of each channel, as the plan's own code has them with these parameters."""
    rows = await worker.call("begin", timeout=START_LIMIT, initial=initial, run=bytes(32), key=bytes(32), share=1.0)
    return tuple(ChannelSpec(row["name"], row["size"], Digest(row["base"])) for row in rows)
