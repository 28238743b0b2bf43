"""The demo's consortium: real homes, real `p2pfl up` processes, driven over the same control socket as by hand."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from p2pfl.demo.hospitals import Hospital, charter_order, write_csv
from p2pfl.errors import ConfigError, LinkError, P2PFLError
from p2pfl.governance import read_plan
from p2pfl.net import Discovery
from p2pfl.peer import WebRtcSettings, ask, follow, found_consortium, open_home
from p2pfl.topology import build_graph
from p2pfl.types import PeerId

LOOPBACK = "127.0.0.1"
START_TIME = 60.0  # seconds until all processes answer and are linked; four torch imports on two cores take 10
RUN_TIME = 600.0  # seconds a demo run may take at most
POLL = 0.1  # seconds between two looks at a starting peer
KEEP = "run the demo again with --home DIR and read up.log in the homes there"
STOP_TIME = 10.0  # seconds a process gets to end by itself


@dataclass
class Site:
    """One hospital's process and what it told the demo."""

    name: str
    home: Path
    peer_id: str
    patients: int
    process: asyncio.subprocess.Process | None = None
    state: str = "starting"
    round: int = 0
    loss: float | None = None
    links: dict[str, str] = field(default_factory=dict)
    bytes_sent: int = 0
    killed_at: int | None = None
    over: bool = False


@dataclass(frozen=True)
class Options:
    """What the user asked for."""

    topology: str = "ring"
    rounds: int | None = None
    seed: int = 0
    kill: tuple[str, int] | None = None
    keep_deltas: bool = False


