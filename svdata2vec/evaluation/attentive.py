"""The attentive probe: its head trained on tokens that were made once, and its scores.

n clips, v views of a clip, B clips of a batch, T tokens, D width, c classes
"""

from dataclasses import replace

import numpy as np
import torch
from torch.nn import functional as F

from svdata2vec.config.probe import AttentiveConfig
from svdata2vec.config.schema import ModelConfig, OptimConfig
from svdata2vec.evaluation.features import Features
from svdata2vec.model.attentive import AttentiveHead
from svdata2vec.pipeline.keyed import keyed_generator

SCORED_AT_ONCE = 4096  # clips


def fit_attentive(
    train: Features, num_classes: int, config: AttentiveConfig, model: ModelConfig, seed: int, device: torch.device
) -> AttentiveHead:
    """A head trained with AdamW on all views of the training clips, each a sample of its own.

    A function of the features, the settings and the seed: initial weights and batches are drawn by it.
    """
    assert train.tokens_nvTD is not None
    tokens_nTD = torch.from_numpy(train.tokens_nvTD).flatten(0, 1)
    labels_n = torch.from_numpy(train.labels_n).repeat_interleave(train.tokens_nvTD.shape[1])
    batch = min(config.batch_size, len(labels_n))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = AttentiveHead(replace(model, checkpoint_activations=False), config.blocks, num_classes)
    head = head.to(device).train()
    optimizer = torch.optim.AdamW(head.parameters(), lr=config.lr, betas=OptimConfig().betas, weight_decay=config.weight_decay)
    warm_up = max(config.steps // 10, 1)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min((step + 1) / warm_up, (1 + np.cos(np.pi * max(step - warm_up, 0) / (config.steps - warm_up + 1))) / 2),
    )
    rng, order = keyed_generator("attentive probe", seed), np.zeros(0, np.int64)
    for _ in range(config.steps):
        if len(order) < batch:
            order = rng.permutation(len(labels_n))
        chosen, order = torch.from_numpy(order[:batch]), order[batch:]
        logits_BC = head(tokens_nTD[chosen].to(device))
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(logits_BC, labels_n[chosen].to(device)).backward()
        optimizer.step()
        schedule.step()
    return head.eval()


@torch.no_grad()
def attentive_scores(head: AttentiveHead, test: Features, device: torch.device) -> np.ndarray:
    """(n, c) probabilities, the mean over a clip's views."""
    assert test.tokens_nvTD is not None
    tokens_nvTD = torch.from_numpy(test.tokens_nvTD)
    parts = [
        head(part.flatten(0, 1).to(device)).softmax(1).unflatten(0, part.shape[:2]).mean(1).cpu()
        for part in tokens_nvTD.split(SCORED_AT_ONCE)
    ]
    return torch.cat(parts).numpy()
