"""Measure every kernel against the alternatives, at the model's shapes and a sweep; one command does everything.

    python tools/bench/bench_kernels.py                      # on a GPU: bfloat16, batches 32 and 128, 224 x 224
    python tools/bench/bench_kernels.py --device cpu         # small; times the references, since Triton doesn't run there

Each candidate's result and gradients are compared with a float32 truth before it is timed. Times are medians with 20 %
and 80 % quantiles; on a GPU by CUDA events, the L2 cache flushed before each repetition (`triton.testing.do_bench`).
Bandwidth and operations are set against ceilings measured on the same device in the same run: a large copy, and a large
matrix product. Writes tools/results/kernels_<device>.json; `render_kernels.py` makes the table and the plot.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import svdata2vec  # noqa: F401 - before PyTorch loads OpenMP (svdata2vec/config/openmp.py)

# isort: split
import torch
import torch._functorch.config
import triton
from file_options import file_to_write
from kernel_candidates import Candidate, Case, Scale, all_cases
from torch import Tensor

from svdata2vec.bench.machine import quantiles
from svdata2vec.runs.cores import cpu_name
from svdata2vec.runs.provenance import save
from svdata2vec.shards.cores import job_cores

# Error relative to the truth: largest error to largest value, or by root mean squares (see `Case.smooth`). bfloat16 has 8
# bits, and the transformer part 11 blocks in a row; a wrong index or a missing term gives errors as large as the values.
ERROR_LIMIT = {torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 1e-1}


@dataclass(frozen=True)
class Budget:
    """Milliseconds of warm-up and of measurement per timing."""

    warmup_ms: float
    measure_ms: float


@dataclass(frozen=True)
class Row:
    """One timing, or the reason why there is none (`status` other than "ok")."""

    op: str
    shape: str
    dtype: str
    candidate: str
    status: str
    error: float | None = None  # against the float32 truth, relative (see ERROR_LIMIT); worst of values and gradients
    direction: str | None = None  # "forward", "backward", "both"
    ms: float | None = None
    ms_20: float | None = None
    ms_80: float | None = None
    gb_per_s: float | None = None
    tflop_per_s: float | None = None
    peak_mb: float | None = None  # memory above the inputs during forward and backward


def measure(run: Callable[[], Any], budget: Budget, device: torch.device) -> tuple[float, float, float]:
    """Median, 20 % and 80 % quantile in milliseconds."""
    if device.type == "cuda":
        times = triton.testing.do_bench(
            run, warmup=int(budget.warmup_ms), rep=int(budget.measure_ms), quantiles=[0.5, 0.2, 0.8]
        )
        return times[0], times[1], times[2]
    end = time.perf_counter() + budget.warmup_ms / 1000
    run()
    while time.perf_counter() < end:
        run()
    samples: list[float] = []
    end = time.perf_counter() + budget.measure_ms / 1000
    while time.perf_counter() < end or len(samples) < 5:
        start = time.perf_counter()
        run()
        samples.append((time.perf_counter() - start) * 1000)
    return quantiles(samples)


def ceilings(device: torch.device, dtype: torch.dtype, budget: Budget) -> dict[str, float]:
    """Best rates of this device: bytes copied (read + written) and operations of a matrix product, per second."""
    size, side = (2**30, 8192) if device.type == "cuda" else (2**26, 768)
    source, target = (torch.empty(size, dtype=torch.uint8, device=device) for _ in range(2))
    copy_ms, _, _ = measure(lambda: target.copy_(source), budget, device)
    a, b = (torch.randn(side, side, dtype=dtype, device=device) for _ in range(2))
    product_ms, _, _ = measure(lambda: a @ b, budget, device)
    return {"copy_gb_per_s": 2 * size / copy_ms / 1e6, "matmul_tflop_per_s": 2 * side**3 / product_ms / 1e9}


def evaluate(candidate: Candidate, inputs: tuple[Tensor, ...]) -> list[Tensor]:
    """Values and the gradient of every leaf, in float32."""
    values = results_of(candidate, inputs)
    grads = gradients(candidate, inputs, values, drawn_like(values))
    return [tensor.detach().float() for tensor in (*values, *grads)]


def drawn_like(values: tuple[Tensor, ...]) -> list[Tensor]:
    """Upstream gradients for the values: random numbers, the same in every call."""
    generator = torch.Generator(values[0].device).manual_seed(0)
    return [torch.randn(value.shape, generator=generator, device=value.device).to(value.dtype) for value in values]


def gradients(
    candidate: Candidate, inputs: tuple[Tensor, ...], values: tuple[Tensor, ...], weights: list[Tensor]
) -> tuple[Tensor, ...]:
    """The gradients of every leaf."""
    leaves = [tensor for tensor in (*inputs, *candidate.parameters) if tensor.requires_grad]
    return torch.autograd.grad(values, leaves, weights) if leaves else ()


def results_of(candidate: Candidate, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The candidate's result or results."""
    value = candidate.run(*inputs)
    return (value,) if isinstance(value, Tensor) else value


