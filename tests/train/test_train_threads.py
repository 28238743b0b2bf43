"""Pieces of work side by side: the same threads each time, all of them ended before anybody looks."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from functools import partial

import pytest
import torch

from p2pfl.train.threads import on_threads

WAIT = 30.0  # seconds; only a failure takes them


def test_the_threads_stay() -> None:
    """oneDNN generates its kernels once per thread."""
    here: list[int] = []

    def both() -> None:
        together = threading.Barrier(2)

        def job() -> None:
            here.append(threading.get_ident())
            together.wait(WAIT)

        on_threads([job, job])

    both()
    first = {thread.ident for thread in threading.enumerate() if thread.name == "p2pfl-compute"}
    both(), both()
    assert len(here) == 6 and len(first) >= 2 and set(here) <= first


def test_each_computes_alone_and_the_setting_comes_back() -> None:
    before = torch.get_num_threads()
    found: list[int] = []
    on_threads([lambda: found.append(torch.get_num_threads())] * 3)
    assert found == [1, 1, 1] and torch.get_num_threads() == before


def test_the_first_error_is_raised_when_all_have_ended() -> None:
    failed, ended = threading.Event(), threading.Event()

    def fails(what: str) -> None:
        failed.set()
        raise ValueError(what)

    def ends() -> None:
        assert failed.wait(WAIT)
        ended.set()

    with pytest.raises(ValueError, match=r"^first$"):
        on_threads([ends, partial(fails, "first"), partial(fails, "second")])
    assert ended.is_set()


INTERRUPTED = """
import os, signal, threading
import torch
from p2pfl.train.threads import on_threads

signal.signal(signal.SIGINT, signal.default_int_handler)
ended = threading.Event()

def interrupted():
    os.kill(os.getpid(), signal.SIGINT)
    for _ in range(100):
        torch.randn(100, 100) @ torch.randn(100, 100)
    ended.set()

try:
    on_threads([interrupted])
except KeyboardInterrupt:
    print("interrupted,", "ended" if ended.is_set() else "still running")
"""


def test_an_interrupt_waits_for_what_is_running() -> None:
    """What the jobs change is whole again before anybody looks at it, and the process can end."""
    done = subprocess.run([sys.executable, "-c", INTERRUPTED], capture_output=True, text=True, timeout=2 * WAIT)
    assert (done.stdout, done.stderr, done.returncode) == ("interrupted, ended\n", "", 0)


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_process_has_threads_of_its_own() -> None:
    on_threads([lambda: None])
    child = os.fork()
    if child == 0:
        signal.alarm(int(WAIT))  # a child that waits for threads it does not have ends here
        try:
            found: list[int] = []
            on_threads([lambda: found.append(1)])
            os._exit(0 if found == [1] else 1)
        except BaseException:
            os._exit(2)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
