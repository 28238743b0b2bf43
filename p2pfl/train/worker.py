"""The worker process, ``python -I -m p2pfl.train.worker``: one Session, asked over stdin and stdout.

Request ``{"op": name, "args": {...}}``, reply ``{"ok": True, "value": ...}`` or ``{"ok": False, "fault":
"plan" | "data" | "malformed" | "signature" | "store" | "internal", "error": text}``. "open" builds the Session from
"source" and "settings"; the other ops are the Session's methods. Ends at the end of stdin. It holds no
identity key and opens no connection; the plan's code runs here and nowhere else.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import Any, BinaryIO

from p2pfl.errors import (
    ConfigError,
    DataError,
    LimitExceeded,
    MalformedMessage,
    PlanError,
    SignatureRefused,
    StoreError,
)
from p2pfl.train.frames import read_frame, write_frame

OPERATIONS = frozenset(
    {
        "adopt", "base", "begin", "check", "describe", "digest", "drop", "encode", "evaluate", "forget", "initial",
        "load_data", "mix", "receive", "restore", "result", "save", "shared", "train",
    }
)  # fmt: skip
FAULTS: tuple[tuple[type[Exception], str], ...] = (
    (PlanError, "plan"),
    (ConfigError, "plan"),
    (DataError, "data"),
    (MalformedMessage, "malformed"),
    (LimitExceeded, "malformed"),
    (SignatureRefused, "signature"),
    (StoreError, "store"),
)
ERROR_TEXT_LIMIT = 2000  # characters; no error of ours is longer, and a reply stays small


def private_streams() -> tuple[BinaryIO, BinaryIO]:
    """The request and reply streams, moved away from descriptors 0 and 1.

    What the plan prints goes to stderr and what it reads is empty, so it cannot disturb the frames.
    """
    requests, replies = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    with open(os.devnull, "rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    os.dup2(2, 1)
    return requests, replies


class Worker:
    """Answers requests; holds at most one Session."""

    def __init__(self) -> None:
        self._session: Any = None

    def answer(self, request: Any) -> dict[str, Any]:
        """The reply to one request; every fault of plan, data or messages becomes a reply, never an exit."""
        try:
            if not isinstance(request, dict) or not isinstance(request.get("args", {}), dict):
                raise MalformedMessage("a request that is not {op, args}; send one frame per request")
            return {"ok": True, "value": self._do(str(request.get("op")), request.get("args", {}))}
        except Exception as error:
            fault = next((name for kind, name in FAULTS if isinstance(error, kind)), "internal")
            text = str(error) if fault != "internal" else f"{type(error).__name__}: {error}"
            return {"ok": False, "fault": fault, "error": text[:ERROR_TEXT_LIMIT]}

    def _do(self, op: str, args: Mapping[str, Any]) -> Any:
        if op == "open":
            self._session = _open_session(args)
            return None
        if op not in OPERATIONS:
            raise ValueError(f"unknown operation {op!r}; use open, {', '.join(sorted(OPERATIONS))}")
        if self._session is None:
            raise ValueError(f"operation {op} before open; open a plan first")
        return getattr(self._session, op)(**args)


def _open_session(args: Mapping[str, Any]) -> Any:
    import torch

    from p2pfl.train.session import Session

    # One thread: sites share a machine in demos, and the order of sums must not depend on the core count.
    torch.set_num_threads(1)
    return Session(plan_source=args["source"], settings=args["settings"])


def main() -> int:
    """Serve until the end of stdin."""
    requests, replies = private_streams()
    worker = Worker()
    while (request := read_frame(requests)) is not None:
        reply = worker.answer(request)
        sys.stdout.flush()
        write_frame(replies, reply)
    return 0


if __name__ == "__main__":
    sys.exit(main())
