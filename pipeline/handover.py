"""The hand-over: frames are made on CUDA streams of their own, so that decoding and training never wait for each other.

A lane is a decoder with its stream; lanes take turns, a batch each: while the engines of the GPU decode for one, the host
feeds the other. On a CPU there is one lane without stream or thread, and the same code runs.

Who waits for whom:

1. All work that makes a batch (decoding, colour jitter, copies) is started in `Lane.work`, on the lane's stream.
2. A thread of the loader waits for that stream at the end of `work`, never for another stream or the whole device.
3. So a batch that leaves its lane is complete: its consumer needs no event, and nothing waits for the consumer's kernels.
4. `take` marks the batch as used by the consumer's stream: its memory goes back to the lane's stream only when the consumer's
   kernels that were queued until it was freed have run.
"""

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from typing import TypeVar

import torch

from svdata2vec.pipeline.batch import ClipBatch
from svdata2vec.pipeline.decoders import FrameDecoder

LANES_ON_GPU = 2

Item = TypeVar("Item")
Result = TypeVar("Result")


class Lane:
    """A decoder (None: there are no frames to make) and the stream that it works on. Serves one thread at a time."""

    def __init__(self, decoder: FrameDecoder | None, device: torch.device) -> None:
        self.decoder = decoder
        self._device, self._stream = device, torch.cuda.Stream(device) if device.type == "cuda" else None

    @contextmanager
    def work(self) -> Iterator[None]:
        """Work started inside runs on the lane's stream and is complete at the end, even if it fails."""
        if self._stream is None:
            yield
            return
        # The device first: on exit, `stream` restores the device that it found, which would create a context on GPU 0.
        with torch.cuda.device(self._device), torch.cuda.stream(self._stream):
            try:
                yield
            except BaseException:
                with suppress(RuntimeError):  # the first error is raised
                    self._stream.synchronize()
                raise
            self._stream.synchronize()


class Turns:
    """Lanes that take turns. Used by one thread."""

    def __init__(self, lanes: Sequence[Lane]) -> None:
        self.lanes = lanes
        self._pool = ThreadPoolExecutor(len(lanes), "svdata2vec-lane") if len(lanes) > 1 else None

    def over(self, source: Iterable[Item], job: Callable[[Lane, Item], Result]) -> Generator[tuple[Item, Lane, Result]]:
        """`job(lane, item)` of every item, in order, one per lane at a time; a yielded lane is idle."""
        if self._pool is None:
            for item in source:
                yield item, self.lanes[0], job(self.lanes[0], item)
            return
        pending: deque[tuple[Item, Lane, Future[Result]]] = deque()
        errors: list[Exception] = []
        try:
            for number, item in enumerate(_until_error(source, errors)):
                lane = self.lanes[number % len(self.lanes)]
                pending.append((item, lane, self._pool.submit(job, lane, item)))
                if len(pending) == len(self.lanes):
                    yield _finished(pending)
            while pending:
                yield _finished(pending)
            if errors:
                raise errors[0]
        finally:
            wait([future for _, _, future in pending])  # leave no lane working in the background

    def close(self) -> None:
        """Release decoders and threads; may be called twice."""
        if self._pool is not None:
            self._pool.shutdown()
        for lane in self.lanes:
            if lane.decoder is not None:
                lane.decoder.close()


def _until_error(source: Iterable[Item], errors: list[Exception]) -> Iterator[Item]:
    """Items of a source; its error is kept, to be raised after the items taken before it."""
    try:
        for item in source:  # noqa: UP028 - `yield from` would close the source
            yield item
    except Exception as error:  # noqa: BLE001 - raised again
        errors.append(error)


def _finished(pending: "deque[tuple[Item, Lane, Future[Result]]]") -> tuple[Item, Lane, Result]:
    item, lane, future = pending[0]
    result = future.result()
    pending.popleft()
    return item, lane, result


def take(batch: ClipBatch) -> ClipBatch:
    """Mark a batch as used by the consumer's current stream: its memory goes back to the lane only after that."""
    for tensor in batch.tensors().values():
        if tensor.is_cuda:
            tensor.record_stream(torch.cuda.current_stream(tensor.device))
    return batch
