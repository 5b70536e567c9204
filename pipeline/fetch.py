"""Reads, checks and plans a step's clips for the decoder and the batch. No pixels are decoded here.

B clips, T sampled frames, M persons, V joints.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import repeat

import numpy as np
from numpy.typing import NDArray

from svdata2vec.pipeline import affine
from svdata2vec.pipeline.augment import PixelAugment
from svdata2vec.pipeline.frames import EncodedClip, JpegTable, changed, different, in_order, jpeg_tables, laid
from svdata2vec.pipeline.order import taken_name
from svdata2vec.pipeline.plan import ClipPlans, PlanConfig, apply_to_joints, make_plans
from svdata2vec.pipeline.seen import FramesSeen, only_seen
from svdata2vec.shards.atomic import WriteFailedError
from svdata2vec.shards.blocks import Bytes
from svdata2vec.shards.errors import TOO_MANY_FILES, MachineError, UserError, require_memory
from svdata2vec.shards.reading.sample import Sample
from svdata2vec.shards.reading.shardset import ShardSet
from svdata2vec.shards.reading.sums import crc32
from svdata2vec.shards.reading.tarfetch import TarError
from svdata2vec.shards.urls import StoreError

NOTHING = np.empty(0, np.uint8)
TOGETHER = 32  # clips that are planned at once; with more, the arrays would not fit into the CPU's own cache
FARTHEST = 64  # most that a crop may be away, in sides of the stored picture; joints and boxes are within half a source picture


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

    def encoded_as(self, encoded: EncodedClip) -> "FetchedClip":
        """The same clip with this encoded video."""
        return changed(self, encoded=encoded)


Outcome = FetchedClip | BadClipError


class ClipFetcher:
    """Reads and plans clips of one split: a pure function of (row, epoch, view), apart from the shards it keeps open.

    Args:
        label_map: int64 (classes,), stored label -> label of the split.
        check_hashes: compare every tar with the sha256 of the manifest when it is first read (not over a network, where that
            would fetch everything).
        seen: as in `ClipLoader`.
    """

    def __init__(
        self, shards: ShardSet, config: PlanConfig, *, train: bool, seed: int, video: bool, joints: bool,
        label_map: NDArray[np.int64], check_hashes: bool, seen: FramesSeen | None,
    ) -> None:
        self.shards, self.config, self.train, self.seed = shards, config, train, seed
        self.video, self.joints, self.label_map, self.check_hashes = video, joints, label_map, check_hashes
        self.seen = seen if shards.manifest.by_frame else None  # a video's decoder decodes all of its frames anyway
        # Whether frames are stored one by one and mapped: each process that needs them maps them itself.
        self.by_frame = video and shards.reads_frames and shards.manifest.by_frame
        self._hashed: set[int] = set()

    def fetch_step(
        self, rows: Sequence[int], epoch: int, views: Sequence[int], places: Iterable[Bytes | None] = repeat(None)
    ) -> list[Outcome]:
        """Clips of an epoch, the errors of damaged ones as values. places: as in `mapped`.

        All plans first, then all pictures: a clip's pictures are larger than the CPU's own cache. Raises UserError if a whole
        tar is missing, truncated or changed, or its store fails.
        """
        planned: list[Outcome] = []
        for start in range(0, len(rows), TOGETHER):
            planned += self._attempt(rows[start : start + TOGETHER], epoch, views[start : start + TOGETHER])
        if self.by_frame and self.shards.manifest.blocks is None:
            return self._mapped_together(planned)
        return [self.mapped(outcome, check=True, place=place) for outcome, place in zip(planned, places, strict=False)]

    def fetch(self, row: int, epoch: int, view: int) -> FetchedClip:
        """One clip. Raises BadClipError for a damaged one."""
        (outcome,) = self.fetch_step([row], epoch, [view])
        if isinstance(outcome, BadClipError):
            raise outcome
        return outcome

    def mapped(self, outcome: Outcome, *, check: bool, place: Bytes | None = None) -> Outcome:
        """A planned clip with its frames, if these are stored one by one.

        check: compare the planned frames with their sums. place: memory into which the frames of a clip in blocks are gathered
        (`frames.py`); None: they stay in the tar.
        """
        if not self.by_frame or isinstance(outcome, BadClipError) or outcome.encoded is None:
            return outcome
        encoded = outcome.encoded
        assert encoded.offsets is not None
        try:
            video, pictures = self.shards.frames(outcome.row, encoded.offsets, different(encoded) if check else [], place)
        except (OSError, ValueError) as error:
            return self._bad(outcome.row, error)
        return outcome.encoded_as(encoded.with_video(video, pictures) if place is None else in_order(encoded, video))

    def _mapped_together(self, planned: list[Outcome]) -> list[Outcome]:
        """`mapped` with check, in passes over all clips: reading pictures evicts everything else from the CPU's cache."""
        outcomes, cuts = list(planned), {}
        for place, clip in enumerate(planned):
            if isinstance(clip, FetchedClip) and clip.encoded is not None and clip.encoded.table is not None:
                try:
                    table = clip.encoded.table
                    cuts[place] = self.shards.cut(clip.row, table.frames_D, table.starts, table.stops)
                except (OSError, ValueError) as error:
                    outcomes[place] = self._bad(clip.row, error)
        found = [list(map(crc32, cut.pictures)) if cut.sums else [] for cut in cuts.values()]
        for (place, cut), sums in zip(cuts.items(), found, strict=True):
            clip = planned[place]
            assert isinstance(clip, FetchedClip) and clip.encoded is not None
            try:
                self.shards.check_cut(clip.row, cut, sums)
                outcomes[place] = clip.encoded_as(clip.encoded.with_video(cut.video, cut.pictures))
            except (OSError, ValueError) as error:
                outcomes[place] = self._bad(clip.row, error)
        return outcomes

    def _bad(self, row: int, error: Exception) -> BadClipError:
        """The error as one of this clip alone; UserError if its tar is missing, truncated or changed, MachineError
        if too many files are open or memory is running out."""
        if isinstance(error, MachineError):
            raise error
        require_memory(error, self.shards.where)
        if isinstance(error, OSError) and error.errno in TOO_MANY_FILES:
            raise MachineError(f"{error}: raise the limit of open files (`ulimit -n`), or set a smaller --run.batch-size, "
                               "--data.prefetch or --data.readers") from error
        self.shards.check_shard(int(self.shards.index[row]["shard"]))
        return BadClipError(str(error))

    def received(self, outcome: Outcome, place: Bytes | None) -> Outcome:
        """A clip that another process sent `unmapped`: its frames are in the place that it was given, or are mapped here."""
        if place is None or isinstance(outcome, BadClipError) or outcome.encoded is None:
            return self.mapped(outcome, check=False)
        return outcome.encoded_as(laid(outcome.encoded, place))

    def unmapped(self, outcome: Outcome) -> Outcome:
        """A clip as it is sent to another process, which maps its frames itself."""
        if not self.by_frame or isinstance(outcome, BadClipError) or outcome.encoded is None:
            return outcome
        return outcome.encoded_as(changed(outcome.encoded, video=NOTHING, table=None, pictures=()))

    def _attempt(self, rows: Sequence[int], epoch: int, views: Sequence[int]) -> list[Outcome]:
        """Clips planned together; if one is damaged, each is planned alone, so that only that one is lost."""
        for row in rows if self.check_hashes else ():
            self._check_tar(int(self.shards.index[row]["shard"]))
        try:
            return list(self._planned(rows, epoch, views))
        except (TarError, StoreError, WriteFailedError):  # the store or the cache failed: nothing is wrong with the clip
            raise
        except (OSError, ValueError, OverflowError) as error:
            if len(rows) > 1:
                return [self._attempt([row], epoch, [view])[0] for row, view in zip(rows, views, strict=True)]
            return [self._bad(rows[0], error)]

    def _check_tar(self, shard: int) -> None:
        """Check a tar once; UserError if its bytes do not have the hash in the manifest."""
        if shard not in self._hashed:
            self.shards.check_shard(shard)
            self.shards.check_hash(shard)
            self._hashed.add(shard)

    def _planned(self, rows: Sequence[int], epoch: int, views: Sequence[int]) -> list[FetchedClip]:
        """Planned clips; without their frames if these are stored one by one."""
        shards = self.shards
        samples = [shards.sample(row, video=self.video and not self.by_frame, table=self.by_frame) for row in rows]
        stored = [int(shards.index[row]["label"]) for row in rows]
        for sample, label in zip(samples, stored, strict=True):
            if sample.label != label:
                raise UserError(f"label {sample.label} in the tar, {label} in the index; run `svdata2vec verify`")
        plans = make_plans(
            samples, self.config, train=self.train, seed=self.seed, epoch=epoch, views=views, shows=shards.manifest.view
        )
        joints = apply_to_joints(plans, list(map(shards.stored_layout, rows)), self.config.persons)
        names = [
            taken_name(shards.name(row, sample.key), view if self.train else 0)
            for row, view, sample in zip(rows, views, samples, strict=True)
        ]
        encoded = self._encoded(samples, plans, self._decoded(names, epoch, plans)) if self.video else [None] * len(rows)
        return [
            FetchedClip(
                row, names[i], int(self.label_map[label]), view,
                shards.in_layout(row, joints[i]) if self.joints else None, encoded[i], plans.augment_B[i],
            )
            for i, (row, view, label) in enumerate(zip(rows, views, stored, strict=True))
        ]

    def _decoded(self, names: list[str], epoch: int, plans: ClipPlans) -> NDArray[np.int64]:
        """(B, T) frame numbers for the decoder: all, or those that are seen, repeated in the places of the others."""
        if self.seen is None:
            return plans.frames_BT
        return only_seen(plans.frames_BT, self.seen(names, epoch))

    def _encoded(self, samples: list[Sample], plans: ClipPlans, frames_BT: NDArray[np.int64]) -> list[EncodedClip]:
        """The clips' videos, unless frames are stored one by one, and the maps into their pictures."""
        packed_B23 = np.stack([sample.meta.packed_to_source for sample in samples])
        maps_B23 = affine.compose(affine.invert(packed_B23), plans.output_to_source_B23)
        packed_B2 = [(sample.meta.packed_width, sample.meta.packed_height) for sample in samples]
        ends_B4 = np.concatenate([maps_B23[..., 2], maps_B23[..., :2].sum(axis=-1) * plans.size + maps_B23[..., 2]], axis=1)
        far_B = ~(np.abs(ends_B4) < FARTHEST * np.max(packed_B2, axis=1, keepdims=True)).all(axis=1)  # or not a number
        if far_B.any():
            key = samples[far_B.argmax()].key
            raise UserError(f"clip {key}: its crop lies far outside the picture; its joints or boxes are damaged")
        tables: Sequence[JpegTable | None] = [None] * len(samples)
        if self.by_frame and self.shards.manifest.blocks is None:
            tables = jpeg_tables([sample.key for sample in samples], [sample.offsets for sample in samples], list(frames_BT))
        return [
            EncodedClip(
                sample.key, NOTHING if sample.video is None else np.frombuffer(sample.video, np.uint8), sample.offsets,
                frames_BT[i], maps_B23[i], *packed_B2[i], sample.blocks, tables[i],
            )
            for i, sample in enumerate(samples)
        ]
