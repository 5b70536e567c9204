"""`svdata2vec bench scale PRESET`: weak scaling on this machine: the same batch per process, more and more processes.

    svdata2vec bench scale demo --processes 1 2 4 --out scaling.json

Per number of processes: speed, what the exchange of gradients costs in bytes and time, and whether the processes did the
right thing: equal weights everywhere, every clip once, equally many steps. The processes are `scale_worker.py`.
"""

import logging
import os
import statistics
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from svdata2vec.bench.config import ScaleConfig
from svdata2vec.bench.machine import quantiles
from svdata2vec.bench.output import deliver
from svdata2vec.bench.record import where_and_what
from svdata2vec.bench.scale_worker import expected_keys
from svdata2vec.bench.start import open_preset_shards, worker
from svdata2vec.bench.verdict import notes
from svdata2vec.runs.cores import announced, usable_cores
from svdata2vec.runs.provenance import head
from svdata2vec.runs.runtime import pick_device
from svdata2vec.runs.stopping import TERMINATED_EXIT_CODE, stoppable
from svdata2vec.shards.atomic import require_writable
from svdata2vec.shards.errors import UserError

log = logging.getLogger(__name__)

FORMAT = "svdata2vec-bench-scale"
VERSION = 1


@stoppable(TERMINATED_EXIT_CODE)
def bench_scale(config: ScaleConfig) -> dict[str, Any]:
    """Measure, print the table, write the file; returns the record. UserError at the end if a check failed."""
    require_writable(config.out)
    shards = open_preset_shards(config, "bench scale starts its processes itself")
    gpus = torch.cuda.device_count() if pick_device(config.run.device).type == "cuda" else None
    config = replace(config, processes=choose_processes(config.processes, gpus))
    check_clips_suffice(config, len(shards.rows(config.data.train_split)))
    cores = usable_cores()
    threads = announced("OMP_NUM_THREADS", 0) or max(1, cores // config.processes[-1])
    # Of each process, however many there are: what is compared must not change with their number.
    data = replace(config.data, threads=config.data.threads or threads, readers=config.data.readers or 0)
    config = replace(config, data=data)
    load = os.getloadavg()[0]
    measured = [launch(config, count, threads) for count in config.processes]
    rows = [
        world_row(found["reports"], partial(expected_keys, shards, config, count))
        for count, found in zip(config.processes, measured, strict=True)
    ]
    setting = {**measured[0]["setting"], "steps": config.steps, "warm_up": config.warm_up, "rounds": config.rounds}
    record: dict[str, Any] = {
        **head(FORMAT, VERSION),
        "machine": {**measured[0]["machine"], "usable_cores": cores, "load_average": load},
        "setting": setting, "worlds": with_efficiency(rows),
        "notes": notes(config.processes, cores, threads, config.data.threads or threads, load, gpus is None),
        "wrong": [sentence for row in rows for sentence in wrong(row)],
    }
    deliver(record, as_table(record), config.out)
    if record["wrong"]:
        raise UserError(f"bench scale: the processes did not do the same training: {'; '.join(record['wrong'])}")
    return record


def choose_processes(wanted: Sequence[int], gpus: int | None) -> tuple[int, ...]:
    """Numbers of processes, ascending; `gpus` is None on a CPU. UserError where there are more processes than GPUs."""
    if not wanted:
        most = 4 if gpus is None else gpus
        return tuple(2**power for power in range(most.bit_length()))
    if gpus is not None and max(wanted) > gpus:
        raise UserError(
            f"processes: {max(wanted)} asked for, but PyTorch finds {gpus} GPU{'s' if gpus > 1 else ''} here and each process "
            f"needs one; take {gpus} or fewer, or --run.device cpu to check the exchange without speed"
        )
    return tuple(sorted(set(wanted)))


def check_clips_suffice(config: ScaleConfig, clips: int) -> None:
    """UserError if the split has fewer clips than one step of all processes takes."""
    most = max(config.processes)
    needed = config.run.batch_size * most
    if clips < needed:
        raise UserError(
            f"split {config.data.train_split!r} has {clips} clips, but one step of {most} processes with "
            f"{config.run.batch_size} clips each needs {needed}; take a smaller --run.batch-size or fewer --processes"
        )


def launch(config: ScaleConfig, count: int, threads: int) -> dict[str, Any]:
    """Run the workers under torchrun; returns what they wrote. Errors: see `worker`."""
    log.info("%d process%s: %d steps and more", count, "" if count == 1 else "es", config.warm_up + config.steps)
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
    with (
        tempfile.TemporaryDirectory(prefix="svdata2vec-scale-") as logs,  # which torchrun makes elsewhere, and leaves behind
        worker("scale_worker", config, launcher=[*launcher, "--log-dir", logs], threads=threads) as (_, answer),
    ):
        return answer(f"bench scale: {count} processes")


def world_row(reports: list[dict[str, Any]], expected: Callable[[int], list[str]]) -> dict[str, Any]:
    """One number of processes, from the reports of all of them; `expected` gives the clips of an epoch."""
    count, first = len(reports), reports[0]
    timed = len(first["step_seconds"])
    wall = max(report["wall_seconds"] for report in reports)
    median, low, high = quantiles([1e3 * second for report in reports for second in report["step_seconds"]])
    return {
        "processes": count, "backend": first["backend"], "timed_steps": timed,
        "clips_per_s": count * first["clips_per_step"] * timed / wall,
        "step_ms": {"median": median, "q20": low, "q80": high},
        "data_wait_share": sum(report["data_wait_seconds"] / report["wall_seconds"] for report in reports) / count,
        "gradient_bytes": first["gradient_bytes"], "allreduce_bytes_per_step": sum(first["allreduce_bytes"]),
        "allreduces_per_step": len(first["allreduce_bytes"]), "broadcast_bytes_per_step": first["broadcast_bytes"],
        "exchange_ms": exchange(reports, "seconds"), "exchange_cpu_ms": exchange(reports, "cpu"),
        "checks": checks(reports, expected),
    }


def exchange(reports: list[dict[str, Any]], kind: str) -> dict[str, float]:
    """Milliseconds per step (of the clock, or of CPU time) with and without the exchange of gradients, medians."""
    synced, alone = (
        1e3 * statistics.median(second for report in reports for second in report[f"{turn}_{kind}"])
        for turn in ("synced", "alone")
    )
    return {"synced": synced, "alone": alone, "added": synced - alone if len(reports) > 1 else 0}


def checks(reports: list[dict[str, Any]], expected: Callable[[int], list[str]]) -> dict[str, Any]:
    """Whether all processes together did one training: weights, clips, steps.

    twice, lost, foreign: clips that were seen more than once in an epoch, not at all, or that are no part of it.
    skipped: clips that could not be read, for which the loader took others.
    """
    seen: dict[int, Counter[str]] = {}
    for report in reports:
        for epoch, key in report["seen"]:
            seen.setdefault(epoch, Counter())[key] += 1
    due = {epoch: set(expected(epoch)) for epoch in seen}
    return {
        "steps": [report["steps"] for report in reports],
        "student_equal": len({report["student"] for report in reports}) == 1,
        "teacher_equal": len({report["teacher"] for report in reports}) == 1,
        "epochs": len(seen), "clips": sum(len(keys) for keys in due.values()),
        "twice": sum(times > 1 for found in seen.values() for times in found.values()),
        "lost": sum(len(keys - set(seen[epoch])) for epoch, keys in due.items()),
        "foreign": sum(len(set(seen[epoch]) - keys) for epoch, keys in due.items()),
        "skipped": sum(report["skipped"] for report in reports),
    }


def wrong(row: dict[str, Any]) -> list[str]:
    """What a row's checks found, one sentence each; empty if the processes did one training."""
    count, found = row["processes"], row["checks"]
    sentences = [f"the {name}'s weights differ" for name in ("student", "teacher") if not found[f"{name}_equal"]]
    if len(set(found["steps"])) > 1:
        sentences.append(f"their numbers of steps are {found['steps']}")
    if found["twice"] or found["lost"] or found["foreign"]:
        unread = f" ({found['skipped']} could not be read and were replaced)" if found["skipped"] else ""
        sentences.append(
            f"of {found['clips']} clips {found['twice']} were seen twice, {found['lost']} were lost, {found['foreign']} do not "
            f"belong there{unread}"
        )
    if count > 1 and row["allreduce_bytes_per_step"] != row["gradient_bytes"]:
        sentences.append(f"{row['allreduce_bytes_per_step']} of {row['gradient_bytes']} bytes of gradients were exchanged")
    return [f"{count} processes: {sentence}" for sentence in sentences]


def with_efficiency(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows with their weak-scaling efficiency: clips/s per process against that of the fewest processes."""
    base = rows[0]["clips_per_s"] / rows[0]["processes"]
    return [{**row, "efficiency": row["clips_per_s"] / row["processes"] / base} for row in rows]


def as_table(record: dict[str, Any]) -> str:
    """The record for a terminal."""
    lines = [
        f"{where_and_what(record)}; per process batch {record['setting']['batch_size']}, "
        f"{record['machine']['torch_threads']} threads",
        "",
        f"{'processes':>9s}{'clips/s':>10s}{'efficiency':>12s}{'step, ms':>10s}{'20-80 %':>18s}{'data wait':>11s}"
        f"{'all-reduced, MB':>17s}{'calls':>7s}{'exchange adds, ms':>19s}{'CPU ms':>8s}",
    ]
    for row in record["worlds"]:
        step, clock = row["step_ms"], row["exchange_ms"]
        spread = f"{step['q20']:.1f} to {step['q80']:.1f}"
        added = f"{clock['added']:.1f} ({100 * clock['added'] / clock['synced']:.1f} %)"
        lines.append(
            f"{row['processes']:9d}{row['clips_per_s']:10.1f}{100 * row['efficiency']:10.1f} %{step['median']:10.1f}"
            f"{spread:>18s}{100 * row['data_wait_share']:9.1f} %{row['allreduce_bytes_per_step'] / 1e6:17.2f}"
            f"{row['allreduces_per_step']:7d}{added:>19s}{row['exchange_cpu_ms']['added']:8.1f}"
        )
    lines.append("")
    for row in record["worlds"]:
        found = row["checks"]
        verdict = "; ".join(wrong(row)) or (
            f"{row['processes']} process{'' if row['processes'] == 1 else 'es'}: weights of student and teacher equal, each of "
            f"{found['clips']} clips in {found['epochs']} epoch{'' if found['epochs'] == 1 else 's'} seen once, "
            f"{found['steps'][0]} steps each"
        )
        lines.append(verdict)
    return "\n".join([*lines, *record["notes"], ""])
