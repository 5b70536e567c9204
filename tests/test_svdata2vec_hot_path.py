"""What a training step must not do: wait for a value, or let processes drift apart; and masks that users give."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from shards_data import edit_manifest
from tiny import MODEL, finetune_config
from torch import nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from svdata2vec.config.schema import DataConfig, EmaConfig, PretrainConfig, TargetConfig
from svdata2vec.evaluation.evaluate import evaluate_run
from svdata2vec.kernels import functional
from svdata2vec.model.classifier import Classifier
from svdata2vec.model.execution import use_channels_last
from svdata2vec.model.masking import Masks, draw_masks
from svdata2vec.model.student import SVData2Vec
from svdata2vec.model.teacher import ema_decay
from svdata2vec.runs.data import require_joints
from svdata2vec.runs.metrics_log import Averages
from svdata2vec.runs.runtime import Runtime
from svdata2vec.shards.errors import UserError
from svdata2vec.shards.reading.shardset import ShardSet
from svdata2vec.training.finetune import Finetuning, finetune
from svdata2vec.training.mixup import draw_mixture
from svdata2vec.training.optim import build_optimizer, clip_gradients, set_learning_rate
from svdata2vec.training.pretrain import forward, make_teacher
from svdata2vec.training.stepper import Statistics

CONFIG = PretrainConfig(data=DataConfig(num_frames=8, size=32), model=MODEL, target=TargetConfig(top_layers=2))
CLIPS, FRAMES, JOINTS = 3, 8, 17


def without_values(network: nn.Module) -> None:
    """Replace all weights by fakes: they have shapes, strides and gradients, but nothing that could be read."""
    for module in network.modules():
        for table in (module._parameters, module._buffers):
            for name, tensor in table.items():
                if tensor is None:
                    continue
                fake = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype)
                trained = isinstance(tensor, nn.Parameter)
                table[name] = nn.Parameter(fake, requires_grad=tensor.requires_grad) if trained else fake


CONTROLS = {"joints": {"kind": "joints"}, "rgb": {"teacher": "encoder", "teacher_input": "rgb", "scored": "video"}}


@pytest.mark.parametrize("repeats", [1, 3])
@pytest.mark.parametrize("way", ["kept_frames", "all_frames", *CONTROLS])
def test_a_pretraining_step_reads_no_value(monkeypatch: pytest.MonkeyPatch, way: str, repeats: int) -> None:
    """On a GPU each value that the host reads is a wait. Fake tensors refuse to be read, and count as on a GPU here."""
    monkeypatch.setattr(functional, "require_kept_frames", lambda *_: None)  # reads tensors in main memory only
    config = replace(CONFIG, encode="all_frames" if way == "all_frames" else "kept_frames")
    config = replace(config, target=replace(config.target, **CONTROLS.get(way, {})))
    student = SVData2Vec(config, JOINTS)
    use_channels_last(student)
    teacher = make_teacher(student.encoder, config.target)
    keys = [f"clip{i}" for i in range(CLIPS)]
    drawn = draw_masks(keys, FRAMES, 0.5, 0.5, seed=0, epoch=0, repeats=repeats, encoded_frames=FRAMES if repeats > 1 else 0)
    with FakeTensorMode(allow_non_fake_inputs=True):
        without_values(student)
        without_values(teacher)
        masks = Masks(*(torch.empty_like(x) for x in vars(drawn).values()))
        video, joints = torch.empty(CLIPS, FRAMES, 32, 32, 3, dtype=torch.uint8), torch.empty(CLIPS, 2, FRAMES, JOINTS, 2)
        optimizer = build_optimizer(student.named_parameters(), CONFIG.optim)
        statistics, averages = Statistics(student), Averages()
        for step in range(2):
            set_learning_rate(optimizer, 1e-3)
            statistics.keep()
            output = forward(student, teacher, video, joints, masks, config)
            output.loss.backward()
            averages.add({"loss": output.loss, "target_std": output.target_std})
            finish_step(optimizer, statistics, averages)
            teacher.follow(student.encoder, ema_decay(EmaConfig(), step, 10) or 1.0)
        with pytest.raises(DataDependentOutputException):
            output.loss.item()


def test_a_fine_tuning_step_reads_no_value(tmp_path: Path) -> None:
    model = Classifier(finetune_config(tmp_path, tmp_path), JOINTS, 5)
    mixture = draw_mixture(0.4, CLIPS, torch.device("cpu"))
    with FakeTensorMode(allow_non_fake_inputs=True):
        without_values(model)
        video, label = torch.empty(CLIPS, 6, 32, 32, 3, dtype=torch.uint8), torch.empty(CLIPS, dtype=torch.int64)
        optimizer = build_optimizer(model.named_parameters(), CONFIG.optim, depth=2, layer_decay=0.8)
        statistics, averages = Statistics(model), Averages()
        statistics.keep()
        logits = model(mixture.blend(video), None)
        loss = mixture.loss(logits, label, 0.1)
        loss.backward()
        averages.add({"loss": loss, "accuracy": (logits.argmax(1) == label).float().mean()})
        finish_step(optimizer, statistics, averages)


def finish_step(optimizer: torch.optim.Optimizer, statistics: Statistics, averages: Averages) -> None:
    """As `Stepper.update` does it."""
    norm = clip_gradients(optimizer, 1.0)
    bad = ~torch.isfinite(norm)
    optimizer.found_inf = bad.float()  # type: ignore[attr-defined]
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    statistics.put_back_if(bad)
    averages.add({"grad_norm": norm})


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
    drawn = draw_masks(["a", "b"], 40, 0.66, 0.75, seed=0, epoch=0)
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
    with pytest.raises(UserError, match=r"other has 15 joints \(of15\), .*run was trained on 17; give shards of the"):
        evaluate_run(tmp_path / "run", shards=str(tmp_path / "other"), device="cpu")
    require_joints(ShardSet.open(tmp_path / "other"), tmp_path, 17, "rgb", "all")
