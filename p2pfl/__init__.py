"""p2pfl: decentralised learning for consortia without a trusted hub.

Everything a script needs is here; each name is loaded when it is first used, so ``import p2pfl`` is quick and
imports no torch. Topics have their own modules: ``p2pfl.topology``, ``p2pfl.audit``, ``p2pfl.governance``,
``p2pfl.data``, ``p2pfl.peer``, ``p2pfl.sim``, ``p2pfl.train``, ``p2pfl.errors``.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from p2pfl.audit import AuditLog, verify_log
    from p2pfl.crypto import Identity
    from p2pfl.data import Registry
    from p2pfl.errors import P2PFLError
    from p2pfl.governance import Charter, Plan
    from p2pfl.peer import Peer, Run, local
    from p2pfl.sim import SimResult, simulate
    from p2pfl.types import PeerId

_HOMES = {
    "AuditLog": "p2pfl.audit",
    "Charter": "p2pfl.governance",
    "Identity": "p2pfl.crypto",
    "P2PFLError": "p2pfl.errors",
    "Peer": "p2pfl.peer",
    "PeerId": "p2pfl.types",
    "Plan": "p2pfl.governance",
    "Registry": "p2pfl.data",
    "Run": "p2pfl.peer",
    "SimResult": "p2pfl.sim",
    "local": "p2pfl.peer",
    "simulate": "p2pfl.sim",
    "verify_log": "p2pfl.audit",
}

__version__ = "0.1.0"

__all__ = [
    "AuditLog",
    "Charter",
    "Identity",
    "P2PFLError",
    "Peer",
    "PeerId",
    "Plan",
    "Registry",
    "Run",
    "SimResult",
    "local",
    "simulate",
    "verify_log",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'p2pfl' has no attribute {name!r}")
