"""The worker as a real process: frames, faults, a plan that prints, that raises, that reads stdin."""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Iterator

import pytest
from train_worlds import CLASSIFIER_PLAN

from p2pfl.errors import LimitExceeded, MalformedMessage
from p2pfl.train import frames
from p2pfl.train.session import Session

SETTINGS = {"rule": "kgt", "learning_rate": 0.1, "local_steps": 2, "batch_size": 8}
NOISY_PLAN = (
    b"import os, sys\nprint('from the plan')\nassert sys.stdin.read() == ''\nos.write(1, b'raw bytes')\n"
    + CLASSIFIER_PLAN
)


class Process:
    def __init__(self) -> None:
        command = [sys.executable, "-I", "-m", "p2pfl.train.worker"]
        self.child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    def ask(self, op: str, **args):
        frames.write_frame(self.child.stdin, {"op": op, "args": args})
        return frames.read_frame(self.child.stdout)

    def close(self) -> tuple[int, bytes]:
        _, errors = self.child.communicate(timeout=60)
        return self.child.returncode, errors


@pytest.fixture(scope="module")
def worker() -> Iterator[Process]:
    process = Process()
    yield process
    process.close()


def value(reply: dict):
    assert reply["ok"], reply
    return reply["value"]


def test_a_round_through_the_process_equals_a_session_here(worker: Process) -> None:
    here = Session(NOISY_PLAN.replace(b"assert sys.stdin.read() == ''", b""), SETTINGS)
    value(worker.ask("open", source=NOISY_PLAN, settings=SETTINGS))
    assert value(worker.ask("describe")) == here.describe()
    assert value(worker.ask("load_data", path="0")) == here.load_data("0")
    assert value(worker.ask("check")) == []
    initial = value(worker.ask("initial", seed=1))
    assert initial == here.initial(1)
    begun = {"initial": initial, "run": b"run", "key": b"k" * 32, "share": 0.25}
    assert value(worker.ask("begin", **begun)) == here.begin(**begun)
    for number in range(2):
        assert value(worker.ask("train", round=number, steps=2)) == here.train(number, 2)
        sent = value(worker.ask("encode", round=number, step=0, closing=False))
        assert sent == here.encode(number, 0, False)
        keys = {}
        for message in sent:
            keys[message["channel"]] = f"{number}/{message['channel']}"
            worker.ask("receive", key=keys[message["channel"]], **message)
            here.receive(keys[message["channel"]], **message)
        args = {"round": number, "step": 0, "edges": [["b", 0.25, keys]], "corrections": []}
        args |= {"last": True, "closing": False}
        assert value(worker.ask("mix", **args)) == here.mix(**args)
    final = {"round": 2, "step": 0, "edges": [], "corrections": [["b", 1, 0]], "last": True, "closing": True}
    assert value(worker.ask("mix", **final)) == here.mix(**final)
    assert value(worker.ask("forget", pairs=[["b", 0, 0]])) is None
    assert value(worker.ask("drop", keys=["nothing"])) is None
    assert value(worker.ask("evaluate", part="test")) == here.evaluate("test")
    assert value(worker.ask("result")) == here.result()
    assert value(worker.ask("digest")) == here.digest()


@pytest.mark.parametrize(
    ("op", "args", "fault", "words"),
    [
        ("open", {"source": b"1/0", "settings": SETTINGS}, "plan", "ZeroDivisionError"),
        ("open", {"source": CLASSIFIER_PLAN, "settings": {}}, "plan", "rule is missing"),
        ("open", {"source": CLASSIFIER_PLAN}, "internal", "settings"),
        ("load_data", {"path": "/nowhere/x"}, "data", "ValueError"),
        ("receive", {"key": "k", "channel": "x", "payload": b"abc", "result": "0"}, "malformed", "3 bytes"),
        ("encode", {"round": 0, "step": 0, "closing": True, "more": 1}, "internal", "more"),
        ("__init__", {}, "internal", "unknown operation"),
        ("vector", {}, "internal", "unknown operation"),
        ("train", {"round": 3, "steps": 1e9}, "internal", "float"),
    ],
)
def test_faults_are_named_and_the_worker_lives(worker: Process, op, args, fault: str, words: str) -> None:
    value(worker.ask("open", source=CLASSIFIER_PLAN, settings=SETTINGS))
    value(worker.ask("load_data", path="0"))
    initial = value(worker.ask("initial", seed=0))
    value(worker.ask("begin", initial=initial, run=b"run", key=b"k" * 32, share=0.5))
    reply = worker.ask(op, **args)
    assert (reply["ok"], reply["fault"]) == (False, fault) and words in reply["error"]
    assert value(worker.ask("digest"))


def test_a_delta_that_was_altered_is_a_signature_fault(worker: Process) -> None:
    value(worker.ask("open", source=CLASSIFIER_PLAN, settings=SETTINGS))
    initial = value(worker.ask("initial", seed=0))
    specs = value(worker.ask("begin", initial=initial, run=b"run", key=b"k" * 32, share=0.5))
    payload = bytes(specs[0]["size"])
    reply = worker.ask("receive", key="k", channel="x", payload=payload, result="0" * 64)
    assert reply["fault"] == "signature"
    assert value(worker.ask("receive", key="k", channel="x", payload=payload, result=specs[0]["base"])) is None


def test_it_ends_with_its_stdin_and_prints_go_to_stderr() -> None:
    process = Process()
    assert process.ask("digest")["error"].startswith("ValueError: operation digest before open")
    frames.write_frame(process.child.stdin, "not a map")
    assert frames.read_frame(process.child.stdout)["fault"] == "malformed"
    value(process.ask("open", source=NOISY_PLAN, settings=SETTINGS))
    code, errors = process.close()
    assert code == 0 and b"from the plan" in errors and b"raw bytes" in errors


def test_frames_round_trip_and_cut_frames_are_refused() -> None:
    stream = io.BytesIO()
    for item in ({"a": b"\x00" * 70000}, [1, 2.5, None, "ü"]):
        frames.write_frame(stream, item)
    data = stream.getvalue()
    stream.seek(0)
    assert frames.read_frame(stream) == {"a": b"\x00" * 70000}
    assert frames.read_frame(stream) == [1, 2.5, None, "ü"]
    assert frames.read_frame(stream) is None
    for cut in (1, 3, 5, 1000):
        with pytest.raises(MalformedMessage):
            frames.read_frame(io.BytesIO(data[:cut]))
    with pytest.raises(LimitExceeded):
        frames.read_frame(io.BytesIO(b"\xff\xff\xff\xff"))
    with pytest.raises(MalformedMessage):
        frames.decode_body(b"\xc1")


@pytest.mark.parametrize("name", ["p2pfl.train", "p2pfl.train.frames", "p2pfl.train.worker"])
def test_importing_loads_no_torch(name: str) -> None:
    code = f"import sys, {name}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-I", "-c", code], timeout=60).returncode == 0
