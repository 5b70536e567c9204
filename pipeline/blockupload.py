"""Uploads frames in blocks to a GPU as they are stored; the model's first kernel decodes them.

B clips, T sampled frames, E bytes per frame.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from svdata2vec.kernels.functional import block_maps
from svdata2vec.pipeline.frames import EncodedClip, gathered
from svdata2vec.pipeline.slabs import Slabs
from svdata2vec.pipeline.video import BlockClips
from svdata2vec.shards.blocks import BlockFormat, Bytes

_PORTABLE = 1  # cudaHostRegisterPortable: for every device's context


class BlockUploader:
    """`FrameDecoder` that decodes nothing: it copies clips of codec blocks into `BlockClips` on the device."""

    def __init__(self, form: BlockFormat, device: str | torch.device) -> None:
        self.form, self.device = form, torch.device(device)

    def room(self, num_clips: int, num_frames: int, size: int) -> BlockClips:
        """The memory that `decode` fills."""
        return BlockClips.empty(num_clips, num_frames, size, self.form, self.device)

    def slabs(self, num_clips: int, num_frames: int) -> Slabs:
        """Memory for the upload of `num_clips` clips per step."""
        lock = CudaPageLock(self.device) if self.device.type == "cuda" else None
        return Slabs(num_clips, num_frames * self.form.frame_bytes, lock)

    def decode(self, clips: Sequence[EncodedClip], out: BlockClips) -> dict[int, str]:
        """Fill `out` on the current stream; number -> reason of the clips that do not hold their frames.

        The caller keeps the clips until the stream has run the copies: page-locked bytes are read then, not during this call.
        """
        failed: dict[int, str] = {}
        frame_BT = np.zeros(out.frame_BT.shape, np.int64)
        for row, clip in enumerate(clips):
            try:
                clip = gathered(clip, self.form)
            except ValueError as error:
                failed[row] = str(error)
                continue
            frames_KE = torch.from_numpy(clip.video).view(-1, self.form.frame_bytes)
            out.blocks_BTE[row, : len(frames_KE)].copy_(frames_KE, non_blocking=True)
            frame_BT[row] = clip.frames_T
        # Pageable and small: the driver copies them before this returns.
        out.frame_BT.copy_(torch.from_numpy(frame_BT), non_blocking=True)
        maps = block_maps(torch.from_numpy(np.stack([clip.output_to_packed for clip in clips])))
        out.map_B4.copy_(maps, non_blocking=True)
        return failed

    def close(self) -> None:
        """Nothing to release."""


class CudaPageLock:
    """`PageLock` for the uploads of a CUDA device."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def lock(self, whole: Bytes) -> str | None:
        # In a short-lived thread: CUDA remembers an error for the calling thread, whose next kernel would raise it.
        with ThreadPoolExecutor(1) as asking:
            status = asking.submit(self._register, whole).result()
        return None if status == 0 else f"CUDA error {status} for {whole.nbytes >> 20} MiB"

    def _register(self, whole: Bytes) -> int:
        with torch.cuda.device(self._device):  # otherwise a context on the first GPU would be created
            return int(torch.cuda.cudart().cudaHostRegister(whole.ctypes.data, whole.nbytes, _PORTABLE))

    def unlock(self, whole: Bytes) -> None:
        with torch.cuda.device(self._device):
            torch.cuda.cudart().cudaHostUnregister(whole.ctypes.data)
