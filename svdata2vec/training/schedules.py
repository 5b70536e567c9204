"""Learning rate as a pure function of the global optimizer step."""

import math

from svdata2vec.config.schema import OptimConfig


def learning_rate(config: OptimConfig, step: int, steps_per_epoch: float, epochs: int) -> float:
    """Linear warm-up from 0 over `warmup_epochs`, then half a cosine down to `min_lr` at the end."""
    epoch = step / steps_per_epoch
    if epoch < config.warmup_epochs:
        return config.lr * epoch / config.warmup_epochs
    progress = (epoch - config.warmup_epochs) / max(epochs - config.warmup_epochs, 1e-9)
    return config.min_lr + (config.lr - config.min_lr) * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