class Consortium:
    """Four processes on this machine, from homes to finished run. Tell ``watch`` about every change."""

    def __init__(
        self,
        folder: Path,
        plan_folder: Path,
        hospitals: Sequence[Hospital],
        options: Options,
        say: Callable[[str], None],
    ) -> None:
        """Nothing is made yet. Raises ConfigError for a topology that these hospitals cannot form."""
        self.folder = folder
        self.options = options
        self.hospitals = charter_order(hospitals)
        self._plan_folder = plan_folder
        self._say = say
        self.sites: list[Site] = []
        self.watch: Callable[[], None] = lambda: None
        self.run_id = ""
        build_graph(self._topology(), [PeerId(hospital.name) for hospital in self.hospitals])

    async def found(self) -> None:
        """Homes, charter, granted data."""
        names = [hospital.name for hospital in self.hospitals]
        spec = self._topology()
        # the second half has no port: on the ring the two are neighbours, and their link is WebRTC
        told = await self._listening(names[: (len(names) + 1) // 2])
        homes = {self.folder / name.lower(): None for name in names}
        listen = {self.folder / name.lower(): address for name, address in told.items()}
        discover = LOOPBACK if all(address.endswith("/0") for address in told.values()) else None
        # loopback is no interface of a real network: it is used only where it is named
        webrtc = WebRtcSettings(interfaces=[LOOPBACK])
        found_consortium(
            homes, "demo", spec, listen=listen, discover=discover, names=names, webrtc=webrtc,
            keep_deltas=self.options.keep_deltas,
        )  # fmt: skip
        tag = read_plan(self._plan_folder).settings.data.tag
        for hospital in self.hospitals:
            home = open_home(self.folder / hospital.name.lower())
            file = self.folder / "data" / f"{hospital.name.lower()}.csv"
            file.parent.mkdir(exist_ok=True)
            write_csv(hospital, file)
            home.registry.add(tag, file, now=int(time.time()))
            self.sites.append(Site(hospital.name, home.path, home.member().peer_id, hospital.patients))

    def _topology(self) -> dict[str, Any]:
        kind = self.options.topology
        return {"kind": kind, **({"clusters": 2} if kind == "hierarchical" else {})}

    async def _listening(self, with_port: Sequence[str]) -> dict[str, str]:
        if await discovery_works():
            return dict.fromkeys(with_port, f"/ip4/{LOOPBACK}/tcp/0")
        self._say("zeroconf does not work on this machine's loopback interface; the charter names fixed ports instead")
        return {name: f"/ip4/{LOOPBACK}/tcp/{_free_port()}" for name in with_port}

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Start all processes and wait for the links; end them at last, whatever happens."""
        try:
            for site in self.sites:
                site.process = await _start(site.home)
            await self._until(self._linked, START_TIME, "the hospitals did not find each other")
            yield
        finally:
            await asyncio.gather(*(_stop(site.process) for site in self.sites))

    async def _linked(self) -> bool:
        spec = self._topology()
        graph = build_graph(spec, [PeerId(site.name) for site in self.sites])
        for site in self.sites:
            if site.process is not None and site.process.returncode is not None:
                raise ConfigError(f"{site.name}'s process ended: {_last_line(site.home)}")
            await self._refresh(site)
        return all(set(graph.neighbors(site.name)) <= set(site.links) for site in self.sites)

    async def _refresh(self, site: Site) -> None:
        try:
            value = await ask(site.home, "status", timeout=5)
        except (P2PFLError, TimeoutError):
            return
        site.links = {member["name"]: member["link"] for member in value["members"] if member["link"]}
        site.bytes_sent = value["bytes_sent"]
        if site.state == "starting":
            site.state = "up"
        self.watch()

    async def _until(self, condition: Callable[[], Any], seconds: float, what: str) -> None:
        try:
            async with asyncio.timeout(seconds):
                while not await condition():
                    await asyncio.sleep(POLL)
        except TimeoutError as error:
            raise LinkError(f"{what} within {seconds:.0f} s; {KEEP}") from error

    async def train(self) -> None:
        """Propose at the first hospital, approve at the others, follow everywhere until all are done."""
        first = self.sites[0]
        answer = await ask(
            first.home, "propose", plan=str(self._plan_folder), rounds=self.options.rounds,
            seed=self.options.seed, topology=self._topology(),
        )  # fmt: skip
        self.run_id = answer["run"]
        followers = [asyncio.create_task(self._follow(first))]
        await asyncio.gather(*(self._approve(site) for site in self.sites[1:]))
        followers += [asyncio.create_task(self._follow(site)) for site in self.sites[1:]]
        refresher = asyncio.create_task(self._refresh_all())
        try:
            async with asyncio.timeout(RUN_TIME):
                await asyncio.gather(*followers)
        except TimeoutError as error:
            raise LinkError(f"the run was not over within {RUN_TIME:.0f} s; {KEEP}") from error
        finally:
            for task in (refresher, *followers):
                task.cancel()
            await asyncio.gather(refresher, *followers, return_exceptions=True)
        for site in self.sites:
            if site.killed_at is None:
                await self._refresh(site)

    async def _approve(self, site: Site) -> None:
        async def heard() -> bool:
            runs = await ask(site.home, "list", timeout=5)
            return any(run["run"] == self.run_id for run in runs)

        await self._until(heard, START_TIME, f"{site.name} did not hear the proposal")
        await ask(site.home, "approve", run=self.run_id)

    async def _refresh_all(self) -> None:
        while True:
            await asyncio.sleep(0.5)
            for site in self.sites:
                if site.killed_at is None and not site.over:
                    await self._refresh(site)

    async def _follow(self, site: Site) -> None:
        try:
            async for topic, facts in follow(site.home, self.run_id):
                self._heard(site, topic, facts)
        except (P2PFLError, OSError):
            if site.killed_at is None:
                raise
        site.over = True
        self.watch()

    def _heard(self, site: Site, topic: str, facts: Mapping[str, Any]) -> None:
        if topic == "round":
            site.round, site.state = int(facts["round"]), "training"
            self._kill_if_due(site)
        elif topic == "mixed" and facts.get("loss") is not None:
            site.loss = float(facts["loss"])
        elif topic in ("closing", "closed"):
            site.state = topic
        elif topic == "missing":
            name = next((other.name for other in self.sites if other.peer_id == facts["peer"]), facts["peer"])
            self._say(f"{site.name}: {name} is missing since round {facts['round']} ({facts['reason']})")
        self.watch()

    def _kill_if_due(self, site: Site) -> None:
        kill = self.options.kill
        if kill and site.name.lower() == kill[0].lower() and site.round >= kill[1] and site.killed_at is None:
            assert site.process is not None
            site.killed_at, site.state = site.round, "killed"
            os.kill(site.process.pid, signal.SIGKILL)
            self._say(f"{site.name}'s process {site.process.pid} was killed in round {site.round}")


async def discovery_works() -> bool:
    """Whether two zeroconf instances on the loopback interface see each other within three seconds."""
    seen = asyncio.Event()
    announcer = Discovery("p2pfl-demo-probe", LOOPBACK, 9, lambda address: None)
    browser = Discovery("p2pfl-demo-probe", LOOPBACK, None, lambda address: seen.set())
    try:
        await asyncio.gather(announcer.start(), browser.start())
        await asyncio.wait_for(seen.wait(), 3)
        return True
    except (LinkError, TimeoutError):
        return False
    finally:
        await asyncio.gather(announcer.stop(), browser.stop(), return_exceptions=True)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return int(probe.getsockname()[1])


async def _start(home: Path) -> asyncio.subprocess.Process:
    with (home / "up.log").open("ab") as log:
        return await asyncio.create_subprocess_exec(
            sys.executable, "-m", "p2pfl", "up", str(home), "--json",
            stdin=asyncio.subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip


async def _stop(process: asyncio.subprocess.Process | None) -> None:
    if process is None or process.returncode is not None:
        return
    process.terminate()
    try:
        await asyncio.wait_for(process.wait(), STOP_TIME)
    except TimeoutError:
        process.kill()
        await process.wait()


def _last_line(home: Path) -> str:
    lines = (home / "up.log").read_text(errors="replace").strip().splitlines()
    return lines[-1] if lines else "it printed nothing"


def copy_plan(source: Path, folder: Path) -> Path:
    """The plan folder as the proposing hospital has it. ConfigError if it cannot be written."""
    target = folder / "plan"
    try:
        target.mkdir(parents=True, exist_ok=True)
        for name in ("plan.py", "plan.toml"):
            shutil.copyfile(source / name, target / name)
    except OSError as error:
        raise ConfigError(
            f"couldn't write {target}: {error.strerror}; choose a folder with space and rights"
        ) from error
    return target
