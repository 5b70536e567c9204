"""The one table of tolerances, per dtype, for everything that is compared with a float64 or float32 truth.

float32 and float64 results are held to an absolute + relative bound of a few rounding steps of sums a few hundred terms
long. Half precision is judged by its distance to float32: a kernel may be at most twice as far from the truth as the
plain PyTorch reference in the same dtype is, plus one rounding step of that dtype at the size of the result (a
reference that happens to hit the truth exactly mustn't forbid a correctly rounded neighbour).
"""

import torch
from torch import Tensor

EXACT = {
    torch.float64: (1e-11, 1e-11),  # rtol, atol
    torch.float32: (1e-5, 2e-6),
}
HALF_FACTOR = 2.0
HALF_STEPS = 1.0


def assert_exact(got: Tensor, truth: Tensor, name: str = "result") -> None:
    """Compare float32 or float64 with a truth of at least that precision, by the table."""
    rtol, atol = EXACT[got.dtype]
    torch.testing.assert_close(got.double(), truth.double(), rtol=rtol, atol=atol, msg=lambda text: f"{name}: {text}")


def assert_as_close_as(got: Tensor, reference: Tensor, truth: Tensor, name: str = "result") -> None:
    """Demand that `got` is about as close to the float32/64 `truth` as `reference`, computed in the same dtype, is."""
    assert got.dtype == reference.dtype, f"{name}: dtype {got.dtype}, reference {reference.dtype}"
    assert got.shape == truth.shape, f"{name}: shape {tuple(got.shape)}, truth {tuple(truth.shape)}"
    if got.dtype in EXACT:
        assert_exact(got, truth, name)
        return
    if got.numel() == 0:
        return
    truth = truth.double()
    error = (got.double() - truth).abs().max().item()
    step = torch.finfo(got.dtype).eps * truth.abs().max().item()
    allowed = HALF_FACTOR * (reference.double() - truth).abs().max().item() + HALF_STEPS * step
    assert error <= allowed, f"{name}: error {error:.3g} above {allowed:.3g}, which the reference in {got.dtype} allows"
