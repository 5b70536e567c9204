"""Device function shared by the ops that go from frames back to kept tokens."""

import triton
import triton.language as tl


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