def relative_error(got: list[Tensor], truth: list[Tensor], smooth: bool) -> float:
    """Error of the worst tensor relative to its truth: of the largest values, or of the root mean squares."""

    def size(tensor: Tensor) -> Tensor:
        return tensor.abs().max() if smooth else tensor.square().mean().sqrt()

    errors = [
        (size(ours - theirs) / size(theirs).clamp(min=1e-12)).item()
        for ours, theirs in zip(got, truth, strict=True)
        if theirs.numel()
    ]
    return max(errors) if all(torch.isfinite(tensor).all() for tensor in got) else float("inf")


def exact_inputs(case: Case) -> tuple[Tensor, ...]:
    """The inputs in float32, for the truth."""
    return tuple(tensor.detach().float().requires_grad_(tensor.requires_grad) for tensor in case.inputs)


def peak_mb(candidate: Candidate, case: Case, device: torch.device) -> float | None:
    """Additional memory during one forward and backward pass; None on a CPU."""
    if device.type != "cuda":
        return None
    weights = drawn_like(results_of(candidate, case.inputs))
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    gradients(candidate, case.inputs, results_of(candidate, case.inputs), weights)
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 1e6


def directions(candidate: Candidate, case: Case) -> dict[str, tuple[Callable[[], Any], int, int]]:
    """Timed functions: name -> function, bytes, operations."""
    leaves = [tensor for tensor in (*case.inputs, *candidate.parameters) if tensor.requires_grad]
    if not leaves:
        return {"forward": (lambda: candidate.run(*case.inputs), case.forward_bytes, case.forward_flops)}
    values = results_of(candidate, case.inputs)
    weights = [torch.randn_like(value) for value in values]

    def forward() -> None:
        with torch.no_grad():
            candidate.run(*case.inputs)

    def both() -> None:
        torch.autograd.grad(results_of(candidate, case.inputs), leaves, weights)

    return {
        "forward": (forward, case.forward_bytes, case.forward_flops),
        "backward": (
            lambda: torch.autograd.grad(values, leaves, weights, retain_graph=True),
            case.backward_bytes,
            case.backward_flops,
        ),
        "both": (both, case.forward_bytes + case.backward_bytes, case.forward_flops + case.backward_flops),
    }


def error_limit(case: Case, truth: list[Tensor], scale: Scale) -> float:
    """Allowed error of a candidate: the table's figure, or twice the error of the plain modules in the same dtype.

    The second is for the video encoder: 17 BatchNorms and PReLUs in a row turn bfloat16's roundings into gradients that
    differ by tens of per cent in any implementation.
    """
    if case.smooth or scale.dtype == torch.float32:
        return ERROR_LIMIT[scale.dtype]
    plain = evaluate(case.candidates["eager"], case.inputs)
    return max(ERROR_LIMIT[scale.dtype], 2 * relative_error(plain, truth, case.smooth))


def bench_candidate(name: str, case: Case, truth: list[Tensor], scale: Scale, budget: Budget) -> list[Row]:
    """Verify one candidate, then time it."""
    candidate = case.candidates[name]
    dtype = str(scale.dtype).removeprefix("torch.")
    about: dict[str, Any] = {"op": case.op, "shape": case.shape, "dtype": dtype, "candidate": name}
    try:
        error = relative_error(evaluate(candidate, case.inputs), truth, case.smooth)
    except RuntimeError as refusal:  # raised by a backend of SDPA that doesn't support this shape
        if not name.startswith("SDPA"):
            raise
        return [Row(**about, status=f"refused: {str(refusal).splitlines()[0]}")]
    if not error <= error_limit(case, truth, scale):
        return [Row(**about, status="wrong", error=error)]
    memory = peak_mb(candidate, case, scale.device)
    rows = []
    for direction, (run, num_bytes, num_flops) in directions(candidate, case).items():
        ms, ms_20, ms_80 = measure(run, budget, scale.device)
        rows.append(
            Row(
                **about,
                status="ok",
                error=error,
                direction=direction,
                ms=ms,
                ms_20=ms_20,
                ms_80=ms_80,
                gb_per_s=num_bytes / ms / 1e6 if num_bytes else None,
                tflop_per_s=num_flops / ms / 1e9 if num_flops else None,
                peak_mb=memory,
            )
        )
    return rows


