"""Epochs in which a classifier from scratch costs as many multiply-adds as pretraining and fine-tuning together.

    python tools/experiments/equal_compute.py demo/pretrain demo/pretrained

counts multiply-adds of training steps, as the row `scratch_total` of `svdata2vec label-efficiency` does, and prints a number.
"""

import argparse
import sys
from pathlib import Path

from ending import reported

from svdata2vec.config.schema import FinetuneConfig
from svdata2vec.runs.card import read_card
from svdata2vec.runs.data import open_data, taken_per_epoch
from svdata2vec.runs.metrics_log import cost
from svdata2vec.runs.published import published_config
from svdata2vec.runs.validation import choose_clips
from svdata2vec.shards.errors import UserError
from svdata2vec.studies.label_efficiency import worth_in_clips


def equal_epochs(pretraining: Path, finetuning: Path) -> int:
    """Whole epochs of the fine-tuning's labelled clips, rounded up; UserError if a run is of the wrong kind or unfinished."""
    config = published_config(read_card(finetuning), finetuning)
    if not isinstance(config, FinetuneConfig):
        raise UserError(f"{finetuning}: not a fine-tuning run; give the run that began with {pretraining}")
    shards = open_data(config.data)
    labels = taken_per_epoch(shards, choose_clips(shards, config).train_rows)
    clips = int(cost(finetuning)["clips_seen"]) + worth_in_clips(pretraining, config, shards)
    per_epoch = labels // config.run.batch_size * config.run.batch_size
    return -(-clips // per_epoch)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pretraining", type=Path, help="folder of the pretraining run")
    parser.add_argument("finetuning", type=Path, help="folder of the fine-tuning run after it")
    options = parser.parse_args()
    return reported(lambda: f"{equal_epochs(options.pretraining, options.finetuning)}\n")


if __name__ == "__main__":
    sys.exit(main())
