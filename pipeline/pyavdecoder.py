"""PyAV in worker processes, for what DALI cannot decode without a GPU: H.264, HEVC, and original files of any codec.

Processes, because PyAV holds the interpreter lock between frames: threads would wait for each other and for the training
loop. B clips, T frames, S output size.
"""

import contextlib
import logging
import mmap
import os
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue

import numpy as np
import torch
from torch import Tensor

from svdata2vec.pipeline.frames import EncodedClip
from svdata2vec.pipeline.pyavworker import Request

log = logging.getLogger(__name__)

_SHARED_FOLDER = Path("/dev/shm")
_EXIT_SECONDS = 5


class PyavDecoder:
    """`FrameDecoder` over `num_workers` processes, started at first use."""

    def __init__(self, num_workers: int) -> None:
        self.num_workers = num_workers
        self._pool: ThreadPoolExecutor | None = None
        self._idle: SimpleQueue[_Worker] = SimpleQueue()

    def decode(self, clips: Sequence[EncodedClip], out_BTSS3: Tensor) -> dict[int, str]:
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self.num_workers, thread_name_prefix="svdata2vec-pyav")
            for _ in range(self.num_workers):
                self._idle.put(_Worker())
        reasons = self._pool.map(self._decode_one, clips, out_BTSS3)
        return {i: reason for i, reason in enumerate(reasons) if reason is not None}

    def close(self) -> None:
        if self._pool is None:
            return
        self._pool.shutdown()
        self._pool = None
        while not self._idle.empty():
            self._idle.get().close()

    def _decode_one(self, clip: EncodedClip, out_TSS3: Tensor) -> str | None:
        worker = self._idle.get()
        try:
            return worker.decode(clip, out_TSS3)
        except (OSError, EOFError, pickle.UnpicklingError) as error:
            log.warning("a decoder process died while it decoded clip %s; starting another", clip.key)
            worker.close()
            worker = _Worker()
            return f"the decoder process died on it ({type(error).__name__})"
        finally:
            self._idle.put(worker)


class _Worker:
    """One process and the shared memory it writes to (an unnamed file, so a crash leaves nothing behind)."""

    def __init__(self) -> None:
        folder = _SHARED_FOLDER if _SHARED_FOLDER.is_dir() else None
        self._memory = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - lives as long as this object
        descriptor = self._memory.fileno()
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "svdata2vec.pipeline.pyavworker", str(descriptor)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=(descriptor,), env=environment,
        )
        assert self._process.stdin is not None and self._process.stdout is not None
        self._requests, self._answers = self._process.stdin, self._process.stdout

    def decode(self, clip: EncodedClip, out_TSS3: Tensor) -> str | None:
        """Raises OSError or EOFError when the process is gone."""
        num_bytes = out_TSS3.numel()
        if os.fstat(self._memory.fileno()).st_size < num_bytes:
            self._memory.truncate(num_bytes)
        request = Request(clip.video.tobytes(), clip.frames_T, clip.output_to_packed, out_TSS3.shape[1])
        pickle.dump((num_bytes, request), self._requests, protocol=pickle.HIGHEST_PROTOCOL)
        self._requests.flush()
        reason = pickle.load(self._answers)
        if reason is None:
            with mmap.mmap(self._memory.fileno(), num_bytes) as memory:
                frames = np.frombuffer(memory, np.uint8).reshape(out_TSS3.shape)
                out_TSS3.copy_(torch.from_numpy(frames))
                del frames
        return reason

    def close(self) -> None:
        with contextlib.suppress(OSError):  # the process has ended already
            self._requests.close()
        try:
            self._process.wait(_EXIT_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._answers.close()
        self._memory.close()
