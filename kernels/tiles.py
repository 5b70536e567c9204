"""Device functions that several kernels share: offsets of a tile in a strided tensor, and the token that shows a frame.

R rows of a tile, D its channels; `strides` are those of a tensor (clips, rows) or (clips, rows, channels).
"""

import triton
import triton.language as tl


@triton.jit
def clip_and_token(row_R: tl.tensor, num_tokens: tl.tensor) -> tuple[tl.tensor, tl.tensor]:
    """Clip and token of rows of (clips, tokens) flattened, both int64."""
    return (row_R // num_tokens).to(tl.int64), (row_R % num_tokens).to(tl.int64)


@triton.jit
def row_at(clip: tl.tensor, row_R: tl.tensor, strides: tl.tuple) -> tl.tensor:
    """(R,) offsets of rows of one clip, or of a clip for each row."""
    return clip * strides[0] + row_R * strides[1]


@triton.jit
def tile_at(clip: tl.tensor, row_R: tl.tensor, channel_D: tl.tensor, strides: tl.tuple) -> tl.tensor:
    """(R, D) offsets of their channels."""
    return row_at(clip, row_R, strides)[:, None] + channel_D[None, :] * strides[2]


@triton.jit
def divide(total: tl.tensor, count: tl.tensor) -> tl.tensor:
    """Correctly rounded division, which `/` isn't on a GPU: the mean of equal values is that value, and the variance zero."""
    return tl.div_rn(total, tl.cast(count, tl.float32))


@triton.jit
def load_vector(ptr: tl.tensor, channel_D: tl.tensor, width: tl.tensor) -> tl.tensor:
    """(D,) values of a contiguous vector over channels, in float32."""
    return tl.load(ptr + channel_D, mask=channel_D < width, other=0).to(tl.float32)


@triton.jit
def token_of_frame(
    keep_ptr: tl.tensor,  # (K,) int64: frames that one clip keeps
    stride_k: tl.tensor,
    num_kept: tl.tensor,
    frame_T: tl.tensor,
    BLOCK_K: tl.constexpr,  # power of two, at least num_kept
) -> tl.tensor:
    """For each frame the position k (int64) at which the clip keeps it, or -1.

    The inverse of `keep` by comparison: frames then *collect* from tokens, so that no two programs add to one address.
    """
    k_K = tl.arange(0, BLOCK_K).to(tl.int64)
    kept_K = tl.load(keep_ptr + k_K * stride_k, mask=k_K < num_kept, other=-1)
    return tl.max(tl.where(frame_T[:, None] == kept_K[None, :], k_K[None, :], -1), axis=1)
