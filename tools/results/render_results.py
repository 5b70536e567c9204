"""Write the README's result tables from the committed files in tools/results/.

    python tools/results/render_results.py           # rewrites README.md between its markers
    python tools/results/render_results.py --check   # exit status 1 if README.md does not say what the files say

A figure without a file stays empty. Sections are marked `<!-- results:NAME -->` ... `<!-- /results -->`.
"""

import argparse
import json
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent.parent
RESULTS = Path(__file__).parent
MARKED = re.compile(r"(<!-- results:(\w+) -->\n).*?(<!-- /results -->)", re.DOTALL)

Record = dict[str, Any]


def read(name: str) -> Record | None:
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text()) if path.is_file() else None


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, first column to the left, the others to the right."""
    lines = [header, ["---", *("---:" for _ in header[1:])], *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f} %"


def demo() -> str:
    """Accuracy of the demo on a CPU and, where measured, on a GPU."""
    runs = {name: read(name) for name in ("demo", "demo_gpu")}
    rows = [
        ["chance", *(percent(1 / run["classes"]) if run else "" for run in runs.values())],
        ["RGB from scratch", *(percent(run["top1_scratch"]) if run else "" for run in runs.values())],
        ["RGB after pretraining", *(percent(run["top1_pretrained"]) if run else "" for run in runs.values())],
        ["pretraining, clips/s", *(f"{run['pretrain_clips_per_second']:.0f}" if run else "" for run in runs.values())],
    ]
    text = table(["`bash tools/demo.sh`, top-1", "CPU", "GPU"], rows)
    if runs["demo"]:
        run = runs["demo"]
        loss, spread = run["pretrain_loss_first_last"], run["target_std_first_last"]
        text += (
            f"\n{run['classes']} classes of motion, {run['test_clips']} test clips of unseen subjects, "
            f"{run['labelled_clips']} labelled clips, one seed; pretraining loss {loss[0]:.2f} -> {loss[1]:.2f}, "
            f"target spread {spread[0]:.2f} -> {spread[1]:.2f}. "
            f"{run['machine']}, torch {run['versions']['torch']}, {run['date']}.\n"
        )
    return text + motion_check()


def motion_check() -> str:
    """What the synthetic data set gives away without motion."""
    record = read("motion_clips_check")
    if record is None:
        return ""
    rows = [[trial["name"], percent(trial["accuracy"])] for trial in record["trials"]]
    rows.append(["chance", percent(record["chance"])])
    return (
        "\nThe demo's data set asks for motion. The same small classifier on (`tools/motion/check_motion_clips.py`, "
        f"{record['date']}):\n\n" + table(["input", "top-1"], rows)
    )


def encode_experiment() -> str:
    """Whether encoding the kept frames only changes what is learnt."""
    record = read("encode_experiment")
    if record is None:
        return ""
    seeds = record["seeds"]
    header = ["", *(f"seed {found['seed']}" for found in seeds), "mean"]
    rows = [
        [f"RGB top-1, {start.replace('_', ' ')}", *(percent(found["top1"][start]) for found in seeds),
         percent(record["mean_top1"][start])]
        for start in ("scratch", "kept_frames", "all_frames")
    ]
    rows += [
        [f"linear probe top-1, {way.replace('_', ' ')}", *(percent(found["probe_top1"][way]) for found in seeds),
         percent(record["mean_probe_top1"][way])]
        for way in ("kept_frames", "all_frames")
    ]
    rows += [
        [f"pretraining loss at the end, {way.replace('_', ' ')}", *(f"{found['loss'][way][-1][1]:.3f}" for found in seeds),
         f"{record['mean_final_loss'][way]:.3f}"]
        for way in ("kept_frames", "all_frames")
    ]

    def verdict(name: str) -> str:
        return "no larger" if record[f"{name}_within_seed_spread"] else "larger"

    return table(header, rows) + (
        f"\n{len(seeds)} seeds, {record['epochs']} epochs of the demo's pretraining, {record['precision']}: the difference "
        f"between the two ways is {verdict('top1')} than between seeds in accuracy, {verdict('probe_top1')} in the probe's, "
        f"and {verdict('final_loss')} in loss "
        f"({record['date']}; curves in `tools/results/encode_experiment.png`). "
        "More seeds and longer runs: `tools/experiments/encode_experiment.py`.\n"
    )


def claim() -> str:
    """Classifiers on RGB alone: from scratch, after pretraining, and its ablation; probes of the frozen encoders."""
    record = read("claim")
    if record is None:
        return ""
    seeds, compared = record["seeds"], record["comparison"]

    def cell(row: Record, start: str) -> str:
        low, high = row["range_top1"][start]
        return f"{percent(row['mean_top1'][start])} ({100 * low:.1f} to {100 * high:.1f})"

    tuned = [
        [f"{row['labels']} ({100 * row['fraction']:.0f} %)", *(cell(row, start) for start in ("scratch", "rgb", "skeleton")),
         f"{row['seeds_above_scratch']['skeleton']} of {seeds}"]
        for row in compared["fractions"]
    ]
    probed = [
        [name, *(percent(compared["probes"][kind][probe]) for kind in ("untrained", "rgb", "skeleton"))]
        for name, probe in (("linear probe", "linear_top1"), ("nearest neighbours", "knn_top1"))
    ]
    ends = {
        kind: [sum(end(run) for run in record["pretraining"] if run["kind"] == kind) / seeds
               for end in (lambda run: run["loss_first_last"][1], lambda run: run["target_std"])]
        for kind in ("rgb", "skeleton")
    }
    return (
        table(["labelled clips", "from scratch", "after pretraining, RGB targets", "after pretraining, skeleton targets",
               "seeds where the last beats scratch"], tuned)
        + "\n"
        + table(["frozen RGB features, all labels", "untrained", "RGB targets", "skeleton targets"], probed)
        + f"\nThe ablation's task becomes easy and its features empty: pretraining on RGB targets ends at a loss of "
        f"{ends['rgb'][0]:.2f} and a spread of the targets over clips of {ends['rgb'][1]:.2f}, on skeleton targets at "
        f"{ends['skeleton'][0]:.2f} and {ends['skeleton'][1]:.2f}. From scratch might gain by more steps; every start had the "
        "same number.\n"
        f"\nTop-1 on {record['clips']['xsub_val']} clips of unseen subjects, mean (lowest to highest) of {seeds} seeds; "
        f"chance {percent(1 / record['classes'])}. The demo's network, {record['clips']['xsub_train']} clips, "
        f"{record['epochs']} epochs of pretraining, at least {record['steps']} steps of fine-tuning on RGB for every cell, "
        f"{record['precision']}. {record['machine']}, torch {record['versions']['torch']}, {record['date']}; "
        "`tools/experiments/claim_experiment.py` repeats it, plot in `tools/results/claim.png`.\n"
    )


def encodings() -> str:
    """Cost and fidelity of each encoding of the shards."""
    packing, loading = read("packing_real_h264"), read("bench_data")
    if packing is None:
        return ""
    methods = loading["methods"] if loading else {}
    rows = []
    for row in packing["rows"]:
        codec = row["codec"]
        name = f"`{codec}` q{row['quality']}" + (" 4:2:0" if codec == "jpeg" and row["chroma"] == "420" else "")
        main_row = codec != "jpeg" or (row["quality"], row["chroma"]) == (90, "444")
        method = methods.get(f"ours, {codec}") if main_row else None
        rows.append([
            "`copy` (full frame)" if codec == "copy" else name,
            f"{100 * row['kib_per_frame'] / 1024:.2f}",
            f"{row['psnr_db_mean']:.1f}",
            f"{row['frames_per_cpu_second']:.0f}",
            f"{method['cpu_ms_per_clip']:.0f}" if method else "",
        ])
    header = ["encoding (320 px)", "MiB per 100 frames", "PSNR of the crop, dB", "packed frames per CPU second",
              "loading, CPU ms per clip of 40 frames"]
    text = table(header, rows)
    return text + (
        f"\n`jpeg` is the default: it loads fastest without a GPU. `vp9` and `h264` take a tenth of the bytes. Packed from "
        f"real H.264 ({packing['source']}), loaded from synthetic 540p clips; {packing['machine']['date']}.\n"
    )


def loader() -> str:
    """Loading the same clips in other ways, in one run."""
    record = read("bench_data")
    if record is None:
        return ""
    base = record["methods"].get("original style, decord") or record["methods"]["original style, pyav"]
    rows = []
    for name, row in record["methods"].items():
        cost = row["cpu_ms_per_clip"]
        rows.append([name, f"{row['clips_per_s']:.1f}", f"{cost:.0f}", f"{base['cpu_ms_per_clip'] / cost:.1f}x"])
    header = ["way of loading", "clips/s", "CPU ms per clip", "CPU time against the original's way (decord)"]
    machine = record["machine"]
    where = machine["gpu"] or f"{machine['cores']} CPU cores ({machine['cpu']}), shared with other work: read the ratios"
    return table(header, rows) + (
        f"\nThe same source clips (960x540 H.264), {record['frames_sampled']} frames each, median of {record['rounds']} rounds "
        f"in one run; {where}; {record['date']}. `svdata2vec bench data --out FILE` repeats it.\n"
    )


def training_step() -> str:
    """One pretraining step at the paper's sizes: ours against the authors' way."""
    records = {name: read(f"training_step_{name}") for name in ("cpu", "gpu")}
    rows = []
    for side in ("all frames", "kept frames", "kept frames, bf16"):
        cells = [[f"{run['median_seconds'][side]:.2f} s", f"{run['speedups'][side]:.1f}x"] if run else ["", ""]
                 for run in records.values()]
        rows.append([side, *cells[0], *cells[1]])
    text = table(["one pretraining step, 40 frames of 224 px", "CPU", "", "GPU", ""], rows)
    run = records["cpu"]
    return text + (
        f"\nBatch {run['batch']}, median of {run['rounds']} steps, the sides in turn in one process; {run['machine']}, "
        f"torch {run['versions']['torch']}, {run['date']}. `python tools/bench/bench_training_step.py --out FILE` repeats it.\n"
        if run else ""
    )


def scaling() -> str:
    """Expected efficiency on many GPUs, and what their storage must deliver: a model on paper."""
    record = read("scaling")
    if record is None:
        return ""
    given = record["assumptions"]
    rows = [
        [str(run["gpus"]), f"{run['sent_bytes'] / 1e6:.0f}", f"{1e3 * run['communication_seconds']:.1f}",
         f"{1e3 * run['waiting_seconds']:.1f}", percent(run["efficiency"]), f"{run['clips_per_second']:,.0f}"]
        for run in record["runs"]
    ]
    header = ["GPUs", "MB sent per GPU and step", "communication, ms", "waited for, ms", "efficiency", "clips/s"]
    stored = [
        [f"`{row['codec']}` q{row['quality']}", f"{row['mib_per_100_frames']:.2f}", f"{row['least_gb_per_s']:.1f}",
         f"{row['whole_clips_gb_per_s']:.1f}"]
        for row in record["storage"]
    ]
    storage_header = ["encoding (320 px)", "MiB per 100 frames", "per node, at the least, GB/s", "per node, whole clips, GB/s"]
    rate, step_ms = f"{given['clips_per_second']:,.0f}", 1e3 * given["batch"] / given["clips_per_second"]
    return table(header, rows) + (
        f"\nNot measured: computed by `tools/bench/scaling_model.py` from assumptions. One GPU trains {rate} clips/s (the "
        f"goal for one H200), {given['batch']} clips per step ({step_ms:.0f} ms). "
        f"Gradients, {record['gradient_bytes'] / 1e6:.1f} MB in float32, are summed within nodes of "
        f"{given['gpus_per_node']} ({given['node_gb_per_s']:.0f} GB/s per GPU), then "
        f"between nodes ({given['network_gb_per_s']:.0f} GB/s per node, {given['latency_us']:.0f} µs per message), beside "
        f"the backward pass ({percent(given['backward_share'])} of the step). BatchNorm's buffers "
        f"({record['buffer_bytes'] / 1e3:.0f} kB) are broadcast before it. Each doubling of the nodes costs "
        f"{percent(given['straggler'])} of a step for whoever is late.\n\n"
    ) + table(storage_header, stored) + (
        f"\nStorage for {given['gpus_per_node']} GPUs at that rate, clips of {given['clip_frames']} frames. At the least: of "
        f"local `jpeg` shards the {given['sampled_frames']} sampled frames alone are touched; of a video codec, or from a URL, "
        "whole clips are read. What fits into a node's memory or local disk crosses the network once and not in every epoch.\n"
    )


def bench_run() -> str:
    """Every stage of a pretraining run against its limit; a GPU's columns are empty until someone measures there."""
    runs = {name: read(f"bench_run_{name}") for name in ("cpu", "gpu", "demo_cpu")}
    stages = dict.fromkeys(stage for run in runs.values() if run for stage in run["stages"])
    rows = [
        [stage.replace("original", "the original's way:"), *_rate_and_limit(runs["cpu"], stage),
         *_rate_and_limit(runs["gpu"], stage), _rate_and_limit(runs["demo_cpu"], stage)[0]]
        for stage in stages
    ]
    header = ["stage, clips/s", "CPU", "limit", "reached", "GPU", "limit", "reached", "`demo` preset, CPU"]
    labels = {"cpu": "CPU", "gpu": "GPU", "demo_cpu": "`demo` preset, CPU"}
    said = [f"\n{labels[name]}: {_bench_words(run)}\n" for name, run in runs.items() if run]
    return table(header, rows) + "".join(said)


