"""The worker process: a fresh interpreter that trains. It holds no identity key and inherits no descriptor.

One request at a time over its standard input and output; everything that touches tensors happens in there.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import tempfile
from typing import Any

from p2pfl.errors import DataError, LocalError, MalformedMessage, P2PFLError, PlanError, SignatureRefused, StoreError
from p2pfl.train.frames import LENGTH_SIZE, decode_body, encode_frame, frame_length

START_LIMIT = 120.0  # seconds until a fresh interpreter has imported torch, on a slow disk
OFF_LOOP = 1 << 20  # bytes from which packing takes longer than the visit to a thread
ERROR_TAIL = 2000  # bytes of the worker's standard error shown when it dies
_FAULTS: dict[str, type[P2PFLError]] = {
    "plan": PlanError,
    "data": DataError,
    "malformed": MalformedMessage,
    "signature": SignatureRefused,
    "store": StoreError,
}
_KEPT_ENVIRONMENT = ("PATH", "LANG", "LC_ALL", "TZ", "TMPDIR", "SYSTEMROOT")


class Worker:
    """One worker process. Calls are carried out one after the other, in the order they were made."""

    def __init__(self) -> None:
        self._process: asyncio.subprocess.Process | None = None
        self._lock = asyncio.Lock()
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed in stop()
        self._broken: str | None = None

    @property
    def pid(self) -> int | None:
        """Process id of the running worker."""
        return self._process.pid if self._process else None

    async def start(self) -> None:
        """Start the interpreter. Its first answer comes when torch is imported."""
        environment = {name: os.environ[name] for name in _KEPT_ENVIRONMENT if name in os.environ}
        # one thread: results do not depend on the number of cores, and several peers share a laptop
        environment.update({"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "PYTHONHASHSEED": "0"})
        self._process = await asyncio.create_subprocess_exec(
            sys.executable, "-I", "-m", "p2pfl.train.worker",
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=self._log,
            env=environment, close_fds=True, start_new_session=True, limit=2**20,
        )  # fmt: skip

    async def call(self, operation: str, /, timeout: float | None = None, **arguments: Any) -> Any:
        """Carry out one operation in the worker.

        Raises PlanError, DataError, MalformedMessage or SignatureRefused as the worker judged, LocalError when the
        worker died or took longer than ``timeout`` seconds (it is ended then: its answer could not be told apart).
        """
        async with self._lock:
            if self._broken is not None:
                raise LocalError(self._broken)
            try:
                reply = await asyncio.wait_for(self._exchange(operation, arguments), timeout)
            except TimeoutError as error:
                await self._end()
                self._broken = f"the worker took longer than {timeout:g} s for {operation!r} and was ended"
                raise LocalError(self._broken) from error
            except (asyncio.IncompleteReadError, ConnectionError, OSError) as error:
                await self._end()
                self._broken = f"the worker process ended during {operation!r}: {self._tail()}"
                raise LocalError(self._broken) from error
            except asyncio.CancelledError:
                self._broken = "the worker was stopped"
                raise
        if reply.get("ok"):
            return reply.get("value")
        raise _FAULTS.get(str(reply.get("fault")), LocalError)(str(reply.get("error")))

    async def _exchange(self, operation: str, arguments: dict[str, Any]) -> dict[str, Any]:
        if self._process is None:
            await self.start()
        process = self._process
        assert process is not None and process.stdin is not None and process.stdout is not None
        request = {"op": operation, "args": arguments}
        if any(isinstance(value, bytes) and len(value) >= OFF_LOOP for value in arguments.values()):
            frame = await asyncio.to_thread(encode_frame, request)
        else:
            frame = encode_frame(request)
        process.stdin.write(frame)
        await process.stdin.drain()
        size = frame_length(await process.stdout.readexactly(LENGTH_SIZE))
        body = await process.stdout.readexactly(size)
        reply = decode_body(body) if size < OFF_LOOP else await asyncio.to_thread(decode_body, body)
        if not isinstance(reply, dict):
            raise ConnectionError("an answer that is not a map")
        return reply

    def _tail(self) -> str:
        try:
            self._log.seek(0, os.SEEK_END)
            self._log.seek(max(0, self._log.tell() - ERROR_TAIL))
            lines = self._log.read(ERROR_TAIL).decode("utf-8", "replace").strip().splitlines()
        except (OSError, ValueError):
            lines = []
        return lines[-1] if lines else "no message; it may have been killed for memory"

    async def _end(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        if process.stdin is not None:
            process.stdin.close()
        try:
            await asyncio.wait_for(process.wait(), 3)
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):  # it ended just now
                process.kill()
            await process.wait()
        transport = getattr(process, "_transport", None)
        if transport is not None:
            transport.close()

    async def stop(self) -> None:
        """End the worker; a call in progress fails."""
        if self._broken is None:
            self._broken = "the worker was stopped"
        await self._end()
        self._log.close()
