"""AdamW with the paper's parameter groups, and its schedule: no weight decay on 1-D parameters, layer-wise learning rates."""

import math
import re
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from svdata2vec.config.schema import OptimConfig
from svdata2vec.shards.errors import UserError


def layer_scale(name: str, depth: int, layer_decay: float) -> float:
    """Factor on the learning rate of the encoder parameter `name` (svdata2vec/README.md, "Training").

    `layer_decay ** (depth + 1 - i)` with i = 0 for the temporal and skeleton embeddings and i = b + 1 for block b;
    1.0 for everything else, so the video encoder learns at full rate.
    """
    block = re.search(r"encoder\.blocks\.(\d+)\.", name)
    if block:
        return layer_decay ** (depth - int(block.group(1)))
    if "encoder.temporal_embed" in name or "encoder.skeleton_embed." in name:
        return layer_decay ** (depth + 1)
    return 1.0


def build_optimizer(
    named_parameters: Iterable[tuple[str, nn.Parameter]], config: OptimConfig, *, depth: int = 0, layer_decay: float = 1.0
) -> torch.optim.AdamW:
    """One group per (weight decay, learning-rate factor); groups carry their factor as `scale`."""
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in named_parameters:
        if not parameter.requires_grad:
            continue
        decay = 0.0 if parameter.ndim <= 1 else config.weight_decay
        groups.setdefault((decay, layer_scale(name, depth, layer_decay)), []).append(parameter)
    settings: list[dict[str, Any]] = [
        {"params": parameters, "weight_decay": decay, "scale": scale} for (decay, scale), parameters in groups.items()
    ]
    return torch.optim.AdamW(settings, lr=config.lr, betas=config.betas, fused=True)


def load_optimizer(optimizer: torch.optim.Optimizer, saved: dict[str, Any]) -> None:
    """Load the running averages of a checkpoint; rates, betas and weight decay stay those of the settings.

    Raises:
        ValueError: they belong to other parameters. AdamW's kernels would read beyond averages of another shape.
    """
    now = optimizer.state_dict()
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    if [group["params"] for group in saved["param_groups"]] != [group["params"] for group in now["param_groups"]]:
        raise ValueError("the optimizer has other groups of parameters")
    for number, averages in saved["state"].items():
        for name, value in averages.items():
            shape = torch.Size() if name == "step" else parameters[number].shape
            if not isinstance(value, Tensor) or value.shape != shape or value.dtype != torch.float32:
                raise ValueError(f"the optimizer's {name} of parameter {number} is not of its shape")
    optimizer.load_state_dict({"state": saved["state"], "param_groups": now["param_groups"]})


WARM_UP_LIMIT = 0.1  # share of a run that would end within its warm-up


def resolve(config: OptimConfig, batch: int, epochs: int) -> OptimConfig:
    """The rates, warm-up and accumulation of a run in absolute numbers.

    Args:
        config: as the user gave it, perhaps with shares and rates per 256 clips.
        batch: clips of one batch of all processes together.
        epochs: of the whole run.

    Raises:
        UserError: the rate would rise to `min_lr`.
    """
    accumulate = config.accumulate or max(round(config.lr_batch / batch), 1)
    lr = config.base_lr * batch * accumulate / 256 or config.lr
    scale = lr / config.lr if config.base_lr else 1.0
    min_lr = config.min_lr_share * lr or config.min_lr * scale
    if min_lr > lr:
        raise UserError(
            f"the learning rate would rise from its peak {lr:g} to {min_lr:g}; set --optim.min-lr to at most the peak, or "
            "--optim.min-lr-share"
        )
    warmup = config.warmup_share * epochs or config.warmup_epochs
    return replace(
        config, lr=lr, base_lr=0.0, min_lr=min_lr, min_lr_share=0.0, accumulate=accumulate, warmup_share=0.0,
        warmup_epochs=warmup if warmup < epochs else WARM_UP_LIMIT * epochs,
    )


def learning_rate(config: OptimConfig, epoch: float, epochs: int) -> float:
    """At a place of the run, in epochs: linear warm-up from 0 over `warmup_epochs`, then half a cosine, `min_lr` at the end."""
    if epoch < config.warmup_epochs:
        return config.lr * epoch / config.warmup_epochs
    progress = (epoch - config.warmup_epochs) / max(epochs - config.warmup_epochs, 1e-9)
    return config.min_lr + (config.lr - config.min_lr) * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr * group["scale"]


def clip_gradients(optimizer: torch.optim.Optimizer, largest: float) -> Tensor:
    """Scale gradients down to norm `largest` (0 = leave them) and return their norm, without waiting for the device."""
    parameters = (parameter for group in optimizer.param_groups for parameter in group["params"])
    grads = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norm = torch.nn.utils.get_total_norm(grads)
    if largest > 0:
        torch._foreach_mul_(grads, torch.clamp(largest / (norm + 1e-6), max=1.0))
    return norm
