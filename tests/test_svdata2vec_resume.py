"""Runs that are stopped and resumed with another batch size, accumulation or number of processes."""

import dataclasses
import json
import os
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from noted_command import launch, notes
from safetensors.torch import load_file
from tiny import NUM_CLIPS, finetune_config, pretrain_config
from tiny_command import command_words

from svdata2vec.config.schema import EmaConfig, OptimConfig
from svdata2vec.pipeline.loader import ClipLoader
from svdata2vec.pipeline.order import OrderConfig
from svdata2vec.pipeline.plan import PlanConfig
from svdata2vec.runs.card import read_card
from svdata2vec.runs.checkpoint import Checkpoints
from svdata2vec.runs.metrics_log import read_metrics
from svdata2vec.runs.provenance import UNKNOWN
from svdata2vec.runs.runtime import Runtime
from svdata2vec.runs.stopping import StopRequested
from svdata2vec.shards.errors import UserError
from svdata2vec.shards.reading.shardset import ShardSet
from svdata2vec.training import loop
from svdata2vec.training.finetune import Finetuning, finetune
from svdata2vec.training.optim import learning_rate
from svdata2vec.training.pretrain import Pretraining, pretrain
from svdata2vec.training.stepper import Stepper

EPOCHS = 3


# ---- the order of clips -----------------------------------------------------------------------------------------------


def order_of(clips: int, batch: int, ranks: int, rank: int = 0, smallest: int = 1) -> OrderConfig:
    return OrderConfig(np.arange(clips), 1, batch, 0, True, True, rank, ranks, smallest)


@settings(max_examples=300, deadline=None)
@given(st.data(), st.integers(1, 2))
def test_an_epoch_with_changing_batches_sees_every_clip_once(data: st.DataObject, smallest: int) -> None:
    """Steps are never empty for a rank, never much larger than asked for, and the same after any further stop."""
    clips, position, seen = data.draw(st.integers(8, 60)), 0, []
    changed = False
    for _ in range(data.draw(st.integers(1, 6))):
        batch, ranks = data.draw(st.integers(smallest, 8)), data.draw(st.integers(1, 4))
        orders = [order_of(clips, batch, ranks, rank, smallest) for rank in range(ranks)]
        changed = changed or position % (batch * ranks) != 0
        steps = orders[0].steps(position)
        for number, step in enumerate(steps):
            assert steps[number:] == orders[0].steps(step[0])
            parts = [order.part(step) for order in orders]
            assert all(smallest <= stop - start < batch + smallest + 1 for start, stop in parts)
            assert [i for part in parts for i in range(*part)] == [*range(*step)]
        taken = steps[: data.draw(st.integers(0, len(steps)))]
        seen += [i for step in taken for i in range(*step)]
        position = taken[-1][1] if taken else position
    rest = order_of(clips, batch, ranks, 0, smallest).steps(position)
    seen += [i for step in rest for i in range(*step)]
    assert seen == [*range(len(seen))]
    unused = clips - len(seen)
    aligned = position % (batch * ranks) == 0
    assert unused < (batch if aligned else smallest) * ranks


def test_an_epoch_of_equal_batches_is_that_of_ever() -> None:
    assert order_of(23, 4, 2).steps(0) == [(0, 8), (8, 16)] and order_of(23, 4, 2).steps(8) == [(8, 16)]
    assert order_of(23, 4, 2).steps(16) == [] and order_of(23, 4, 2).steps(20) == [(20, 23)]
    assert order_of(23, 4, 2).steps(6) == [(6, 14), (14, 23)]  # one clip more is not enough for two ranks
    assert order_of(23, 4, 1, smallest=2).steps(2) == [(i, i + 4) for i in (2, 6, 10, 14)] + [(18, 23)]


# ---- the place of a run, in this process ------------------------------------------------------------------------------


def note_clips(monkeypatch: pytest.MonkeyPatch, kind: Any, steps: int | None, seen: list[tuple[int, str]]) -> None:
    """Note the epoch and name of every clip that is trained on; ask the run to stop after this many steps of its own."""
    step, done = kind.step, []

    def noted(run: Any, batches: list) -> None:
        step(run, batches)
        seen.extend((epoch, key) for epoch, batch in batches for key in batch.keys)
        done.append(run.stepper.step)
        if len(done) == steps:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(kind, "step", noted)


