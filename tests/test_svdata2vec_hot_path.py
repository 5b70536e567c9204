"""Things that a training step must not do: wait for a value, or let processes diverge; and masks that users pass."""

import contextlib
import dataclasses
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from shards_data import edit_manifest
from tiny import finetune_config, pretrain_config
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import adam
from torch.utils._python_dispatch import TorchDispatchMode

from svdata2vec.bench.scale_worker import counted_allreduce
from svdata2vec.config.checked_json import sealed
from svdata2vec.config.schema import MaskConfig, Modality, OptimConfig
from svdata2vec.evaluation.evaluate import evaluate_run
from svdata2vec.evaluation.features import embed
from svdata2vec.model.masking import Masks, draw_masks
from svdata2vec.model.student import SVData2Vec
from svdata2vec.model.teacher import Teacher
from svdata2vec.pipeline.batch import ClipBatch
from svdata2vec.runs.card import read_card
from svdata2vec.runs.data import build_loader, require_joints
from svdata2vec.runs.metrics_log import Averages
from svdata2vec.runs.runtime import Runtime
from svdata2vec.shards.errors import UserError
from svdata2vec.shards.layouts import H36M17
from svdata2vec.shards.reading.shardset import ShardSet
from svdata2vec.training import finetune as finetune_module
from svdata2vec.training import loop as loop_module
from svdata2vec.training import pretrain as pretrain_module
from svdata2vec.training import stepper as stepper_module
from svdata2vec.training.finetune import Finetuning, finetune
from svdata2vec.training.graph import CapturedPass
from svdata2vec.training.loop import TrainingRun
from svdata2vec.training.mixup import Mixture
from svdata2vec.training.pretrain import Pretraining
from svdata2vec.training.stepper import Statistics

DEVICE = torch.device("meta")  # stands for a GPU: its tensors have no values, so that whatever waits for one fails
CPU = torch.device("cpu")
AWAY = Runtime(DEVICE, 0, 1, bf16=False)
CLIPS, FRAMES, JOINTS, CLASSES = 4, 6, 17, 5
TARGETS = {"joints": {"kind": "joints"}, "rgb": {"teacher": "encoder", "teacher_input": "rgb", "scored": "video"}}
WAITS = (
    "blocking copy|meta tensor|item\\(\\) cannot be called|with Meta tensors|raises unimplemented|the step waits"
)


class NoBlockingCopies(TorchDispatchMode):
    """Refuses uploads that a GPU's stream is waited for; reading back is refused by the device itself."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func in (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default):
            source, target = (args[1], args[0]) if func is torch.ops.aten.copy_.default else (args[0], out)
            asynchronous = (kwargs or {}).get("non_blocking", len(args) > 2 and args[2])
            if source.device != target.device and not asynchronous:
                raise RuntimeError(f"a blocking copy of {tuple(source.shape)} to the device")
        return out


def forbidden(*_: object, **__: object) -> None:
    raise AssertionError("the step waits for the device, a stream or other processes")


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> torch.device:
    """The device without values; PyTorch knows no autocast there, the CPU's stands for it."""
    for name in ("autocast", "is_autocast_enabled", "get_autocast_dtype"):
        real = getattr(torch, name)

        def of_cpu(kind: str, *arguments: Any, real: Any = real, **options: Any) -> Any:
            return real("cpu" if kind == DEVICE.type else kind, *arguments, **options)

        monkeypatch.setattr(torch, name, of_cpu)
    make = torch.tensor

    def tensor(data: Any, **options: Any) -> Tensor:
        if torch.device(options.get("device") or CPU).type == DEVICE.type:
            raise RuntimeError("a blocking copy of a number to the device")
        return make(data, **options)

    monkeypatch.setattr(torch, "tensor", tensor)
    monkeypatch.setattr(adam, "_device_dtype_check_for_fused", lambda *_, **__: None)
    monkeypatch.setattr(Tensor, "pin_memory", lambda tensor: tensor)
    monkeypatch.setattr(torch.cuda, "synchronize", forbidden)
    monkeypatch.setattr(Tensor, "is_cuda", property(lambda tensor: tensor.device.type == DEVICE.type))
    return DEVICE


class FakeStream:
    """The host waits for none. One stream waits for another around a capture, which comes before the first replay."""

    synchronize = forbidden
    wait_stream: Any = None


