"""Decodes our clips in a webdataset pipeline: `webdataset.WebDataset(urls, shardshuffle=False).map(decode_sample)`.

Needs neither index nor manifest: the tars may be streams from any source that webdataset can read.
M persons, K frames, V joints.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import cv2
import numpy as np

from svdata2vec.shards.errors import UserError
from svdata2vec.shards.reading.blockdecoder import BlockFrameDecoder
from svdata2vec.shards.reading.decode import decode_still, decode_video
from svdata2vec.shards.reading.sample import SIDE_COMPONENTS, VIDEO_COMPONENTS, Sample, parse_sample

Numbers = Sequence[int] | np.ndarray


def decode_sample(sample: Mapping[str, Any], frames: Numbers | Callable[[int], Numbers] | None = None) -> dict[str, Any]:
    """One clip, decoded and checked.

    Args:
        sample: as `webdataset.WebDataset` yields it, with members as bytes (without `.decode()`).
        frames: numbers of the frames to decode, in any order; or a function that takes the clip's number of frames and
            returns them. None: all frames.

    Returns:
        `frames` uint8 (K, H, W, 3) RGB; `joints` float32 (M, K, V, 2) and `boxes` float32 (K, 4), both in pixels of the
        source video, zero = missing; `label` int; `key`; `meta`, whose `packed_to_source` maps pixels of `frames` to
        those of the source video; `__key__` and `__url__` as webdataset gave them.

    Raises:
        UserError: a member is missing or damaged, or there is no such frame; names the tar and the clip.
    """
    key, url = sample["__key__"].rpartition("/")[2], sample.get("__url__", "(no __url__)")  # repacked tars may have folders
    try:
        clip = _parse(key, sample)
        wanted = range(clip.meta.num_frames) if frames is None else frames(clip.meta.num_frames) if callable(frames) else frames
        frames_K = _whole(np.asarray(wanted))
        pictures_KHWC = _pictures(clip, frames_K)
    except (ValueError, cv2.error) as error:
        named = "" if str(error).startswith(f"clip {key}") else f"clip {key}: "
        raise UserError(f"{url}: {named}{error}") from error
    return {
        "__key__": sample["__key__"], "__url__": url, "key": key, "label": clip.label, "frames": pictures_KHWC,
        "joints": clip.pose_MTVC[:, frames_K], "boxes": clip.box_T4[frames_K], "meta": clip.meta,
    }


def _whole(frames_K: np.ndarray) -> np.ndarray:
    """Frame numbers as int64 (K,); they may be given as floats (`linspace().round()`)."""
    if frames_K.dtype == bool or frames_K.ndim != 1 or (frames_K != frames_K.round()).any():
        raise UserError(f"frames {frames_K} wanted, expected a list of their numbers (np.flatnonzero makes one of a mask)")
    return frames_K.astype(np.int64)


def _parse(key: str, sample: Mapping[str, Any]) -> Sample:
    video = next((name for name in VIDEO_COMPONENTS if name in sample), "jpegs")
    needed = (video, "json", "pose.npy", "box.npy", *(["offsets.npy"] if video == "jpegs" else []))
    for name in needed:
        if not isinstance(sample.get(name), bytes):
            found = "is decoded already; leave out .decode()" if name in sample else "is missing; the tar may be cut short"
            raise UserError(f"member {name} {found}")
    parts = {name: sample[name] for name in (*needed, *SIDE_COMPONENTS) if name in sample}
    return parse_sample(key, parts, video, num_joints=None)


def _pictures(clip: Sample, frames_K: np.ndarray) -> np.ndarray:
    """uint8 (K, H, W, 3) of a clip's frames."""
    meta = clip.meta
    outside = frames_K[(frames_K < 0) | (frames_K >= meta.num_frames)]
    if outside.size:
        raise UserError(f"frame {outside[0]} wanted, it has 0..{meta.num_frames - 1}")
    assert clip.video is not None
    if clip.offsets is not None:
        blob, offsets = np.frombuffer(clip.video, np.uint8), clip.offsets
        blocks = None if clip.blocks is None else BlockFrameDecoder(clip.blocks)
        pictures = [decode_still(blob[offsets[number] : offsets[number + 1]], number, blocks) for number in frames_K.tolist()]
    else:
        found = decode_video(np.frombuffer(clip.video, np.uint8), frames_K) if frames_K.size else {}
        pictures = [found[number] for number in frames_K.tolist()]
    shape = (meta.packed_height, meta.packed_width, 3)
    for picture in pictures:
        if picture.shape != shape:
            raise UserError(f"a frame of shape {picture.shape}, expected {shape}")
    return np.stack(pictures) if pictures else np.zeros((0, *shape), np.uint8)