def _rate_and_limit(run: Record | None, stage: str) -> list[str]:
    """Cells of a stage: clips/s, its limit, the share of it that is reached."""
    if run is None or stage not in run["stages"]:
        return ["", "", ""]
    roof = run["roofline"].get(stage, {})
    limit, reached = roof.get("limit_clips_per_s"), roof.get("efficiency")
    return [_rate(run["stages"][stage]["clips_per_s"]), _rate(limit), "" if reached is None else f"{100 * reached:.3g} %"]


def _rate(clips_per_s: float | None) -> str:
    if clips_per_s is None:
        return ""
    return f"{clips_per_s:,.0f}" if clips_per_s >= 100 else f"{clips_per_s:.1f}" if clips_per_s >= 10 else f"{clips_per_s:.2f}"


def _bench_words(run: Record) -> str:
    """Setting, verdict, speed-up, shares and machine of a record of `bench run`."""
    setting, machine, base = run["setting"], run["machine"], run.get("baseline")
    faster = (
        f" Against the original's way (all frames, float32, a wait in each step) the model is {base['model_speedup']:.1f} and "
        f"training {base['train_speedup']:.1f} times as fast." if base else ""
    )
    return (
        f"{setting['num_frames']} frames of {setting['size']} px, batch {setting['batch_size']}, {setting['precision']}, "
        f"`{setting['codec']}` shards. {_sentence(run['verdict']['text'])}{faster} Data wait "
        f"{percent(run['data_wait_share'])}, MFU {percent(run['mfu'])} of a large matrix product. {_device(machine)}, torch "
        f"{machine['versions']['torch']}, {run['date'][:10]}.{''.join(f' {_sentence(doubt)}' for doubt in run['doubts'])}"
    )


