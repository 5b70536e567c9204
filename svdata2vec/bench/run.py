"""`svdata2vec bench run PRESET`: how fast each stage of pretraining is on this machine, what bounds it, what to change.

    svdata2vec bench run demo --out bench.json       # table; JSON, a chart and a page beside it

Stages: read (storage, parsing, plans), decode (clips in memory), data (the loader), model (the training step on a batch in
memory), train (everything). Limits are counted from shapes and measured on the same device (`limits.py`).
"""

import logging
from dataclasses import asdict, fields, replace
from typing import Any

from svdata2vec.bench.advice import Surroundings
from svdata2vec.bench.config import BenchConfig
from svdata2vec.bench.limits import Rates, count, decoding_need, measure_ceilings, roofline
from svdata2vec.bench.machine import peak_bytes
from svdata2vec.bench.output import deliver
from svdata2vec.bench.record import FORMAT, VERSION, as_table
from svdata2vec.bench.stages import ONE_MASK, Stage, open_stages
from svdata2vec.bench.start import open_preset_shards, setting
from svdata2vec.bench.verdict import doubts, judge
from svdata2vec.runs.cores import usable_cores
from svdata2vec.runs.data import fit_data
from svdata2vec.runs.provenance import hardware, head
from svdata2vec.runs.runtime import Runtime, running
from svdata2vec.runs.stopping import TERMINATED_EXIT_CODE, stoppable
from svdata2vec.shards.atomic import beside, require_writable
from svdata2vec.shards.reading.shardset import ShardSet

log = logging.getLogger(__name__)


@stoppable(TERMINATED_EXIT_CODE)
def bench_run(config: BenchConfig) -> dict[str, Any]:
    """Measure, print the table, write the files; returns the record."""
    require_writable(config.out, ".png", ".html")
    shards = open_preset_shards(config, "bench run measures one process")
    with running(config.run) as runtime:
        record = measure(config, runtime, shards)
    deliver(record, as_table(record), config.out)
    if config.out is not None:
        from svdata2vec.bench.page import run_chart, write_page  # brings matplotlib
        from svdata2vec.reports.html_page import save_figure

        save_figure(run_chart(record), beside(config.out, ".png"))
        write_page(record, beside(config.out, ".html"))
    return record


def measure(config: BenchConfig, runtime: Runtime, shards: ShardSet) -> dict[str, Any]:
    """The whole benchmark; returns what goes into the JSON."""
    device = runtime.device
    baseline = config.baseline == "original-style"
    with open_stages(config, runtime, shards, baseline=baseline) as (stages, difference):
        log.info("%d rounds of %s, %.0f s each", config.rounds, ", ".join(stages), config.seconds)
        for _ in range(config.rounds):
            for stage in stages.values():
                stage.time_round(device, config.seconds, max(stage.ahead, 2))
        readers = stages["read"].ahead
    config = replace(config, data=fit_data(config.data, runtime, shards))  # as the loaders above were made, but the baseline's
    ceilings = measure_ceilings(device, shards, runtime.bf16, readers)  # with nothing else at work: loaders make batches ahead
    counts = count(config, shards, runtime.bf16)
    rows = {name: stage.as_dict() for name, stage in stages.items()}
    rates = Rates(**{field.name: stages[field.name].median for field in fields(Rates)})
    limits = roofline(rates, counts, ceilings)
    wait = stages["train"].parts["data"] / stages["train"].parts["total"]
    storage = ceilings["storage_bytes_per_s"]
    form = shards.manifest.blocks
    where = Surroundings(
        device.type, usable_cores(), shards.manifest.codec, config.run.precision != "fp32", shards.manifest.packed_size,
        storage and storage / counts["read_bytes_per_clip"], remote=not shards.tars,
        luma_bits=form.luma_bits if form else None, readers=readers,
    )
    return {
        **head(FORMAT, VERSION), "machine": hardware(device),
        "setting": {**setting(config, runtime, shards), "rounds": config.rounds, "seconds": config.seconds},
        "stages": rows, "counts": counts, "ceilings": ceilings,
        "roofline": limits,
        "mfu": counts["flops_per_clip"] * rates.train / ceilings["matmul_flops_per_s"],
        "mfu_model": counts["flops_per_clip"] * rates.model / ceilings["matmul_flops_per_s"],
        "train_share_of_model": rates.train / rates.model,
        "data_wait_share": wait,
        "waterfall_ms_per_clip": waterfall(stages),
        "peak_memory_bytes": {
            "gpu": {name: stage.peak_bytes for name, stage in stages.items() if stage.peak_bytes}, "process": peak_bytes(),
        },
        "decoding": {
            **decoding_need(rates, shards.manifest.codec, counts["coded_pictures_per_clip"], config),
            "by": where.second_half,
        },
        "verdict": asdict(judge(rates, wait, config, where)), "doubts": doubts(rows, limits),
        "masks": cost_of_masks(stages, counts, config.mask.repeats),
        "baseline": compare_baseline(stages, difference),
    }


def waterfall(stages: dict[str, Stage]) -> dict[str, dict[str, float]]:
    """Milliseconds per clip: of the step, part by part; and of the loader's halves, which run beside it."""
    train = stages["train"]
    parts = {name: 1e3 * value / train.clips for name, value in train.parts.items() if name != "total"}
    parts["other"] = max(1e3 * train.parts["total"] / train.clips - sum(parts.values()), 0.0)
    beside = {name: 1e3 / stages[name].median for name in ("read", "decode")}
    return {"step": parts, "beside": beside}


def cost_of_masks(stages: dict[str, Stage], counts: dict[str, float], repeats: int) -> dict[str, float | None]:
    """What one more mask of a clip adds to the step of one mask: counted in FLOP, and measured where there are several."""
    one = counts["flops_per_mask"] / (counts["flops_per_clip"] - (repeats - 1) * counts["flops_per_mask"])
    if repeats == 1:
        return {"repeats": 1, "counted_share": one, "measured_share": None}
    measured = (stages[ONE_MASK].median / stages["model"].median - 1) / (repeats - 1)
    return {"repeats": repeats, "counted_share": one, "measured_share": measured}


def compare_baseline(stages: dict[str, Stage], difference: float | None) -> dict[str, float] | None:
    """How much faster than the original's way; None if that was not measured."""
    if difference is None:
        return None
    return {
        "loss_difference": difference,
        "model_speedup": stages["model"].median / stages["original model"].median,
        "train_speedup": stages["train"].median / stages["original train"].median,
    }
