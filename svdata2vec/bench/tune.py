"""`svdata2vec bench data --tune`: the settings with which this machine decodes jpeg fastest, stored for its runs.

    svdata2vec bench data --tune        # a table, and the file that runs read (runs/tuned.py); one to three minutes

One setting after the other: threads, on a GPU the share of its engines, pictures at once. Its values take turns, round after
round; the default stays unless another value beats it beyond noise. As many threads as cores are stored as just that, since
the next run may have more of them. A share between 0 and 1 is measured and reported, never chosen: there a clip's last bits
depend on its batch. So is 4:4:4, which is decided when shards are packed.
"""

import contextlib
import logging
import statistics
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, TypeVar

import numpy as np
import torch

from svdata2vec.bench.config import DataBenchOptions
from svdata2vec.bench.data_sources import make_sources, packed
from svdata2vec.bench.machine import quantiles
from svdata2vec.bench.output import deliver
from svdata2vec.bench.stages import Stage, decoding
from svdata2vec.pipeline.loader import ClipLoader
from svdata2vec.pipeline.plan import PlanConfig
from svdata2vec.runs.cores import MOST_THREADS, usable_cores
from svdata2vec.runs.provenance import hardware, head
from svdata2vec.runs.runtime import device_name, pick_device
from svdata2vec.runs.tuned import Tuned, store_tuned, tuned_file
from svdata2vec.shards.atomic import require_writable
from svdata2vec.shards.reading.shardset import ShardSet

log = logging.getLogger(__name__)

FORMAT, VERSION = "svdata2vec-tuned", 1
MARGIN = 1.03  # a faster setting must win by so much, whatever the spread
SECONDS = 1.0  # per setting and round
BATCH = {"cpu": 16, "cuda": 64}  # clips, as many as the most pictures at once: with fewer, two settings do the same work
RUNS = {"cpu": (64, 128, 512), "cuda": (320, 640, 2560)}  # pictures at once, beside the default (`graph.FRAMES_PER_RUN`)
SHARES = (0.9, 0.75, 0.5, 0.0)
CODEC = "jpeg"

Key = TypeVar("Key", bound=Hashable)
Rates = dict[Tuned, list[float]]  # pictures per second, one per round
Measure = Callable[[Sequence[Tuned]], Rates]


@dataclass(frozen=True)
class Axis:
    """Values of one setting to set against the one it has; `takes`: those that may be chosen."""

    name: str
    values: tuple[Any, ...]
    takes: Callable[[Any], bool] = lambda _: True


def axes(device: str, cores: int) -> list[Axis]:
    """What is measured on a kind of device."""
    threads = Axis("threads", tuple(count for count in (1, 2, 4, 8) if count < min(cores, MOST_THREADS)))
    runs = Axis("run_pictures", RUNS[device])
    if device == "cpu":
        return [threads, runs]
    return [threads, Axis("engine_share", SHARES, takes=lambda share: share in (0, 1)), runs]


def beats(rates: Sequence[float], others: Sequence[float]) -> bool:
    """Whether the first are faster beyond noise: by the margin, and their slow rounds faster than the others' fast ones."""
    (median, low, _), (other, _, high) = quantiles(rates), quantiles(others)
    return median > MARGIN * other and low > high


def settle(rates: Rates, present: Tuned, others: Sequence[Tuned]) -> Tuned:
    """The fastest of those that beat the present settings; these where none does."""
    faster = [one for one in others if beats(rates[one], rates[present])]
    return max(faster, key=lambda one: statistics.median(rates[one]), default=present)


def search(measure: Measure, start: Tuned, ways: Sequence[Axis]) -> tuple[Tuned, list[dict[str, Any]]]:
    """The best settings, one axis after the other, and a row for each that was measured."""
    best, rows = start, []
    for axis in ways:
        others = {replace(best, **{axis.name: value}): value for value in axis.values}
        rates = measure([best, *others])
        best = settle(rates, best, [one for one, value in others.items() if axis.takes(value)])
        for one in rates:
            median, low, high = quantiles(rates[one])
            rows.append({
                "axis": axis.name, **asdict(one), "pictures_per_s": median, "q20": low, "q80": high, "chosen": one == best,
                "faster": beats(rates[one], rates[best]),
            })
    return best, rows


