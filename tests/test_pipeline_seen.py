"""Pretraining does not decode frames that its masks hide, which changes nothing that a network reads."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pipeline_factory import shard_set
from tiny import MODEL, pretrain_config, run_config

from svdata2vec.config.schema import DataConfig, MaskConfig, PretrainConfig, TargetConfig
from svdata2vec.kernels.functional import gather_frames
from svdata2vec.model.masking import draw_masks
from svdata2vec.model.student import frames_seen
from svdata2vec.pipeline.augment import AugmentConfig
from svdata2vec.pipeline.batch import ClipBatch
from svdata2vec.pipeline.fetch import BadClipError
from svdata2vec.pipeline.graph import DaliDecoder
from svdata2vec.pipeline.loader import ClipLoader
from svdata2vec.pipeline.plan import PlanConfig
from svdata2vec.pipeline.seen import FramesSeen, only_seen
from svdata2vec.pipeline.video import frames_of
from svdata2vec.runs.data import build_loader
from svdata2vec.runs.runtime import Runtime
from svdata2vec.shards.errors import UserError
from svdata2vec.shards.reading.shardset import ShardSet
from svdata2vec.training.pretrain import Pretraining

T, RATIO = 16, 0.8  # of 16 frames 3 are kept
SEEN = FramesSeen(T, 3, 2, seed=5)
PLAN = PlanConfig(num_frames=T, size=32)


@pytest.fixture(scope="module", params=["jpeg", "blocks"])
def shards(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    """Clips of 8 to 44 frames: shorter ones repeat frames by themselves."""
    folder = tmp_path_factory.mktemp(request.param)
    return shard_set(folder, 8, codec=request.param, num_frames=lambda i: 8 + 12 * (i % 4), size=64)


def batches(shards: ShardSet, seen: FramesSeen | None, **more: Any) -> list[ClipBatch]:
    """Two epochs."""
    with ClipLoader(shards, "all", PLAN, batch_size=4, train=True, seed=5, seen=seen, **more) as loader:
        return [batch for _ in range(2) for batch in loader]


def windows(batch: ClipBatch, epoch: int) -> torch.Tensor:
    """The part of a batch that the student reads."""
    masks = draw_masks(batch.keys, T, MaskConfig(RATIO, 0.5), 5, epoch)
    assert batch.video_BTHWC is not None
    return gather_frames(frames_of(batch.video_BTHWC), masks.encoded_BE, dtype=torch.float32)


@pytest.mark.parametrize("encoded", [0, 5])
def test_seen_is_every_window_of_every_mask(encoded: int) -> None:
    keys = [f"set/clip{i}" for i in range(300)]
    seen = replace(SEEN, encoded=encoded or 3)
    seen_BT = seen(keys, 7)
    for repeats in (1, 3):
        masks = draw_masks(keys, T, MaskConfig(RATIO, 0.5, repeats=repeats, encoded_frames=encoded), 5, 7)
        near_BT = (masks.encoded_BE[:, :, None] - torch.arange(T)).abs().amin(dim=1) <= 2
        np.testing.assert_array_equal(seen_BT, near_BT.numpy())
    np.testing.assert_array_equal(seen(["clip9"], 7)[0], seen_BT[9])  # by itself, and by its key alone
    assert seen_BT.sum(axis=1).mean() == pytest.approx(seen.mean, rel=0.03)
    assert (seen(keys, 8) != seen_BT).any() and (replace(seen, seed=6)(keys, 7) != seen_BT).any()


def test_an_unseen_frame_repeats_the_seen_one_before_it() -> None:
    seen_BT = np.array([[0, 0, 1, 0, 1, 1, 0]], bool)
    assert only_seen(np.arange(7)[None] * 3, seen_BT).tolist() == [[6, 6, 6, 6, 12, 15, 15]]


@pytest.mark.parametrize("decoder", ["dali", "reference"])
def test_the_student_reads_the_same_of_kept_frames_and_of_whole_clips(shards: ShardSet, decoder: Any) -> None:
    """Bit for bit; joints, labels and names too. Readers in another process agree."""
    whole, seen = batches(shards, None, decoder=decoder), batches(shards, SEEN, decoder=decoder)
    for number, (one, two) in enumerate(zip(whole, seen, strict=True)):
        assert one.keys == two.keys and torch.equal(one.joints_BMTVC, two.joints_BMTVC)
        assert torch.equal(windows(one, number // 2), windows(two, number // 2))
    assert any(not torch.equal(one.video_BTHWC, two.video_BTHWC) for one, two in zip(whole, seen, strict=True))
    if decoder == "dali":
        for one, two in zip(seen, batches(shards, SEEN, num_readers=1), strict=True):
            assert torch.equal(one.video_BTHWC, two.video_BTHWC)


def test_pictures_are_decoded_once_and_only_if_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shards, fed, real = shard_set(tmp_path, 4, num_frames=lambda i: 40, size=64), [], DaliDecoder._run

    def counting(decoder: DaliDecoder, clips: list) -> Any:
        fed.extend(len(clip.feed.data) for clip in clips)
        return real(decoder, clips)

    monkeypatch.setattr(DaliDecoder, "_run", counting)
    with ClipLoader(shards, "all", PLAN, batch_size=4, train=True, seed=5, seen=SEEN) as loader:
        (batch,) = loader
    assert fed[:4] == SEEN(batch.keys, 0).sum(axis=1).tolist() and sum(fed[:4]) < 0.8 * 4 * T
    fed.clear()
    short = shard_set(tmp_path / "short", 2, num_frames=lambda i: 7, size=64)
    with ClipLoader(short, "all", PLAN, batch_size=2) as loader:
        (batch,) = loader
    assert fed == [7, 7] and torch.equal(batch.video_BTHWC[:, :9], batch.video_BTHWC[:, 7:])


def test_a_damaged_picture_that_is_not_seen_costs_no_clip(tmp_path: Path) -> None:
    """Two clips have a changed byte: the one whose picture is seen is found, and both if all pictures are."""
    shards = shard_set(tmp_path, 2, num_frames=lambda i: T, size=64)  # as many frames as are sampled: all of them
    seen_BT = SEEN(shards.names(np.arange(2)), 0)
    for row, looked_at in enumerate((False, True)):
        offsets, (start, *_) = shards.sample(row).offsets, shards.index["offset"][row].tolist()
        with shards.tars[0].open("r+b") as tar:
            tar.seek(start + int(offsets[seen_BT[row].tolist().index(looked_at)]) + 30)
            byte = tar.read(1)
            tar.seek(-1, 1)
            tar.write(bytes([byte[0] ^ 1]))
    for seen, bad in ((SEEN, [False, True]), (None, [True, True])):
        opened = ShardSet.open(tmp_path)
        with ClipLoader(opened, "all", PLAN, batch_size=2, train=True, seed=5, seen=seen) as loader:
            producer = loader.make_producer()
            outcomes = producer.fetcher.fetch_step([0, 1], 0, [0, 0])
            producer.close()
        assert [isinstance(outcome, BadClipError) for outcome in outcomes] == bad


@pytest.mark.parametrize("mask", [MaskConfig(RATIO), MaskConfig(RATIO, repeats=3, encoded_frames=5)])
def test_losses_are_those_of_whole_clips(tmp_path: Path, mask: MaskConfig) -> None:
    shards = shard_set(tmp_path / "shards", 4, num_frames=lambda i: 8 + 12 * i, size=64)
    data = DataConfig(str(shards.root), "all", "all", num_frames=T, size=32, threads=1)
    run = run_config(tmp_path / "run")
    config = PretrainConfig(data=data, model=MODEL, mask=mask, target=TargetConfig(top_layers=2), run=run)
    runtime, losses, videos = Runtime(torch.device("cpu"), 0, 1, bf16=False), [], []
    for every_frame in (False, True):
        with build_loader(shards, config, runtime, train=True, every_frame=every_frame) as loader:
            training = Pretraining(config, runtime, loader)
            batch = next(iter(loader))
            losses.append(training.forward(batch, 0).loss.item())
            videos.append(batch.video_BTHWC)
    assert losses[0] == losses[1] and not torch.equal(*videos)


@pytest.mark.parametrize("changes", [
    {"encode": "all_frames"}, {"target": TargetConfig(top_layers=2, teacher="encoder", teacher_input="both")},
    {"data": {"augment": AugmentConfig(contrast=0.1)}},
])
def test_all_frames_are_decoded_where_all_are_looked_at(tmp_path: Path, changes: dict[str, Any]) -> None:
    config = pretrain_config(tmp_path, tmp_path)
    assert frames_seen(config) == FramesSeen(6, 2, 2, seed=0)
    changes = {name: replace(config.data, **value) if name == "data" else value for name, value in changes.items()}
    assert frames_seen(replace(config, **changes)) is None


def test_options_that_would_change_a_picture_are_refused(tmp_path: Path) -> None:
    shards = shard_set(tmp_path, 2, size=64)
    contrast = replace(PLAN, augment=AugmentConfig(contrast=0.2))
    for plan, train, message in ((PLAN, False, "train=True"), (replace(PLAN, num_frames=8), True, "a plan of as many"),
                                 (contrast, True, "changes contrast")):
        with pytest.raises(UserError, match=message):
            ClipLoader(shards, "all", plan, batch_size=2, train=train, seen=SEEN)
