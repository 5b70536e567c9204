"""What the experiments share: their command line, runs of the demo's presets on given shards, and the record with its plot."""

import argparse
import json
import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch

from svdata2vec.config.probe import PROBE
from svdata2vec.config.schema import FinetuneConfig, PretrainConfig
from svdata2vec.evaluation.probe import probe
from svdata2vec.runs.provenance import machine, save
from svdata2vec.shards.ranges import Range

Config = TypeVar("Config", PretrainConfig, FinetuneConfig)


def make_parser(description: str | None, *, seeds: int, epochs: int) -> argparse.ArgumentParser:
    """The options that every experiment has, with its defaults."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=Path, required=True, help="shards of synthetic motion clips")
    parser.add_argument("--work", type=Path, required=True, help="folder for the runs")
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write; a plot is written beside it")
    parser.add_argument("--seeds", type=Range(1).parser(int), default=seeds)
    parser.add_argument("--epochs", type=Range(1).parser(int), default=epochs, help="of pretraining")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--jobs", type=Range(1, 1000).parser(int), default=2, help="runs at a time, one thread each")
    return parser


def process_pool(jobs: int) -> ProcessPoolExecutor:
    """Fresh processes of one thread each."""
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(jobs, mp_context=context, initializer=torch.set_num_threads, initargs=(1,))


def on_shards(base: Config, options: argparse.Namespace, name: str, seed: int) -> Config:
    """A preset on the experiment's shards, in the folder `name` of its runs."""
    run = replace(base.run, out=options.work / name, seed=seed, precision=options.precision)
    return replace(base, data=replace(base.data, shards=str(options.shards), threads=1), run=run)


def probe_all_labels(options: argparse.Namespace, name: str, seed: int) -> dict[str, Any]:
    """Linear probe and nearest neighbours on the frozen RGB features of the run `name`, with all labels."""
    base = PROBE["demo"]()
    return probe(replace(
        base, data=replace(base.data, shards=str(options.shards), threads=1), label_fraction=1.0, seed=seed,
        pretrained=options.work / name, out=options.work / f"probe-{name}",
    ))


def write_record(
    out: Path, figures: dict[str, Any], plot: Callable[[dict[str, Any], Path], None], shown: dict[str, Any]
) -> None:
    """The figures with the machine and the date, a plot beside them; prints what sums them up."""
    record = {**machine(), **figures}
    save(record, out)
    plot(record, out.with_suffix(".png"))
    print(json.dumps(shown, indent=1))
