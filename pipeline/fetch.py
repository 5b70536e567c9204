"""One clip from the shards to what the decoder and the batch need: read, check, plan. No pixels are decoded here.

T sampled frames, M persons, V joints.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import repeat

import numpy as np
from numpy.typing import NDArray

from svdata2vec.pipeline import affine
from svdata2vec.pipeline.augment import PixelAugment
from svdata2vec.pipeline.frames import EncodedClip, different, in_order, laid
from svdata2vec.pipeline.order import taken_name
from svdata2vec.pipeline.plan import ClipPlan, PlanConfig, apply_to_joints, make_plan
from svdata2vec.shards.atomic import WriteFailedError
from svdata2vec.shards.blocks import Bytes
from svdata2vec.shards.errors import UserError
from svdata2vec.shards.reading.sample import Sample
from svdata2vec.shards.reading.shardset import ShardSet
from svdata2vec.shards.reading.tarfetch import TarError

NOTHING = np.empty(0, np.uint8)
FARTHEST = 64  # of a crop from the stored picture, in sides of it; joints and boxes are stored within half a source picture


class BadClipError(ValueError):
    """One clip is unusable; all others may be good."""


@dataclass(frozen=True)
class FetchedClip:
    """A planned clip of an index row. `encoded` is None in skeleton-only mode, `joints_MTVC` (float32) in RGB-only mode."""

    row: int
    key: str
    label: int
    view: int
    joints_MTVC: NDArray[np.float32] | None
    encoded: EncodedClip | None
    augment: PixelAugment | None


Outcome = FetchedClip | BadClipError


class ClipFetcher:
    """Reads and plans clips of one split: a pure function of (row, epoch, view), apart from the shards it keeps open.

    label_map: int64 (classes,), stored label -> label of the split. check_hashes: compare every tar with the sha256 of
    the manifest when it is first read (not over a network, where that would fetch everything).
    """

    def __init__(
        self, shards: ShardSet, config: PlanConfig, *, train: bool, seed: int, video: bool, joints: bool,
        label_map: NDArray[np.int64], check_hashes: bool,
    ) -> None:
        self.shards, self.config, self.train, self.seed = shards, config, train, seed
        self.video, self.joints, self.label_map, self.check_hashes = video, joints, label_map, check_hashes
        self._hashed: set[int] = set()

    @property
    def by_frame(self) -> bool:
        """Whether frames lie apart and are mapped: each process that needs them maps them itself."""
        return self.video and self.shards.reads_frames and self.shards.manifest.by_frame

    def fetch_step(
        self, rows: list[int], epoch: int, views: list[int], places: Iterable[Bytes | None] = repeat(None)
    ) -> list[Outcome]:
        """`fetch` of several clips, the errors of damaged ones as values. places: as in `mapped`.

        All plans first, then all pictures: a clip's pictures are larger than the processor's own cache.
        """
        planned = [self._attempt(row, epoch, view) for row, view in zip(rows, views, strict=True)]
        return [self.mapped(outcome, check=True, place=place) for outcome, place in zip(planned, places, strict=False)]

    def attempt(self, row: int, epoch: int, view: int) -> Outcome:
        """`fetch`, with the error of a damaged clip as a value."""
        return self.mapped(self._attempt(row, epoch, view), check=True)

    def fetch(self, row: int, epoch: int, view: int) -> FetchedClip:
        """Raises BadClipError for a damaged clip and UserError when the whole tar is missing, short or changed."""
        outcome = self.attempt(row, epoch, view)
        if isinstance(outcome, BadClipError):
            raise outcome
        return outcome

    def mapped(self, outcome: Outcome, *, check: bool, place: Bytes | None = None) -> Outcome:
        """A planned clip with its frames, where they lie apart; check: compare those of the plan with their sums.

        place: where the frames of a clip in blocks are laid, gathered (`frames.py`); None: they stay in the tar.
        """
        if not self.by_frame or isinstance(outcome, BadClipError) or outcome.encoded is None:
            return outcome
        encoded = outcome.encoded
        assert encoded.offsets is not None
        try:
            video = self.shards.frames(outcome.row, encoded.offsets, different(encoded) if check else [], place)
        except (OSError, ValueError) as error:
            self.shards.check_shard(int(self.shards.index[outcome.row]["shard"]))
            return BadClipError(str(error))
        return replace(outcome, encoded=replace(encoded, video=video) if place is None else in_order(encoded, video))

    def received(self, outcome: Outcome, place: Bytes | None) -> Outcome:
        """A clip that another process sent `unmapped`: its frames lie in the place that it was given, or are mapped."""
        if place is None or isinstance(outcome, BadClipError) or outcome.encoded is None:
            return self.mapped(outcome, check=False)
        return replace(outcome, encoded=laid(outcome.encoded, place))

    def unmapped(self, outcome: Outcome) -> Outcome:
        """A clip as it is sent to another process, which has its frames too."""
        if not self.by_frame or isinstance(outcome, BadClipError) or outcome.encoded is None:
            return outcome
        return replace(outcome, encoded=replace(outcome.encoded, video=NOTHING))

    def _attempt(self, row: int, epoch: int, view: int) -> Outcome:
        try:
            return self._planned(row, epoch, view)
        except BadClipError as error:
            return error

    def _planned(self, row: int, epoch: int, view: int) -> FetchedClip:
        """A clip without its frames, where they lie apart."""
        entry = self.shards.index[row]
        shard, stored = int(entry["shard"]), int(entry["label"])
        if self.check_hashes and shard not in self._hashed:
            self.shards.check_shard(shard)
            self.shards.check_hash(shard)
            self._hashed.add(shard)
        try:
            sample = self.shards.sample(row, video=self.video and not self.by_frame, table=self.by_frame)
            if sample.label != stored:
                raise UserError(f"label {sample.label} in the tar, {stored} in the index; run `svdata2vec verify`")
            plan = make_plan(
                sample.meta, sample.pose_MTVC, sample.box_T4, self.config,
                train=self.train, seed=self.seed, epoch=epoch, view=view, score_MFV=sample.score_MTV,
                shows=self.shards.manifest.view,
            )
            joints = apply_to_joints(plan, sample.pose_MTVC, self.shards.stored_layout(row), self.config.persons)
            joints = self.shards.in_layout(row, joints)
            encoded = self._encoded(row, sample, plan) if self.video else None
        except (TarError, WriteFailedError):  # of the cache: the clip is as good as ever
            raise
        except (OSError, ValueError, OverflowError) as error:
            self.shards.check_shard(shard)
            raise BadClipError(str(error)) from error
        label = int(self.label_map[stored])
        name = taken_name(self.shards.name(row, sample.key), view if self.train else 0)
        return FetchedClip(row, name, label, view, joints if self.joints else None, encoded, plan.augment)

    def _encoded(self, row: int, sample: Sample, plan: ClipPlan) -> EncodedClip:
        """The clip's video, unless its frames lie apart, and the map into its pictures."""
        meta = sample.meta
        output_to_packed = affine.compose(affine.invert(meta.packed_to_source), plan.output_to_source)
        size = meta.packed_width, meta.packed_height
        ends = [end for a, b, c in output_to_packed.tolist() for end in (c, (a + b) * self.config.size + c)]
        if not all(abs(end) < FARTHEST * max(size) for end in ends):  # nor where it is not a number
            raise UserError(f"clip {sample.key}: its crop lies far outside the picture; its joints or boxes are damaged")
        video = NOTHING if sample.video is None else np.frombuffer(sample.video, np.uint8)
        return EncodedClip(sample.key, video, sample.offsets, plan.frames_T, output_to_packed, *size, sample.blocks)
