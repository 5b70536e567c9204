"""Blocks on a CPU: the loader's frames against decode-then-resample, reading by frame, and every kind of damage."""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pipeline_factory import clip_parts, shard_set, write_shards

from svdata2vec.pipeline import affine
from svdata2vec.pipeline.decoders import make_decoder
from svdata2vec.pipeline.frames import EncodedClip
from svdata2vec.pipeline.loader import ClipLoader
from svdata2vec.pipeline.plan import PlanConfig
from svdata2vec.pipeline.reference import ReferenceDecoder, psnr
from svdata2vec.pipeline.resampling import Resampler
from svdata2vec.shards.blocks import parse_clip
from svdata2vec.shards.errors import UserError
from svdata2vec.shards.reading.blockdecoder import BlockFrameDecoder
from svdata2vec.shards.reading.manifest import Manifest
from svdata2vec.shards.reading.sample import block_offsets
from svdata2vec.shards.reading.shardset import ShardSet
from svdata2vec.shards.reading.sums import save_head
from svdata2vec.shards.reading.verify import verify

SIZE, PACKED = 48, 96
PLAN = PlanConfig(num_frames=4, size=SIZE)


def encoded(num_frames: int, frames: list[int], output_to_packed: np.ndarray, packed: int = PACKED) -> EncodedClip:
    video = np.frombuffer(clip_parts("clip", num_frames, codec="blocks", size=packed)["blocks"], np.uint8)
    blocks, _ = parse_clip(video)
    offsets = block_offsets(blocks, num_frames)
    return EncodedClip("clip", video, offsets, np.array(frames), output_to_packed, packed, packed, blocks)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**31), num_frames=st.integers(1, 8), packed=st.sampled_from([32, 96, 160]), whole=st.booleans())
def test_windows_equal_decode_then_resample(seed: int, num_frames: int, packed: int, whole: bool) -> None:
    """Bit for bit, whichever part of a frame is decoded in whichever memory. Mirrored, outside, enlarged."""
    rng = np.random.default_rng(seed)
    low, extent = rng.uniform(-0.5, 0.9, 2) * packed, rng.uniform(0.1, 1.4, 2) * packed
    if whole:
        low, extent = np.rint(low), np.rint(extent) + 1
    window = affine.window_map((low[0], low[1], low[0] + extent[0], low[1] + extent[1]), SIZE)
    window = affine.compose(window, affine.mirror_map(SIZE)) if rng.random() < 0.5 else window
    clip = encoded(num_frames, rng.integers(0, num_frames, 5).tolist(), window, packed)
    decoder = make_decoder("dali", "blocks", SIZE, "cpu", 2)
    out, slow = (torch.full((2, 5, SIZE, SIZE, 3), 77, dtype=torch.uint8) for _ in range(2))
    assert decoder.decode([clip, clip], out) == {}
    decoder.close()
    layout, frames = parse_clip(clip.video)
    for t, number in enumerate(clip.frames_T.tolist()):
        expected = np.empty((SIZE, SIZE, 3), np.uint8)
        Resampler(window, SIZE)(BlockFrameDecoder(layout)(frames[number]), 0, 0, expected)
        np.testing.assert_array_equal(out[0, t].numpy(), expected)
    assert torch.equal(out[0], out[1])
    ReferenceDecoder().decode([clip, clip], slow)
    assert psnr(out, slow) >= 50


