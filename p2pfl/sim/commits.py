"""The log of one site: commits in order, each durable only at its end, states stored before them."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from p2pfl.crypto import sha256, sign_envelope
from p2pfl.errors import StoreError
from p2pfl.gossip import effects, events
from p2pfl.gossip.anchors import SENT, Outbound
from p2pfl.gossip.messages import Core, sealing_context
from p2pfl.sim.disk import Row
from p2pfl.sim.training import checkpoint
from p2pfl.types import Digest, PeerId

if TYPE_CHECKING:
    from p2pfl.sim.site import Site


class Commits:
    """The one writer of a site's disk; it ends with the process, and what was under way is lost."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._queue: deque[effects.Commit] = deque()
        self._checkpoints: dict[int, tuple[str, bytes]] = {}  # by identity of the commit, until it is begun
        self._last: tuple[str, bytes] | None = None
        name = site.disk.newest_state()
        if name is not None:
            self._last = site.disk.checkpoints[name]

    def add(self, commit: effects.Commit) -> None:
        """Queue a commit. Its checkpoint is taken by the worker in turn: what it was told later is not in it."""
        self._queue.append(commit)
        if commit.state:
            self._site.work(0.0, lambda: self._save(commit))
        if len(self._queue) == 1:
            self._begin()

    def _save(self, commit: effects.Commit) -> None:
        site = self._site
        if site.begun and (commit.checkpoint or self._last is None):
            self._last = checkpoint(site.trainer, site.folder)
        # a peer that came back without a state has no run in its worker: there is nothing to keep of it
        self._checkpoints[id(commit)] = self._last or ("", b"")
        if self._queue[0] is commit:
            self._begin()

    def _begin(self) -> None:
        site, commit = self._site, self._queue[0]
        if not commit.state:
            idle = not commit.entries and not commit.cores
            site.later(0.0 if idle else site.world.compute.commit, lambda: self._end(commit))
        elif id(commit) in self._checkpoints:
            # the state first, then the transaction that names it: a crash between the two leaves the older state
            half = site.world.compute.commit / 2
            site.later(half, lambda: self._store(commit))
            site.later(2 * half, lambda: self._end(commit))

    def _store(self, commit: effects.Commit) -> None:
        site = self._site
        if site.disk.full:
            site.fail(StoreError("no space left on device"))
            return
        name = sha256(commit.state)
        site.disk.states[name] = commit.state
        site.disk.checkpoints[name] = self._checkpoints.pop(id(commit))

    def _end(self, commit: effects.Commit) -> None:
        site = self._site
        writes = bool(commit.entries or commit.cores)
        if writes and site.disk.full:
            site.fail(StoreError("no space left on device"))
            return
        rows = [Row(entry.kind, entry.body, entry.documents) for entry in commit.entries]
        digests = []
        for core in commit.cores:
            digest, row = self._sign(core, commit.recipients)
            digests.append(digest)
            rows.append(row)
        if writes:
            site.write(rows)
        if commit.state:
            site.disk.drop_states_but(sha256(commit.state))
        self._queue.popleft()
        if self._queue:
            self._begin()
        site.post(events.Committed(site.now, commit.token, tuple(digests)))

    def _sign(self, core: Core, recipients: tuple[PeerId, ...]) -> tuple[Digest, Row]:
        """Sign a core, wrap its key, keep its ciphertext; the entry lets it out."""
        site = self._site
        sealed = site.sealed.pop((core.position, core.channel))
        if site.member is not None:
            core = site.member.core(site, core)
        signed = sign_envelope(site.identity, "core", core.encode())
        context = sealing_context(core.run, site.peer_id, core.position, core.channel, core.recipient)
        prekeys = site.running.context.prekeys
        keys = {peer: site.world.kit.wrap(sealed.key, prekeys[peer], context) for peer in recipients}
        document = Outbound(core.run, signed.encode(), keys).encode()
        site.disk.outbox[signed.digest] = document
        site.disk.contents[signed.digest] = sealed.chunks
        site.cores.append(core)
        body = {
            "run": core.run, "sequence": core.sequence, "round": core.round, "step": core.step,
            "channel": core.channel, "core": signed.digest, "to": list(recipients), "bytes": core.manifest.size,
        }  # fmt: skip
        return signed.digest, Row(SENT, body, (("outbox", document),))
