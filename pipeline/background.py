"""The running half of a loader: its threads and its decoder, and how they end, whatever ends the program."""

import atexit
import os
import threading
import weakref
from typing import Literal

import torch

from svdata2vec.pipeline.frames import FrameDecoder
from svdata2vec.pipeline.prefetch import Prefetch
from svdata2vec.pipeline.producer import Producer, Read, Ready
from svdata2vec.pipeline.pyavstage import PyavDecoder
from svdata2vec.pipeline.reference import ReferenceDecoder

DecoderName = Literal["dali", "reference"]
DALI_CPU_CODECS = ("jpeg", "vp9", "mjpeg")


class Background:
    """Threads and decoder of a loader (`owner`), which it does not keep alive: it ends when the owner is collected.

    Belongs to the process that made it. In a forked child, where the threads are not, it is set aside and never freed:
    destroying what the parent's threads work on crashes.
    """

    def __init__(self, producer: Producer, owner: object) -> None:
        self._producer = producer
        self._pid = os.getpid()
        self._reader: Prefetch[Read] | None = None
        self._stream: Prefetch[Ready] | None = None
        self._finalizer = weakref.finalize(owner, self._shut_down)
        self._finalizer.atexit = False  # _close_all does it, in time
        _ALL.add(self)
        atexit.unregister(_close_all)
        atexit.register(_close_all)  # last registered, first called: before DALI's handler destroys its pipelines

    @property
    def is_mine(self) -> bool:
        """False in a forked child of the process that made this."""
        return self._pid == os.getpid()

    def next_ready(self, epoch: int, position: int, depth: int) -> Ready:
        """The next batch; the first call starts the threads at this place. Whatever failed in them is raised here."""
        if self._stream is None:
            self._reader = Prefetch(self._producer.read(epoch, position), depth, "svdata2vec-read")
            self._stream = Prefetch(self._producer.decode(self._reader), depth, "svdata2vec-decode")
        try:
            return next(self._stream)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End the threads, drop what was prefetched, keep the decoder."""
        stages = [stage for stage in (self._stream, self._reader) if stage is not None]
        for stage in stages:
            stage.request_stop()
        for stage in stages:
            stage.close()
        self._reader = self._stream = None

    def close(self) -> None:
        """End threads and decoder; may be called twice."""
        self._finalizer()

    def _shut_down(self) -> None:
        if not self.is_mine:
            _LEFT_TO_PARENT.append(self)
        elif threading.current_thread().name.startswith("svdata2vec"):  # collected on one of its own threads
            for stage in (self._stream, self._reader):
                if stage is not None:
                    stage.request_stop()
        else:
            self.stop()
            self._producer.close()


_ALL: "weakref.WeakSet[Background]" = weakref.WeakSet()
_LEFT_TO_PARENT: list[Background] = []


def _close_all() -> None:
    for background in list(_ALL):
        background.close()


def make_decoder(name: DecoderName, codec: str, size: int, device: str, num_threads: int) -> FrameDecoder:
    """The decoder for a codec on a device: DALI where it can decode it, PyAV processes for the rest on a CPU.

    DALI is imported only here, and only if it is used.
    """
    if name == "reference":
        if torch.device(device).type != "cpu":
            raise ValueError(f"decoder 'reference' runs on the CPU, not on {device!r}: use 'dali'")
        return ReferenceDecoder()
    if name != "dali":
        raise ValueError(f"decoder is {name!r}: expected 'dali' or 'reference'")
    if torch.device(device).type == "cpu" and codec not in DALI_CPU_CODECS:
        return PyavDecoder(size, num_threads)
    from svdata2vec.pipeline.graph import DaliDecoder

    return DaliDecoder(codec, size, device=device, num_threads=num_threads)
