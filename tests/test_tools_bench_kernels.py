"""The kernels' benchmark: wrong candidates are caught before they are timed, one op runs through, the page is rendered."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import bench_kernels as bench
import kernel_candidates as candidates
import kernel_passes
import pytest
import render_kernels as render
import torch
from kernel_inputs import draw_keep

from svdata2vec.config.schema import ModelConfig
from svdata2vec.model.block_ops import BlockOps
from svdata2vec.model.video_encoder import VideoEncoder

SCALE = candidates.Scale((2,), 32, (), torch.float32, torch.device("cpu"), stem_width=16)
BUDGET = bench.Budget(0, 1)


def test_every_candidate_at_every_case_agrees_with_the_truth() -> None:
    """All but the compiled ones, whose compilation takes minutes; the benchmark itself verifies those."""
    for case in candidates.all_cases(SCALE):
        truth = bench.evaluate(case.truth, bench.exact_inputs(case))
        names = [name for name in case.candidates if "compile" not in name]
        assert len(names) >= 2
        for name in names:
            error = bench.relative_error(bench.evaluate(case.candidates[name], case.inputs), truth, case.smooth)
            assert error < 1e-4, f"{case.op} {case.shape} {name}: {error}"


@pytest.mark.parametrize("fault", ["value", "gradient", "not a number"])
def test_a_wrong_candidate_is_not_timed(fault: str) -> None:
    case = candidates.attention_case(SCALE, 2, 5, 2, 4)

    class DoublesGradient(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
            return 2 * grad

    def wrong(qkv: torch.Tensor) -> torch.Tensor:
        if fault == "gradient":
            return case.truth.run(DoublesGradient.apply(qkv))
        return case.truth.run(qkv)[0] * (1.1 if fault == "value" else float("nan"))

    case = replace(case, candidates={"wrong": candidates.Candidate(wrong), "right": case.truth})
    truth = bench.evaluate(case.truth, bench.exact_inputs(case))
    (row,) = bench.bench_candidate("wrong", case, truth, SCALE, BUDGET)
    assert (row.status, row.ms) == ("wrong", None)
    rows = bench.bench_candidate("right", case, truth, SCALE, BUDGET)
    assert [row.direction for row in rows] == ["forward", "backward", "both"]
    assert all(row.ms and row.ms_20 and row.ms_80 and row.ms_20 <= row.ms <= row.ms_80 for row in rows)


@pytest.mark.parametrize("shortcut", [False, True])
def test_bfloat16_is_judged_by_the_plain_modules_where_gradients_jump(shortcut: bool) -> None:
    """A sum of bfloat16 may fall on the other side of zero: a whole gradient off, in one value of hundreds."""
    scale = replace(SCALE, dtype=torch.bfloat16)
    case = candidates.batch_norm_case(scale, 2, 1, shortcut=shortcut)
    truth = bench.evaluate(case.truth, bench.exact_inputs(case))
    assert bench.ERROR_LIMIT[torch.bfloat16] <= bench.error_limit(case, truth, scale) < 0.5
    assert bench.error_limit(replace(case, candidates={"eager": zero(case)}), truth, scale) == pytest.approx(2, rel=1e-3)
    assert [row.status for row in bench.bench_candidate("op on the CPU", case, truth, scale, BUDGET)] == ["ok"] * 3
    case.candidates["wrong"] = zero(case)
    assert bench.bench_candidate("wrong", case, truth, scale, BUDGET)[0].status == "wrong"


def zero(case: candidates.Case) -> candidates.Candidate:
    """Zero, with gradients of zero."""
    run = case.candidates["op on the CPU"].run
    return replace(case.truth, run=lambda *inputs: 0 * run(*inputs))


def test_a_backend_that_refuses_a_shape_is_recorded_as_such() -> None:
    def refuse(qkv: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("No available kernel. Aborting execution.\nmore")

    case = candidates.attention_case(SCALE, 1, 3, 1, 4)
    case = replace(case, candidates={"SDPA flash": candidates.Candidate(refuse), "eager": candidates.Candidate(refuse)})
    (row,) = bench.bench_candidate("SDPA flash", case, [], SCALE, BUDGET)
    assert row.status == "refused: No available kernel. Aborting execution."
    with pytest.raises(RuntimeError, match="No available kernel"):
        bench.bench_candidate("eager", case, [], SCALE, BUDGET)


@pytest.mark.inductor
def test_the_command_measures_one_op_and_the_page_shows_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = {"op": "attention", "shape": "S", "candidate": "eager", "status": "refused: measured earlier", "direction": None}
    out = tmp_path / "kernels_cpu.json"
    monkeypatch.setattr(bench, "earlier_record", lambda *_: {"rows": [{"op": "masked_mse"}, other]})
    assert bench.main(["--device", "cpu", "--quick", "--ops", "masked_mse", "--out", str(out)]) == 0
    record = json.loads(out.read_text())
    assert record["rows"].pop(0) == other, "rows of other ops stay, those of the same op go"
    assert {row["candidate"] for row in record["rows"]} == {"op on the CPU", "eager", "torch.compile"}
    assert all(row["status"] == "ok" and row["device"] == record["device"] for row in record["rows"])
    assert render.main(["--folder", str(tmp_path)]) == 0
    page = (tmp_path / "kernels.md").read_text()
    assert "## On a GPU\n\nNot measured yet" in page
    assert "they check the benchmark" in page
    assert page.count("| masked_mse |") == 9
    assert (tmp_path / "kernels_cpu.png").stat().st_size > 1000


def test_rows_of_another_machine_are_not_mixed_in(tmp_path: Path) -> None:
    out, about = tmp_path / "kernels_cpu.json", {"device": "CPU: a", "torch": "2", "date": "2026-01-02"}
    assert bench.earlier_record(out, ["attention"], about) == {}
    record = {**about, "date": "2026-01-01", "rows": [{"op": "attention", "ms": 1.0}]}
    out.write_text(json.dumps(record))
    assert bench.earlier_record(out, ["attention"], about) == record
    assert bench.earlier_record(out, [], about) == {}, "all are measured again"
    with pytest.raises(SystemExit, match="was made with torch 2, not 3; measure all ops, or take another --out"):
        bench.earlier_record(out, ["attention"], {**about, "torch": "3"})


def test_rows_of_short_and_long_timings_are_not_mixed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor those of a few shapes with those of all."""
    monkeypatch.setattr(bench, "ceilings", lambda *_: {"copy_gb_per_s": 1.0, "matmul_tflop_per_s": 1.0})
    monkeypatch.setattr(bench, "bench", lambda *_: [])
    words = ["--device", "cpu", "--out", str(tmp_path / "kernels_cpu.json")]
    assert bench.main([*words, "--quick"]) == bench.main([*words, "--quick", "--ops", "attention"]) == 0
    with pytest.raises(SystemExit, match="was made with warmup_ms 5, not 25, measure_ms 20, not 100; measure all ops"):
        bench.main([*words, "--ops", "attention"])


