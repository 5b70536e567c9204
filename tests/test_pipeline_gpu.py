"""nvJPEG, NVDEC and DALI's GPU geometry against the reference decoder. Runs only where there is a GPU."""

from functools import partial

import numpy as np
import pytest
import torch
from pipeline_factory import encoded_clip, shard_set

from svdata2vec.pipeline import affine
from svdata2vec.pipeline.augment import AugmentConfig
from svdata2vec.pipeline.frames import EncodedClip
from svdata2vec.pipeline.loader import ClipLoader
from svdata2vec.pipeline.plan import PlanConfig
from svdata2vec.pipeline.reference import ReferenceDecoder, psnr

pytestmark = pytest.mark.gpu
PACKED, SIZE = 256, 128  # NVDEC has a smallest picture of about 144 px
clip_of = partial(encoded_clip, packed=PACKED)
MIN_PSNR_DB = 33.0       # NVDEC and nvJPEG differ from the CPU decoders by a grey level or two, of 4:2:0 perhaps by more


@pytest.mark.parametrize("geometry", ["warp", "resize"])
@pytest.mark.parametrize("codec", ["jpeg", "vp9", "h264", "hevc"])
def test_frames_on_the_gpu_are_the_right_ones(codec, geometry):
    from svdata2vec.pipeline.graph import DaliDecoder

    decoder = DaliDecoder(codec, SIZE, device="cuda", geometry=geometry)
    mirrored = affine.compose(affine.window_map((-20, 10, 230, 250), SIZE), affine.mirror_map(SIZE))
    frames = [59, 0, 1, 31, 30, 2, 0, 45]
    clips = [clip_of(codec, 60, frames, mirrored), clip_of(codec, 61, frames, affine.scale_and_shift(2, 2, 0, 0))]
    out = torch.zeros((2, len(frames), SIZE, SIZE, 3), dtype=torch.uint8, device="cuda")
    assert not decoder.decode(clips, out)
    decoder.close()
    for found, clip, num_frames in zip(out.cpu().numpy(), clips, (60, 61), strict=True):
        whole = clip_of(codec, num_frames, list(range(num_frames)), clip.output_to_packed)
        expected = torch.zeros((1, num_frames, SIZE, SIZE, 3), dtype=torch.uint8)
        ReferenceDecoder().decode([whole], expected)
        for frame, wanted in zip(found, frames, strict=True):
            scores = [psnr(frame, other) for other in expected[0].numpy()]
            assert int(np.argmax(scores)) == wanted and scores[wanted] >= MIN_PSNR_DB


@pytest.mark.parametrize("codec", ["jpeg", "h264"])
def test_damage_on_the_gpu_is_isolated(codec):
    from svdata2vec.pipeline.graph import DaliDecoder

    decoder = DaliDecoder(codec, SIZE, device="cuda")
    clips = [clip_of(codec, n, [0, 1, 9], affine.scale_and_shift(2, 2, 0, 0)) for n in (10, 11, 12)]
    out = torch.zeros((3, 3, SIZE, SIZE, 3), dtype=torch.uint8, device="cuda")
    assert not decoder.decode(clips, out)
    clean = out.clone()
    garbage = np.random.default_rng(0).integers(0, 255, clips[1].video.size, dtype=np.uint8)
    damaged = EncodedClip("damaged", garbage, clips[1].offsets, *list(vars(clips[1]).values())[3:])
    assert list(decoder.decode([clips[0], damaged, clips[2]], out)) == [1]
    assert torch.equal(out[[0, 2]], clean[[0, 2]])
    decoder.close()


def test_the_loader_delivers_on_the_gpu(tmp_path):
    shards = shard_set(tmp_path, 8, size=PACKED)
    plan = PlanConfig(num_frames=6, size=SIZE, augment=AugmentConfig(brightness=0.3))
    with ClipLoader(shards, "all", plan, batch_size=4, train=True, device="cuda") as fast:
        batches = list(fast)
    with ClipLoader(shards, "all", plan, batch_size=4, train=True, decoder="reference") as slow:
        expected = list(slow)
    for one, two in zip(batches, expected, strict=True):
        assert one.video_BTHWC.is_cuda and one.joints_BMTVC.is_cuda and one.keys == two.keys
        assert torch.equal(one.joints_BMTVC.cpu(), two.joints_BMTVC)
        assert psnr(one.video_BTHWC.cpu().numpy(), two.video_BTHWC.numpy()) >= MIN_PSNR_DB
