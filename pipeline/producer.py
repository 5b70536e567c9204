"""From positions of the global order to batches: the work of a loader's two threads (read and plan; decode).

B clips of a batch, T sampled frames, S output size.
"""

import contextlib
import logging
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from svdata2vec.pipeline.batch import ClipBatch
from svdata2vec.pipeline.decoders import room
from svdata2vec.pipeline.fetch import BadClipError, ClipFetcher, FetchedClip, Outcome
from svdata2vec.pipeline.handover import Lane, Turns
from svdata2vec.pipeline.keyed import keyed_generator
from svdata2vec.pipeline.order import EpochClips, OrderConfig
from svdata2vec.pipeline.pixels import apply_pixel_augment
from svdata2vec.pipeline.readers import ProcessReaders, Step, ThreadReaders
from svdata2vec.pipeline.video import Video, frames_of
from svdata2vec.shards.errors import UserError

log = logging.getLogger(__name__)

STEPS_AHEAD = 8  # whose clips are announced to the shard set
MAX_REPLACEMENTS = 20  # attempts to fill the place of one bad clip
MORE_UNUSABLE = "run `svdata2vec verify`, or raise max_bad_rate (--data.max-bad-rate, where a command has it)"
GRACE_CLIPS = 1000  # the rate counts over at least this many clips: early on, one bad clip of ten proves nothing


@dataclass
class LoaderStats:
    """Counts since the loader was made; they include prefetched clips, in training also those of the next epoch.

    Attributes:
        clips_skipped: unusable clips, each counted every time it comes.
        skipped_in_batches: places of unusable clips in the batches that were handed out.
        wait_seconds: time that the consumer waited for batches, the only time that costs training.
        unusable: index rows of the clips that were skipped.
    """

    clips_read: int = 0
    clips_decoded: int = 0
    clips_skipped: int = 0
    skipped_in_batches: int = 0
    batches: int = 0
    wait_seconds: float = 0.0
    unusable: set[int] = field(default_factory=set)


@dataclass(frozen=True)
class Ready:
    """A batch, how many of its clips could not be used, and the run's position after it.

    `batch` is None if all its clips were unusable in an evaluation.
    """

    epoch: int
    position: int
    batch: ClipBatch | None
    skipped: int


@dataclass(frozen=True)
class Read:
    """Planned clips of a step, how many could not be read, and the run's position after it."""

    epoch: int
    position: int
    clips: list[FetchedClip]
    skipped: int


@dataclass(frozen=True)
class Decoded:
    """Frames of a step, None if there are none, and number -> reason of the clips that failed."""

    video_BTHWC: Video | None
    failed: dict[int, str]


def most_unusable(order: OrderConfig, read: int, rate: float) -> float:
    """How many clips may be unusable.

    In training a share of the clips read, early on of `GRACE_CLIPS`. In each pass of an evaluation a share of all its clips
    (over all ranks), and at least one clip unless the rate is 0.
    """
    if order.train:
        return rate * max(read, GRACE_CLIPS)
    return max(rate * order.num_entries, order.views if rate else 0)


