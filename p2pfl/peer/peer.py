"""One hospital: joins host, machines, worker, audit log and governance. ``async with Peer(home)`` is all it takes."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from p2pfl.audit import AuditLog, NewEntry, WitnessStore
from p2pfl.crypto import log_origin, sha256
from p2pfl.errors import ConfigError, LinkError, P2PFLError, RemoteError, StoreError
from p2pfl.gossip import State, events
from p2pfl.gossip.context import REFUSALS_LOGGED
from p2pfl.gossip.messages import ANNOUNCEMENT_LIMIT, STANDING_LIMIT, decode_announcement, open_frame
from p2pfl.gossip.offers import decode_offer
from p2pfl.governance import Plan, check_charter, read_plan
from p2pfl.net import Discovery, Host, LinkInfo, MemoryNetwork, parse_address
from p2pfl.peer.contents import Contents
from p2pfl.peer.disk import as_store_error
from p2pfl.peer.home import Home, open_home
from p2pfl.peer.journal import Journal, unix_milliseconds
from p2pfl.peer.keeping import Shelf
from p2pfl.peer.own_heads import OwnHeads
from p2pfl.peer.partner_checks import PartnerChecks
from p2pfl.peer.records import Records
from p2pfl.peer.reports import completion, report_of
from p2pfl.peer.run import Run
from p2pfl.peer.runner import ANNOUNCE, DIRECT, FLOOD, OFFER, Runner, Services
from p2pfl.peer.runs import PATIENCE, Runs
from p2pfl.peer.second_instances import SecondInstances
from p2pfl.peer.tasks import Tasks
from p2pfl.peer.transports import build_wires, read_ways, write_ways
from p2pfl.peer.witnessing import Witnessing
from p2pfl.topology import build_graph
from p2pfl.types import PeerId, Roster

LONELY = 8.0  # seconds without a wanted neighbour until links to possible introducers are made as well
LAST_WORDS = 5.0  # seconds for what is still being written when the peer stops
TORN = "the log's last commit was cut off by a crash before it was acknowledged; it was dropped"


class Peer:
    """A peer on its home folder: key, charter, registry, log.

    Use it as ``async with Peer("homes/lille") as peer``; it runs inside the caller's event loop (a notebook's, too).
    ``network`` joins peers of one process in memory instead of tcp. Raises ConfigError, StoreError or LinkError when
    it cannot start, and leaves nothing open then.
    """

    def __init__(
        self, home: str | Path, *, passphrase: str | None = None, network: MemoryNetwork | None = None
    ) -> None:
        self.home: Home = open_home(Path(home))
        self._identity = self.home.identity(passphrase)
        self._network = network
        self._runs: dict[str, Run] = {}
        self._stack = contextlib.AsyncExitStack()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._refusals: Counter[PeerId] = Counter()  # messages of linked members that no run would take
        self._new_run = asyncio.Event()
        self._change = asyncio.Event()
        self._ways_lock = asyncio.Lock()
        self._lonely: set[PeerId] = set()  # neighbours that have been out of reach for a while
        self._linking = False  # the host is started: runs may ask it for links
        self.failure: P2PFLError | None = None
        self.failed = asyncio.Event()
        self.addresses: list[str] = []
        self.discovery_problem: str | None = None
        self.log_news: list[tuple[str, dict[str, Any]]] = []
        """(topic, facts) of alarms, withheld heads, declared losses and second instances since the start; few, by what
        leads to them."""
        self._second_instances = SecondInstances(self._heard)

    @property
    def peer_id(self) -> PeerId:
        """This peer's libp2p peer id."""
        return self._identity.peer_id

    @property
    def name(self) -> str:
        """The hospital's name in its home settings."""
        return self.home.settings.name

    @property
    def roster(self) -> Roster:
        """The members under the accepted charter, each as its newest record describes it."""
        return self._records.roster(self._roster)

    # --- life

    async def __aenter__(self) -> Peer:
        charter = self.home.charter()
        self._records = Records(self.home, self._identity, charter)
        # the charter's own records: runs are judged by what all sites have in common
        self._roster = check_charter(charter, now=int(time.time()), newer=self._records.newer)
        if self._roster.member(self.peer_id) is None:
            raise ConfigError(f"{self.home.path}: the accepted charter does not name this peer; accept the right one")
        self._charter = charter
        async with contextlib.AsyncExitStack() as stack:
            await self._open(stack)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def _open(self, stack: contextlib.AsyncExitStack) -> None:
        log = self._open_log()
        self._journal = Journal(log, self._fail)
        stack.callback(self._journal.close)
        self._contents = Contents(self.home.path)
        keep = self.home.settings.keep
        self._shelf = Shelf(self.home.kept, keep.limit, self._journal.commit)
        wires = build_wires(self.home, self._identity, self.name, self._network, self._records.own.certificate)
        self.webrtc = wires.webrtc
        self._host = Host(
            self._identity,
            self.roster,
            wires.transports,
            on_link=self._on_link,
            on_refused=self._on_refused,
            on_replaced=self._on_replaced,
            on_worked=self._on_worked,
            on_second_instance=self._second_instances.met,
            worked=read_ways(self.home.ways),
        )
        wires.introductions.attach(self._host)
        self.partner_checks = PartnerChecks(self._host, lambda: self.roster)
        self._records.attach(self._host, self._roster, log=self._note, refuse=self._refuse, failed=self._fail)
        self._witness(stack)
        services = Services(
            self._identity, self._host, self._journal, self._contents,
            flood=lambda data: self._book.flood_own(data),
            share_closings=lambda peer, run: self._book.share_closings(peer, run),
            store_statement=self._store_statement,
            approved=self.home.approvals.is_approved,
            told=self._told, failed=self._fail,
            cleared=self._own_heads.cleared, witnessed=lambda: self._own_heads.witnessed,
            shelf=self._shelf if keep.deltas else None,
        )  # fmt: skip
        self._book = Runs(self.home, self._roster, self._charter.topology, services)
        self._host.handle_notify(FLOOD, self._on_flood)
        self._host.handle_notify(ANNOUNCE, self._on_announcement)
        self._host.handle_notify(OFFER, self._on_offer)
        self._host.handle_notify(DIRECT, self._on_direct)
        self._host.serve(self._contents.chunk)
        first = log.head.size <= 1
        entries = [NewEntry("peer_started", {"peer": self.peer_id, "name": self.name})]
        if log.torn:
            entries.append(NewEntry("recovered", {"what": TORN}))
        if first:
            entries.append(
                NewEntry("charter_accepted", {"charter": self._roster.charter, "version": self._charter.version})
            )
        await self._journal.commit(entries)
        if not keep.deltas:
            await self._shelf.end_open_runs(lambda run: (self.home.path / "runs" / run / "over").exists())
        stack.push_async_callback(self._stop_tasks)
        stack.push_async_callback(self._stop_runs)
        await self._restore()
        stack.push_async_callback(self._log_tasks.stop)
        stack.callback(self._own_heads.stop)
        stack.push_async_callback(self._records.stop)
        stack.push_async_callback(self._host.stop)
        self.addresses = await self._host.start(wires.listen)
        self._records.begin()
        self.witnessing.begin()
        self._linking = True
        self._want()
        if self.webrtc is not None:
            seeking = asyncio.create_task(self._look_for_introducers())
            stack.callback(seeking.cancel)
        await self._discover(stack)

    def _witness(self, stack: contextlib.AsyncExitStack) -> None:
        """The part in the others' logs, and theirs in ours."""
        name = self._charter.name
        store = WitnessStore(self.home.witness_store)
        stack.callback(store.close)
        self._log_tasks = Tasks(self._fail)
        self._own_heads = OwnHeads(
            self._identity, name, self._journal, store,
            expected=self._neighbours, spawn=self._log_tasks.spawn, failed=self._fail,
            opened=lambda facts: self._heard("epoch opened", facts),
        )  # fmt: skip
        self._own_heads.attach(self._host)
        self.witnessing = Witnessing(
            self._identity, name, self._host, store, self._own_heads,
            roster=lambda: self._roster, folder=self.home.evidence,
            commit=lambda entry: self._journal.commit([entry]), spawn=self._log_tasks.spawn,
            told=self._heard,
        )  # fmt: skip

    def _heard(self, topic: str, facts: dict[str, Any]) -> None:
        """Something about a log that people must know."""
        self.log_news.append((topic, facts))
        self._change.set()

    def _open_log(self) -> AuditLog:
        path = self.home.audit
        if not path.exists():
            return AuditLog.create(path, self._identity, unix_milliseconds(), self._charter.name)
        log, origin = AuditLog.open(path, self._identity), log_origin(self._charter.name, self.peer_id)
        if log.origin != origin:
            log.close()
            raise ConfigError(f"the audit log {path} is {log.origin}, the charter says {origin}; use a home of its own")
        return log

    async def _discover(self, stack: contextlib.AsyncExitStack) -> None:
        interface = self.home.settings.discover
        if interface is None or self._network is not None:
            return
        port = parse_address(self.addresses[0]).port if self.home.settings.listen else None
        discovery = Discovery(sha256(self._roster.charter.encode())[:16], interface, port, self._host.candidate)
        try:
            await discovery.start()
        except LinkError as error:
            self.discovery_problem = str(error)  # addresses from the charter remain
            return
        stack.push_async_callback(discovery.stop)

    async def _restore(self) -> None:
        await self._book.restore()
        for run, runner in self._book.runners.items():
            handle = self._adopt(run)
            if runner.machine.state is State.DONE:
                await self._end_restored(runner, handle)
        self._contents.prune()

    async def _end_restored(self, runner: Runner, handle: Run) -> None:
        """This site's part was over before the restart: what it had stored by then is its result."""
        stored = self._book.stored_result(handle.id)
        if stored is None:
            with contextlib.suppress(P2PFLError):  # without it the report says that the model is lost
                await self._book.reopen(runner)
            await self._close(runner, handle)
        else:
            handle.end(*stored)

    async def _stop_runs(self) -> None:
        await self._book.stop()
        for run in self._runs.values():
            run.end(None, {}, self.failure or ConfigError("the peer was stopped before the run was over"))

    async def _stop_tasks(self) -> None:
        if self._tasks:  # entries about links that just went down are still being written
            await asyncio.wait(self._tasks, timeout=LAST_WORDS)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _fail(self, error: P2PFLError) -> None:
        """Nothing can go on safely (the log cannot be written, or a bug): say so and stop everything."""
        if self.failure is None:
            self.failure = error
            self.failed.set()
            for run in self._runs.values():
                run.end(None, {}, error)
            if isinstance(error, StoreError):  # nothing may leave any more: it could not be written down
                self._spawn(self._host.stop())

    def _spawn(self, work: Any) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._finished)

    def _finished(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (raised := task.exception()) is not None:
            error = as_store_error(raised)
            known = (
                error if isinstance(error, P2PFLError) else P2PFLError(f"internal error ({error!r}); please report it")
            )
            self._fail(known)

    # --- links

    def _want(self) -> None:
        if self._linking:
            self._host.want(self._wanted())

    def _neighbours(self) -> set[PeerId]:
        """Neighbours in the charter's default topology and in every open run."""
        graphs = [build_graph(self._charter.topology, self._roster.peer_ids)]
        for runner in self._book.runners.values():
            context = runner.machine.context
            if context.start is None:
                graphs.append(build_graph(context.proposal.topology, self._roster.peer_ids))
        wanted = {PeerId(peer) for graph in graphs if self.peer_id in graph for peer in graph.neighbors(self.peer_id)}
        for runner in self._book.runners.values():
            # with former ones, to settle what was open between the two
            wanted |= set(runner.machine.rounds.edges.ledgers)
        return wanted - {self.peer_id}

    def _wanted(self) -> set[PeerId]:
        """Neighbours, and where they may need it those who introduce us to them, or who hold their states for us."""
        neighbours = self._neighbours().union(
            *(runner.machine.adopting.seeking() for runner in self._book.runners.values())
        )
        return neighbours | self._introducers(neighbours) - {self.peer_id}

    def _introducers(self, wanted: set[PeerId]) -> set[PeerId]:
        """All who listen, where two sites without a port are to be linked: one of them introduces.

        Also while a neighbour has been out of reach for some time: its port, or ours, may not be open after all.
        """
        listening = {member.peer_id for member in self.roster.members if member.listens}
        portless = self.peer_id not in listening and not wanted <= listening
        return listening if portless or self._lonely & wanted else set()

    async def _look_for_introducers(self) -> None:
        while True:
            missing = self._neighbours() - set(self._host.links)
            await asyncio.sleep(LONELY)
            still = missing - set(self._host.links)
            if still != self._lonely:
                self._lonely = still
                self._want()

    def _on_link(self, peer: PeerId, up: bool, detail: str) -> None:
        body = {"peer": peer, "kind": detail} if up else {"peer": peer, "reason": detail}
        self._spawn(self._journal.commit([NewEntry("link_up" if up else "link_down", body)]))
        for runner in self._book.runners.values():
            now = runner.now()
            runner.post(events.LinkUp(now, peer) if up else events.LinkDown(now, peer, detail))
        self._change.set()
        if up:
            self._book.resend(peer)
            self._records.greet(peer)
            self.witnessing.linked(peer)

    def _on_replaced(self, peer: PeerId, was: str, kind: str) -> None:
        self._spawn(self._journal.commit([NewEntry("link_changed", {"peer": peer, "was": was, "kind": kind})]))
        self._change.set()

    def _on_worked(self, peer: PeerId, way: str) -> None:
        self._spawn(self._keep_ways(dict(self._host.worked)))

    async def _keep_ways(self, ways: dict[PeerId, str]) -> None:
        async with self._ways_lock:
            with contextlib.suppress(StoreError):  # a hint for the next start, no more
                await asyncio.to_thread(write_ways, self.home.ways, ways)

    def note_refusal(self, error: RemoteError) -> None:
        """Log that something a person brought was refused."""
        self._on_refused(error.peer or "by hand", str(error))

    def why_not(self, peer: PeerId) -> str:
        """Why there is no link to a member, in plain words; empty when there is one."""
        return self._host.why_not(peer)

    def _on_refused(self, who: str, why: str) -> None:
        if self.roster.member(who) is None:
            self._log_refusal(who, why)  # strangers: the host bounds their rate
        else:
            self._refuse(PeerId(who), why)

    def _log_refusal(self, who: str, why: str) -> None:
        self._note("refused", {"peer": who, "reason": why[:400]})

    def _note(self, kind: str, body: dict[str, Any]) -> None:
        self._spawn(self._journal.commit([NewEntry(kind, body)]))

    def _refuse(self, sender: PeerId, why: str, blamed: str | None = None) -> None:
        """A linked member sent rubbish: so many entries for each and no more, or it could fill the disk."""
        self._refusals[sender] += 1
        if self._refusals[sender] <= REFUSALS_LOGGED:
            self._log_refusal(blamed or sender, why)

    def _on_flood(self, peer: PeerId, data: bytes) -> None:
        try:
            self._book.hear(peer, data)
        except P2PFLError as error:
            blamed = error.peer if isinstance(error, RemoteError) and error.peer else peer
            self._refuse(peer, str(error), blamed)

    def _on_announcement(self, peer: PeerId, data: bytes) -> None:
        if len(data) > ANNOUNCEMENT_LIMIT:
            self._refuse(peer, f"announcement of {len(data)} bytes, the limit is {ANNOUNCEMENT_LIMIT}")
            return
        try:
            runner = self._book.runners.get(decode_announcement(data).run)
        except RemoteError as error:
            self._refuse(peer, str(error))
            return
        if runner is not None:
            self.witnessing.saw(peer, data)
            runner.post(events.AnnouncementReceived(runner.now(), peer, data))

    def _on_offer(self, peer: PeerId, data: bytes) -> None:
        try:
            runner = self._book.runners.get(decode_offer(data).run)
        except RemoteError as error:
            self._refuse(peer, str(error))
            return
        if runner is not None:
            runner.post(events.OfferReceived(runner.now(), peer, data))

    def _on_direct(self, peer: PeerId, data: bytes) -> None:
        try:
            run, envelope = open_frame(data, STANDING_LIMIT)
        except RemoteError as error:
            self._refuse(peer, str(error))
            return
        runner = self._book.runners.get(run)
        if runner is not None:
            runner.post(events.StatementReceived(runner.now(), peer, envelope))
        else:
            self._book.hear_of_over(peer, run)

    # --- runs

    async def propose(
        self,
        plan: str | Path | Plan,
        *,
        seed: int | None = None,
        patience: float = PATIENCE,
        topology: Mapping[str, Any] | None = None,
        rounds: int | None = None,
    ) -> Run:
        """Propose a plan folder (or a read plan) to all members, and approve it here.

        Raises PlanError, DataError, ConfigError or PolicyRefusal; nothing has left the building then.
        """
        read = plan if isinstance(plan, Plan) else read_plan(Path(plan))
        runner = await self._book.propose(read, seed=seed, patience=patience, topology=topology, rounds=rounds)
        return self._adopt(runner.machine.context.proposal.run)

    async def join(self, run: str) -> Run:
        """Approve a proposal of another member after reading its plan; the run begins when enough have.

        Where it has begun without this site, the proposer admits it from one of the next rounds on: ``run.status()``
        says in "joining" from which. Raises ConfigError where the run cannot take it in any more.
        """
        runner = await self._book.approve(run)
        return self.run(runner.machine.context.proposal.run)

    def run(self, run: str) -> Run:
        """A known run by its id or the beginning of it. Raises ConfigError."""
        return self._adopt(self._book.runner(run).machine.context.proposal.run)

    @property
    def runs(self) -> dict[str, Run]:
        """All runs known here, by id."""
        return dict(self._runs)

    async def next_proposal(self) -> Run:
        """Wait for the next proposal that this peer has neither approved nor made."""
        while True:
            for run in self._runs.values():
                runner = self._book.runners[run.id]
                if run.state is State.PROPOSING and runner.worker is None:
                    return run
            self._new_run.clear()
            await self._new_run.wait()

    async def changed(self) -> None:
        """Wait until a link goes up or down or a run becomes known."""
        self._change.clear()
        await self._change.wait()

    def _adopt(self, run: str) -> Run:
        if run not in self._runs:
            self._runs[run] = Run(self._book.runners[run], self._book.plans[run])
            self._new_run.set()
            self._change.set()
            self._want()
        return self._runs[run]

    def _told(self, run: str, topic: str, facts: dict[str, Any]) -> None:
        if run in self._book.runners:
            handle = self._adopt(run)
            handle.tell(topic, facts)
            if topic == "closed":
                self._spawn(self._close(self._book.runners[run], handle))
            elif topic in ("complete", "expired"):
                self._spawn(self._complete(self._book.runners[run], handle, topic))
            elif topic == "late statement":
                self._renew_report(self._book.runners[run], handle)
            elif topic in ("started", "admitted", "taking states", "caught up"):
                self._want()

    async def _close(self, runner: Runner, handle: Run) -> None:
        """The own part is over: keep model and report, end the worker."""
        model: bytes | None = None
        home_metrics: dict[str, float] = {}
        problem: str | None = None
        worker, runner.worker = runner.worker, None
        if worker is not None:
            try:
                if not runner.machine.context.away_for_good:
                    model = await worker.call("result", timeout=600.0)
                    if runner.keys.has_test:
                        home_metrics = await worker.call("evaluate", timeout=3600.0, part="test")
            except P2PFLError as error:  # a plan's own metrics fail, a worker dies: this run's matter, not the peer's
                problem = str(error)
            await worker.stop()
        report = report_of(runner, self.peer_id, self.name, self._roster, home_metrics, self.bytes_sent())
        if report["finished"] and model is None:
            problem = problem or "this peer ended before its model was stored"
        report["problem"] = problem
        if model is not None:
            body = {"run": handle.id, "digest": runner.machine.rounds.digest, "file": sha256(model)}
            await self._journal.commit([NewEntry("model_written", body)])
        self._book.close_files(handle.id, model, report)
        self.witnessing.tell_own()  # no cover will carry the end of the run
        handle.end(model, report)

    async def _complete(self, runner: Runner, handle: Run, topic: str) -> None:
        if topic == "expired":
            await self._stop_worker(runner)
            reason = runner.machine.context.away_for_good or "the proposal expired"
            handle.end(None, {}, ConfigError(f"run {handle.id[:12]} did not start: {reason}"))
        elif self.peer_id not in runner.machine.context.running.shares:
            late = runner.worker is not None
            why = "it had approved too late to be admitted" if late else "it had not approved"
            await self._stop_worker(runner)
            handle.end(None, {}, ConfigError(f"run {handle.id[:12]} took place without this site; {why}"))
        if topic == "complete":
            self._renew_report(runner, handle)
        self._book.mark_over(handle.id)

    async def _stop_worker(self, runner: Runner) -> None:
        worker, runner.worker = runner.worker, None
        if worker is not None:
            await worker.stop()

    def _renew_report(self, runner: Runner, handle: Run) -> None:
        """Statements came in after the own end: the stored report takes them in."""
        stored = self._book.stored_result(handle.id)
        if stored is not None:
            report = {**stored[1], **completion(runner.machine, self._roster)}
            self._book.close_files(handle.id, None, report)
            handle.renew(report)

    def _store_statement(self, run: str, data: bytes) -> None:
        """Keep a statement. One that comes after the own end belongs into the report: the run may be open for a day."""
        self._book.store_statement(run, data)
        if run in self._runs and self._book.runners[run].machine.closing.stated:
            self._renew_report(self._book.runners[run], self._runs[run])

    # --- what people ask

    def bytes_sent(self) -> int:
        """Bytes sent over all links since the start."""
        return self._host.bytes_sent

    def links(self) -> dict[str, str]:
        """Name of each linked member -> the link's type."""
        found = {}
        for peer, info in self._host.links.items():
            member = self._roster.member(peer)
            found[member.name if member else peer] = info.kind
        return found

    def _introducer(self, info: LinkInfo) -> str | None:
        member = self._roster.member(info.introducer) if info.introducer else None
        return member.name if member else None

    def status(self) -> dict[str, Any]:
        """Everything `p2pfl status` shows."""
        members = []
        for member in self._roster.members:
            if member.peer_id == self.peer_id:
                continue
            info = self._host.links.get(member.peer_id)
            members.append(
                {
                    "name": member.name,
                    "peer": member.peer_id,
                    "link": info.kind if info else None,
                    "path": info.path if info else None,
                    "introducer": self._introducer(info) if info else None,
                    "second_instance": self._second_instances.of(member.peer_id),
                    "why_not": None if info else self._host.why_not(member.peer_id),
                    "bytes_in": info.bytes_in if info else 0,
                    "bytes_out": info.bytes_out if info else 0,
                }
            )
        head = self._journal.head
        return {
            "name": self.name,
            "peer": self.peer_id,
            "charter": self._roster.charter,
            "addresses": list(self.addresses),
            "bytes_sent": self.bytes_sent(),
            "discovery_problem": self.discovery_problem,
            "members": members,
            "runs": [run.status() for run in self._runs.values()],
            "log": {"entries": head.size, "head": head.hash.hex(), "commits": self._journal.commits},
            "epoch": self._journal.log.epoch,
            "witnesses": self.witnessing.status(),
            "kept": self._shelf.status() if self.home.settings.keep.deltas else None,
            "second_instance": self._second_instances.of(self.peer_id),
            "failure": str(self.failure) if self.failure else None,
        }