def test_the_page_says_what_is_counted_on_paper() -> None:
    assert render.stored_blocks() in (render.RESULTS / "kernels.md").read_text()


def test_an_unknown_op_is_refused() -> None:
    with pytest.raises(SystemExit, match="unknown ops softmax; there are gather_frames, gather_blocks, fuse_tokens"):
        list(candidates.all_cases(SCALE, ["softmax"]))


def test_the_page_holds_gpu_timings_against_the_targets(tmp_path: Path) -> None:
    def row(op: str, candidate: str, direction: str, ms: float, gb_per_s: float | None = None) -> dict[str, Any]:
        values = {"gb_per_s": gb_per_s, "tflop_per_s": None, "peak_mb": 1.0, "error": 1e-3, "ms_20": ms, "ms_80": ms}
        return {"op": op, "shape": "S", "candidate": candidate, "status": "ok", "direction": direction, "ms": ms, **values}

    rows = [
        row("gather_frames", "triton", "forward", 1.0, 850.0),
        row("gather_frames", "eager", "forward", 5.0, 170.0),
        row("layer_targets", "triton", "forward", 1.0, 700.0),
        {**row("fuse_tokens", "triton", "forward", 1.0), "status": "wrong", "direction": None, "error": 0.5},
        row("fuse_tokens", "eager", "forward", 1.0, 800.0),
        row("attention", "triton", "both", 1.0),
        row("attention", "SDPA flash", "both", 1.6),
        row("attention", "SDPA cudnn", "both", 1.4),
        row("transformer", "triton", "both", 3.0),
        row("transformer", "triton + torch.compile", "both", 2.0),
        row("transformer", "torch.compile", "both", 5.0),
        row("bias_gelu", "triton", "both", 2.0),
        row("bias_gelu", "torch.compile", "both", 1.5),
        row("batch_norm_prelu_pool", "triton", "both", 1.0),
        row("batch_norm_prelu_pool", "torch.compile", "both", 1.3),
        row("video encoder", "triton, fused blocks", "both", 4.0),
        row("video encoder", "triton, fused blocks + torch.compile", "both", 3.0),
        row("video encoder", "eager", "both", 6.0),
        row("video encoder", "torch.compile", "both", 3.6),
    ]
    about = {"device": "a GPU", "torch": "2", "triton": "3", "cuda": "13", "date": "2026-01-01"}
    ceilings = {"copy_gb_per_s": 1000.0, "matmul_tflop_per_s": 500.0}
    record = {**about, "warmup_ms": 25, "measure_ms": 100, "ceilings": ceilings, "rows": rows}
    (tmp_path / "kernels_cuda.json").write_text(json.dumps(record))
    render.main(["--folder", str(tmp_path)])
    page = (tmp_path / "kernels.md").read_text()
    assert "- reached: gather_frames, S, forward: 85% of copy (80%)" in page
    assert "- **missed**: layer_targets, S, forward: 70% of copy (80%)" in page
    assert "- **missed**: fuse_tokens, S: the results of triton are wrong" in page
    assert "- **missed**: attention, S: 1.40 x best SDPA (1.5 x)" in page
    assert "- reached: transformer, S: 2.50 x torch.compile (2.0 x)" in page
    assert "850 (85%)" in page
    assert "- **missed**: bias_gelu, S: 0.75 x torch.compile (more than 1 x)" in page
    assert "- reached: batch_norm_prelu_pool, S: 1.30 x torch.compile (more than 1 x)" in page
    assert "- reached: video encoder, S: fused blocks 1.20 x the best way without (more than 1 x)" in page
    assert "transformer, S: fused blocks" not in page, "there is no timing of it"