class Producer:
    """Makes the batches of one rank. `read` and `decode` run on a thread each and share only what is fetched.

    Raises UserError, which ends the run, if more clips are unusable than the share `max_bad_rate` allows (`most_unusable`).
    """

    def __init__(
        self, order: OrderConfig, fetcher: ClipFetcher, lanes: Sequence[Lane], max_bad_rate: float,
        stats: LoaderStats, device: torch.device, readers: ThreadReaders | ProcessReaders,
    ) -> None:
        self.order, self.fetcher, self.stats, self.readers = order, fetcher, stats, readers
        self.turns, self.max_bad_rate, self.device = Turns(lanes), max_bad_rate, device
        self._skipped_before = 0  # in earlier passes of an evaluation: the limit holds for each pass alone

    def read(self, epoch: int, position: int) -> Generator[Read]:
        """Planned clips, step by step, from a position on: endlessly in training, to the end of the epoch in evaluation."""
        if not self.order.train:
            self._skipped_before = self.stats.clips_skipped
        fetched_steps = self.readers.over(self._steps(epoch, position))
        with contextlib.closing(fetched_steps):
            for fetched in fetched_steps:
                step = fetched.step
                pairs = zip(step.rows, fetched.outcomes, strict=True)
                clips = [self._settle(row, outcome, step.epoch) for row, outcome in pairs]
                skipped = sum(not isinstance(outcome, FetchedClip) for outcome in fetched.outcomes)
                yield Read(step.epoch, step.position, [clip for clip in clips if clip is not None], skipped)

    def _steps(self, epoch: int, position: int) -> Iterator[Step]:
        """The steps to read, each announced to the shard set ahead of time."""
        while True:
            clips = self.order.clips(epoch)
            steps = self.order.steps(position)
            for number, step in enumerate(steps):
                start, stop = self.order.part(step)
                if start < stop:
                    self._announce(clips, steps[number : number + STEPS_AHEAD])
                    rows, views = clips.between(start, stop)
                    yield Step(epoch, step[1], rows.tolist(), views.tolist())
            if not self.order.train:
                return
            epoch, position = epoch + 1, 0

    def _announce(self, clips: EpochClips, steps: Sequence[tuple[int, int]]) -> None:
        """Tell the shard set what will be read in these steps."""
        parts = [clips.between(*self.order.part(step))[0] for step in steps]
        self.fetcher.shards.will_need(np.concatenate(parts))

    def decode(self, source: Iterator[Read]) -> Generator[Ready]:
        """Batches from planned clips."""
        for read, lane, decoded in self.turns.over(source, self.decode_step):
            with lane.work():
                batch = self.batch(read, decoded, lane)
            yield Ready(read.epoch, read.position, batch, read.skipped + len(decoded.failed))

    def decode_step(self, lane: Lane, read: Read) -> Decoded:
        """The frames of a step's clips, in the lane."""
        if lane.decoder is None or not read.clips:
            return Decoded(None, {})
        config = self.fetcher.config
        with lane.work():
            video = room(lane.decoder, len(read.clips), config.num_frames, config.size, self.device)
            failed = self._decode_into(lane, read.clips, video)
        return Decoded(video, failed)

    def close(self) -> None:
        """End threads and decoder; `read` and `decode` must have ended."""
        self.readers.close()
        self.turns.close()

    def _settle(self, row: int, outcome: Outcome, epoch: int) -> FetchedClip | None:
        """The clip, its replacement in training, None in evaluation if it is unusable."""
        self.stats.clips_read += 1
        if isinstance(outcome, FetchedClip):
            return outcome
        self._record_bad(row, str(outcome))
        return self._replace(row, epoch) if self.order.train else None

    def _replace(self, bad_row: int, epoch: int, lane: Lane | None = None, out_1TSS3: Video | None = None) -> FetchedClip:
        """Another clip, drawn by a key, so that all ranks and any resumed run agree on it.

        With a lane and `out_1TSS3` it is also decoded, into the latter.
        """
        key = self.fetcher.shards.index[bad_row]["key"].decode()
        for attempt in range(MAX_REPLACEMENTS):
            generator = keyed_generator("replacement", self.order.seed, epoch, key, attempt)
            row = int(self.order.rows[generator.integers(len(self.order.rows))])
            try:
                clip = self.fetcher.fetch(row, epoch, 0)
                if lane is not None and out_1TSS3 is not None:
                    reason = self._decode_into(lane, [clip], out_1TSS3).get(0)
                    if reason is not None:
                        raise BadClipError(reason)
            except BadClipError as error:
                if row != bad_row:
                    self._record_bad(row, str(error))
                continue
            return clip
        raise UserError(f"clip {key}: {MAX_REPLACEMENTS} replacements are unusable too; run `svdata2vec verify`")

    def _record_bad(self, row: int, reason: str) -> None:
        """Count an unusable clip, and log it the first time. Raises UserError above the allowed rate."""
        self.stats.clips_skipped += 1
        skipped = self.stats.clips_skipped - self._skipped_before
        read = self.stats.clips_read if self.order.train else self.order.num_entries
        shards = self.fetcher.shards
        entry = shards.index[row]
        key, shard = shards.name(row, entry["key"].decode()), shards.tar_name(int(entry["shard"]))
        reason = reason.removeprefix(f"{shard}: ")
        if row not in self.stats.unusable:
            self.stats.unusable.add(row)
            log.warning("skipping clip %s of %s: %s", key, shard, reason)
        if skipped > most_unusable(self.order, read, self.max_bad_rate):
            raise UserError(
                f"{skipped} of {max(skipped, read)} clips are unusable, more than the allowed {self.max_bad_rate:.2%}; "
                f"the last is {key} of {shard}: {reason}; {MORE_UNUSABLE}"
            )

    def batch(self, read: Read, decoded: Decoded, lane: Lane) -> ClipBatch | None:
        """The batch of a step, or None if all its clips were unusable in an evaluation."""
        clips, video = read.clips, decoded.video_BTHWC
        if video is not None:
            clips, video = self._settle_frames(read, video, decoded.failed, lane)
        if not clips:
            return None
        joints = [clip.joints_MTVC for clip in clips if clip.joints_MTVC is not None]
        batch = ClipBatch(
            video_BTHWC=video,
            joints_BMTVC=torch.from_numpy(np.stack(joints)) if joints else None,
            label_B=_int64([clip.label for clip in clips]),
            keys=tuple(clip.key for clip in clips),
            view_B=_int64([clip.view for clip in clips]) if self.order.views > 1 else None,
        )
        return batch if self.device.type == "cpu" else batch.to(self.device)

    def _settle_frames(
        self, read: Read, video_BTHWC: Video, failed: dict[int, str], lane: Lane
    ) -> tuple[list[FetchedClip], Video]:
        """Clips and frames of a step: failed ones replaced in training, left out in evaluation; pixels augmented."""
        kept, video = list(read.clips), video_BTHWC
        self.stats.clips_decoded += len(kept) - len(failed)
        for i, reason in sorted(failed.items()):
            self._record_bad(kept[i].row, reason)
            if self.order.train:
                kept[i] = self._replace(kept[i].row, read.epoch, lane, video[i : i + 1])
                self.stats.clips_decoded += 1
        if failed and not self.order.train:
            good = [i for i in range(len(kept)) if i not in failed]
            kept, video = [kept[i] for i in good], video[good]
        if any(clip.augment is not None for clip in kept):
            video = frames_of(video)
            for frames_THWC, clip in zip(video, kept, strict=True):
                if clip.augment is not None:
                    apply_pixel_augment(frames_THWC, clip.augment)
        return kept, video

    def _decode_into(self, lane: Lane, clips: Sequence[FetchedClip], video_BTHWC: Video) -> dict[int, str]:
        """`FrameDecoder.decode`. Raises UserError if a tar was truncated meanwhile."""
        assert lane.decoder is not None
        failed = lane.decoder.decode([clip.encoded for clip in clips if clip.encoded is not None], video_BTHWC)
        self.fetcher.shards.check_used()
        return failed


def _int64(numbers: Sequence[int]) -> torch.Tensor:
    """The same as `torch.tensor`, in a tenth of the time."""
    return torch.from_numpy(np.array(numbers, np.int64))
