"""`gather_blocks` reads exactly the bytes that are counted for it: all others may have any value."""

import block_bytes
import pytest
import torch
from kernel_inputs import Draw, Sizes, gather_blocks

from svdata2vec.kernels import functional as K


@pytest.mark.parametrize("bits", [(3, 2), (2, 2), (3, 3)])
def test_bytes_beside_the_window_are_not_looked_at(bits: tuple[int, int]) -> None:
    torch.manual_seed(0)
    fixed = gather_blocks(Sizes(6, 3, 3, side=45), Draw(), luma_bits=bits[0], chroma_bits=bits[1]).fixed
    want, blocks = K.gather_blocks(**fixed), fixed["blocks_BTE"]
    masks = [torch.from_numpy(block_bytes.touched(fixed["form"], 45, row)) for row in fixed["map_B4"].tolist()]
    assert all(len(mask) == blocks.shape[2] and mask.float().mean() > 0.1 for mask in masks) and not all(map(torch.all, masks))
    mask_B1E = torch.stack(masks)[:, None]
    noise = torch.randint_like(blocks, 0, 256)
    assert torch.equal(K.gather_blocks(**fixed | {"blocks_BTE": torch.where(mask_B1E, blocks, noise)}), want)
    changed = K.gather_blocks(**fixed | {"blocks_BTE": torch.where(mask_B1E, noise, blocks)})
    assert (changed != want).flatten(1).any(1).all()


@pytest.mark.parametrize("bits", [(3, 2), (2, 2), (3, 3)])
def test_hardly_a_byte_is_counted_that_is_not_looked_at(bits: tuple[int, int]) -> None:
    """As many clips as a frame has bytes, each with another one changed. A few cannot be seen: equal ends, cut colours."""
    torch.manual_seed(0)
    fixed = gather_blocks(Sizes(1, 1, 1, side=29), Draw(), luma_bits=bits[0], chroma_bits=bits[1]).fixed
    count = fixed["blocks_BTE"].shape[2]
    every = {name: fixed[name].expand(count, *fixed[name].shape[1:]) for name in ("frame_BT", "map_B4", "keep_BK")}
    blocks_BTE = fixed["blocks_BTE"] ^ torch.eye(count, dtype=torch.uint8)[:, None] * 255
    changed = (K.gather_blocks(**fixed | every | {"blocks_BTE": blocks_BTE}) != K.gather_blocks(**fixed)).flatten(1).any(1)
    counted = torch.from_numpy(block_bytes.touched(fixed["form"], 29, fixed["map_B4"][0].tolist()))
    assert not (changed & ~counted).any() and changed.sum() > 0.97 * counted.sum() and counted.float().mean() < 0.9


def test_frames_of_windows_are_counted_once() -> None:
    keep = torch.tensor([[0, 1, 9], [4, 5, 6]]).numpy()
    assert block_bytes.frames_read(keep, 10) == [4 + 3, 7]