def test_damaged_clips_are_isolated() -> None:
    decoder = make_decoder("dali", "blocks", SIZE, "cpu", 2)
    plain = affine.scale_and_shift(2, 2, 0, 0)
    clips = [encoded(n, [0, 1, n - 1], plain) for n in (4, 5, 6)]
    clean = torch.zeros((3, 3, SIZE, SIZE, 3), dtype=torch.uint8)
    assert decoder.decode(clips, clean) == {}
    good = clips[1]
    assert good.offsets is not None
    for damaged, message in (
        (replace(good, video=good.video[:-1]), "bytes do not hold its frames of 6336 bytes each"),
        (replace(good, video=good.video[:0]), "0 bytes do not hold its frames"),
        (replace(good, offsets=good.offsets // 2), "do not hold its frames"),
        (replace(good, offsets=good.offsets[:3]), "frame 4 wanted, 2 stored"),
    ):
        for each in (decoder, ReferenceDecoder()):
            out = torch.zeros_like(clean)
            failed = each.decode([clips[0], damaged, clips[2]], out)
            assert list(failed) == [1] and message in failed[1]
            if each is decoder:
                assert torch.equal(out[[0, 2]], clean[[0, 2]])
    decoder.close()


@pytest.fixture
def shards(tmp_path: Path) -> ShardSet:
    return shard_set(tmp_path / "set", 9, codec="blocks", size=64)


def test_positions_of_frames_are_known_without_reading_them(shards: ShardSet) -> None:
    whole = shards.sample(3)
    assert whole.video is not None and whole.offsets is not None and whole.blocks is not None
    table = shards.sample(3, video=False, table=True)
    assert table.video is None and table.offsets is not None and table.blocks == whole.blocks
    assert table.offsets.tolist() == whole.offsets.tolist()
    assert bytes(shards.frames(3, table.offsets, [0, 1, 7, 22])[0]) == bytes(whole.video)


def test_damage_is_found_and_named(shards: ShardSet) -> None:
    """One bit of one frame: `verify` names clip and frame; the loader leaves the clip out if it samples that frame."""
    entry, column = shards.index[4], shards.manifest.components.index("blocks")
    tar = shards.tars[int(entry["shard"])]
    assert shards.manifest.blocks is not None
    assert [finding.kind for finding in verify(shards.root)] == ["missing"]  # skipped.jsonl
    place = int(entry["offset"][column]) + 16 + 3 * shards.manifest.blocks.frame_bytes + 1000
    content = bytearray(tar.read_bytes())
    content[place] ^= 1
    tar.chmod(0o644)
    tar.write_bytes(content)
    found = {finding.kind: str(finding) for finding in verify(shards.root)}
    assert "clip00004: blocks, frame 3: its bytes are not those that were packed (CRC-32)" in found["sum"]
    offsets = shards.sample(4, video=False, table=True).offsets
    assert offsets is not None
    with pytest.raises(UserError, match=r"shard-000001\.tar: clip clip00004, frame 3: its bytes are not those"):
        shards.frames(4, offsets, [0, 3])
    shards.frames(4, offsets, [0, 2, 4])


@pytest.mark.parametrize(("place", "value", "message"), [
    (0, 0, r"begins with b'\\x00VBK'"), (4, 2, "version 2, this program reads 1"),
    (5, 5, "5 bits of luma, 2 of chroma, expected 2 or 3; copy the shard again, or pack again$"), (7, 1, "byte 7"),
    (12, 25, "bytes, expected 70416 for 25 frames of .* bits; copy the shard again, or pack again$"),
])
def test_a_header_of_another_kind_is_a_damaged_clip(shards: ShardSet, place: int, value: int, message: str) -> None:
    """Frames of another version of the format have valid sums too, so the loader also has to read the header."""
    entry, column = shards.index[4], shards.manifest.components.index("blocks")
    tar, table = shards.tars[int(entry["shard"])], shards.sample(4, video=False, table=True)
    assert table.offsets is not None
    content = bytearray(tar.read_bytes())
    content[int(entry["offset"][column]) + place] = value
    tar.chmod(0o644)
    tar.write_bytes(content)
    with pytest.raises(UserError, match=rf"shard-000001\.tar: clip clip00004: blocks: .*{message}"):
        shards.frames(4, table.offsets, [0, 3])


def test_a_clip_of_another_length_is_refused_when_the_set_is_opened(tmp_path: Path) -> None:
    """Although the checksums agree: the index gives a clip's blocks another size."""
    shards = write_shards(tmp_path, [("clip", 5, clip_parts("clip", 5, codec="blocks", size=64))], codec="blocks", size=64)
    for change in (-7, 64):
        index = np.array(shards.index)
        index["size"][0, 0] = 14096 + change
        save_head(tmp_path, Manifest.load(tmp_path), index, [[0] * (len(shards.manifest.components) + 5)])
        with pytest.raises(UserError, match=rf"blocks of 5 frames have {14096 + change} bytes, expected 14096"):
            ShardSet.open(tmp_path)


@pytest.mark.parametrize(("change", "message"), [
    ({"codec_options": {"luma_bits": 5, "chroma_bits": 2}}, "blocks: 5 bits of luma, 2 of chroma, expected 2 or 3"),
    ({"codec_options": {}}, "blocks: 0 bits of luma"),
    ({"packed_size": 72}, "a picture of side 72, expected a multiple of 32"),
    ({"components": ("jpegs", "pose.npy", "box.npy", "json")}, "components are jpegs, .*; codec blocks has blocks"),
    ({"codec": "jpeg"}, "components are blocks, .*; codec jpeg has jpegs and offsets.npy"),
    ({"codec": "h264"}, "codec h264 has mp4"),
    ({"codec": "copy"}, "codec copy has mp4 or mkv or webm or avi"),
    ({"codec": "av9"}, "codec is 'av9', expected one of jpeg, blocks, vp9, "),
])
def test_a_manifest_that_states_no_format_or_another_codec_is_refused(shards: ShardSet, change: dict, message: str) -> None:
    with pytest.raises((UserError, ValueError), match=message):
        replace(Manifest.load(Path(shards.root)), **change)


@pytest.mark.parametrize("name", ["manifest.json", "index.npy", "sums.npy", "shard-000001.tar", "skipped.jsonl"])
def test_an_unreadable_file_is_named(shards: ShardSet, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """The user who runs the tests may be allowed to read everything, so the system's answer is faked."""
    folder, message = Path(shards.root), f"{name}: this user may not read it; change its permissions"
    (folder / "skipped.jsonl").touch()
    monkeypatch.setattr(os, "access", lambda path, _: Path(path).name != name)
    if name == "skipped.jsonl":
        ShardSet.open(folder)
    else:
        with pytest.raises(UserError, match=message):
            ShardSet.open(folder)
    if name in ("manifest.json", "index.npy"):
        with pytest.raises(UserError, match=message):
            verify(folder)
    else:
        assert message in " ".join(map(str, verify(folder)))


def test_a_set_whose_bits_are_not_its_clips(shards: ShardSet) -> None:
    folder = Path(shards.root)
    sums = [[*shards.sums.components(row), *shards.sums.frames(row).tolist()] for row in range(len(shards))]  # type: ignore[union-attr]
    other = replace(Manifest.load(folder), codec_options={"luma_bits": 2, "chroma_bits": 3})
    save_head(folder, other, np.array(shards.index), sums)
    with pytest.raises(UserError, match=r"blocks of 20 frames have 56336 bytes, expected 51216"):
        ShardSet.open(folder)


@pytest.mark.parametrize("train", [True, False])
def test_the_same_batch_from_frames_whole_and_processes(shards: ShardSet, monkeypatch: pytest.MonkeyPatch, train: bool) -> None:
    batches = []
    for by_frame, readers in ((True, 0), (False, 0), (True, 1)):
        monkeypatch.setattr(ShardSet, "reads_frames", by_frame)  # as a set behind a URL
        with ClipLoader(shards, "all", PLAN, batch_size=3, train=train, num_readers=readers) as loader:
            batches.append([batch.video_BTHWC for batch in loader])
    assert len(batches[0]) == 3
    for one, two, three in zip(*batches, strict=True):
        assert one is not None and two is not None and three is not None
        assert torch.equal(one, two) and torch.equal(one, three)
