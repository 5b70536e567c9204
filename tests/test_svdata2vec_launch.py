"""`run.launch`: each way is refused where it cannot run, and gives the eager run where it can (a graph: on a GPU)."""

import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from tiny import MODEL, finetune_config, pretrain_config

from svdata2vec.config.schema import FinetuneConfig, MaskConfig, PretrainConfig
from svdata2vec.evaluation.evaluate import evaluate_run
from svdata2vec.evaluation.features import load_encoder
from svdata2vec.model import execution
from svdata2vec.model.teacher import Teacher
from svdata2vec.model.transformer import Block
from svdata2vec.model.video_encoder import VideoEncoder
from svdata2vec.pipeline.batch import ClipBatch
from svdata2vec.runs import runtime as runtime_module
from svdata2vec.runs.data import build_loader
from svdata2vec.runs.folder import read_config, write_config
from svdata2vec.runs.runtime import Runtime
from svdata2vec.shards.errors import UserError
from svdata2vec.shards.reading.shardset import ShardSet
from svdata2vec.training import pretrain as pretrain_module
from svdata2vec.training.finetune import finetune
from svdata2vec.training.launch import require_launch
from svdata2vec.training.pretrain import Pretraining, pretrain

CPU, GPU = Runtime(torch.device("cpu"), 0, 1, False), Runtime(torch.device("cuda"), 0, 1, False)
PRETRAIN, FINETUNE = PretrainConfig(), FinetuneConfig()


@pytest.mark.parametrize(
    ("config", "section", "changes", "runtime", "named"),
    [
        (PRETRAIN, "run", {}, CPU, "--run.device cpu"),
        (PRETRAIN, "run", {}, replace(GPU, world_size=4), "4 processes"),
        (PRETRAIN, "optim", {"accumulate": 2}, GPU, "--optim.accumulate 2"),
        (PRETRAIN, "model", {"checkpoint_activations": True}, GPU, "--model.checkpoint-activations"),
        (FINETUNE, "run", {}, GPU, "fine-tuning"),
    ],
)
def test_a_graph_is_refused_where_it_cannot_run(
    config: PretrainConfig | FinetuneConfig, section: str, changes: dict, runtime: Runtime, named: str
) -> None:
    config = replace(config, run=replace(config.run, launch="graph"))
    config = replace(config, **{section: replace(getattr(config, section), **changes)})
    with pytest.raises(UserError, match=f"^--run.launch is graph, which does not go with {named}; use --run.launch eager$"):
        require_launch(config, runtime)


