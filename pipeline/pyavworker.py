"""A decoder process: reads requests on standard input, writes frames into shared memory, answers on standard output.

`pyavdecoder.py` starts it as `python -m svdata2vec.pipeline.pyavworker FILE_DESCRIPTOR`. A fresh interpreter and not a
fork: safe beside threads, CUDA and DALI, and the main program is not imported again. It ends at the end of its input, so
it never outlives its parent. T frames, S output size.
"""

import mmap
import pickle
import signal
import sys
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from svdata2vec.pipeline.affine import Affine
from svdata2vec.pipeline.resampling import Resampler
from svdata2vec.shards.reading.decode import decode_video


class Request(NamedTuple):
    """One clip: its container's bytes, wanted frames (T,), output -> packed (2, 3), output size in pixels."""

    video: bytes
    frames_T: NDArray[np.int64]
    output_to_packed: Affine
    size: int


def serve(request: Request, memory: mmap.mmap) -> str | None:
    """Write uint8 (T, S, S, 3) to the start of `memory`; returns the reason if the clip cannot be decoded."""
    try:
        frames = decode_video(np.frombuffer(request.video, np.uint8), request.frames_T)
    except ValueError as error:
        return str(error)
    shape = (len(request.frames_T), request.size, request.size, 3)
    out_TSS3 = np.frombuffer(memory, np.uint8, count=int(np.prod(shape))).reshape(shape)
    resampler = Resampler(request.output_to_packed, request.size)
    for t, number in enumerate(request.frames_T.tolist()):
        resampler(frames[number], 0, 0, out_TSS3[t])
    return None


def main() -> None:
    """Serve requests until the input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C and closes the pipe
    cv2.setNumThreads(1)
    requests, answers = sys.stdin.buffer, sys.stdout.buffer
    sys.stdout = sys.stderr  # a stray message of a library must not end up among the answers
    while True:
        try:
            size_bytes, request = pickle.load(requests)
        except EOFError:
            return
        with mmap.mmap(int(sys.argv[1]), size_bytes) as memory:
            answer = serve(request, memory)
        pickle.dump(answer, answers)
        answers.flush()


if __name__ == "__main__":
    main()
