"""However a program ends, no thread or process of the loader keeps it alive or outlives it."""

import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import pytest
from pipeline_factory import shard_set
from waiting import wait_for

from svdata2vec.pipeline import background
from svdata2vec.pipeline.background import Prefetch

PROGRAM = """
import signal, sys, time
from svdata2vec.pipeline.loader import ClipLoader
from svdata2vec.pipeline.plan import PlanConfig
from svdata2vec.shards.reading.shardset import ShardSet

signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background inherits "ignore"
loader = ClipLoader(ShardSet.open(sys.argv[1]), "all", PlanConfig(num_frames=4, size=32), batch_size=2, train=True,
                    num_readers=int(sys.argv[3]))
batches = iter(loader)
print(len(next(batches)), flush=True)
if sys.argv[2] == "raise":
    raise RuntimeError("loss is nan")
if sys.argv[2] == "train":
    while True:
        for batch in loader:
            time.sleep(0.01)
"""


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    """jpeg: DALI and threads; h264: decoder processes as well."""
    roots = {codec: tmp_path_factory.mktemp(codec) for codec in ("jpeg", "h264")}
    for codec, root in roots.items():
        shard_set(root, 8, codec=codec, size=64)
    return roots


def start(folder: Path, how: str, readers: int = 0) -> subprocess.Popen:
    program = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(folder), how, str(readers)], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, start_new_session=True,
    )
    assert program.stdout is not None and program.stdout.readline() == "2\n"
    return program


def session_members(session: int) -> list[int]:
    """Processes of the program's session that are still alive."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            fields = (entry / "stat").read_text().rsplit(")", 1)[1].split() if entry.name.isdigit() else []
        except (FileNotFoundError, ProcessLookupError):
            continue
        if fields and int(fields[3]) == session and fields[0] != "Z":
            found.append(int(entry.name))
    return found


@pytest.mark.parametrize(
    ("codec", "readers", "how", "code", "message"),
    [
        ("jpeg", 0, "end", 0, ""), ("h264", 0, "end", 0, ""), ("jpeg", 0, "raise", 1, "loss is nan"),
        ("jpeg", 2, "end", 0, ""), ("jpeg", 2, "raise", 1, "loss is nan"),
    ],
)
def test_a_program_that_does_not_close_ends(folders, codec, readers, how, code, message):
    program = start(folders[codec], how, readers)
    _, errors = program.communicate(timeout=30)
    assert program.returncode == code and message in errors
    if how == "end":
        assert errors == ""
    assert not session_members(program.pid)


@pytest.mark.parametrize(
    ("codec", "readers", "kind"),
    [
        ("jpeg", 0, signal.SIGINT), ("h264", 0, signal.SIGINT), ("h264", 0, signal.SIGKILL), ("jpeg", 2, signal.SIGINT),
        ("jpeg", 2, signal.SIGKILL),
    ],
)
def test_a_stopped_program_leaves_no_process(folders, codec, readers, kind):
    program = start(folders[codec], "train", readers)
    time.sleep(0.2)
    if kind == signal.SIGINT:
        os.killpg(program.pid, kind)  # as a terminal does: to all of the group
    else:
        program.send_signal(kind)
    _, errors = program.communicate(timeout=30)
    assert program.returncode != 0
    assert kind != signal.SIGINT or "KeyboardInterrupt" in errors
    wait_for(lambda: not session_members(program.pid), 10)


class InterruptBefore:
    """A trace function that raises KeyboardInterrupt before the nth bytecode, as a signal may; not within `threading`, whose
    locks are given back in time from where Python looks for signals only."""

    def __init__(self, number: int) -> None:
        self.left = number

    def __call__(self, frame: FrameType, event: str, _: object) -> "InterruptBefore | None":
        if frame.f_code.co_filename == threading.__file__:
            return None
        frame.f_trace_opcodes = True
        if event == "opcode":
            self.left -= 1
            if self.left == -1:
                raise KeyboardInterrupt
        return self


def slowly() -> Iterator[int]:
    for number in itertools.count():
        time.sleep(0.002)
        yield number


@pytest.mark.parametrize("source", [itertools.count, slowly], ids=["item is there", "item is waited for"])
def test_an_interrupt_at_any_moment_leaves_no_thread(source):
    """Python's own bounded queue does not do it: the lock of an interrupted `get` may stay locked."""
    interrupted = 0
    while True:
        items = None
        interrupt = InterruptBefore(interrupted)
        sys._getframe().f_trace_opcodes = True  # Python 3.12 shows bytecodes only if some frame asks for them before
        sys.settrace(interrupt)
        try:
            items = Prefetch(source(), 1, "interrupted")
            next(items)
        except KeyboardInterrupt:
            interrupted += 1
        finally:
            sys.settrace(None)
        closing = threading.Thread(target=items.close if items else None, daemon=True)
        closing.start()
        closing.join(20)
        assert not closing.is_alive(), f"interrupted before bytecode {interrupted - 1}, its thread does not end"
        wait_for(lambda: not any(thread.name == "interrupted" and thread.is_alive() for thread in threading.enumerate()), 20)
        if interrupt.left >= 0:
            break
    assert interrupted > 10


def test_an_interrupt_while_the_thread_starts_leaves_nothing_that_reads(monkeypatch):
    """Such a thread would continue to read from the same reader processes as that of the next attempt."""
    real, taken = threading.Thread.start, []
    items = Prefetch(map(taken.append, itertools.count()), 1, "interrupted")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(threading.Thread, "start", lambda thread: (real(thread), interrupt(thread)))
        next(items)
    items.close()
    assert not items._thread.is_alive() and taken == []


def test_a_signal_to_a_waiting_thread_does_not_make_it_wait_for_ever():
    """As after Ctrl+Z and `fg`: the thread comes to itself long after. Python 3.11 and 3.12 then count a timeout of
    `SimpleQueue.get` below zero, which they take for none."""
    items = Prefetch(itertools.count(), 1, "waiting")
    before, interval = signal.signal(signal.SIGUSR1, lambda *_: None), sys.getswitchinterval()
    try:
        next(items)
        wait_for(lambda: items.idle)
        sys.setswitchinterval(10)  # nobody takes the interpreter's lock from the loop below
        signal.pthread_kill(items._thread.ident, signal.SIGUSR1)
        begun = time.monotonic()
        while time.monotonic() < begun + 0.3:
            pass
    finally:
        sys.setswitchinterval(interval)
        signal.signal(signal.SIGUSR1, before)
    items.request_stop()
    items._thread.join(5)
    assert not items._thread.is_alive()


def interrupt(_: object) -> None:
    raise KeyboardInterrupt


class Numbers:
    """A producer whose batches are their positions."""

    def read(self, epoch: int, position: int) -> Iterator[int]:
        return itertools.count(position)

    def decode(self, source: Iterator[int]) -> Iterator[int]:
        yield from source

    def close(self) -> None:
        """Nothing to release."""


def test_the_next_batch_comes_after_a_second_interrupt(monkeypatch):
    """The first one ends the threads, the second ends the wait for them."""
    running = background.Background(Numbers(), Numbers)
    assert [running.next_ready(0, 5, 1), running.next_ready(0, 6, 1)] == [5, 6]
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Prefetch, "close", interrupt)
        running.stop()
    assert running.next_ready(0, 7, 1) == 7
    running.close()
