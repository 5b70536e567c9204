"""Losses of the first 20 steps of a tiny pretraining run. Rewrite it after an intended change of the method:

    PYTHONPATH=. python tests/helpers/golden_curve.py --write

Everything goes the normal way (shards, plans, masks, student, teacher, loss, optimizer), on a CPU in float32 on one thread.
Pictures are decoded by the reference decoder; others are held against it elsewhere.

Kernels for other instruction sets sum in another order, which moves a loss by up to 5e-7 of itself. Training blows that up:
where a maximum or a PReLU turns over, a gradient jumps. At a learning rate of 1e-3 the curves of two machines are 3 % apart
after a few steps; at 1e-5 they stay within 1e-6 over 20 steps (AVX-512, AVX2 and SSE 4.1 were tried), in the worst of eight
settings within 1e-4. That is the tolerance. What a teacher does to a loss is smaller at this rate, so its distance from the
student is compared too. The weight decay is 400 times the paper's: at this rate the paper's own moves no loss by a tolerance.
"""

import argparse
import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from repository import ROOT
from tiny import pretrain_config, tiny_shards

from svdata2vec.config.schema import EmaConfig, MaskConfig, OptimConfig
from svdata2vec.runs.checkpoint import Checkpoints
from svdata2vec.runs.metrics_log import read_metrics
from svdata2vec.training.pretrain import pretrain

GOLDEN = ROOT / "tests" / "golden" / "loss_curve.json"
STEPS = 20  # four per epoch
TOLERANCE = 1e-4  # of the loss
DISTANCE_TOLERANCE = 0.01  # of the teacher's distance


def golden_curve(shards: Path, out: Path) -> dict[str, Any]:
    """A run on the shards of `tiny_shards`: the loss of each step, and how far the teacher is from the student at the end."""
    optim = OptimConfig(lr=1e-5, min_lr=5e-6, warmup_epochs=1, weight_decay=20)
    config = pretrain_config(shards, out, optim=optim, epochs=5, batch_size=3, checkpoint_every=STEPS)
    config = replace(config, data=replace(config.data, decoder="reference"), mask=MaskConfig(0.5, 0.6))
    pretrain(replace(config, ema=EmaConfig(0.5, 0.9, anneal_steps=STEPS)))
    state = Checkpoints(out, 1).load_newest()
    assert state is not None
    pairs = [(state["student"][f"encoder.{name}"], weight) for name, weight in state["teacher"].items() if weight.ndim > 1]
    distance = sum(float((mine - theirs).abs().sum()) for mine, theirs in pairs)
    return {"loss": [record["loss"] for record in read_metrics(out)], "teacher_distance": distance}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", required=True, help=f"overwrite {GOLDEN.name}")
    parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        curve = golden_curve(tiny_shards(Path(folder) / "shards"), Path(folder) / "run")
    GOLDEN.parent.mkdir(exist_ok=True)
    GOLDEN.write_text(json.dumps({"torch": torch.__version__, **curve}, indent=1) + "\n")
    print(f"{GOLDEN}: {curve['loss'][0]:.4f} ... {curve['loss'][-1]:.4f}")