def run_with_stops(monkeypatch: pytest.MonkeyPatch, configs: list[Any], stops: list[int | None]) -> Counter[tuple[int, str]]:
    """Start one run with each configuration in turn, the next where the one before was stopped; what it has seen."""
    seen: list[tuple[int, str]] = []
    for config, steps in zip(configs, stops, strict=True):
        kind, begin = (Pretraining, pretrain) if config.kind == "pretrain" else (Finetuning, finetune)
        with monkeypatch.context() as patch:
            note_clips(patch, kind, steps, seen)
            if steps is None:
                begin(config)
            else:
                with pytest.raises(StopRequested):
                    begin(config)
    return Counter(seen)


def every_clip_once(epochs: int) -> Counter[tuple[int, str]]:
    return Counter((epoch, f"clip{i:05d}") for epoch in range(epochs) for i in range(NUM_CLIPS))


@pytest.mark.parametrize(
    ("sizes", "stops"),
    [
        ([(4, 1), (2, 1)], [4, None]),          # half the batch: would have ended twice too late
        ([(2, 1), (4, 1)], [7, None]),          # twice the batch: would have ended at once, or half way
        ([(4, 1), (2, 2)], [1, None]),
        ([(2, 1), (2, 2)], [5, None]),          # an odd number of batches is left
        ([(3, 2), (4, 1), (2, 3)], [2, 2, None]),
        ([(6, 1), (4, 1), (3, 1), (12, 1), (4, 1)], [1, 1, 2, 1, None]),
    ],
)
def test_a_run_resumes_with_other_batches(
    sizes: list[tuple[int, int]], stops: list[int | None], tiny_shard_folder: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
) -> None:
    rate = OptimConfig(lr=1e-3, min_lr=1e-4, warmup_epochs=1)
    configs = [
        pretrain_config(tiny_shard_folder, tmp_path / "run", optim=dataclasses.replace(rate, accumulate=accumulate),
                        batch_size=batch, epochs=EPOCHS)
        for batch, accumulate in sizes
    ]
    assert run_with_stops(monkeypatch, configs, stops) == every_clip_once(EPOCHS)
    records = read_metrics(tmp_path / "run")
    assert [record["step"] for record in records] == [*range(1, len(records) + 1)]
    epochs = [record["epoch"] for record in records]
    assert epochs == sorted(set(epochs)) and epochs[-1] == EPOCHS
    expected = [learning_rate(rate, place, EPOCHS) for place in [0, *epochs[:-1]]]
    assert [record["lr"] for record in records] == pytest.approx(expected)
    assert json.loads((tmp_path / "run" / "model.json").read_text())["step"] == len(records)
    if stops[0] == 4:
        assert "clips per optimizer step 4 (batch_size 4 x processes 1 x accumulate 1) -> 2 (batch_size 2" in caplog.text
        assert "goes on at epoch 1.33 of 3, the last step is now 14" in caplog.text