def bench(scale: Scale, budget: Budget, ops: list[str]) -> list[Row]:
    """All cases; each line is printed as it comes."""
    rows: list[Row] = []
    for case in all_cases(scale, ops):
        truth = evaluate(case.truth, exact_inputs(case))
        for name in case.candidates:
            torch._dynamo.reset()  # each candidate is compiled for its own shape, without a limit on recompilations
            for row in bench_candidate(name, case, truth, scale, budget):
                rows.append(row)
                timing = row.status if row.ms is None else f"{row.direction:9} {row.ms:9.4f} ms"
                print(f"{row.op:15} {row.shape:45} {row.candidate:24} {timing}", flush=True)
    return rows


def device_name(device: torch.device) -> str:
    """The processor as its maker calls it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU: {cpu_name()}, {torch.get_num_threads()} thread(s)"


def choose_scale(device: torch.device, quick: bool) -> Scale:
    """Training sizes on a GPU, small ones elsewhere."""
    if device.type == "cuda":
        sweep = tuple((n, e) for n in (13, 40, 64, 128) for e in (16, 32, 64))
        return Scale((32,) if quick else (32, 128), 224, () if quick else sweep, torch.bfloat16, device)
    return Scale((2,), 56, () if quick else ((16, 64), (128, 32)), torch.float32, device, stem_width=16)


def earlier_record(out: Path, ops: list[str], about: dict[str, Any]) -> dict[str, Any]:
    """The content of a file, if only some ops are to be measured again under the same conditions; else nothing.

    about: device, versions and budget, which differs with --quick.
    """
    if not ops or not out.exists():
        return {}
    record: dict[str, Any] = json.loads(out.read_text())
    differing = [f"{name} {record.get(name)}, not {value}" for name, value in about.items()
                 if name != "date" and record.get(name) != value]
    if differing:
        raise SystemExit(f"{out} was made with {', '.join(differing)}; measure all ops, or take another --out")
    return record


def main(arguments: list[str] | None = None) -> int:
    """Measure, write the file; 1 if a candidate gave a wrong result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("auto", "cuda", "cpu"), default="auto")
    parser.add_argument("--out", type=file_to_write, help="JSON file (default: tools/results/kernels_<device>.json)")
    parser.add_argument("--ops", nargs="*", default=[], help="only these ops; the file's other rows stay")
    parser.add_argument("--quick", action="store_true", help="one batch size, no sweep, short timings")
    options = parser.parse_args(arguments)
    kind = options.device if options.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(kind)
    scale = choose_scale(device, options.quick)
    budget = Budget(5, 20) if options.quick else Budget(25, 100)
    torch.manual_seed(0)
    about = {
        "device": device_name(device),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "torch": torch.__version__,
        "triton": triton.__version__,
        "cuda": torch.version.cuda,
    }
    out = options.out or Path(__file__).parent.parent / "results" / f"kernels_{kind}.json"
    earlier = earlier_record(out, options.ops, {**about, **asdict(budget)})
    machine = {"processors": job_cores(), "load_average": round(os.getloadavg()[0], 1)}
    best = earlier.get("ceilings") or ceilings(device, scale.dtype, budget)
    print(f"{about['device']}: copy {best['copy_gb_per_s']:.1f} GB/s, product {best['matmul_tflop_per_s']:.3f} TFLOP/s")
    # A compiled backward pass may otherwise reuse its inputs' memory, and then runs only once: it couldn't be repeated.
    with torch._functorch.config.patch(donated_buffer=False):
        rows = bench(scale, budget, options.ops)
    record = {**about, **asdict(budget), **machine, "kind": kind, "ceilings": best}
    others = [row for row in earlier.get("rows", []) if row["op"] not in options.ops]
    record["rows"] = [*others, *({**asdict(row), **about} for row in rows)]
    save(record, out)
    print(f"wrote {out}")
    return int(any(row.status == "wrong" for row in rows))


if __name__ == "__main__":
    sys.exit(main())
