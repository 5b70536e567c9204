"""Frames in blocks for a GPU: their bytes are uploaded as they are stored; the model's first kernel decodes them.

B clips, T sampled frames, E bytes of a frame.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from svdata2vec.kernels.functional import block_maps
from svdata2vec.pipeline.frames import EncodedClip, block_slices
from svdata2vec.pipeline.video import BlockClips
from svdata2vec.shards.blocks import BlockFormat


class BlockUploader:
    """`FrameDecoder` that decodes nothing: it brings clips of codec blocks into `BlockClips` on the device."""

    def __init__(self, form: BlockFormat, device: str | torch.device) -> None:
        self.form, self.device = form, torch.device(device)

    def room(self, num_clips: int, num_frames: int, size: int) -> BlockClips:
        """What `decode` fills."""
        return BlockClips.empty(num_clips, num_frames, size, self.form, self.device)

    def decode(self, clips: Sequence[EncodedClip], out: BlockClips) -> dict[int, str]:
        """Fill `out` on the current stream, in one upload of frames; number -> reason of the clips that do not hold theirs.

        The clips' own bytes have been copied when this returns.
        """
        failed: dict[int, str] = {}
        blocks_BTE, frame_BT = self._staging(out.blocks_BTE), self._staging(out.frame_BT)
        for row, clip in enumerate(clips):
            try:
                frame_BT[row] = torch.from_numpy(_copy(clip, self.form, blocks_BTE[row].numpy()))
            except ValueError as error:
                failed[row] = str(error)
                frame_BT[row] = 0
        map_B4 = self._staging(out.map_B4)
        map_B4.copy_(block_maps(torch.from_numpy(np.stack([clip.output_to_packed for clip in clips]))))
        for there, here in ((out.blocks_BTE, blocks_BTE), (out.frame_BT, frame_BT), (out.map_B4, map_B4)):
            if there is not here:
                there.copy_(here, non_blocking=True)
        return failed

    def close(self) -> None:
        """Holds nothing."""

    def _staging(self, target: Tensor) -> Tensor:
        """Page-locked memory of the target's shape, from PyTorch's store, which waits for uploads; on a CPU the target."""
        if self.device.type == "cpu":
            return target
        return torch.empty(target.shape, dtype=target.dtype, pin_memory=True)


def _copy(clip: EncodedClip, form: BlockFormat, out_TE: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Copy the clip's different frames, and say which of them each sampled frame is, int64 (T,).

    Raises ValueError if they are not there, or are stored in another format.
    """
    if clip.blocks != form:
        raise ValueError(f"clip {clip.key}: {clip.blocks}, expected {form}")
    slices = block_slices(clip, form)
    _, first_K, which_T = np.unique(clip.frames_T, return_index=True, return_inverse=True)
    for place_E, number in zip(out_TE, first_K.tolist(), strict=False):
        place_E[:] = slices[number]  # NumPy releases the interpreter lock
    return which_T
