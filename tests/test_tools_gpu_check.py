"""`tools/gpu_check.sh`: parts that pass, fail, crash, hang or cannot run; on a CPU also that the parts notice faults."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gpu_check
import gpu_check_parts as parts
import gpu_check_speed as speed
import psutil
import pytest
import torch
from gpu_check import FAILED, NOT_RUN, PASSED, Outcome, Part
from pretraining_step import Step
from repository import ROOT

from svdata2vec.model.classifier import Classifier
from svdata2vec.shards.reading.shardset import ShardSet


def pass_with_figures(word: str) -> dict[str, Any]:
    return {"said": word, "rate": 12.345678, "rows": [1, 2]}


def break_down() -> dict[str, Any]:
    raise ValueError("off by\n  one")


@pytest.mark.parametrize(
    ("part", "function", "status", "note"),
    [
        (Part("a", "x", (), ("hello",)), pass_with_figures, PASSED, "said hello, rate 12.35"),
        (Part("c", "x", ()), break_down, FAILED, "ValueError: off by one"),
        (Part("d", "x", ("json", "no_such_thing", "no_such.inner")), break_down, NOT_RUN,
         "not installed: no_such_thing, no_such.inner"),
    ],
)
def test_outcomes_of_a_part(part: Part, function: Callable[..., dict[str, Any]], status: str, note: str) -> None:
    outcome = gpu_check.run_here(part, lambda name: function)
    assert (outcome.name, outcome.status, outcome.note) == (part.name, status, note)


PROGRAMS = {
    "crash": ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "ended by SIGSEGV: no message"),
    "error": ("import sys; print('bad luck', file=sys.stderr); sys.exit(7)", "ended with 7: bad luck"),
    "silence": ("print('all is well')", "ended with 0: no message"),
    "hang": ("import time; time.sleep(60)", "did not finish within 1 s"),
}


@pytest.mark.parametrize("kind", PROGRAMS)
def test_a_part_that_does_not_answer_has_failed(kind: str) -> None:
    program, note = PROGRAMS[kind]
    outcome = gpu_check.run_apart(Part("x", "x", limit_s=1 if kind == "hang" else 30), [sys.executable, "-c", program])
    assert (outcome.status, outcome.note) == (FAILED, note)


def test_an_answer_comes_through_beside_other_output() -> None:
    answer = gpu_check.ANSWER + json.dumps({"name": "x", "status": PASSED, "note": "n", "figures": {"a": 1}, "seconds": 2.0})
    outcome = gpu_check.run_apart(Part("x", "x"), [sys.executable, "-c", f"print('noise'); print({answer!r})"])
    assert outcome == Outcome("x", PASSED, "n", {"a": 1}, 2.0)


def test_the_table_and_the_status_never_call_a_part_passed_that_did_not_run() -> None:
    good, bad, absent = Outcome("one", PASSED, "fine"), Outcome("two", FAILED, "broke"), Outcome("three", NOT_RUN, "no DALI")
    text = gpu_check.table([good, bad, absent], {"gpu": "Some GPU", "cores": 8, "versions": {"python": "3.12"}})
    lines = text.splitlines()
    assert lines[0] == "Some GPU; 8 CPU cores" and lines[1] == "python 3.12"
    assert lines[3].split()[:2] == ["one", "passed"] and lines[4].split()[:2] == ["two", "failed"]
    assert lines[5] == "three  not run: no DALI"
    assert lines[-1] == "1 passed, 1 failed, 1 not run"
    assert [gpu_check.exit_status(some) for some in ([good], [good, absent], [good, absent, bad], [])] == [0, 4, 1, 4]


def test_every_part_has_its_function() -> None:
    assert len({part.name for part in gpu_check.PARTS}) == len(gpu_check.PARTS) >= 25
    assert all(callable(gpu_check.load_part(part)) for part in gpu_check.PARTS)


def test_correctness_comes_first_and_speed_has_the_machine_to_itself() -> None:
    names = [part.name for part in sorted(gpu_check.PARTS, key=lambda part: part.timed)]
    assert names[-6:] == ["decoder ceiling", "copy and matmul", "bench", "bench blocks", "overlap", "step speed"]
    assert {"driver", "bf16 step", "fine-tuning", "graph against eager", "nccl"} <= set(names[:-6])
    without_dali = [part.name for part in gpu_check.PARTS if "nvidia.dali" not in part.needs]
    parts = {"driver", "clips", "decode blocks", "training step", "bf16 step", "nccl", "copy and matmul", "bench blocks"}
    assert {*parts, "step speed"} <= set(without_dali)


def test_processes_that_a_part_started_end_with_it() -> None:
    """Also where it outlives the part, holding its output open."""
    program = "import subprocess, sys; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']); {}"
    for rest, note in (("import time; time.sleep(60)", "did not finish within 2 s"), ("sys.exit(7)", "ended with 7")):
        started = time.monotonic()
        outcome = gpu_check.run_apart(Part("x", "x", limit_s=2), [sys.executable, "-c", program.format(rest)])
        assert outcome.status == FAILED and time.monotonic() - started < 30
        assert note in outcome.note or outcome.note == "did not finish within 2 s"
    me = psutil.Process()
    assert not [child for child in me.children(recursive=True) if "time.sleep(60)" in " ".join(child.cmdline())]


def test_the_whole_ends_in_time() -> None:
    """A part takes no longer than is left; one that would need more is not begun, and has not passed."""
    command = [sys.executable, "-c", "import time; time.sleep(60)"]
    few = [Part("check", "x", limit_s=30, least_s=0), Part("speed", "x", limit_s=30, least_s=0, timed=True),
           Part("long", "x", limit_s=100, least_s=40, timed=True)]
    started = time.monotonic()
    check, fast, long = gpu_check.run_all(few, command, whole_s=3)
    assert time.monotonic() - started < 30
    assert (check.status, check.note) == (FAILED, "did not finish within 3 s") and fast.status in (FAILED, NOT_RUN)
    assert (long.status, long.note) == (NOT_RUN, "no time left: it needs 40 s, the whole may take 3 s")
    assert gpu_check.exit_status([Outcome("a", PASSED), long]) == gpu_check.EXIT_INCOMPLETE
    whole = sum(part.least_s for part in gpu_check.PARTS if part.timed)
    assert whole + max(part.limit_s for part in gpu_check.PARTS if not part.timed) <= gpu_check.WHOLE_S == 480


@pytest.mark.parametrize(("number", "said"), [(signal.SIGINT, "interrupted"), (signal.SIGTERM, "")])
@pytest.mark.parametrize("timed", [False, True])
def test_an_interruption_ends_the_parts_at_work(number: signal.Signals, said: str, timed: bool, tmp_path: Path) -> None:
    """Parts that check run in threads, which no signal reaches; one more waits there for its turn."""
    program = f"""if True:
        import signal, sys
        sys.path.insert(0, {str(ROOT / "tools")!r})
        import gpu_check
        signal.signal(signal.SIGINT, signal.default_int_handler)  # tests in the background inherit "ignore"
        part = "import os, time; open(str(os.getpid()), 'w').close(); time.sleep(100)"
        gpu_check.AT_ONCE, gpu_check.gpu_problem, run_all = 1, lambda: None, gpu_check.run_all
        gpu_check.run_all = lambda parts, command: run_all(parts, [sys.executable, "-c", part])
        gpu_check.PARTS = [gpu_check.Part(name, "x", timed={timed}) for name in ("first", "second")]
        sys.argv[1:] = ["--out", "out"]
        sys.exit(gpu_check.main())
    """
    process = subprocess.Popen([sys.executable, "-c", program], cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    while not (begun := [int(path.name) for path in tmp_path.glob("[0-9]*")]):
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(number)
    _, stderr = process.communicate(timeout=30)
    assert process.returncode == 128 + number
    assert stderr.splitlines() == ["first ...", *([said] if said else [])]
    assert not any(psutil.pid_exists(pid) for pid in begun) and not [*(tmp_path / "out").iterdir()]


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens without a GPU")
def test_without_a_gpu_it_says_so(tmp_path: Path) -> None:
    done = subprocess.run(
        ["bash", str(ROOT / "tools" / "gpu_check.sh"), "--out", str(tmp_path / "out")],
        capture_output=True, text=True, cwd=tmp_path, env={**os.environ, "PYTHON": sys.executable},
    )
    assert done.returncode == gpu_check.EXIT_NO_GPU == 3
    assert done.stderr.startswith("no GPU to check: PyTorch ") and done.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_nothing_is_measured_if_nothing_can_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu_check, "gpu_problem", lambda: None)
    monkeypatch.setattr(gpu_check, "run_all", lambda *_: pytest.fail("measured"))
    (tmp_path / "file").touch()
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        monkeypatch.setattr(sys, "argv", ["gpu_check.py", "--out", str(out)])
        assert gpu_check.main() == 2
        assert capsys.readouterr().err.startswith(f"--out {out}: ")


@pytest.mark.skipif(torch.cuda.is_available(), reason="the part would run")
def test_a_part_in_its_own_process_fails_without_a_gpu() -> None:
    part = next(part for part in gpu_check.PARTS if part.name == "kernel fuse_tokens")
    outcome = gpu_check.run_apart(part, [sys.executable, str(ROOT / "tools" / "gpu_check.py")])
    assert outcome.status == FAILED and outcome.note


# ---- the parts themselves: right on a CPU, and not blind --------------------------------------------------------------


def test_the_machine_check_works() -> None:
    assert parts.check_driver("cpu") == {}


@pytest.mark.parametrize("codec", ["jpeg", "vp9"])
def test_decoding_is_compared_with_the_reference_decoder(codec: str) -> None:
    assert parts.check_decoding(codec, "cpu")["psnr_db"] > 35


def test_blocks_are_compared_with_what_a_cpu_decodes(monkeypatch: pytest.MonkeyPatch) -> None:
    figures = parts.check_blocks("cpu")
    assert figures["largest_difference"] <= 1 and figures["share_different"] < 0.2 and figures["page_locked"] is False
    from svdata2vec.pipeline import blockupload

    maps = blockupload.block_maps
    monkeypatch.setattr(blockupload, "block_maps", lambda given: maps(given) + 2**31)  # half a pixel
    with pytest.raises(parts.CheckError, match="frames are off by"):
        parts.check_blocks("cpu")


@pytest.mark.parametrize("fault", ["neighbour", "blur", "refusal"])
def test_wrong_frames_are_noticed(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from svdata2vec.pipeline.graph import DaliDecoder

    decode = DaliDecoder.decode

    def faulty(self: Any, clips: Any, out: torch.Tensor) -> dict[int, str]:
        failed = decode(self, clips, out)
        if fault == "neighbour":
            out[0, 3] = out[0, 4].clone()
        elif fault == "blur":
            out //= 2
        return {0: "no"} if fault == "refusal" else failed

    monkeypatch.setattr(DaliDecoder, "decode", faulty)
    message = {"neighbour": "frame 31 was requested, but the result looks most like frame 30", "blur": r"PSNR|most like",
               "refusal": "DALI cannot decode it: no"}
    with pytest.raises(parts.CheckError, match=message[fault]):
        parts.check_decoding("jpeg", "cpu")


@pytest.mark.parametrize("name", gpu_check.KERNELS)
def test_kernels_are_compared_with_their_references(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    figures = parts.check_kernel(name, "cpu", "auto")
    assert 0 <= figures["error_float32"] < 1e-4 and 0 <= figures["error_bfloat16"] < 0.05
    from svdata2vec.kernels import functional

    op = name.partition(" ")[0]
    real = getattr(functional, op)

    def wrong(*arguments: Any, impl: str, **options: Any) -> Any:
        value = real(*arguments, impl="torch", **options)
        if impl == "auto":
            return tuple(1.02 * part for part in value) if isinstance(value, tuple) else 1.02 * value
        return value

    monkeypatch.setattr(functional, op, wrong)
    with pytest.raises(parts.CheckError, match="is off by"):
        parts.check_kernel(name, "cpu", "auto")


def test_a_training_step_is_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    figures = parts.check_training_step("cpu")
    assert figures == {"loss_difference": 0.0, "gradient_difference": 0.0}
    loss, made = Step.loss, []

    def second_is_wrong(self: Step) -> torch.Tensor:
        made.append(self)
        return loss(self) * (1.0 if self is made[0] else 1.01)

    monkeypatch.setattr(Step, "loss", second_is_wrong)
    with pytest.raises(parts.CheckError, match=r"the loss is .*, on the CPU"):
        parts.check_training_step("cpu")


def test_a_step_in_bf16_is_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    figures = parts.check_bf16_step("cpu")
    assert 0 < figures["plain_loss_difference"] < 0.02 and 0.98 < figures["fused_gradient_cosine"] < 1
    gradients = parts.gradients_of
    for change, message in ((lambda loss, grad: (1.1 * loss, grad), "the loss is"),
                            (lambda loss, grad: (loss, grad + grad.norm() / len(grad) ** 0.5), "the bf16 gradient has")):
        monkeypatch.setattr(parts, "gradients_of", lambda step, change=change: change(*gradients(step)) if step.bf16
                            else gradients(step))
        with pytest.raises(parts.CheckError, match=message):
            parts.check_bf16_step("cpu")


def test_fine_tuning_is_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    figures = parts.check_finetuning("cpu")
    assert figures["loss_difference"] == figures["gradient_difference"] == 0
    forward, calls = Classifier.forward, []

    def second_is_wrong(self: Classifier, *inputs: Any) -> torch.Tensor:
        calls.append(self)
        return forward(self, *inputs) + (0.0 if self is calls[0] else torch.tensor([1.0, 0.0, 0.0]))

    monkeypatch.setattr(Classifier, "forward", second_is_wrong)
    with pytest.raises(parts.CheckError, match=r"the loss is .*, on the CPU"):
        parts.check_finetuning("cpu")


def test_a_graph_is_compared_with_single_launches(monkeypatch: pytest.MonkeyPatch) -> None:
    assert parts.check_graph("cpu", graph=False) == {"loss_difference": 0.0}
    run, seen = Step.run, []

    def late(self: Step) -> torch.Tensor:
        if self not in seen:
            seen.append(self)
        return run(self) * (1.0 if seen.index(self) == 0 else 1.02)

    monkeypatch.setattr(Step, "run", late)
    with pytest.raises(parts.CheckError, match="step 0: the graph's loss is"):
        parts.check_graph("cpu", graph=False)


def test_processes_exchange_what_they_should(monkeypatch: pytest.MonkeyPatch) -> None:
    assert parts.check_collectives("cpu", 2) == {"processes": 2}


def test_an_overlap_is_one_figure() -> None:
    profile = {"other_streams_ms": 4.0, "both_at_once_ms": 3.0, "training_stream_busy_share": 0.9, "wall_ms": 60.0}
    assert speed.overlap_of(profile) == {"overlap": 0.75, "training_busy_share": 0.9, "step_ms": 60.0, "loading_ms": 4.0}
    with pytest.raises(parts.CheckError, match="one busy stream"):
        speed.overlap_of({**profile, "other_streams_ms": 0.0})


@pytest.mark.parametrize(
    ("data", "model", "train", "share"), [(600, 1000, 600, 1.0), (1000, 1000, 500, 0.0), (500, 1000, 400, 0.5)]
)
def test_the_hidden_share_of_the_shorter_half(data: float, model: float, train: float, share: float) -> None:
    assert speed.hidden_share(data, model, train) == pytest.approx(share)


def test_runs_on_jpegs_and_blocks_are_benchmarked(
    tiny_shard_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """JPEGs against the authors' way; blocks, of the same clips, without."""
    asked: list[str] = []
    calls: list[list[str]] = []

    def clips(sources: int, codec: str = "jpeg") -> ShardSet:
        asked.append(codec)
        return ShardSet.open(tiny_shard_folder)

    def run(command: list[str], **_: Any) -> SimpleNamespace:
        calls.append(command)
        record = (ROOT / "tools" / "results" / "bench_run_cpu.json").read_text()
        Path(command[command.index("--out") + 1]).write_text(record)
        return SimpleNamespace(returncode=0, stderr="")

    monkeypatch.setattr(speed, "bench_clips", clips)
    monkeypatch.setattr(speed.subprocess, "run", run)
    jpeg, blocks = speed.run_bench(), speed.run_bench_blocks()
    assert asked == ["jpeg", "blocks"] and ["--baseline" in call for call in calls] == [True, False]
    assert all(call[3:6] == ["bench", "run", "ntu60-xsub"] for call in calls)
    assert set(jpeg) - set(blocks) == {"train_speedup"} and not set(blocks) - set(jpeg)
    assert blocks["train_clips_per_s"] == blocks["record"]["stages"]["train"]["clips_per_s"] > 0 and blocks["verdict"]
    monkeypatch.setattr(speed.subprocess, "run", lambda *_, **__: SimpleNamespace(returncode=1, stderr="no memory"))
    with pytest.raises(parts.CheckError, match="ended with 1: no memory"):
        speed.run_bench_blocks()