@pytest.fixture
def graphs(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The graphs that are made, each with the number of its replays; behind a replay no stream waits for another."""
    made: list[Any] = []

    def graph() -> Any:
        made.append(SimpleNamespace(replays=0, replay=replay))
        return made[-1]

    def replay() -> None:
        made[-1].replays += 1
        monkeypatch.setattr(FakeStream, "wait_stream", forbidden)

    monkeypatch.setattr(FakeStream, "wait_stream", lambda stream, other: None)
    monkeypatch.setattr(loop_module, "require_launch", lambda config, runtime: None)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", graph)
    monkeypatch.setattr(torch.cuda, "graph", lambda graph, capture_error_mode: contextlib.nullcontext())
    for name in ("Stream", "current_stream"):
        monkeypatch.setattr(torch.cuda, name, lambda device=None: FakeStream())
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
    return made


def batches(count: int, first: int = 0, modality: Modality = "both") -> list[tuple[int, ClipBatch]]:
    """Batches as a loader gives them, with their epoch."""
    made = []
    for number in range(first, first + count):
        video = torch.randint(0, 256, (CLIPS, FRAMES, 32, 32, 3), dtype=torch.uint8)
        joints, keys = 32 * torch.rand(CLIPS, 2, FRAMES, JOINTS, 2), tuple(f"clip {number} {i}" for i in range(CLIPS))
        seen = (video if modality != "skeleton" else None, joints if modality != "rgb" else None)
        made.append((number, ClipBatch(*seen, torch.arange(CLIPS), keys)))
    return made


def train_between_two_records(run: TrainingRun, modality: Modality = "both") -> None:
    """Three optimizer steps of two batches each, whatever they read; the record behind them reads and therefore fails here."""
    with NoBlockingCopies():
        for step in range(3):
            run.step(batches(run.stepper.batches, 2 * step, modality))
    with pytest.raises((RuntimeError, NotImplementedError), match=WAITS):
        run.stepper.take_record()


def a_pretraining_run(
    shards: Path, out: Path, *, way: str = "kept_frames", repeats: int = 1, here: Runtime = AWAY, launch: str = "eager",
    **model: Any
) -> Pretraining:
    accumulate = 1 if launch == "graph" else 2
    optim = OptimConfig(lr=1e-3, min_lr=1e-4, warmup_epochs=1, clip_grad=1.0, accumulate=accumulate)
    config = pretrain_config(shards, out, optim=optim, launch=launch)
    encode: Any = "all_frames" if way == "all_frames" else "kept_frames"
    target = replace(config.target, **TARGETS.get(way, {}))
    config = replace(config, encode=encode, model=replace(config.model, **model), target=target)
    config = replace(config, mask=MaskConfig(0.5, 0.5, repeats=repeats, encoded_frames=5 if repeats > 1 else 0))
    with build_loader(ShardSet.open(shards), config, Runtime(CPU, 0, 1, False), train=True) as loader:
        return Pretraining(config, here, loader)


def a_finetuning_run(
    shards: Path, out: Path, modality: Modality = "both", mixup: float = 0.4, *, here: Runtime = AWAY
) -> Finetuning:
    config = finetune_config(shards, out)
    optim = replace(config.optim, clip_grad=1.0, accumulate=2)
    config = replace(config, modality=modality, optim=optim, head=replace(config.head, mixup=mixup, dropout=0.3))
    card = {"num_joints": JOINTS, "classes": [f"class {i}" for i in range(CLASSES)]}
    with build_loader(ShardSet.open(shards), config, Runtime(CPU, 0, 1, False), train=True) as loader:
        return Finetuning(config, here, loader, None, card)


@pytest.mark.parametrize("repeats", [1, 3])
@pytest.mark.parametrize("way", ["kept_frames", "all_frames", *TARGETS])
def test_a_pretraining_step_reads_no_value(
    way: str, repeats: int, tiny_shard_folder: Path, tmp_path: Path, device: torch.device
) -> None:
    """The whole of it: masks, uploads, both networks, loss, clipping, the guard of finite gradients, AdamW, EMA, averages."""
    train_between_two_records(a_pretraining_run(tiny_shard_folder, tmp_path, way=way, repeats=repeats))


@pytest.mark.parametrize("switch", ["fused_blocks", "checkpoint_activations"])
def test_a_step_with_other_blocks_reads_no_value(
    switch: str, tiny_shard_folder: Path, tmp_path: Path, device: torch.device
) -> None:
    train_between_two_records(a_pretraining_run(tiny_shard_folder, tmp_path, **{switch: True}))


def test_a_step_that_replays_a_graph_reads_no_value(tiny_shard_folder: Path, tmp_path: Path, graphs: list[Any]) -> None:
    """Nor has it a stream wait for another, once the graph is captured."""
    train_between_two_records(a_pretraining_run(tiny_shard_folder, tmp_path, launch="graph"))
    assert [graph.replays for graph in graphs] == [3]


@pytest.mark.parametrize(("modality", "mixup"), [("rgb", 0.0), ("rgb", 0.4), ("both", 0.4), ("skeleton", 0.4)])
def test_a_fine_tuning_step_reads_no_value(
    modality: Modality, mixup: float, tiny_shard_folder: Path, tmp_path: Path, device: torch.device
) -> None:
    """Stochastic depth, dropout, mixup and the loss of two labels among it."""
    train_between_two_records(a_finetuning_run(tiny_shard_folder, tmp_path, modality, mixup), modality)


def reads(tensor: Tensor) -> None:
    tensor.sum().item()


PLANTED: dict[str, tuple[object, str, Callable[[Any, tuple[Any, ...]], object]]] = {
    "the loss": (pretrain_module, "masked_mse", lambda result, _: float(result)),
    "a prediction": (SVData2Vec, "forward", lambda result, _: (result.prediction_NTD > 0).nonzero()),
    "a choice by a mask": (Teacher, "forward", lambda result, _: result[result > 0]),
    "a weight of the teacher": (Teacher, "update", lambda _, given: next(given[0].parameters()).tolist()),
    "the norm of a gradient": (stepper_module, "clip_gradients", lambda result, _: bool(result > 1)),
    "a flag of the guard": (Statistics, "put_back_if", lambda _, given: given[1].cpu()),
    "an average": (Averages, "add", lambda _, given: [reads(value) for value in given[1].values()]),
    "a blend": (Mixture, "blend", lambda result, _: result is not None and result.to("cpu", non_blocking=True)),
    "partners": (finetune_module, "draw_mixture", lambda result, _: result.partner_B.tolist()),
    "equality": (Mixture, "loss", lambda result, _: torch.equal(result, result)),
    "a rate as a tensor": (stepper_module, "set_learning_rate", lambda _, given: torch.tensor(given[1], device=DEVICE)),
    "masks": (Masks, "to", lambda _, given: given[0].keep_NK.to(given[1])),
    "a label": (ClipBatch, "to", lambda result, given: result.label_B.copy_(given[0].label_B)),
    "the whole device": (stepper_module.Stepper, "end", lambda *_: torch.cuda.synchronize()),
    "a figure of a graph": (CapturedPass, "__call__", lambda result, _: result["loss"].item()),
    "the stream of a graph": (CapturedPass, "__call__", lambda *_: torch.cuda.current_stream().synchronize()),
}


@pytest.mark.parametrize("what", PLANTED)
def test_a_wait_that_is_put_back_is_found(
    what: str, tiny_shard_folder: Path, tmp_path: Path, graphs: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    owner, name, wait = PLANTED[what]
    work = getattr(owner, name)

    def waiting(*arguments: Any, **options: Any) -> Any:
        result = work(*arguments, **options)
        wait(result, arguments)
        return result

    run: TrainingRun
    if owner in (Mixture, finetune_module):
        run = a_finetuning_run(tiny_shard_folder, tmp_path)
    else:
        launch = "graph" if owner is CapturedPass else "eager"
        run = a_pretraining_run(tiny_shard_folder, tmp_path, launch=launch)
    monkeypatch.setattr(owner, name, waiting)
    with NoBlockingCopies(), pytest.raises((RuntimeError, NotImplementedError, AssertionError), match=WAITS):
        run.step(batches(run.stepper.batches))


EXCHANGES = (
    *((Runtime, name) for name in ("sum", "gather", "share_buffers", "share_weights", "barrier")),
    *((dist, name) for name in ("all_gather", "all_gather_object", "broadcast", "barrier")),
)


@pytest.mark.parametrize("kind", ["pretraining", "fine-tuning"])
def test_processes_exchange_gradients_once_a_step(
    kind: str, tiny_shard_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And nothing else, however many batches it accumulates; what they leave are the gradients of one process alone."""
    exchange = dist.all_reduce
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    exchanged: list[int] = []
    weights = []
    try:
        for world_size in (2, 1):
            make = a_pretraining_run if kind == "pretraining" else a_finetuning_run
            run = make(tiny_shard_folder, tmp_path, here=Runtime(CPU, 0, world_size, bf16=False))
            if isinstance(run.network, DistributedDataParallel):
                run.network.register_comm_hook(exchanged, counted_allreduce)
            torch.manual_seed(0)
            with monkeypatch.context() as patched:
                for owner, name in EXCHANGES:
                    patched.setattr(owner, name, forbidden)
                patched.setattr(dist, "all_reduce", lambda *given, async_op=False, **options: (
                    exchange(*given, async_op=True, **options) if async_op else forbidden()  # the gradients' is not waited for
                ))
                run.step(batches(2))
            weights.append(run.model.state_dict())
            assert sum(exchanged) == sum(p.numel() * p.element_size() for p in run.model.parameters())
    finally:
        dist.destroy_process_group()
    torch.testing.assert_close(*weights)


def test_every_process_takes_the_buffers_of_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    norm = nn.BatchNorm1d(3)
    monkeypatch.setattr(dist, "broadcast", lambda tensor, source: tensor.fill_(7 + source))
    for world_size, expected in ((1, 0.0), (2, 7.0)):
        runtime = Runtime(torch.device("cpu"), 1 % world_size, world_size, bf16=False)
        runtime.share_buffers(norm)
        assert norm.running_mean is not None and norm.running_mean.tolist() == [expected] * 3
    assert norm.weight.tolist() == [1.0] * 3
    runtime.share_weights(norm)
    assert norm.weight.tolist() == [7.0] * 3 and norm.weight.requires_grad


def test_evaluation_shares_the_statistics_first(
    tiny_shard_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared: list[nn.Module] = []
    evaluated: list[bool] = []
    evaluate = Finetuning.evaluate
    monkeypatch.setattr(Runtime, "share_buffers", lambda self, model: shared.append(model))
    monkeypatch.setattr(
        Finetuning, "evaluate", lambda run, loader: (evaluate(run, loader), evaluated.append(shared == [run.model]))[0]
    )
    finetune(finetune_config(tiny_shard_folder, tmp_path / "run", epochs=1))
    assert evaluated == [True]


def test_given_masks_may_be_in_any_order() -> None:
    keep_BK, hidden_BK = torch.tensor([[5, 0, 3], [1, 2, 4]]), torch.tensor([[True, False, True], [False, True, True]])
    masks = Masks.given(keep_BK, hidden_BK, 6)
    assert masks.keep_NK.tolist() == [[0, 3, 5], [1, 2, 4]]
    assert masks.skeleton_hidden_NK.tolist() == [[False, True, True], [False, True, True]]
    assert masks.scored_NT.tolist() == [[False, True, True, True, True, True], [True, False, True, True, True, True]]
    drawn = draw_masks(["a", "b"], 40, MaskConfig(0.66, 0.75), seed=0, epoch=0)
    again = Masks.given(drawn.keep_NK.flip(1), drawn.skeleton_hidden_NK.flip(1), 40)
    for one, other in zip(vars(drawn).values(), vars(again).values(), strict=True):
        assert torch.equal(one, other)


def test_skeletons_of_another_layout_are_refused(tiny_shard_folder: Path, tmp_path: Path) -> None:
    config = finetune_config(tiny_shard_folder, tmp_path / "run", epochs=1)
    finetune(type(config)(**{**vars(config), "modality": "skeleton"}))
    shutil.copytree(tiny_shard_folder, tmp_path / "other")
    manifest = json.loads((tmp_path / "other" / "manifest.json").read_text())
    edit_manifest(tmp_path / "other", layout=manifest["layout"] | {
        "name": "of15", "joints": [f"joint{i}" for i in range(15)], "edges": [[0, 1]], "left": [1], "right": [2]
    })
    with pytest.raises(UserError, match=r"other has 15 joints \(of15\), .*run was trained on 17 \(coco17\); give shards of"):
        evaluate_run(tmp_path / "run", shards=str(tmp_path / "other"), device="cpu")
    require_joints(ShardSet.open(tmp_path / "other"), tmp_path, read_card(tmp_path / "run"), "rgb", "all")


@pytest.mark.parametrize("known_by", ["joints", "layout", "number"])
def test_as_many_joints_in_another_order_are_refused(known_by: str, tiny_shard_folder: Path, tmp_path: Path) -> None:
    """By their names in the card, or by the layout's that an earlier version wrote down; one of neither has their number."""
    pretrain_module.pretrain(pretrain_config(tiny_shard_folder, tmp_path / "run", epochs=1))
    card = read_card(tmp_path / "run")
    for name in {"joints": [], "layout": ["joints"], "number": ["joints", "trained_on"]}[known_by]:
        del card[name]
    (tmp_path / "run" / "model.json").write_bytes(sealed(card))
    shutil.copytree(tiny_shard_folder, tmp_path / "other")
    edit_manifest(tmp_path / "other", layout=dataclasses.asdict(H36M17))
    refused = pytest.raises(UserError, match=r"other has 17 joints \(h36m17\), .*run was trained on 17 \(coco17\)")
    with contextlib.nullcontext() if known_by == "number" else refused:
        embed(tmp_path / "run", "all", tmp_path / "f.npy", shards=str(tmp_path / "other"), modality="both", device="cpu")
    if known_by == "joints":
        config = finetune_config(tmp_path / "other", tmp_path / "tuned", pretrained=tmp_path / "run", epochs=1)
        with refused:
            finetune(replace(config, modality="both"))
        assert finetune(config)["count"] == 12  # RGB alone has nothing to do with it
