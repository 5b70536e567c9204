"""Published weights: finite, whole, and what their card says."""

import math
from pathlib import Path

import pytest
import torch

from svdata2vec.runs.failures import RunFailedError
from svdata2vec.runs.published import publish


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
def test_weights_that_are_not_finite_are_never_published(wrong: float, tmp_path: Path) -> None:
    weights = {"good": torch.ones(3), "head.bias": torch.tensor([0.0, wrong]), "count": torch.tensor(3)}
    with pytest.raises(RunFailedError, match=r"run: 1 of 3 weights are not finite \(head\.bias\) and are not published"):
        publish(tmp_path / "run", weights, {"kind": "pretrain"})
    assert not (tmp_path / "run").exists()
