"""`ClipLoader`: batches of a split, prefetched in the background, in an order that any later run can continue.

The position of a run is (epoch, clips consumed by all ranks together). The order of an epoch and every clip's augmentation
are pure functions of (seed, epoch, key), so nothing else has to be saved, and the next batch after a resume is equal bit
for bit; with another number of ranks or another batch size no clip is lost or repeated.
"""

import hashlib
import time
from collections.abc import Iterator
from fractions import Fraction
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from svdata2vec.pipeline.background import Background
from svdata2vec.pipeline.batch import ClipBatch
from svdata2vec.pipeline.blockupload import BlockUploader
from svdata2vec.pipeline.decoders import DecoderName, FrameDecoder, check_device, make_decoder, numbered
from svdata2vec.pipeline.fetch import ClipFetcher
from svdata2vec.pipeline.handover import LANES_ON_GPU, Lane, take
from svdata2vec.pipeline.order import OrderConfig
from svdata2vec.pipeline.plan import PlanConfig
from svdata2vec.pipeline.producer import LoaderStats, Producer, Ready, most_unusable
from svdata2vec.pipeline.readers import ProcessReaders, ThreadReaders
from svdata2vec.pipeline.seen import FramesSeen
from svdata2vec.shards.errors import UserError
from svdata2vec.shards.ranges import check_known, check_number
from svdata2vec.shards.reading.shardset import ShardSet

STATE_VERSION = 1


