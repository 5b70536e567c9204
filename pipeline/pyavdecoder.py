"""PyAV in worker processes, for what DALI cannot decode without a GPU: H.264, HEVC, and original files of any codec.

Processes, because PyAV holds the interpreter lock between frames: threads would wait for each other and for the training
loop. B clips, T frames, S output size.
"""

import logging
import mmap
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from queue import SimpleQueue

import numpy as np
import torch
from torch import Tensor

from svdata2vec.pipeline.frames import EncodedClip
from svdata2vec.pipeline.pyavworker import Request
from svdata2vec.pipeline.workers import GoneError, WorkerProcess, not_started

log = logging.getLogger(__name__)


class PyavDecoder:
    """`FrameDecoder` over `num_workers` processes, each started at first use, and again if it has died.

    `decode` raises MachineError if one cannot be started.
    """

    def __init__(self, num_workers: int) -> None:
        self.num_workers = num_workers
        self._pool: ThreadPoolExecutor | None = None
        self._idle: SimpleQueue[_Worker | None] = SimpleQueue()  # None: one that has yet to be started

    def decode(self, clips: Sequence[EncodedClip], out_BTSS3: Tensor) -> dict[int, str]:
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self.num_workers, thread_name_prefix="svdata2vec-pyav")
            for _ in range(self.num_workers):
                self._idle.put(None)
        reasons = self._pool.map(self._decode_one, clips, out_BTSS3)
        return {i: reason for i, reason in enumerate(reasons) if reason is not None}

    def close(self) -> None:
        if self._pool is None:
            return
        self._pool.shutdown()
        self._pool = None
        while not self._idle.empty():
            if (worker := self._idle.get()) is not None:
                worker.close()

    def _decode_one(self, clip: EncodedClip, out_TSS3: Tensor) -> str | None:
        worker = self._idle.get()
        try:
            if worker is None:
                worker = _Worker()
            try:
                return worker.decode(clip, out_TSS3)
            except GoneError:
                dead, worker = worker, None
                log.warning("a decoder process died while it decoded clip %s; starting another", clip.key)
                return f"the decoder process died on it (exit status {dead.close()}, negative: by that signal)"
        finally:
            self._idle.put(worker)


class _Worker:
    """One process and the shared memory it writes to (an unnamed file, so a crash leaves nothing behind).

    Raises MachineError if it cannot be started.
    """

    def __init__(self) -> None:
        try:
            with ExitStack() as undo:
                self._memory = os.fdopen(os.memfd_create("svdata2vec-frames"), "r+b", buffering=0)
                undo.callback(self._memory.close)
                self._process = WorkerProcess("svdata2vec.pipeline.pyavworker", [self._memory.fileno()])
                undo.pop_all()
        except OSError as error:
            raise not_started(error, "decodes clips", "--data.threads") from error

    def decode(self, clip: EncodedClip, out_TSS3: Tensor) -> str | None:
        """Raises GoneError when the process is gone."""
        num_bytes = out_TSS3.numel()
        if os.fstat(self._memory.fileno()).st_size < num_bytes:
            self._memory.truncate(num_bytes)
        self._process.send(Request(clip.video.tobytes(), clip.frames_T, clip.output_to_packed, out_TSS3.shape[1]))
        reason = self._process.receive()
        if reason is None:
            with mmap.mmap(self._memory.fileno(), num_bytes) as memory:
                frames = np.frombuffer(memory, np.uint8).reshape(out_TSS3.shape)
                out_TSS3.copy_(torch.from_numpy(frames))
                del frames
        return reason

    def close(self) -> int:
        """End the process; returns its exit status."""
        self._memory.close()
        return self._process.close()