def _device(machine: Record) -> str:
    return f"{machine['cores']} CPU cores ({machine['cpu']})" if machine["device"] == "cpu" else machine["device"]


def _sentence(text: str) -> str:
    """A remark of a record as a sentence."""
    return f"{text[0].upper()}{text[1:]}."


def scaling_measured() -> str:
    """Weak scaling with real processes: what the exchange costs, and whether they did one training."""
    record = read("scaling_measured")
    if record is None:
        return ""
    machine, setting, last = record["machine"], record["setting"], record["worlds"][-1]
    header = ["processes", "clips/s", "efficiency", "all-reduced per step, MB", "calls", "added to a step", "CPU time of it",
              "data wait", "weights equal", "clips seen once"]
    busy = any(note.startswith("doubtful") for note in record["notes"])
    return table(header, [_world_cells(row, machine, busy) for row in record["worlds"]]) + (
        f"\n{setting['batch_size']} clips per process and step ({setting['num_frames']} frames of {setting['size']} px, "
        f"{setting['precision']}), {last['backend']}, real shards and training steps; gradients: "
        f"{last['gradient_bytes'] / 1e6:.2f} MB. Added to a step: its median with the exchange of gradients minus without, in "
        f"the same processes. {_device(machine)}, torch {machine['versions']['torch']}, {record['date'][:10]}."
        f"{''.join(f' {_sentence(note)}' for note in record['notes'])}\n"
    )