@pytest.mark.parametrize("former", [False, True])
def test_clips_of_an_interval_are_those_of_all_processes(
    former: bool, tiny_shard_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another number of processes counts on, also from a checkpoint that has those of the first process alone."""
    many, one = (pretrain_config(tiny_shard_folder, tmp_path / "run", batch_size=size, log_every=5) for size in (2, 4))
    with monkeypatch.context() as patch:
        patch.setattr(Runtime, "sum", lambda _, values: 2 * values)  # as with a second process that has as many
        run_with_stops(monkeypatch, [many], [2])
    if former:
        path = tmp_path / "run" / "checkpoints" / "step-000000002.pt"
        state = torch.load(path, weights_only=True)
        del state["stepper"]["interval"]["all_clips"]
        state["stepper"]["interval"]["clips"], state["stepper"]["per_step"]["processes"] = 4, 2
        torch.save(state, path)
    pretrain(one)
    record = read_metrics(tmp_path / "run")[0]
    assert record["step"] == 5
    assert record["clips_per_second"] * record["seconds_total"] == pytest.approx(2 * 2 * 2 + 3 * 4)


def test_a_run_is_not_cut_short_of_where_it_is(
    tiny_shard_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It would be published as finished in the middle of its schedule. Nothing says before that it goes on."""
    configs = [finetune_config(tiny_shard_folder, tmp_path / "run", epochs=epochs) for epochs in (4, 1, 2)]
    message = r"run is at epoch 1\.67 already, --run\.epochs is 1 \(it was 4\); choose more than 1\.67 to go on"
    with pytest.raises(UserError, match=message):
        run_with_stops(monkeypatch, configs[:2], [5, None])
    other_batches = dataclasses.replace(configs[1], run=dataclasses.replace(configs[1].run, batch_size=2))
    with pytest.raises(UserError, match=message):
        run_with_stops(monkeypatch, [other_batches], [None])
    assert "goes on" not in caplog.text
    assert not (tmp_path / "run" / "model.json").exists()
    run_with_stops(monkeypatch, configs[2:], [None])
    assert read_metrics(tmp_path / "run")[-1]["epoch"] == 2


def test_a_classifier_resumes_with_other_batches(
    tiny_shard_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its BatchNorm cannot take a single clip: one that is over belongs to the last step."""
    configs = [finetune_config(tiny_shard_folder, tmp_path / "run", batch_size=size, epochs=2) for size in (3, 4)]
    assert run_with_stops(monkeypatch, configs, [1, None]) == every_clip_once(2)  # 3, then 4 and 5
    epochs = [record["epoch"] for record in read_metrics(tmp_path / "run")]
    assert epochs == pytest.approx([3 / 12, 7 / 12, 1, 16 / 12, 20 / 12, 2])


def test_the_teachers_decay_is_one_per_clip(tiny_shard_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two steps of half as many clips are one step: the decays multiply to it, and annealing goes on where it was."""
    ema = EmaConfig(start=0.5, end=0.9, anneal_steps=8)
    configs = [
        dataclasses.replace(pretrain_config(tiny_shard_folder, tmp_path / "run", batch_size=size, epochs=EPOCHS), ema=ema)
        for size in (4, 2)
    ]
    run_with_stops(monkeypatch, configs, [4, None])
    decays = [record["ema_decay"] for record in read_metrics(tmp_path / "run")]
    whole = [0.5 + 0.4 * step / 8 for step in (0, 1, 2, 3)]
    half = [(0.5 + 0.4 * min(4 + step / 2, 8) / 8) ** 0.5 for step in range(10)]
    assert decays == pytest.approx([*whole, *half])


def test_every_clip_of_a_step_counts_the_same(
    tiny_shard_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the gradient, where batches of one step are of several sizes; and the teacher's decay follows the step's clips."""
    shares: list[tuple[int, float]] = []  # of each batch: its clips, and what its loss counts
    backward = Stepper.backward

    def noted(stepper: Stepper, loss: torch.Tensor, clips: int) -> None:
        loss = loss.detach().requires_grad_()
        backward(stepper, loss, clips)
        assert loss.grad is not None
        shares.append((clips, loss.grad.item()))

    monkeypatch.setattr(Stepper, "backward", noted)
    ema, configs = EmaConfig(start=0.5, end=0.5), []
    for size, accumulate in ((3, 1), (4, 2)):
        optim = OptimConfig(lr=1e-3, min_lr=1e-4, warmup_epochs=1, accumulate=accumulate)
        config = pretrain_config(tiny_shard_folder, tmp_path / "run", optim=optim, batch_size=size, epochs=2)
        configs.append(dataclasses.replace(config, ema=ema))
    run_with_stops(monkeypatch, configs, [1, None])
    assert shares == [(3, 1), (4, 0.5), (4, 0.5), (1, pytest.approx(0.2)), (4, pytest.approx(0.8)), (4, 0.5), (4, 0.5)]
    decays = [record["ema_decay"] for record in read_metrics(tmp_path / "run")]
    assert decays == pytest.approx([0.5 ** (clips / 3) for clips in (3, 8, 5, 8)])


def test_a_loader_counts_the_clips_of_all_processes_in_a_step(tiny_shard_folder: Path) -> None:
    parts = []
    for rank in range(2):
        with ClipLoader(
            ShardSet.open(tiny_shard_folder), "all", PlanConfig(num_frames=2, size=32), batch_size=2, train=True,
            decoder="reference", rank=rank, world_size=2,
        ) as loader:
            loader.load_state_dict({**loader.state_dict(), "position": 1})
            parts.append([(len(batch), loader.step_clips) for batch in loader])
    assert parts == [[(2, 4), (2, 4), (1, 3)], [(2, 4), (2, 4), (2, 3)]]


@pytest.mark.parametrize("size", [4, 2])
def test_a_checkpoint_of_0_2_0_can_be_resumed(
    size: int, tiny_shard_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It says nothing of the clips per step; they follow from the loader's place and the number of steps. Nor of commits."""
    monkeypatch.setattr(loop, "commit", lambda: "abc")
    configs = [pretrain_config(tiny_shard_folder, tmp_path / f"run{number}", batch_size=4) for number in (0, 1)]
    pretrain(configs[0])
    state = Checkpoints(tmp_path / "run0", 2).load_newest()
    path = tmp_path / "run0" / "checkpoints" / "step-000000004.pt"
    state = torch.load(path, weights_only=True)
    del state["stepper"]["per_step"], state["stepper"]["reference_clips"], state["stepper"]["skipped_clips"], state["collapse"]
    del state["origin"]["commits"]
    path.parent.mkdir(exist_ok=True)
    other = tmp_path / "run1" / "checkpoints"
    other.mkdir(parents=True)
    torch.save(state, other / path.name)
    pretrain(dataclasses.replace(configs[1], run=dataclasses.replace(configs[1].run, batch_size=size)))
    records = read_metrics(tmp_path / "run1")
    assert len(records) == (2 if size == 4 else 4) and records[-1]["epoch"] == 2
    if size == 4:
        first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("run0", "run1"))
        assert all(torch.equal(first[name], second[name]) for name in first)
    assert Checkpoints(tmp_path / "run1", 2).load_newest()["stepper"]["reference_clips"] == 4
    assert read_card(tmp_path / "run1")["commits"] == ["abc", UNKNOWN]


def test_a_checkpoint_of_an_earlier_version_has_the_defaults_of_later_settings(
    tiny_shard_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Settings that it does not know are not free to choose; that clips may be drawn in another way is said."""
    config = pretrain_config(tiny_shard_folder, tmp_path / "run")
    pretrain(config)
    (tmp_path / "run" / "result.json").unlink()
    path = tmp_path / "run" / "checkpoints" / "step-000000004.pt"
    state = torch.load(path, weights_only=True)
    (tmp_path / "run" / "checkpoints" / "step-000000006.pt").unlink()
    settings = json.loads(state["config"])
    del settings["ema"]["anneal_share"], settings["target"]["shuffle_skeletons"]
    torch.save({**state, "config": json.dumps(settings), "version": "0.1.0"}, path)
    other = dataclasses.replace(
        config, ema=dataclasses.replace(config.ema, anneal_share=0.2),
        target=dataclasses.replace(config.target, shuffle_skeletons=True),
    )
    with pytest.raises(UserError, match=r"\(ema\.anneal_share 0\.0 -> 0\.2, target\.shuffle_skeletons False -> True\)"):
        pretrain(other)
    pretrain(config)
    said = "from step 4 on: svdata2vec 0.1.0 -> "
    assert said in caplog.text and read_card(config.run.out)["history"][0].startswith(said)


# ---- the real command, killed ------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("number", "message"), [
    (0, r"/run: the processes find different things there; give one that all nodes share"),  # whether it is finished
    (1, r"shards\S*: the processes find different clips there; pack them once, and copy the folder to all nodes"),
    (2, r"/run: the processes find different things there"),  # the checkpoint to go on from
])
def test_processes_that_would_diverge_are_refused(
    number: int, message: str, tiny_shard_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where every node has a folder of its own: weights would differ from process to process, and nothing would say so."""
    given: list[Any] = []

    def gather(_: Runtime, mine: Any) -> list[Any]:
        given.append(mine)
        return [mine, "another" if len(given) == number + 1 else mine]

    monkeypatch.setattr(Runtime, "gather", gather)
    with pytest.raises(UserError, match=message):
        pretrain(pretrain_config(tiny_shard_folder, tmp_path / "run"))
    assert len(given) == number + 1


@pytest.mark.slow
def test_the_command_resumes_with_more_or_fewer_processes(tiny_shard_folder: Path, tmp_path: Path) -> None:
    """Killed in the middle of an epoch each time: 1 process, 2, 1 with half the batch twice per step, 2."""
    rate = OptimConfig(lr=1e-3, min_lr=1e-4, warmup_epochs=1)
    plan = [(1, 4, 1, 1), (2, 2, 1, 4), (1, 2, 2, 7), (2, 2, 2, -1)]  # processes, batch, accumulate, killed before step
    for number, (processes, batch, accumulate, kill) in enumerate(plan):
        optim = dataclasses.replace(rate, accumulate=accumulate)
        config = pretrain_config(
            tiny_shard_folder, tmp_path / "run", optim=optim, batch_size=batch, epochs=EPOCHS, checkpoint_every=1
        )
        launch(tmp_path, f"attempt{number}", command_words(config), processes, kill)
    seen: list[tuple[int, str]] = []
    firsts = [min(row["step"] for row in notes(tmp_path, f"attempt{number}")) for number in range(len(plan))]
    assert firsts == [1, 2, 5, 8]
    for number, following in enumerate([*firsts[1:], 10**6]):
        rows = [row for row in notes(tmp_path, f"attempt{number}") if row["step"] < following]
        seen += [(epoch, key) for row in rows for epoch, key in row["clips"]]
    assert Counter(seen) == every_clip_once(EPOCHS)
    records = read_metrics(tmp_path / "run")
    epochs = [record["epoch"] for record in records]
    assert epochs[-1] == EPOCHS
    assert [record["lr"] for record in records] == pytest.approx([learning_rate(rate, e, EPOCHS) for e in [0, *epochs[:-1]]])
