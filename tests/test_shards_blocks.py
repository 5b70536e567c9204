"""Pictures in blocks: the format against a decoder in plain Python, its windows, its encoder, refused input."""

import struct
import zlib

import cv2
import numpy as np
import pytest
from repository import ROOT

from svdata2vec.pipeline.reference import psnr
from svdata2vec.shards.blocks import BlockFormat, parse_clip
from svdata2vec.shards.packing.blockencoder import BlockFrameEncoder
from svdata2vec.shards.reading.blockdecoder import BlockFrameDecoder

BITS = [(2, 2), (2, 3), (3, 2), (3, 3)]
README = ROOT / "shards" / "README.md"


def plain_decode(clip: bytes, frame: int) -> list[list[tuple[int, int, int]]]:
    """Rows of (R, G, B) of one frame of a clip, computed as shards/README.md says: integers, no library."""
    magic, version, luma_bits, chroma_bits, side, frames = struct.unpack_from("<4sBBBxII", clip)
    assert (magic, version) == (b"SVBK", 1)
    layout, size = [], 0
    for plane_side, bits in ((side, luma_bits), (side // 2, chroma_bits), (side // 2, chroma_bits)):
        layout.append((size, plane_side, bits))
        size += plane_side**2 // 8 + plane_side**2 // 4 + (plane_side**2 // 8 if bits == 3 else 0)
    assert len(clip) == 16 + frames * size

    def value(start: int, plane_side: int, bits: int, y: int, x: int) -> int:
        ends = 16 + frame * size + start
        low = ends + plane_side**2 // 8
        high = low + plane_side**2 // 4
        block = ends + 2 * (y // 4 * (plane_side // 4) + x // 4)
        index = clip[low + y * (plane_side // 4) + x // 4] >> 2 * (x % 4) & 3
        if bits == 3:
            index |= (clip[high + y * (plane_side // 8) + x // 8] >> x % 8 & 1) << 2
        last = 2**bits - 1
        return ((last - index) * clip[block] + index * clip[block + 1] + last // 2) // last

    def colour(y: int, x: int) -> tuple[int, int, int]:
        luma = value(*layout[0], y, x)
        blue, red = (value(*plane, y // 2, x // 2) - 128 for plane in layout[1:])
        changes = 22987 * red, -5636 * blue - 11698 * red, 29049 * blue
        r, g, b = (min(max(luma + (change + 8192 >> 14), 0), 255) for change in changes)
        return r, g, b

    return [[colour(y, x) for x in range(side)] for y in range(side)]


def picture(side: int, seed: int = 0) -> np.ndarray:
    """A scene with areas, edges, texture and a little noise, like a photograph."""
    rng = np.random.default_rng(seed)
    ground = cv2.resize(rng.integers(40, 216, (6, 6, 3), dtype=np.uint8), (side, side), interpolation=cv2.INTER_CUBIC)
    for _ in range(8):
        x, y, r = (rng.uniform(0, side, 3) * (1, 1, 0.15)).astype(int).tolist()
        colour = rng.integers(20, 220) + rng.integers(0, 20, 3)
        cv2.circle(ground, (x, y), r + 2, colour.tolist(), -1, cv2.LINE_AA)
    noise = cv2.GaussianBlur(rng.normal(0, 6, (side, side, 1)).astype(np.float32), (3, 3), 0)[..., None]
    return np.clip(ground + noise, 0, 255).astype(np.uint8)


def random_clip(layout: BlockFormat, frames: int) -> bytes:
    """Any bytes are a clip, also ends in the other order and chroma far outside RGB."""
    data = np.random.default_rng(7).integers(0, 256, frames * layout.frame_bytes, dtype=np.uint8)
    return layout.header(frames) + data.tobytes()


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("side", [32, 96])
def test_decoder_equals_thirty_lines_of_plain_python(side: int, bits: tuple[int, int]) -> None:
    clip = random_clip(BlockFormat(side, *bits), 2)
    layout, frames = parse_clip(np.frombuffer(clip, np.uint8))
    assert layout == BlockFormat(side, *bits)
    np.testing.assert_array_equal(BlockFrameDecoder(layout)(frames[1]), np.array(plain_decode(clip, 1), np.uint8))


@pytest.mark.parametrize("bits", [(3, 2), (2, 3)])
def test_the_clip_to_check_a_decoder_with(bits: tuple[int, int]) -> None:
    """The example of the README, with which readers in other languages compare."""
    layout = BlockFormat(32, *bits)
    content = (np.arange(2 * layout.frame_bytes) ** 2 % 251).astype(np.uint8).tobytes()
    frames = [np.array(plain_decode(layout.header(2) + content, number), np.uint8) for number in range(2)]
    first, right, second = (", ".join(map(str, pixel)) for pixel in (frames[0][0, 0], frames[0][0, 31], frames[1][17, 5]))
    sums = [f"`{zlib.crc32(frame.tobytes()):08X}`" for frame in frames]
    assert layout.frame_bytes == 32 * 32 * (2 * bits[0] + bits[1] + 3) // 16
    row = f"| {bits[0]}, {bits[1]} | {layout.frame_bytes} | {first}; {right} | {sums[0]} | {second} | {sums[1]} |"
    assert row in README.read_text(encoding="utf-8")


def test_opencv_converts_every_colour_as_the_format_says() -> None:
    y, cb, cr = (grid.astype(np.uint8) for grid in np.meshgrid(*[np.arange(256)] * 3, indexing="ij"))
    found = cv2.cvtColor(np.stack([y, cr, cb], axis=-1).reshape(4096, 4096, 3), cv2.COLOR_YCrCb2RGB).reshape(*y.shape, 3)
    blue, red = cb.astype(np.int32) - 128, cr.astype(np.int32) - 128
    for channel, change in enumerate((22987 * red, -5636 * blue - 11698 * red, 29049 * blue)):
        np.testing.assert_array_equal(found[..., channel], np.clip(y + ((change + 8192) >> 14), 0, 255))


@pytest.mark.parametrize("bits", BITS)
def test_a_window_is_that_part_of_the_whole(bits: tuple[int, int]) -> None:
    layout, frames = parse_clip(np.frombuffer(random_clip(BlockFormat(96, *bits), 2), np.uint8))
    whole = BlockFrameDecoder(layout)(frames[0])
    for window in ((0, 0, 1, 1), (7, 8, 9, 17), (13, 20, 75, 90), (95, 95, 96, 96), (8, 4, 12, 96)):
        decode = BlockFrameDecoder(layout, window)
        part = decode(frames[0])
        assert decode.left <= window[0] < window[2] <= decode.left + part.shape[1]
        assert decode.top <= window[1] < window[3] <= decode.top + part.shape[0]
        assert part.shape[0] <= window[3] - window[1] + 14 and part.shape[1] <= window[2] - window[0] + 14
        expected = whole[decode.top : decode.top + part.shape[0], decode.left : decode.left + part.shape[1]]
        np.testing.assert_array_equal(part, expected)
    with pytest.raises(ValueError, match=r"window \(90, 0, 97, 8\) of a picture of side 96: expected one inside it"):
        BlockFrameDecoder(layout, (90, 0, 97, 8))


def test_more_bits_are_nearer_to_the_picture() -> None:
    found = {}
    for bits in BITS:
        layout = BlockFormat(320, *bits)
        encode, decode = BlockFrameEncoder(layout), BlockFrameDecoder(layout)
        found[bits] = np.mean([psnr(decode(encode(picture(320, seed))), picture(320, seed)) for seed in range(3)])
    jpeg = [cv2.imencode(".jpg", picture(320, seed), [cv2.IMWRITE_JPEG_QUALITY, 90])[1] for seed in range(3)]
    assert found[2, 2] > 40 and found[3, 3] > found[3, 2] + 0.4 > found[2, 2] + 0.8 and found[3, 3] > found[2, 3] > found[2, 2]
    by_jpeg = [psnr(cv2.imdecode(data, cv2.IMREAD_COLOR_RGB), picture(320, seed)) for seed, data in enumerate(jpeg)]
    assert found[3, 2] > np.mean(by_jpeg) - 1


@pytest.mark.parametrize("bits", BITS)
def test_pictures_of_two_levels_come_back(bits: tuple[int, int]) -> None:
    """Flat blocks and blocks of two greys are stored without loss, the extremes included."""
    grey = np.random.default_rng(3).choice(np.array([0, 255], np.uint8), (64, 64))
    grey[:32, :32] = np.repeat(np.repeat(np.arange(64, dtype=np.uint8).reshape(8, 8) * 4, 4, axis=0), 4, axis=1)
    frame = np.repeat(grey[..., None], 3, axis=2)
    layout = BlockFormat(64, *bits)
    np.testing.assert_array_equal(BlockFrameDecoder(layout)(BlockFrameEncoder(layout)(frame)), frame)


def test_ends_by_least_squares_beat_the_extremes() -> None:
    """One stray pixel in a block must not cost the other fifteen; the error is that of the best possible ends."""
    block = np.full((4, 4), 100, np.uint8)
    block.flat[:] = [100, 103, 100, 103, 101, 104, 100, 103, 100, 103, 101, 104, 100, 103, 100, 140]
    frame = np.repeat(np.tile(block, (8, 8))[..., None], 3, axis=2)
    layout = BlockFormat(32, 2, 2)
    decoded = BlockFrameDecoder(layout)(BlockFrameEncoder(layout)(frame))[:4, :4, 0].astype(int)
    levels = [[((3 - i) * 100 + i * 140 + 1) // 3 for i in range(4)][k] for k in (0,) * 15 + (3,)]
    assert np.square(decoded - block).sum() < np.square(np.array(levels).reshape(4, 4) - block.astype(int)).sum()


@pytest.mark.parametrize("bits", BITS)
def test_blocks_are_coded_by_themselves(bits: tuple[int, int]) -> None:
    """The encoder processes all blocks side by side: a block must not depend on its neighbours in the picture or in memory."""
    frame, noise = picture(64), np.random.default_rng(1).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    encode, decode = BlockFrameEncoder(BlockFormat(64, *bits)), BlockFrameDecoder(BlockFormat(64, *bits))
    whole = decode(encode(frame)).copy()
    for y, x in ((0, 0), (0, 56), (24, 40), (56, 0), (56, 56)):
        alone = noise.copy()
        alone[y : y + 8, x : x + 8] = frame[y : y + 8, x : x + 8]
        np.testing.assert_array_equal(decode(encode(alone))[y : y + 8, x : x + 8], whole[y : y + 8, x : x + 8])


def test_equal_frames_give_equal_bytes_whatever_came_before() -> None:
    layout = BlockFormat(64)
    used = BlockFrameEncoder(layout)
    used(picture(64, 1))
    np.testing.assert_array_equal(used(picture(64)), BlockFrameEncoder(layout)(picture(64)))


@pytest.mark.parametrize("side", [32, 320, 480])
def test_sections_are_aligned(side: int) -> None:
    for bits in BITS:
        layout = BlockFormat(side, *bits)
        starts = [start for plane in layout.planes for start in (plane.ends, plane.low, plane.high)]
        assert not any(start % 32 for start in starts) and layout.frame_bytes % 32 == 0
    assert BlockFormat(320, 2, 2).frame_bytes == 57_600 and BlockFormat(320, 3, 3).frame_bytes == 76_800


def test_files_that_are_no_clip_are_refused() -> None:
    clip = bytearray(random_clip(BlockFormat(32, 3, 2), 3))

    def refused(content: bytes, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            parse_clip(np.frombuffer(content, np.uint8))

    refused(bytes(clip[:15]), "15 bytes, expected a header of 16; copy the shard again, or pack again")
    refused(bytes(clip[:-1]), f"{len(clip) - 1} bytes, expected {len(clip)} for 3 frames of side 32 with 3 and 2 bits")
    refused(bytes(clip) + b"\0", f"{len(clip) + 1} bytes, expected {len(clip)}")
    refused(b"SVBX" + bytes(clip[4:]), "begins with b'SVBX', expected b'SVBK'; copy the shard again")
    refused(bytes(clip[:4]) + b"\2" + bytes(clip[5:]), "version 2, this program reads 1; pack again")
    refused(bytes(clip[:5]) + b"\4" + bytes(clip[6:]), "4 bits of luma, 2 of chroma, expected 2 or 3")
    refused(bytes(clip[:7]) + b"\1" + bytes(clip[8:]), "byte 7 of the header is 1, expected 0")
    refused(bytes(clip[:8]) + struct.pack("<I", 40) + bytes(clip[12:]), "a picture of side 40, expected a multiple of 32")
    refused(bytes(clip[:8]) + struct.pack("<II", 2**31, 2**31) + bytes(clip[16:]), "side 2147483648, expected a multiple of 32")


def test_messages_name_a_format_in_words() -> None:
    assert f"{BlockFormat(96, 3, 2)}" == "of side 96 with 3 bits of luma, 2 of chroma"
