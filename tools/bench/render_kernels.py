"""Make the table and the plots of the kernels' benchmark from its JSON files.

    python tools/bench/render_kernels.py            # tools/results/kernels_{cuda,cpu}.json -> kernels.md, kernels_*.png

A device without a file leaves its cells empty; nothing is filled in by hand.
"""

import argparse
import json
import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import block_bytes
import matplotlib
import numpy as np
import torch
from kernel_passes import BLOCK_OPS, trunk_gigabytes

matplotlib.use("Agg")
from matplotlib import pyplot as plt

from svdata2vec.kernels.functional import block_maps
from svdata2vec.kernels.gather_frames import window_shape
from svdata2vec.model.video_encoder import WINDOW_CHANNELS_GPU
from svdata2vec.shards.atomic import write_atomically

RESULTS = Path(__file__).parent.parent / "results"
COMMAND = "python tools/bench/bench_kernels.py && python tools/bench/render_kernels.py"

# Targets of each kernel on an H200, at the largest batch; the rest of the sentence is computed.
COPY_TARGETS = ("gather_frames", "gather_blocks", "fuse_tokens", "restore_tokens", "layer_targets")
COPY_SHARE = 0.8
ATTENTION_SPEEDUP = 1.5
TRANSFORMER_SPEEDUP = 2.0

# Block-level fusions (`model.fused_blocks`): worth turning on where they beat torch.compile of the modules.
FUSED_BLOCK_OPS = tuple(dict.fromkeys(name.split()[0] for name in BLOCK_OPS))
FUSED_PARTS = ("transformer", "video encoder")
FUSED_BATCH, FUSED_FRAMES, FUSED_SIDE, FUSED_STEM = 128, 13, 224, 64  # for which bytes are counted on paper
FRAMES, PACKED = 40, 320
WINDOWS = window_shape(FUSED_FRAMES, FUSED_SIDE, FUSED_SIDE, WINDOW_CHANNELS_GPU, folded=True)

Row = dict[str, Any]


def number(value: float | None, digits: int = 3) -> str:
    """A table cell; empty where nothing was measured."""
    return "" if value is None else f"{value:.{digits}g}"