def in_turns(
    jobs: Mapping[Key, tuple[ShardSet, Tuned]], device: torch.device, rounds: int, seconds: float
) -> dict[Key, list[float]]:
    """Pictures per second of clips that are in memory, through the loader's own decoders: one rate a round of every job."""
    plan, batch = PlanConfig(), BATCH[device.type]
    stages: dict[Key, Stage] = {}
    with contextlib.ExitStack() as stack:
        for key, (shards, one) in jobs.items():
            loader = ClipLoader(
                shards, "all", plan, batch_size=batch, train=True, device=str(device), num_threads=one.threads,
                engine_share=one.engine_share, run_pictures=one.run_pictures, limit=np.resize(shards.rows("all"), 4 * batch),
            )
            producer = loader.make_producer()
            stack.callback(producer.close)
            stages[key] = Stage(stack.enter_context(contextlib.closing(decoding(producer))))
        for number in range(rounds):
            for stage in stages.values():
                stage.time_round(device, seconds, 2 if number == 0 else 1)
    rates = {key: [plan.num_frames * rate for rate in stage.clips_per_s] for key, stage in stages.items()}
    log.info("pictures/s: %s", "; ".join(f"{key}: {statistics.median(found):,.0f}" for key, found in rates.items()))
    return rates


def tune(options: DataBenchOptions) -> dict[str, Any]:
    """Measure, print the table, store the settings, write the file; returns the record."""
    device = pick_device("auto")
    require_writable(tuned_file())
    require_writable(options.out)
    dataset = make_sources(options.folder / "source", options.sources)
    shards = packed(options.folder, dataset, CODEC)

    def measure(settings: Sequence[Tuned]) -> Rates:
        return in_turns({one: (shards, one) for one in settings}, device, options.rounds, SECONDS)

    most = min(usable_cores(), MOST_THREADS)
    best, rows = search(measure, Tuned(most), axes(device.type, usable_cores()))
    full = packed(options.folder, dataset, CODEC, chroma="444")
    chroma = in_turns({"420": (shards, best), "444": (full, best)}, device, options.rounds, SECONDS)
    name = device_name(device)
    path = store_tuned(name, CODEC, replace(best, threads=0) if best.threads == most else best)
    record = {
        **head(FORMAT, VERSION), "machine": hardware(device), "name": name, "codec": CODEC, "chosen": asdict(best),
        "rows": rows, "file": None if path is None else str(path),
        "chroma_pictures_per_s": {kind: statistics.median(found) for kind, found in chroma.items()},
    }
    deliver(record, as_table(record), options.out)
    return record


def as_table(record: dict[str, Any]) -> str:
    """The record for a terminal: what was measured, what was chosen, and what only the user can decide."""
    frames = PlanConfig().num_frames
    lines = [f"{'threads':>8s}{'share':>7s}{'at once':>9s}{'pictures/s':>12s}{'20-80 %':>18s}"]
    for row in record["rows"]:
        at_once = "" if row["run_pictures"] is None else str(row["run_pictures"])
        spread = f"{row['q20']:,.0f} to {row['q80']:,.0f}"
        mark = "  chosen" if row["chosen"] else ""
        lines.append(
            f"{row['threads']:>8d}{row['engine_share']:>7g}{at_once:>9s}{row['pictures_per_s']:>12,.0f}{spread:>18s}{mark}"
        )
    best = Tuned(**record["chosen"])
    rate = next(row["pictures_per_s"] for row in reversed(record["rows"]) if row["chosen"])
    lines += ["", f"{record['name']}, {record['codec']}: {best}: {rate:,.0f} pictures/s, {rate / frames:,.1f} clips/s"]
    mixed = [row for row in record["rows"] if row["axis"] == "engine_share" and row["faster"]]
    if mixed:
        fastest = max(mixed, key=lambda row: row["pictures_per_s"])
        lines.append(
            f"an engine share of {fastest['engine_share']:g} is faster ({fastest['pictures_per_s']:,.0f} pictures/s), but "
            f"a clip's last bits then depend on its batch; --data.engine-share {fastest['engine_share']:g} takes it"
        )
    found = record["chroma_pictures_per_s"]
    lines.append(
        f"shards packed with `--chroma 444`, 2 to 3 dB nearer to their sources: {found['444']:,.0f} pictures/s, "
        f"those of 4:2:0 then {found['420']:,.0f}"
    )
    lines.append("stored nowhere: SVDATA2VEC_DECODING is empty" if record["file"] is None else
                 f"stored in {record['file']}: runs on this device take them, unless options say otherwise")
    return "\n".join([*lines, ""])