def test_kernels_of_a_gpu_are_refused_on_a_cpu_and_no_part_of_what_was_trained_with_them(
    tiny_shard_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("svdata2vec.training.launch.INTERPRETED", False)
    config = replace(FINETUNE, model=replace(FINETUNE.model, impl="triton"))
    require_launch(config, GPU)
    with pytest.raises(UserError, match=r"^--model\.impl is triton, whose kernels run on a GPU, but the device is a CPU; use "):
        require_launch(config, CPU)
    run = tmp_path / "run"
    finetune(finetune_config(tiny_shard_folder, run, epochs=1))
    here = evaluate_run(run)
    card = json.loads((run / "model.json").read_text())
    card["config"]["model"]["impl"] = "triton"
    (run / "model.json").write_text(json.dumps({name: value for name, value in card.items() if name != "sha256"}))
    assert evaluate_run(run) == here
    assert load_encoder(run).features(torch.zeros(1, 6, 32, 32, 3, dtype=torch.uint8)).isfinite().all()


@pytest.mark.parametrize(("section", "changes", "named"), [
    ("data", {"num_frames": 129}, r"--data\.num-frames 129 \(more than 128\)"),
    ("model", {"heads": 2}, r"--model\.heads 2 \(wider than 64\)"),
    ("target", {"normalise_layer": "batch"}, r"--target\.normalise-layer batch"),
    ("target", {"normalise_average": "layer"}, r"--target\.normalise-average layer"),
])
def test_kernels_are_not_asked_for_where_there_are_none(section: str, changes: dict, named: str) -> None:
    """With `auto` plain PyTorch computes those."""
    config = replace(PRETRAIN, **{section: replace(getattr(PRETRAIN, section), **changes)})
    require_launch(config, GPU)
    with pytest.raises(UserError, match=rf"^--model\.impl is triton, but there is no kernel for {named}; use"):
        require_launch(replace(config, model=replace(config.model, impl="triton")), GPU)


def test_a_compiled_run_is_refused_where_nothing_would_be_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    config = replace(FINETUNE, run=replace(FINETUNE.run, launch="compiled"))
    monkeypatch.setenv("CXX", "no-such-compiler -m64")
    with pytest.raises(UserError, match=r"^--run\.launch is compiled, .* with a CPU without the C\+\+ compiler no-such-"):
        require_launch(config, CPU)
    require_launch(config, GPU)
    monkeypatch.setenv("TORCH_COMPILE_DISABLE", "1")
    with pytest.raises(UserError, match=r"does not go with TORCH_COMPILE_DISABLE=1; use --run\.launch eager$"):
        require_launch(config, GPU)


def test_a_run_that_cannot_be_launched_does_not_begin(tiny_shard_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="launch is graph"):
        pretrain(pretrain_config(tiny_shard_folder, tmp_path / "run", launch="graph"))
    with pytest.raises(UserError, match="launch is graph"):
        finetune(finetune_config(tiny_shard_folder, tmp_path / "run", launch="graph"))
    assert not list((tmp_path / "run").glob("**/*.pt"))


@pytest.mark.parametrize(
    ("launch", "compiled", "now"),
    [("graph", False, "graph"), ("eager", False, "eager"), (None, True, "compiled"), (None, None, "eager")],
)
def test_settings_of_earlier_versions_are_read(launch: str | None, compiled: bool | None, now: str, tmp_path: Path) -> None:
    """`launch` (of pretraining alone) and `run.compile` became one word."""
    write_config(tmp_path, replace(PRETRAIN, run=replace(PRETRAIN.run, out=tmp_path)))
    values = json.loads((tmp_path / "config.json").read_text())
    del values["run"]["launch"]
    values |= {} if launch is None else {"launch": launch}
    values["run"] |= {} if compiled is None else {"compile": compiled}
    (tmp_path / "config.json").write_text(json.dumps(values))
    assert read_config(tmp_path).run.launch == now


def trained(
    shards: Path, out: Path, runtime: Runtime, config: PretrainConfig
) -> tuple[list[float], dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Losses of four steps of a pretraining run on random clips, and the weights of student and teacher after them."""
    with build_loader(ShardSet.open(shards), config, CPU, train=True) as loader:
        run = Pretraining(config, runtime, loader)
    generator, losses = torch.Generator().manual_seed(0), []
    for step in range(4):
        batch = ClipBatch(
            torch.randint(0, 256, (4, 6, 32, 32, 3), dtype=torch.uint8, generator=generator),
            32 * torch.rand(4, 2, 6, 17, 2, generator=generator), torch.zeros(4, dtype=torch.int64),
            tuple(f"clip {step} {i}" for i in range(4)),
        )
        run.step([(step, batch)])
        losses.append(run.stepper.averages.take()["loss"])
    return losses, run.model.state_dict(), run.teacher.state_dict()


def counting(calls: list[str]) -> Callable[..., None]:
    """`compile_parts` without the C++ compiler: the graphs that would be compiled run as they are, and are counted."""

    def backend(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Callable[..., object]:
        calls.append("student" if torch.is_grad_enabled() else "teacher")
        return graph.forward

    return partial(execution.compile_parts, backend=backend)


@pytest.mark.slow
def test_a_compiled_run_is_the_eager_run(tiny_shard_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Losses, student and teacher; the teacher is compiled as one graph."""
    calls: list[str] = []
    for module in (runtime_module, pretrain_module):
        monkeypatch.setattr(module, "compile_parts", counting(calls))
    ways = [
        trained(tiny_shard_folder, tmp_path, CPU, pretrain_config(tiny_shard_folder, tmp_path, launch=launch))
        for launch in ("compiled", "eager")
    ]
    torch.testing.assert_close(*ways, rtol=1e-5, atol=1e-6)
    assert calls.count("teacher") == 1 and calls.count("student") >= 2


@pytest.mark.slow
def test_no_variant_of_a_compiled_part_falls_back_to_eager() -> None:
    """Stages in training and in evaluation are more than the eight variants after which PyTorch compiles no further one."""
    calls: list[str] = []
    encoder = VideoEncoder(MODEL)
    counting(calls)(encoder)
    video = torch.zeros(2, 2, 32, 32, 3, dtype=torch.uint8)
    encoder.train()(video)
    with torch.no_grad():
        encoder.eval()(video)
    assert len(calls) > 8


@pytest.mark.inductor
@torch.no_grad()
def test_blocks_compiled_by_inductor_equal_eager_blocks(tmp_path: Path) -> None:
    """With the random numbers of eager mode: a run that goes on in another way of launching draws the same."""
    torch.manual_seed(0)
    block = Block(MODEL, drop_path=0.5).train()
    x_BND = torch.randn(8, 6, MODEL.width)
    torch.manual_seed(1)
    want = block(x_BND)
    teacher = Teacher(torch.nn.ModuleList([Block(MODEL)]))
    target = pretrain_config(tmp_path, tmp_path).target
    target = replace(target, top_layers=1)
    want_target = teacher(x_BND, target)
    execution.compile_parts(block)
    execution.compile_parts(teacher)
    torch.manual_seed(1)
    torch.testing.assert_close(block(x_BND), want, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(teacher(x_BND, target), want_target, rtol=1e-4, atol=1e-5)


@pytest.mark.gpu
@pytest.mark.parametrize("launch", ["graph", "compiled"])
@pytest.mark.parametrize(("fused", "repeats"), [(False, 1), (True, 1), (False, 3)], ids=["plain", "fused blocks", "3 masks"])
def test_a_run_on_a_gpu_is_the_eager_run(
    fused: bool, repeats: int, launch: str, tiny_shard_folder: Path, tmp_path: Path
) -> None:
    ways, close = [], 1e-5 if launch == "graph" else 1e-3
    for way in (launch, "eager"):
        config = pretrain_config(tiny_shard_folder, tmp_path, device="cuda", launch=way)
        config = replace(config, model=replace(config.model, fused_blocks=fused), mask=MaskConfig(0.5, 0.5, repeats=repeats))
        ways.append(trained(tiny_shard_folder, tmp_path, GPU, config))
    torch.testing.assert_close(*ways, rtol=close, atol=close)
