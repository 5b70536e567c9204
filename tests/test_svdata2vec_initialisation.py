"""Every parameter starts as the paper's code starts it (svdata2vec/README.md, "Networks")."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from svdata2vec.config.schema import FinetuneConfig, PretrainConfig
from svdata2vec.model.classifier import Classifier
from svdata2vec.model.student import SVData2Vec

JOINTS = 17


def student() -> nn.Module:
    return SVData2Vec(PretrainConfig(), JOINTS)


def classifier() -> nn.Module:
    return Classifier(replace(FinetuneConfig(), modality="both"), JOINTS, 60)


def is_uniform(values: Tensor, bound: float) -> None:
    assert values.abs().max() <= bound * (1 + 1e-6)
    assert values.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.1)
    assert abs(values.mean().item()) < 4 * bound / math.sqrt(values.numel())


@pytest.mark.parametrize("build", [student, classifier])
def test_linear_layers_are_xavier_uniform_and_norms_one_and_zero(build: object) -> None:
    model = build()  # type: ignore[operator]
    checked = 0
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and "skeleton_embed" not in name:
            is_uniform(module.weight.detach(), math.sqrt(6 / (module.in_features + module.out_features)))
            assert module.bias is not None and not module.bias.any(), name
            checked += 1
        if isinstance(module, nn.LayerNorm | nn.BatchNorm1d | nn.BatchNorm2d):
            assert (module.weight == 1).all() and not module.bias.any(), name
        if isinstance(module, nn.PReLU):
            assert (module.weight == 0.25).all(), name
    assert checked == (8 * 4 + 1 + 3 * 4 + 2 if build is student else 8 * 4 + 1 + 2)


def test_convolutions_and_embeddings() -> None:
    encoder = student().encoder
    for module in encoder.video_encoder.stages.modules():
        if isinstance(module, nn.Conv2d):
            expected = math.sqrt(2 / (module.kernel_size[0] ** 2 * module.out_channels))
            assert module.weight.std().item() == pytest.approx(expected, rel=0.05)
    fan_in = 3 * 5 * 7 * 7
    is_uniform(encoder.video_encoder.stem.conv.weight.detach(), 1 / math.sqrt(fan_in))
    # The paper's (1, V) convolution of both persons, which nothing initialises but PyTorch itself.
    for values in (encoder.skeleton_embed.proj.weight, encoder.skeleton_embed.proj.bias):
        is_uniform(values.detach(), 1 / math.sqrt(2 * 2 * JOINTS))


def test_learned_tokens_are_small_normals() -> None:
    model = student()
    for values in (model.encoder.temporal_embed, model.decoder.temporal_embed, model.decoder.mask_token):
        assert values.std().item() == pytest.approx(0.02, rel=0.15)
        assert abs(values.mean().item()) < 4 * 0.02 / math.sqrt(values.numel())


def test_another_seed_gives_other_weights_and_the_same_seed_the_same() -> None:
    def drawn(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return torch.cat([p.detach().flatten() for p in student().encoder.blocks.parameters()])

    torch.testing.assert_close(drawn(1), drawn(1), rtol=0, atol=0)
    assert (drawn(1) != drawn(2)).any()