def test_both_sets_hold_the_same_clips(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SVDATA2VEC_GPU_CHECK", str(tmp_path))
    figures = parts.make_clips(1)
    assert figures["clips"] == 1 and figures["blocks_bytes_per_clip"] > figures["jpeg_bytes_per_clip"] > 10_000
    jpeg, blocks = (parts.bench_clips(1, codec) for codec in ("jpeg", "blocks"))
    assert (jpeg.manifest.codec, blocks.manifest.codec) == ("jpeg", "blocks")
    assert jpeg.index["key"].tolist() == blocks.index["key"].tolist()


def test_decoding_is_measured_by_threads(tiny_shard_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "bench_clips", lambda _: ShardSet.open(tiny_shard_folder))
    figures = speed.measure_decoder("cpu", rounds=1, seconds=0.05)
    assert figures["share_1_threads_2_pictures_per_s"] > 0
    assert figures["best_clips_per_s"] == pytest.approx(figures[f"{figures['best']}_pictures_per_s"] / 40)


def test_the_step_is_timed_in_all_ways() -> None:
    figures = speed.measure_step("cpu", clips=2, repetitions=2, config=parts.small_config())
    ratio = figures["eager_fused_clips_per_s"] / figures["eager_clips_per_s"]
    assert ratio > 0 and figures["eager_fused_gain"] == pytest.approx(ratio)
    best = max(figures[f"{name}_clips_per_s"] for name in ("eager", "eager_fused", "graph", "graph_fused"))
    assert figures["speedup"] == pytest.approx(best / figures["original_style_clips_per_s"])
    assert figures["verdict"].startswith("fused blocks ")


@pytest.mark.parametrize(
    ("gains", "verdict"),
    [
        ({"eager": 0.76, "graph": 1.39}, "fused blocks pay with --run.launch graph (eager 0.76 times; graph 1.39 times)"),
        ({"eager": 0.99, "graph": 1.02}, "fused blocks do not pay (eager 0.99 times; graph 1.02 times)"),
    ],
)
def test_the_verdict_on_fused_blocks(gains: dict[str, float], verdict: str) -> None:
    assert speed.fused_verdict(gains) == verdict


def test_a_step_works_without_the_command_line_library() -> None:
    program = (
        f"import sys; sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / 'tools')!r}, {str(ROOT / 'tools' / 'bench')!r}]\n"
        "import importlib.util\n"
        "find = importlib.util.find_spec\n"
        "importlib.util.find_spec = lambda name, *rest: None if name in ('tyro', 'nvidia.dali') else find(name, *rest)\n"
        "import gpu_check_parts as parts\n"
        "import torch\n"
        "from pretraining_step import Step, make_batch\n"
        "config = parts.small_config()\n"
        "loss = Step(config, make_batch(config, 2, torch.device('cpu'))).run().item()\n"
        "print(loss > 0 and not hasattr(sys.modules['tyro'], '__file__') and 'tensorboard' not in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.strip() == "True", done.stderr
