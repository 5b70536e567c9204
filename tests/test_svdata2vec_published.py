"""Published weights are finite, complete, and as their card says."""

import math
import shutil
from pathlib import Path

import pytest
import torch

from svdata2vec.config.schema import FinetuneConfig
from svdata2vec.runs.card import model_card
from svdata2vec.runs.failures import RunFailedError
from svdata2vec.runs.published import load_published, publish, published_config
from svdata2vec.shards.errors import UserError


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
def test_weights_that_are_not_finite_are_never_published(wrong: float, tmp_path: Path) -> None:
    weights = {"good": torch.ones(3), "head.bias": torch.tensor([0.0, wrong]), "count": torch.tensor(3)}
    with pytest.raises(RunFailedError, match=r"run: 1 of 3 weights are not finite \(head\.bias\) and are not published"):
        publish(tmp_path / "run", weights, {"kind": "pretrain"})
    assert not (tmp_path / "run").exists()


def test_weights_and_card_of_two_runs_are_no_network(tmp_path: Path) -> None:
    """Shapes may fit, but the classes, or the crop, would be another's."""
    for name, classes in (("a", ["sit", "run"]), ("b", ["run", "sit"])):
        card = {"kind": "finetune", "config": {}, "num_joints": 0, "classes": classes}
        publish(tmp_path / name, {"head.bias": torch.ones(2)}, card)
    assert load_published(tmp_path / "a")[1]["classes"] == ["sit", "run"]
    shutil.copy(tmp_path / "b" / "model.json", tmp_path / "a")
    with pytest.raises(UserError, match=r"a/model\.safetensors and model\.json beside it were not written together; copy both"):
        load_published(tmp_path / "a")


def test_a_network_of_0_2_0_sees_the_crops_that_it_was_trained_on(tmp_path: Path) -> None:
    """They counted every joint, whatever its score; cards did not say so."""
    card = model_card("finetune", FinetuneConfig(modality="both"), num_joints=17)
    assert published_config(card, tmp_path) == FinetuneConfig(modality="both")
    del card["config"]["data"]["crop_scores"]
    assert published_config(card, tmp_path).data.crop_scores == (0, 0)