def table(record: dict[str, Any]) -> str:
    """Markdown: one line per op, shape, candidate and direction."""
    copy, product = record["ceilings"]["copy_gb_per_s"], record["ceilings"]["matmul_tflop_per_s"]
    lines = [
        "| op | shape | candidate | pass | ms | 20 % - 80 % | GB/s (of copy) | TFLOP/s (of product) | MB | error |",
        "|---|---|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    for row in record["rows"]:
        if row["status"] != "ok":
            lines.append(f"| {row['op']} | {row['shape']} | {row['candidate']} | {row['status']} | | | | | | |")
            continue
        bandwidth, operations = row["gb_per_s"], row["tflop_per_s"]
        cells = [
            row["op"],
            row["shape"],
            row["candidate"],
            row["direction"],
            number(row["ms"]),
            f"{number(row['ms_20'])} - {number(row['ms_80'])}",
            f"{number(bandwidth)} ({bandwidth / copy:.0%})" if bandwidth else "",
            f"{number(operations)} ({operations / product:.0%})" if operations else "",
            number(row["peak_mb"]),
            number(row["error"], 1),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def timed(record: dict[str, Any], op: str, direction: str) -> dict[str, dict[str, Row]]:
    """shape -> candidate -> row."""
    shapes: dict[str, dict[str, Row]] = {}
    for row in record["rows"]:
        if row["op"] == op and row["direction"] == direction and row["status"] == "ok":
            shapes.setdefault(row["shape"], {})[row["candidate"]] = row
    return shapes


def gains(
    record: dict[str, Any], op: str, ours: Callable[[str], bool], others: Callable[[str], bool]
) -> Iterator[tuple[str, float]]:
    """Shape, and speed of the best of ours relative to the best of the others, if both were timed."""
    for shape, rows in timed(record, op, "both").items():
        mine, theirs = ([row["ms"] for name, row in rows.items() if wanted(name)] for wanted in (ours, others))
        if mine and theirs:
            yield shape, min(theirs) / min(mine)


def targets(record: dict[str, Any]) -> str:
    """The targets and their measurements, shape by shape; a candidate with wrong results has missed them and is not timed."""
    lines = [
        (False, f"{row['op']}, {row['shape']}: the results of {row['candidate']} are wrong")
        for row in record["rows"] if row["status"] == "wrong" and row["candidate"].startswith("triton")
    ]
    for op in COPY_TARGETS:
        for direction in ("forward", "backward"):
            for shape, rows in timed(record, op, direction).items():
                if "triton" not in rows:
                    continue
                share = rows["triton"]["gb_per_s"] / record["ceilings"]["copy_gb_per_s"]
                lines.append((share >= COPY_SHARE, f"{op}, {shape}, {direction}: {share:.0%} of copy ({COPY_SHARE:.0%})"))
    for shape, gain in gains(record, "attention", "triton".__eq__, lambda name: name.startswith("SDPA")):
        lines.append((gain >= ATTENTION_SPEEDUP, f"attention, {shape}: {gain:.2f} x best SDPA ({ATTENTION_SPEEDUP} x)"))
    for shape, gain in gains(record, "transformer", lambda name: name.startswith("triton"), "torch.compile".__eq__):
        wanted = f"({TRANSFORMER_SPEEDUP} x)"
        lines.append((gain >= TRANSFORMER_SPEEDUP, f"transformer, {shape}: {gain:.2f} x torch.compile {wanted}"))
    for op in FUSED_BLOCK_OPS:
        for shape, gain in gains(record, op, "triton".__eq__, "torch.compile".__eq__):
            lines.append((gain > 1, f"{op}, {shape}: {gain:.2f} x torch.compile (more than 1 x)"))
    for op in FUSED_PARTS:
        for shape, gain in gains(record, op, lambda name: "fused" in name, lambda name: "fused" not in name):
            lines.append((gain > 1, f"{op}, {shape}: fused blocks {gain:.2f} x the best way without (more than 1 x)"))
    return "\n".join(f"- {'reached' if reached else '**missed**'}: {line}" for reached, line in lines)


def fusions() -> str:
    """What was tried beyond the six ops of the masked core, and what it should save on paper."""
    lines = ["| step | forward: modules, fused | backward: modules, fused | kept: modules, fused | how it is counted |",
             "|---|---|---|---|---|"]
    for name, step in BLOCK_OPS.items():
        counts = [f"{getattr(step.modules, kind)}, {getattr(step.fused, kind)}" for kind in ("forward", "backward", "kept")]
        lines.append(f"| {name} | {' | '.join(counts)} | {step.why} |")
    before, after = trunk_gigabytes(FUSED_BATCH, FUSED_FRAMES, FUSED_SIDE, FUSED_STEM)
    table = "\n".join(lines)
    return f"""## Block-level fusions: what was tried, what is off, and why

Four more ops exist, each with its backward pass, its reference and the same tests as the others: `add_layer_norm`
(residual sum and LayerNorm), `bias_gelu` (the epilogue of an MLP's first product), `batch_norm_prelu` (BatchNorm,
shortcut and PReLU of the video encoder, with its running statistics) and `batch_norm_prelu_pool` (the end of its stem, with
the maximum over 3x3 pixels). `model.fused_blocks` puts all of them into the network; parameters and checkpoints do not
change. **They are off by default**: at batch 32 on an H100 a step whose kernels are launched one by one gets slower with
them, since the host is the limit; launched as one CUDA graph (`--run.launch graph`) it gets faster
([a training step](speed.md#one-training-step), [decisions about the GPU](gpu.md#what-decisions-about-the-gpu-rest-on)). Few
ops have been timed alone on a GPU. A synchronised BatchNorm still runs the plain way.

Counted on paper, in passes over one activation in the compute dtype (a float32 tensor counts two), under autocast as in
training; "kept" is what the backward pass needs:

{table}

All BatchNorms with a PReLU of the video encoder, and its maximum, together move {before:.0f} GB in a training step of
{FUSED_BATCH} clips module by module, and {after:.0f} GB fused ({FUSED_FRAMES} frames of {FUSED_SIDE} x {FUSED_SIDE}, bfloat16).
What the convolutions move is the same either way.

Not built, and why:

- A block's last sum with the next block's first norm: 8 passes for the norms and sums of a block's forward pass instead of
  9 (and of 26 module by module). Blocks could no longer be compiled, checkpointed and read by the teacher one by one.
- GELU inside the product itself: cuBLASLt's epilogue computes the tanh approximation, which isn't the paper's function.
- A convolution with its BatchNorm: in training the statistics need the whole map first.

The teacher's blocks write their sums straight into the tensor that `layer_targets` reads: 2 passes fewer per layer than
stacking copies, always on.
"""


def stored_blocks() -> str:
    """What a clip moves through a GPU's memory as JPEGs and as blocks, counted on paper."""
    keep = np.linspace(1, FRAMES - 2, FUSED_FRAMES).round().astype(np.int64)[None]
    frames, window = block_bytes.frames_read(keep, FRAMES)[0], 0.84**0.5 * PACKED  # the mean area of a training window
    maps = block_maps(torch.tensor([[[window / FUSED_SIDE, 0.0, 10.0], [0.0, window / FUSED_SIDE, 10.0]]]))[0].tolist()
    megabytes = 1e-6
    picture, written = 3 * FUSED_SIDE**2 * megabytes, 2 * math.prod(WINDOWS) * megabytes
    lines = ["| stored as | uploaded | decoded, written | resampled: read, written | gathered: read, written | sum |",
             "|---|---:|---:|---:|---:|---:|"]
    whole, seen = FRAMES * 3 * PACKED**2 * megabytes, FRAMES * 3 * window**2 * megabytes
    parts = (whole, seen, FRAMES * picture, frames * picture, written)
    jpegs = FRAMES * 1024 * jpeg_kib() * megabytes
    cells = "| JPEG | {:.1f} | {:.1f} | {:.1f}, {:.1f} | {:.1f}, {:.1f} | {:.1f} |"
    lines.append(cells.format(jpegs, *parts, jpegs + sum(parts)))
    for bits in ((3, 2), (2, 2)):
        form = PACKED, *bits
        stored = FRAMES * len(block_bytes.touched(form, FUSED_SIDE, maps)) * megabytes
        read = frames * int(block_bytes.touched(form, FUSED_SIDE, maps).sum()) * megabytes
        total = stored + read + written
        lines.append(f"| blocks, {bits[0]} and {bits[1]} bits | {stored:.1f} | | | {read:.1f}, {written:.1f} | {total:.1f} |")
    table = "\n".join(lines)
    return f"""## Clips stored as blocks, on paper

Megabytes per clip of {FRAMES} frames ({PACKED} px, {FUSED_FRAMES} kept, windows of five frames of {FUSED_SIDE} px in
bfloat16), each byte once; a window of the mean training size. Only the stored bytes that the windows touch and the
result cross the memory (a test overwrites all others). The op alone has not been timed on a GPU; `bench run` has timed the
step that begins with it ([every stage on a GPU](gpu.md#every-stage-on-a-gpu)).

{table}
"""


def jpeg_kib() -> float:
    """KiB of a picture of real videos as `shard` packs JPEGs."""
    rows = json.loads((RESULTS / "packing_real_h264.json").read_text())["rows"]
    (row,) = (row for row in rows if row["codec"] == "jpeg" and row["by_default"])
    return float(row["kib_per_frame"])


def plot(record: dict[str, Any], file: Path) -> None:
    """Forward + backward (or forward alone) of every candidate, relative to the eager reference."""
    cases: dict[str, dict[str, float]] = {}
    for op in dict.fromkeys(row["op"] for row in record["rows"]):
        for shape, rows in (timed(record, op, "both") or timed(record, op, "forward")).items():
            if "eager" in rows:
                cases[f"{op}\n{shape}"] = {name: rows["eager"]["ms"] / row["ms"] for name, row in rows.items()}
    names = list(dict.fromkeys(name for case in cases.values() for name in case))
    figure, axes = plt.subplots(figsize=(9, 0.55 * len(cases) + 1.5))
    height = 0.85 / len(names)
    for offset, name in enumerate(names):
        at = [place + offset * height for place, case in enumerate(cases.values()) if name in case]
        axes.barh(at, [case[name] for case in cases.values() if name in case], height, label=name)
    axes.set_yticks([place + 0.4 for place in range(len(cases))], list(cases), fontsize=7)
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.axvline(1.0, color="black", linewidth=0.8)
    axes.set_xlabel("times as fast as the eager reference (forward + backward where there is a backward pass)")
    axes.set_title(f"{record['device']}, {record['date']}", fontsize=9)
    axes.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(file, dpi=120)
    plt.close(figure)


def section(kind: str, folder: Path) -> str:
    """One device's part of the page."""
    file = folder / f"kernels_{kind}.json"
    title = {"cuda": "On a GPU", "cpu": "On a CPU"}[kind]
    if not file.exists():
        return f"## {title}\n\nNot measured yet. On a machine with the device: `{COMMAND}`\n"
    record = json.loads(file.read_text())
    plot(record, folder / f"kernels_{kind}.png")
    best = record["ceilings"]
    parts = [
        f"## {title}",
        f"{record['device']}, torch {record['torch']}, triton {record['triton']}, CUDA {record['cuda'] or 'none'}, "
        f"{record['date']}. Warm-up {record['warmup_ms']} ms, measured {record['measure_ms']} ms per line. Ceilings of "
        f"this device: copy {best['copy_gb_per_s']:.1f} GB/s, matrix product {best['matmul_tflop_per_s']:.3g} TFLOP/s.",
        f"![speed relative to the eager reference](kernels_{kind}.png)",
    ]
    if kind == "cpu":
        parts.append(
            "Triton doesn't run on a CPU: \"op on the CPU\" is the *reference* behind the op, with the op's own backward "
            "pass and the cost of calling it. These lines say nothing about the kernels; they check the benchmark. Other "
            f"work disturbs them: load average {record['load_average']} on {record['processors']} processor(s) at the start."
        )
    else:
        parts.append(f"### Targets\n\n{targets(record)}")
    return "\n\n".join([*parts, table(record)]) + "\n"


def main(arguments: list[str] | None = None) -> int:
    """Write the page and the plots."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=RESULTS, help="where the JSON files are and the page goes")
    folder = parser.parse_args(arguments).folder
    if not folder.is_dir():
        parser.error(f"argument --folder: {folder}: no such folder; expected one with files of bench_kernels.py")
    pages = "\n".join(section(kind, folder) for kind in ("cuda", "cpu"))
    paper = f"{stored_blocks()}\n{fusions()}\n{pages}"
    page = f"# Benchmark of the kernels\n\nMade by `{COMMAND}` from the JSON files beside it.\n\n{paper}"
    write_atomically(folder / "kernels.md", page.encode())
    print(f"wrote {folder / 'kernels.md'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