def _world_cells(row: Record, machine: Record, busy: bool) -> list[str]:
    """A number of processes; no speed where they share cores, neither speed nor time where others used the machine."""
    shared = busy or (machine["device"] == "cpu" and row["processes"] > machine["usable_cores"])
    found = row["checks"]
    clock, cpu = (
        f"{part['added']:.1f} ms ({percent(part['added'] / part['synced'])})" if row["processes"] > 1 else ""
        for part in (row["exchange_ms"], row["exchange_cpu_ms"])
    )
    return [
        str(row["processes"]), "" if shared else _rate(row["clips_per_s"]), "" if shared else percent(row["efficiency"]),
        f"{row['allreduce_bytes_per_step'] / 1e6:.2f}", str(row["allreduces_per_step"]), "" if busy else clock, cpu,
        percent(row["data_wait_share"]), "yes" if found["student_equal"] and found["teacher_equal"] else "NO",
        f"{found['clips'] - found['lost'] - found['twice']} of {found['clips']}",
    ]


SECTIONS: dict[str, Callable[[], str]] = {
    "bench_run": bench_run, "scaling_measured": scaling_measured,
    "demo": demo, "claim": claim, "training_step": training_step, "encode_experiment": encode_experiment,
    "encodings": encodings, "loader": loader, "scaling": scaling,
}


def render(text: str) -> str:
    """The README with every marked section made anew; an unknown section name is an error."""

    def fill(match: re.Match[str]) -> str:
        name = match.group(2)
        if name not in SECTIONS:
            raise SystemExit(f"README.md: unknown results section {name!r}; expected one of {', '.join(SECTIONS)}")
        return match.group(1) + SECTIONS[name]() + match.group(3)

    return MARKED.sub(fill, text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; say whether README.md is up to date")
    options = parser.parse_args()
    readme = ROOT / "README.md"
    before = readme.read_text()
    after = render(before)
    if options.check and before != after:
        sys.exit("README.md does not say what tools/results/ says; run: python tools/results/render_results.py")
    if not options.check:
        readme.write_text(after)


if __name__ == "__main__":
    main()
