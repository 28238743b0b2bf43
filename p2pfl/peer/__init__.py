"""One hospital's peer: the asyncio shell around the protocol machine, its home folder and its local control."""

from p2pfl.peer.control import OVER, ControlServer, ask, follow
from p2pfl.peer.doctor import examine
from p2pfl.peer.home import Home, check_new_home, init_home, open_home, read_text
from p2pfl.peer.home_settings import HomeSettings, WebRtcSettings
from p2pfl.peer.kept_files import kept_folders
from p2pfl.peer.local import LocalPeers, found_consortium, local
from p2pfl.peer.own_record import change_address, known_records, take_record
from p2pfl.peer.peer import Peer
from p2pfl.peer.plan_checks import check_plan
from p2pfl.peer.replaying import Replayed, RunReplay, replay_run
from p2pfl.peer.run import Run, RunEvent

__all__ = [
    "OVER",
    "ControlServer",
    "Home",
    "HomeSettings",
    "LocalPeers",
    "Peer",
    "Replayed",
    "Run",
    "RunEvent",
    "RunReplay",
    "WebRtcSettings",
    "ask",
    "change_address",
    "check_new_home",
    "check_plan",
    "examine",
    "follow",
    "found_consortium",
    "init_home",
    "kept_folders",
    "known_records",
    "local",
    "open_home",
    "read_text",
    "replay_run",
    "take_record",
]