def test_bytes_on_paper_are_those_of_the_maps_that_the_network_makes() -> None:
    """Every map that goes through a BatchNorm step is counted once, with or without its shortcut."""
    seen = {"batch_norm_prelu_pool": 0, "batch_norm_prelu": 0, "batch_norm_prelu with shortcut": 0}

    class Counting(BlockOps):
        def norm_prelu(self, norm: Any, prelu: Any, x_FCHW: torch.Tensor, shortcut_FCHW: Any = None) -> torch.Tensor:
            seen["batch_norm_prelu" if shortcut_FCHW is None else "batch_norm_prelu with shortcut"] += x_FCHW.numel()
            return super().norm_prelu(norm, prelu, x_FCHW, shortcut_FCHW)

        def norm_prelu_pool(self, norm: Any, prelu: Any, pool: Any, x_FCHW: torch.Tensor) -> torch.Tensor:
            seen["batch_norm_prelu_pool"] += x_FCHW.numel()
            return pool(super().norm_prelu(norm, prelu, x_FCHW))

    encoder = VideoEncoder(ModelConfig(width=32, stem_width=16))
    for module in encoder.modules():
        if hasattr(module, "ops"):
            module.ops = Counting()
    keep = draw_keep(2, candidates.T, candidates.KEPT)
    encoder(torch.randint(0, 256, (2, candidates.T, 64, 64, 3), dtype=torch.uint8), keep)
    assert seen == kernel_passes.map_values(2, keep.shape[1], 64, 16)
    modules, fused = kernel_passes.trunk_gigabytes(2, keep.shape[1], 64, 16)
    pooled, plain, with_shortcut = seen.values()
    assert modules * 1e9 == 2 * (20.5 * pooled + 15 * plain + 18 * with_shortcut)
    assert fused * 1e9 == 2 * (6.125 * pooled + 8 * plain + 11 * with_shortcut)
