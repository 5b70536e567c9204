"""Clips in blocks that are decoded while they are sampled: the GPU's code path, run on the CPU."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from pipeline_factory import shard_set

from svdata2vec.config.schema import DataConfig, MaskConfig, ModelConfig, PretrainConfig, RunConfig, TargetConfig
from svdata2vec.model.masking import draw_masks
from svdata2vec.model.student import SVData2Vec
from svdata2vec.model.video_encoder import VideoEncoder
from svdata2vec.pipeline import loader
from svdata2vec.pipeline.augment import AugmentConfig
from svdata2vec.pipeline.batch import ClipBatch
from svdata2vec.pipeline.blocksdecoder import BlockClipDecoder
from svdata2vec.pipeline.blockupload import BlockUploader
from svdata2vec.pipeline.loader import ClipLoader
from svdata2vec.pipeline.plan import PlanConfig
from svdata2vec.pipeline.video import BlockClips, frames_of
from svdata2vec.shards.reading.sample import block_offsets
from svdata2vec.shards.reading.shardset import ShardSet
from svdata2vec.training.mixup import Mixture

SIZE, T = 32, 6
PLAN = PlanConfig(num_frames=T, size=SIZE)
SMALL = ModelConfig(width=32, depth=2, decoder_depth=1, heads=2, stem_width=16)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    """Nine clips of 4 to 12 frames: some have fewer than are sampled."""
    return shard_set(tmp_path_factory.mktemp("blocks"), 9, codec="blocks", num_frames=lambda i: 4 + i)


@pytest.fixture
def uploads(monkeypatch: pytest.MonkeyPatch, shards: ShardSet) -> None:
    """Loaders treat the CPU as they treat a GPU."""
    form = shards.manifest.blocks
    assert form is not None
    monkeypatch.setattr(loader, "make_decoder", lambda *_: BlockUploader(form, "cpu"))


def batches(shards: ShardSet, *, train: bool = True, plan: PlanConfig = PLAN, **options: Any) -> list[ClipBatch]:
    with ClipLoader(shards, "all", plan, batch_size=3, train=train, **options) as clips:
        return list(clips)


def video(batch: ClipBatch) -> BlockClips:
    assert isinstance(batch.video_BTHWC, BlockClips)
    return batch.video_BTHWC


@pytest.mark.parametrize("train", [True, False])
def test_frames_are_those_that_a_cpu_decodes(
    uploads: None, monkeypatch: pytest.MonkeyPatch, shards: ShardSet, train: bool
) -> None:
    """Within one grey level: OpenCV's weights have the same digits, but are rounded twice."""
    found = batches(shards, train=train)
    monkeypatch.setattr(loader, "make_decoder", lambda *_: BlockClipDecoder(1))
    expected = batches(shards, train=train)
    assert len(found) == len(expected) == 3
    for one, two in zip(found, expected, strict=True):
        frames, plain = frames_of(video(one)), two.video_BTHWC
        assert isinstance(plain, torch.Tensor) and one.keys == two.keys and video(one).shape == plain.shape == frames.shape
        assert (frames.int() - plain.int()).abs().max() <= 1 and plain.float().std() > 10
        assert torch.equal(one.joints_BMTVC, two.joints_BMTVC)  # type: ignore[arg-type]


def test_reader_processes_and_whole_clips_give_the_same(
    uploads: None, monkeypatch: pytest.MonkeyPatch, shards: ShardSet
) -> None:
    plain = [frames_of(video(batch)) for batch in batches(shards)]
    beside = [frames_of(video(batch)) for batch in batches(shards, num_readers=1)]
    monkeypatch.setattr(ShardSet, "reads_frames", False)  # as a set behind a URL
    whole = [frames_of(video(batch)) for batch in batches(shards)]
    for one, two, three in zip(plain, beside, whole, strict=True):
        assert torch.equal(one, two) and torch.equal(one, three)


def test_colours_and_erased_windows_are_those_of_decoded_frames(uploads: None, shards: ShardSet) -> None:
    """With augmentation of pixels the loader decodes on the device and hands over frames."""
    augment = AugmentConfig(brightness=0.3, contrast=0.3, saturation=0.3, hue=0.1, erase_probability=1.0)
    changed = batches(shards, plan=replace(PLAN, augment=augment))[0].video_BTHWC
    plain = frames_of(video(batches(shards)[0]))
    assert isinstance(changed, torch.Tensor) and changed.shape == plain.shape
    black = (changed == 0).all(-1).all(1)  # in all frames: what was erased
    assert (black.flatten(1).sum(1) >= 0.015 * SIZE * SIZE).all()
    assert 2 < (changed.float() - plain.float())[~black[:, None].expand(plain.shape[:-1])].abs().mean() < 100