class ClipLoader:
    """Batches of one split of a shard set. Iterating yields the rest of the current epoch, iterating again the next epoch.

    Args:
        shards: an open shard set. split: name of one of its splits.
        plan: what a clip looks like: frames, size in pixels, crop, augmentation; None: the method's.
        batch_size: clips per batch and rank.
        train: shuffled, random plans, and the next epoch already in the background; else the split's order and the plans of
            an evaluation, each clip exactly once over all ranks.
        seed: of the order and of all plans.
        rank, world_size: which of how many processes share the split.
        device: where batches arrive: "cpu", "cuda:n", or "cuda", which is PyTorch's current GPU when iteration begins.
            On a GPU the frames are decoded there.
        decoder: "dali", or "reference" (OpenCV and PyAV, slow).
        num_threads: decoding threads; for codecs that DALI cannot decode on a CPU, decoder processes.
        engine_share: share (0..1) of JPEGs that a GPU's engines decode, its CUDA cores the rest; only with 0 or 1 a clip has
            the same bits in every batch.
        run_pictures: pictures that DALI decodes at once; None: 256 on a CPU, 1,280 on a GPU.
        num_readers: processes that read and plan clips (local shards), if one interpreter is too slow for a GPU's decoder;
            0 = a thread does it.
        prefetch: batches ready ahead of the consumer; as many again are read and planned ahead of the decoder.
        video, joints: whether batches have them. Without video nothing is decoded.
        limit: use the first n clips of the split only, or only these index rows (int64 array).
        last_batch: clips that do not fill a step: "drop" (default in training) or "partial" (always in evaluation; in
            training all ranks get equally many). An epoch that is continued with other batch sizes drops none.
        smallest_batch: clips that each rank needs for a step.
        max_bad_rate: tolerated share (0..1) of unusable clips; 0 = none. Otherwise an evaluation always tolerates one clip.
        check_hashes: compare each tar with the manifest's sha256 when it is first read.
        seen: in training, the frames that the consumer of the batches uses. If pictures are stored one by one, the other
            frames may be repeats of these, which saves decoding them. None: all frames are decoded.

    Threads and DALI start with the first iteration; `close` (or `with`) ends them. A loader may be pickled, and used again
    in a child process, forked or spawned by multiprocessing (after a bare os.fork leave by os._exit, or DALI's exit handler
    crashes the child).

    Attributes:
        step_clips: clips of all ranks together in the step of the last batch that was handed out.

    Raises UserError for an unknown split and for arguments that cannot be met.
    """

    def __init__(
        self,
        shards: ShardSet,
        split: str,
        plan: PlanConfig | None = None,
        *,
        batch_size: int = 32,
        train: bool = False,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        device: str = "cpu",
        decoder: DecoderName = "dali",
        num_threads: int = 2,
        engine_share: float = 1.0,
        run_pictures: int | None = None,
        num_readers: int = 0,
        prefetch: int = 2,
        video: bool = True,
        joints: bool = True,
        limit: int | NDArray[np.int64] | None = None,
        last_batch: Literal["drop", "partial"] | None = None,
        smallest_batch: int = 1,
        max_bad_rate: float = 0.01,
        check_hashes: bool = False,
        seen: FramesSeen | None = None,
    ) -> None:
        self.last_batch = last_batch or ("drop" if train else "partial")
        _check_counts(batch_size=batch_size, num_threads=num_threads, prefetch=prefetch, world_size=world_size,
                      run_pictures=run_pictures, smallest_batch=smallest_batch)
        check_number("num_readers", num_readers, 0, whole=True)
        check_number("rank", rank, 0, world_size - 1, whole=True)
        check_number("seed", seed, -(2**63), 2**63 - 1, whole=True)
        check_number("max_bad_rate", max_bad_rate, 0, 1)
        check_number("engine_share", engine_share, 0, 1)
        check_known("last_batch", self.last_batch, ("drop", "partial"))
        check_device(device)
        if not (video or joints):
            raise UserError("video=False and joints=False: a batch would be empty; switch one of them on")
        if self.last_batch == "drop" and not train:
            raise UserError("last_batch='drop' with train=False would leave clips out of an evaluation: use 'partial'")
        self.shards, self.split, self.plan, self.seen = shards, split, plan or PlanConfig(), seen
        _check_seen(seen, self.plan, train)
        self.device, self.decoder_name, self.num_readers, self.prefetch = device, decoder, num_readers, prefetch
        self.num_threads, self.engine_share, self.run_pictures = num_threads, engine_share, run_pictures
        self.video, self.joints, self.check_hashes, self.max_bad_rate = video, joints, check_hashes, max_bad_rate
        rows = _select(shards.rows(split), limit, split)
        _check_labels(shards, split, rows)
        self.order = OrderConfig(
            rows=rows, views=1 if train else self.plan.views, batch_size=batch_size, seed=seed, train=train,
            drop_last=self.last_batch == "drop", rank=rank, world_size=world_size, smallest_batch=smallest_batch,
            shares=shards.shares(rows) if train else (),
        )
        self._require_clips()
        self.stats = LoaderStats()
        self._epoch = self._position = 0
        self.step_clips = 0
        self._fingerprint = _fingerprint(shards, split, self.order)
        self._background: Background | None = None

    def _require_clips(self) -> None:
        order, clips = self.order, len(self.order.rows)
        if not clips:
            raise UserError(f"split {self.split!r} has no clips; take another split")
        if order.train and not self.batches_per_epoch:
            taken = f"{order.num_entries} of {clips} clips by data.weights" if order.shares else f"{clips} clips"
            raise UserError(
                f"split {self.split!r}: {taken}, fewer than one step with batch_size={order.batch_size} and world_size="
                f"{order.world_size}; use a smaller batch_size, or last_batch='partial', which needs one clip per rank"
            )

    @property
    def num_clips(self) -> int:
        """Clips of the split (or of `limit`), over all ranks."""
        return len(self.order.rows)

    @property
    def most_unusable(self) -> float:
        """Clips (times views) of an evaluation that may be unusable, over all ranks."""
        return most_unusable(self.order, self.order.num_entries, self.max_bad_rate)

    @property
    def batches_per_epoch(self) -> int:
        """Batches of a whole epoch on this rank; equal on every rank in training."""
        return self.order.parts_left(0)

    @property
    def clips_per_epoch(self) -> int:
        """Clips of a whole epoch, over all ranks."""
        return self.order.end(0)

    @property
    def num_lanes(self) -> int:
        """Decoders that take turns (handover.py)."""
        return LANES_ON_GPU if self.video and torch.device(self.device).type == "cuda" else 1

    @property
    def num_processes(self) -> int:
        """Number of reader processes; a set behind a URL is read by threads instead, which share a cache."""
        return self.num_readers if self.shards.read_threads == 1 else 0

    @property
    def most_ahead(self) -> int:
        """Batches that may be started or ready ahead of a consumer that pauses.

        Each of the two queues holds `prefetch` batches and one that waits for room; each further lane and process holds one.
        """
        return 2 * (self.prefetch + 1) + self.num_lanes - 1 + max(self.num_processes - 1, 0)

    @property
    def idle(self) -> bool:
        """Whether everything allowed ahead of the consumer is ready; a second lane may still be busy with its batch."""
        return self._background is None or self._background.idle

    @property
    def epochs_passed(self) -> Fraction:
        """The position after the last batch that was handed out, in epochs; equal on all ranks."""
        return self._epoch + Fraction(self._position, self.order.end(self._position) or 1)

    def batches_until(self, epochs: int) -> int:
        """Batches left until `epochs` epochs have passed; equal on every rank in training."""
        if self._epoch >= epochs:
            return 0
        return self.order.parts_left(self._position) + (epochs - self._epoch - 1) * self.batches_per_epoch

    @property
    def epoch(self) -> int:
        """Epoch that the next batch belongs to."""
        return self._epoch + 1 if self._epoch_is_over() else self._epoch

    def __iter__(self) -> Iterator[ClipBatch]:
        if self._epoch_is_over():
            self._begin_next_epoch()
        for step in self.order.steps(self._position):
            start, stop = self.order.part(step)
            if start == stop:
                self._position = step[1]
                continue
            ready = self._next_ready()
            if (ready.epoch, ready.position) != (self._epoch, step[1]):
                self._stop_stream()  # the next iteration starts at this loader's position
                raise RuntimeError(
                    f"batch of epoch {ready.epoch}, position {ready.position} came for epoch {self._epoch}, position "
                    f"{step[1]}: two iterations of one loader ran at the same time; make a second loader"
                )
            self._position = step[1]
            self.stats.skipped_in_batches += ready.skipped
            if ready.batch is not None:
                self.stats.batches += 1
                self.step_clips = step[1] - step[0]
                yield take(ready.batch)
        self._begin_next_epoch()

    def set_epoch(self, epoch: int) -> None:
        """Go to the start of an epoch, 0 or more."""
        check_number("epoch", epoch, 0, whole=True)
        self._stop_stream()
        self._epoch, self._position = int(epoch), 0

    def state_dict(self) -> dict[str, Any]:
        """The position after the last batch that was handed out; equal on all ranks."""
        over = self._epoch_is_over()  # store the next epoch: another batch size must not find clips left in this one
        return {
            "version": STATE_VERSION, "epoch": self._epoch + over, "position": 0 if over else self._position,
            "seed": self.order.seed, "fingerprint": self._fingerprint,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state` was taken. Raises UserError if it belongs to other data, another split or seed."""
        mine = self.state_dict()
        for name, meaning in (("version", "format"), ("fingerprint", "shards, split or subset"), ("seed", "seed")):
            if state.get(name) != mine[name]:
                raise UserError(
                    f"loader state has {name} {state.get(name)!r}, this loader {mine[name]!r}: it was saved with "
                    f"another {meaning}; resume with the same one, or start a new run"
                )
        if not 0 <= state["position"] <= self.order.num_entries or state["epoch"] < 0:
            raise UserError(
                f"loader state is at position {state['position']} of epoch {state['epoch']}: expected "
                f"0..{self.order.num_entries}; the file is damaged"
            )
        self._stop_stream()
        self._epoch, self._position = int(state["epoch"]), int(state["position"])

    def close(self) -> None:
        """End threads and decoder. The loader may be iterated again, and then continues where it was."""
        if self._background is not None:
            self._background.close()
        self._background = None

    def __enter__(self) -> "ClipLoader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_background": None}

    def _begin_next_epoch(self) -> None:
        if not self.order.train:
            self._stop_stream()  # its source is exhausted; in training the threads are already at the next epoch
        self._epoch, self._position = self._epoch + 1, 0

    def _epoch_is_over(self) -> bool:
        return self._position > 0 and self.order.end(self._position) == self._position

    def _next_ready(self) -> Ready:
        started = time.perf_counter()
        if self._background is not None and not self._background.is_mine:
            self.close()  # forked: start again
        if self._background is None:
            self._background = Background(self.make_producer(), self)
        ready = self._background.next_ready(self._epoch, self._position, self.prefetch)
        self.stats.wait_seconds += time.perf_counter() - started
        return ready

    def make_producer(self) -> Producer:
        """The work of the background threads; public so that its halves can be timed alone. The caller must `close` it."""
        fetcher = ClipFetcher(
            self.shards, self.plan, train=self.order.train, seed=self.order.seed, video=self.video, joints=self.joints,
            label_map=self.shards.label_map(self.split), check_hashes=self.check_hashes, seen=self.seen,
        )
        device = numbered(self.device)
        lanes = [Lane(self.new_decoder() if self.video else None, device) for _ in range(self.num_lanes)]
        slabs = None
        if isinstance(uploader := lanes[0].decoder, BlockUploader) and fetcher.by_frame:
            slabs = uploader.slabs(self.order.largest_part, self.plan.num_frames)
        readers: ThreadReaders | ProcessReaders = ThreadReaders(fetcher, self.shards.read_threads, slabs)
        if self.num_processes:
            readers = ProcessReaders(fetcher, self.num_processes, slabs)
        return Producer(self.order, fetcher, lanes, self.max_bad_rate, self.stats, device, readers)

    def new_decoder(self) -> FrameDecoder:
        """A lane's decoder."""
        return make_decoder(
            self.decoder_name, self.shards.manifest.codec, self.plan.size, str(numbered(self.device)), self.num_threads,
            self.engine_share, self.run_pictures, self.shards.manifest.blocks,
        )

    def _stop_stream(self) -> None:
        if self._background is not None and self._background.is_mine:
            self._background.stop()


def _check_counts(**counts: int | None) -> None:
    """Raise UserError unless each is a whole number from 1 on, or None."""
    for name, count in counts.items():
        if count is not None:
            check_number(name, count, 1, whole=True)


def _check_seen(seen: FramesSeen | None, plan: PlanConfig, train: bool) -> None:
    """Raise UserError if decoding only the seen frames would change what the model sees."""
    if seen is None:
        return
    if not train or seen.num_frames != plan.num_frames:
        raise UserError(f"seen is for {seen.num_frames} frames of training clips: expected train=True and a plan of as many")
    if plan.augment.contrast:
        raise UserError("seen is given with a plan that changes contrast, which takes the mean of all frames: leave it out")


def _select(rows: NDArray[np.int64], limit: int | NDArray[np.int64] | None, split: str) -> NDArray[np.int64]:
    if limit is None:
        return rows
    if isinstance(limit, (int, np.integer)) and not isinstance(limit, bool):
        if limit < 1:
            raise UserError(f"limit is {limit}: expected a number of clips, 1 or more, or an array of rows")
        return rows[:limit]
    wanted = np.asarray(limit)
    if wanted.ndim != 1 or not wanted.size or wanted.dtype.kind not in "iu":  # a boolean mask would be taken for rows 0 and 1
        raise UserError(f"limit is {wanted.dtype} of shape {wanted.shape}: expected a number of clips, or a list of some of "
                        f"shards.rows({split!r}), whole numbers; for a mask use np.flatnonzero")
    wanted = wanted.astype(np.int64)
    foreign = wanted[~np.isin(wanted, rows)]
    if foreign.size:
        raise UserError(f"limit names row {foreign[0]}, not in split {split!r}: use rows of shards.rows({split!r})")
    return wanted


def _check_labels(shards: ShardSet, split: str, rows: NDArray[np.int64]) -> None:
    """Raise UserError if a clip has a class that its split does not have: its label would be meaningless."""
    valid_N = np.isin(shards.index["label"][rows], np.flatnonzero(shards.label_map(split) >= 0))
    if not valid_N.all():
        row = rows[np.argmin(valid_N)]
        raise UserError(
            f"{shards.where}: clip {shards.index[row]['key'].decode()} has label {shards.index[row]['label']}, but split "
            f"{split!r} has the classes {', '.join(shards.split_classes(split))}; correct the annotations and pack again"
        )


def _fingerprint(shards: ShardSet, split: str, order: OrderConfig) -> str:
    """Identity of the data behind an order: the bytes of every tar (by their hashes), the split, its rows and their weights."""
    digest = hashlib.blake2b(digest_size=16)
    for shard in shards.manifest.shards:
        digest.update(f"{shard.name} {shard.sha256}\n".encode())
    digest.update(split.encode() + b"\n" + np.ascontiguousarray(order.rows).tobytes())
    digest.update("".join(f"\n{len(places)} {weight}" for places, weight in order.shares).encode())
    return digest.hexdigest()