@pytest.mark.parametrize(("train", "readers"), [(True, 0), (False, 0), (True, 1), (False, 1)])
def test_a_clip_with_a_wrong_sum_is_named_and_replaced(
    uploads: None, tmp_path: Path, caplog: pytest.LogCaptureFixture, train: bool, readers: int
) -> None:
    damaged = shard_set(tmp_path / "set", 6, codec="blocks", num_frames=lambda i: T - 2)  # all frames are sampled
    column = damaged.manifest.components.index("blocks")
    entry = damaged.index[2]
    with (tmp_path / "set" / damaged.manifest.shards[0].name).open("r+b") as tar:
        tar.seek(int(entry["offset"][column]) + int(entry["size"][column]) // 2)
        byte = tar.read(1)
        tar.seek(-1, 1)
        tar.write(bytes([byte[0] ^ 1]))
    options = {"train": train, "max_bad_rate": 0.5, "num_readers": readers}
    keys = [key for batch in batches(ShardSet.open(tmp_path / "set"), **options) for key in batch.keys]
    assert len(keys) == (6 if train else 5) and "clip00002" not in keys
    assert re.search(r"skipping clip clip00002 of \S*shard-000000\.tar: .* not those that were packed \(CRC-32\)", caplog.text)


def test_bytes_that_do_not_hold_the_frames_fail_by_clip(shards: ShardSet) -> None:
    with ClipLoader(shards, "all", PLAN, batch_size=3, train=False) as clips:
        producer = clips.make_producer()
        encoded = [clip.encoded for clip in next(producer.read(0, 0)).clips if clip.encoded is not None]
        producer.close()
    form = shards.manifest.blocks
    assert form is not None
    uploader = BlockUploader(form, "cpu")
    out, clean = uploader.room(3, T, SIZE), uploader.room(3, T, SIZE)
    assert uploader.decode(encoded, clean) == {}
    offsets = block_offsets(form, 20)  # as where the bytes have not been laid for an upload
    cut = replace(encoded[1], video=encoded[1].video[:-1], offsets=offsets)
    other = replace(encoded[2], blocks=replace(form, luma_bits=2))
    failed = uploader.decode([encoded[0], cut, other], out)
    assert list(failed) == [1, 2] and "bytes do not hold its frames" in failed[1] and "2 bits of luma" in failed[2]
    assert torch.equal(frames_of(out[0:1]), frames_of(clean[0:1]))


# ---- the model ----------------------------------------------------------------------------------------------------


def test_tokens_are_those_of_the_decoded_frames(uploads: None, shards: ShardSet) -> None:
    clips = video(batches(shards)[0])
    encoder = VideoEncoder(SMALL).eval()
    keep = torch.tensor([[0, 2, 5], [1, 2, 3], [3, 4, 5]])
    with torch.no_grad():
        assert torch.equal(encoder(clips, keep), encoder(frames_of(clips), keep))
        torch.testing.assert_close(encoder(clips), encoder(frames_of(clips)), rtol=1e-4, atol=1e-5)


def test_a_step_of_pretraining_is_that_of_the_decoded_frames(uploads: None, shards: ShardSet) -> None:
    batch = batches(shards)[0]
    config = PretrainConfig(
        data=DataConfig(num_frames=T, size=SIZE), model=SMALL, target=TargetConfig(top_layers=2), run=RunConfig(batch_size=3)
    )
    masks = draw_masks(batch.keys, T, MaskConfig(0.5, 0.5), 0, 0)
    found = []
    for frames in (video(batch), frames_of(video(batch))):
        torch.manual_seed(0)
        student = SVData2Vec(config, 17)
        output = student(frames, batch.joints_BMTVC, masks)
        output.prediction_NTD.square().mean().backward()
        found.append([output.prediction_NTD.detach(), *(p.grad for p in student.parameters() if p.grad is not None)])
    assert len(found[0]) > 20
    torch.testing.assert_close(*found, rtol=0, atol=0)


def test_block_clips_are_cloned_copied_chosen_moved_and_blended(uploads: None, shards: ShardSet) -> None:
    one, two = (video(batch) for batch in batches(shards)[:2])
    want, kept = frames_of(two), one.clone()
    kept.copy_(two)
    assert torch.equal(frames_of(kept), want) and not torch.equal(frames_of(one), want)
    assert torch.equal(frames_of(two[[2, 0]]), want[[2, 0]]) and torch.equal(frames_of(two[1:2]), want[1:2])
    assert two.to("meta").device.type == "meta" and len(two) == 3
    with pytest.raises(ValueError, match=r"size 16, expected .* and 32"):
        kept.copy_(replace(two, size=16))
    partner = torch.tensor([1, 2, 0])
    assert torch.equal(Mixture(0.3, partner).blend(two), Mixture(0.3, partner).blend(want))  # type: ignore[arg-type]
    assert Mixture(1.0, partner).blend(two) is two


def test_batches_hand_every_tensor_over(uploads: None, shards: ShardSet) -> None:
    batch = batches(shards)[0]
    assert "video_BTHWC=(3, 6, 32, 32, 3)" in repr(batch)
    assert video(batch.to("meta")).map_B4.device.type == "meta"
    recorded: list[int] = []
    stream: Any = object()
    fake: Callable[[torch.Tensor, Any], None] = lambda tensor, _: recorded.append(tensor.data_ptr())  # noqa: E731
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.Tensor, "record_stream", fake)
        video(batch).record_stream(stream)
    assert len(set(recorded)) == 3
