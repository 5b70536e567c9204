"""Validation: its clips are never trained or tested on; the network that it chooses; the test split is read once."""

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from shards_data import edit_manifest
from tiny import finetune_config
from torch import nn

from svdata2vec.config.probe import ProbeConfig
from svdata2vec.config.schema import DataConfig, FinetuneConfig, PretrainConfig, RunConfig
from svdata2vec.evaluation.evaluate import evaluate_run
from svdata2vec.evaluation.metrics import Metrics
from svdata2vec.evaluation.probe import probe
from svdata2vec.pipeline.loader import ClipLoader
from svdata2vec.runs.card import read_card
from svdata2vec.runs.metrics_log import read_metrics
from svdata2vec.runs.performers import performers, warn_of_shared_people
from svdata2vec.runs.published import load_published, publish
from svdata2vec.runs.runtime import Runtime
from svdata2vec.runs.validation import choose_clips, hold_out
from svdata2vec.shards.errors import UserError
from svdata2vec.shards.reading.sample import ClipMeta
from svdata2vec.shards.reading.shardset import ShardSet
from svdata2vec.training import finetune as finetuning
from svdata2vec.training.finetune import finetune
from svdata2vec.training.pretrain import pretrain

KEYS = [f"clip{i:05d}" for i in range(12)]
UNUSED = [({"val_split": "cs_val"}, "val-split is 'cs_val'"), ({"val_fraction": 0.2}, "val-fraction is 0.2")]


def with_splits(source: Path, root: Path, **splits: list[str]) -> ShardSet:
    """The tiny shards as an earlier version packed them: with these splits in their manifest."""
    shutil.copytree(source, root)
    edit_manifest(root, splits=splits)
    return ShardSet.open(root)


@pytest.fixture
def protocol(tiny_shard_folder: Path, tmp_path: Path) -> ShardSet:
    return with_splits(
        tiny_shard_folder, tmp_path / "shards", cs_train=KEYS[:6], cs_val=KEYS[6:9], cs_test=KEYS[9:], xsub_train=KEYS[:8],
        xsub_val=KEYS[8:],
    )


def settings(shards: ShardSet, out: Path, train: str, test: str, *, every: int = 1, **data: Any) -> FinetuneConfig:
    base = finetune_config(Path(shards.root), out, epochs=3, batch_size=2)
    chosen = replace(base.data, train_split=train, test_split=test, **data)
    return replace(base, data=chosen, eval_every=every, modality="skeleton")


def made_up(keys: Sequence[str], labels: Sequence[int], subjects: Sequence[int | None] = ()) -> Any:
    """A shard set of so many clips, as far as validation looks at it."""
    meta = ClipMeta("", 0, 1, 30.0, 8, 8, 8, 8, np.eye(2, 3))
    return SimpleNamespace(
        index=np.array(list(zip([key.encode() for key in keys], labels, strict=True)), [("key", "S80"), ("label", "<i4")]),
        names=lambda rows: [keys[row] for row in rows.tolist()], tars=[Path("a.tar")] if subjects else [], where="shards",
        read=lambda row, _: {"json": replace(meta, subject=subjects[row]).to_bytes()},
    )


def test_train_and_val_of_a_protocol_can_be_trained_on_together(protocol: ShardSet) -> None:
    """In shards that know nothing of it; not where val is the test split, as in NTU RGB+D."""
    assert protocol.rows("cs_trainval").tolist() == list(range(9))
    assert protocol.split_classes("cs_trainval") == protocol.split_classes("cs_train")
    with pytest.raises(UserError, match=r"no split 'xsub_trainval'; it has cs_train, .*xsub_val, cs_trainval"):
        protocol.rows("xsub_trainval")
    assert protocol.own_validation("cs_train", "cs_test") == "cs_val"
    protocol.manifest.splits.update(train=[], test=[], validation=[])
    assert protocol.own_validation("train", "test") == "validation"
    assert {protocol.own_validation(*pair) for pair in (("xsub_train", "xsub_val"), ("cs_trainval", "cs_test"))} == {None}


def test_a_protocol_with_three_splits_validates_on_its_own(protocol: ShardSet, tmp_path: Path) -> None:
    clips = choose_clips(protocol, settings(protocol, tmp_path, "cs_train", "cs_test"))
    assert clips.val_split == "cs_val" and clips.val_rows.tolist() == [6, 7, 8] and clips.train_rows.tolist() == [*range(6)]
    clips = choose_clips(protocol, settings(protocol, tmp_path, "cs_train", "cs_test", every=0))
    assert clips.val_split is None and len(clips.train_rows) == 6


@pytest.mark.parametrize("train", ["xsub_train", "cs_trainval"])
def test_elsewhere_a_share_is_held_out_and_not_trained_on(protocol: ShardSet, tmp_path: Path, train: str) -> None:
    config = settings(protocol, tmp_path, train, "cs_test", val_fraction=0.4)
    clips = choose_clips(protocol, config)
    assert clips.val_split == train and len(clips.val_rows) >= 2
    assert sorted([*clips.train_rows, *clips.val_rows]) == protocol.rows(train).tolist()
    again = choose_clips(protocol, config)
    assert all(np.array_equal(a, b) for a, b in zip(vars(clips).values(), vars(again).values(), strict=True))
    with pytest.raises(UserError, match="none of 5 training clips"):  # one of each class: the fraction buys both labels
        choose_clips(protocol, replace(config, label_fraction=0.5))


def test_held_out_clips_of_the_test_split_are_reported(
    tiny_shard_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """They choose the network that is then tested on them."""
    held = hold_out(ShardSet.open(tiny_shard_folder), np.arange(12), 0.3, seed=0)
    tested = [key for key, chooses in zip(KEYS, held, strict=True) if chooses]
    shards = with_splits(tiny_shard_folder, tmp_path / "shards", all=KEYS, some=tested)
    config = settings(shards, tmp_path / "run", "all", "some", val_fraction=0.3)
    finetune(replace(config, run=replace(config.run, epochs=1)))
    assert "4 of 4 clips of the test split 'some' are trained or validated on: its accuracy says little" in caplog.text


def test_a_run_is_not_finished_before_its_network_is_chosen(
    protocol: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed between the last step and the choice it leaves no weights that others would take; started again it chooses.

    Of the networks that are there: where `best` was cleared away, of the last one alone.
    """
    config = settings(protocol, tmp_path / "run", "cs_train", "cs_test")
    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
        patch.setattr(finetuning.Finetuning, "take_best", lambda _: 1 / 0)
        finetune(config)
    with pytest.raises(UserError, match="its run is not finished; start that run again to go on"):
        read_card(config.run.out)
    shutil.copytree(config.run.out, tmp_path / "cleared", ignore=shutil.ignore_patterns("best"))
    moved = Path(shutil.copytree(protocol.root, tmp_path / "moved"))
    result, card = finetune(replace(config, data=replace(config.data, shards=str(moved)))), read_card(config.run.out)
    assert result["network"] == card["network"] == "best" and result["epoch"] == card["epoch"]
    assert card["config"]["data"]["shards"] == str(moved), "where its shards are, also if an earlier network is the best"
    cleared = finetune(replace(config, run=replace(config.run, out=tmp_path / "cleared")))
    assert (cleared["network"], cleared["epoch"], cleared["validation"]["split"]) == ("best", config.run.epochs, "cs_val")


def test_clips_are_held_out_per_class_by_seed_and_name() -> None:
    labels = [0] * 60 + [1] * 31 + [2] + [3] * 2
    keys = [f"clip_{number}" for number in range(len(labels))]
    shards, rows = made_up(keys, labels), np.arange(len(labels))
    held = hold_out(shards, rows, 0.1, seed=3)
    assert np.bincount(np.array(labels)[held], minlength=4).tolist() == [6, 3, 0, 0]
    order = np.random.default_rng(0).permutation(len(labels))
    shuffled = made_up([keys[i] for i in order], [labels[i] for i in order])
    assert (hold_out(shuffled, rows, 0.1, seed=3) == held[order]).all()
    assert (hold_out(shards, rows, 0.1, seed=4) != held).any()
    pairs = [label for label in range(50) for _ in range(2)]  # no class has ten clips: the total counts
    assert hold_out(made_up([f"clip{i}" for i in range(100)], pairs), np.arange(100), 0.1, seed=0).sum() == 10
    with pytest.raises(UserError, match=r"none of 3 training clips can be held out .*--data.val-fraction 0.1.*val-split"):
        hold_out(made_up("abc", [0, 1, 2]), np.arange(3), 0.1, seed=0)


NAMES = {
    "ntu": ("S001C00{other}P0{who:02d}R001A00{label}", 4),
    "smarthome": ("Cook-Cut_p{who:02d}_r0{label}_v01_c0{other}", 4),
    "uav": ("P{who}S01G10B00H10UC102000LC092000A{label}R{other}_09131758", 4),
    "pku": ("00{who:02d}-L_{label}{other}", 4),
    "fields": ("clip{who:02d}{label}{other}", 4),
}


@pytest.mark.parametrize("kind", NAMES)
def test_whole_performers_are_held_out_where_they_are_known(kind: str) -> None:
    pattern, per_class = NAMES[kind]
    cells = [(who, label, other) for who in range(10, 20) for label in (1, 2, 3) for other in range(per_class)]
    keys = [pattern.format(who=who, label=label, other=other) for who, label, other in cells]
    who_n = np.array([who for who, _, _ in cells])
    fields = who_n.tolist() if kind == "fields" else []
    shards, rows = made_up(keys, [label for _, label, _ in cells], fields), np.arange(len(cells))
    for fraction, share in ((0.2, 0.2), (0.16, 0.2), (0.14, 0.1)):  # a tenth is one of them: the nearest
        held = hold_out(shards, rows, fraction, seed=0)
        assert held.sum() == share * len(cells) and not set(who_n[held]) & set(who_n[~held])
    assert len({frozenset(who_n[hold_out(shards, rows, 0.2, seed)]) for seed in range(6)}) > 1


@pytest.mark.parametrize(("people", "said"), [
    ((1, 2, 3, 4, 5, 6), ""),
    ((1, 2, 3, 4, 2, 6), "'val' shows 1 performers (02) who are in 'train' too, while the test is on new people"),
    ((1, 2, 3, 4, 3, 6), "'val' shows 1 performers (03) who are in 'test' too, while the test is on new people"),
    ((1, 2, 2, 2, 2, 6), "'test' shows 1 performers (02) who are trained on: it tests how they are recognised in other clips"),
])
@pytest.mark.parametrize("kind", ["ntu", "fields"])
def test_splits_that_show_the_same_people_are_reported(
    kind: str, people: tuple[int, ...], said: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Two clips of people in each of train, test and val."""
    keys = [f"S001C00{i + 1}P0{who:02d}R001A001" if kind == "ntu" else f"clip{i}" for i, who in enumerate(people)]
    shards = made_up(keys, [0] * 6, [] if kind == "ntu" else people)
    shards.rows = dict(zip(("train", "test", "val"), np.arange(6).reshape(3, 2), strict=True)).__getitem__
    data = DataConfig(train_split="train", test_split="test")
    with caplog.at_level("INFO"):
        warn_of_shared_people(shards, data, shards.rows("train"), "val")
    assert sum("performers" in record.getMessage() for record in caplog.records) == bool(said)
    assert said.replace("(0", "(00" if kind == "ntu" else "(") in caplog.text


def test_people_of_several_sets_are_others() -> None:
    shards = made_up(["a/x1", "a/x2", "b/x1", "b/x2"], [0] * 4, [1, 2, 1, 2])
    assert performers(shards, np.arange(4), shards.names(np.arange(4))) == ["a/1", "a/2", "b/1", "b/2"]


@pytest.mark.parametrize("make", [
    lambda data, out: pretrain(PretrainConfig(data=data, run=RunConfig(out=out, device="cpu"))),
    lambda data, out: probe(ProbeConfig(data=data, out=out, pretrained=out)),
])
def test_a_validation_split_is_refused_where_nothing_is_validated(make: Any, protocol: ShardSet, tmp_path: Path) -> None:
    data = DataConfig(shards=str(protocol.root), train_split="cs_train", test_split="cs_test")
    for given, said in UNUSED:
        with pytest.raises(UserError, match=rf"--data\.{said}, but (pretraining|probing) validates nothing; leave"):
            make(replace(data, **given), tmp_path / "run")


def test_all_views_of_a_recording_stay_together() -> None:
    keys = [f"00{number:02d}-{view}_{clip:03d}" for number in range(8) for view in "LMR" for clip in range(5)]
    shards, rows = made_up(keys, [clip for _ in range(24) for clip in range(5)]), np.arange(len(keys))
    held = hold_out(shards, rows, 0.25, seed=1)
    numbers = np.array([key[:4] for key in keys])
    assert held.sum() == 30 and not set(numbers[held]) & set(numbers[~held])


def test_a_class_of_one_performer_stays_in_training() -> None:
    keys = [f"S001C001P00{who}R001A001" for who in (1, 2, 3)] * 2
    shards = made_up(keys, [0, 0, 0, 0, 1, 0])
    for seed in range(8):
        held = hold_out(shards, np.arange(6), 0.34, seed)
        assert held.any() and not held[4]


def test_one_performer_alone_is_shared_per_class() -> None:
    shards = made_up([f"S001C001P001R00{i}A001" for i in range(8)], [0, 1] * 4)
    assert hold_out(shards, np.arange(8), 0.25, 0).sum() == 2


@pytest.mark.parametrize(
    ("train", "test", "val", "message"),
    [
        ("cs_trainval", "cs_test", "cs_val", r"3 clips of the validation split 'cs_val' are in 'cs_trainval' too; .*val-split"),
        ("cs_train", "cs_test", "xsub_val", r"3 clips of the validation split 'xsub_val' are in 'cs_test' too"),
        ("cs_train", "cs_test", "none", r"no split 'none'"),
    ],
)
def test_clips_that_are_trained_or_tested_on_choose_nothing(
    protocol: ShardSet, tmp_path: Path, train: str, test: str, val: str, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        choose_clips(protocol, settings(protocol, tmp_path, train, test, val_split=val))


@pytest.mark.parametrize(("given", "said"), UNUSED)
def test_a_validation_split_without_validation_is_refused(
    given: dict[str, Any], said: str, protocol: ShardSet, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=rf"--data\.{said}, but nothing is validated; set --eval-every, say 1"):
        finetune(settings(protocol, tmp_path / "run", "cs_train", "cs_test", every=0, **given))


def test_splits_of_other_classes_are_refused(tiny_shard_folder: Path, tmp_path: Path) -> None:
    """Before the training, not by wrong labels behind it."""
    shutil.copytree(tiny_shard_folder, tmp_path / "shards")
    splits = {"cs_train": KEYS[:8], "cv1_test": KEYS[8:]}
    edit_manifest(tmp_path / "shards", splits=splits, split_classes={"cv1_test": list("abc")})
    shards = ShardSet.open(tmp_path / "shards")
    message = r"split 'cv1_test' has other classes than split 'cs_train' \(the first that differs: None instead of 'd'\)"
    with pytest.raises(UserError, match=message):
        finetune(settings(shards, tmp_path / "run", "cs_train", "cv1_test", every=0))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("metric", ["top1", "mean_class"])
def test_the_network_that_validates_best_is_tested_once(
    protocol: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, metric: str
) -> None:
    """By the protocol's metric, the first of equals; published, evaluated by every command, and named in result and card."""
    found = {"top1": [0.2, 0.8, 0.8], "mean_class": [0.9, 0.3, 0.9]}
    visited: list[str] = []
    score = finetuning.score

    def scripted(model: nn.Module, loader: ClipLoader, runtime: Runtime) -> Metrics:
        visited.append(loader.split)
        metrics = score(model, loader, runtime)
        if loader.split == "cs_test":
            return metrics
        return replace(metrics, **{name: values[visited.count("cs_val") - 1] for name, values in found.items()})

    monkeypatch.setattr(finetuning, "score", scripted)
    config = settings(protocol, tmp_path / "run", "cs_train", "cs_test", metric=metric)
    result = finetune(config)
    best = int(np.argmax(found[metric]))
    assert visited == ["cs_val"] * 3 + ["cs_test"]
    assert (result["network"], result["epoch"], result["validation"]["split"]) == ("best", best + 1, "cs_val")
    assert result["validation"][metric] == found[metric][best] and result["split"] == "cs_test" and result["count"] == 3
    card = read_card(config.run.out)
    assert (card["network"], card["epoch"], card["evaluation"]["split"]) == ("best", best + 1, "cs_test")
    weights = [(config.run.out / name / "model.safetensors").read_bytes() for name in (".", "best")]
    assert weights[0] == weights[1]
    assert evaluate_run(config.run.out, device="cpu")["confusion"] == result["confusion"]
    records = read_metrics(config.run.out)
    assert [row["step"] for row in records if "val_top1" in row] == [3, 6, 9]  # three steps an epoch, a record of each
    assert [row["val_mean_class"] for row in records if "val_mean_class" in row] == found["mean_class"]
    assert records[-1][f"best_val_{metric}"] == max(found[metric])


def test_best_is_of_this_run(
    protocol: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Each best has its checkpoint, so a killed run knows it; a network of steps that are lost all the same counts no more."""
    found = [0.2, 0.9]
    score = finetuning.score

    def scripted(model: nn.Module, loader: ClipLoader, runtime: Runtime) -> Metrics:
        metrics = score(model, loader, runtime)
        return metrics if loader.split == "cs_test" else replace(metrics, top1=found.pop(0))

    monkeypatch.setattr(finetuning, "score", scripted)
    config = settings(protocol, tmp_path / "run", "cs_train", "cs_test")
    config = replace(config, run=replace(config.run, checkpoint_every=1000))
    with pytest.raises(IndexError):  # a kill while it validates for the third time
        finetune(config)
    shutil.copytree(tmp_path / "run", tmp_path / "torn")
    checkpoints = sorted((tmp_path / "torn" / "checkpoints").iterdir())
    assert [path.stem for path in checkpoints] == ["step-000000003", "step-000000006"]
    shutil.copytree(tmp_path / "run", tmp_path / "moved", ignore=shutil.ignore_patterns("best"))
    shutil.copytree(tmp_path / "run", tmp_path / "killed")  # between the weights of a later best and their card
    weights, card = load_published(tmp_path / "killed" / "best")
    publish(tmp_path / "later", {name: tensor + 1 for name, tensor in weights.items()}, card)
    shutil.copy(tmp_path / "later" / "model.safetensors", tmp_path / "killed" / "best")
    checkpoints[1].write_bytes(b"torn")
    found.append(0.1)
    assert finetune(config)["epoch"] == 2 and "lost" not in caplog.text
    found.extend([0.3, 0.1])
    result = finetune(replace(config, run=replace(config.run, out=tmp_path / "torn")))
    assert (result["epoch"], result["validation"]["top1"]) == (2, 0.3)
    assert "best is missing, or from steps that were lost" in caplog.text
    for name in ("moved", "killed"):
        found.append(0.1)
        result = finetune(replace(config, run=replace(config.run, out=tmp_path / name)))
        assert (result["epoch"], result["validation"]["top1"]) == (3, 0.1), name


def test_the_last_epoch_is_validated_too(
    protocol: ShardSet, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    config = settings(protocol, tmp_path / "run", "cs_train", "cs_test", every=2)
    result = finetune(config)
    records = read_metrics(config.run.out)
    assert [row["epoch"] for row in records if "val_top1" in row] == [2, 3]
    assert result["epoch"] in (2, 3)
    assert caplog.text.count(" val_top1 ") == 2, "and it is said"


def test_steps_of_several_epochs_miss_no_validation(protocol: ShardSet, tmp_path: Path) -> None:
    """As with few labels: steps end at epochs 1/3, 2, 3 2/3 and 5 1/3, so that the fourth ends within one."""
    config = settings(protocol, tmp_path / "run", "cs_train", "cs_test", every=4)
    config = replace(config, optim=replace(config.optim, accumulate=5), run=replace(config.run, epochs=7))
    finetune(config)
    records = read_metrics(config.run.out)
    assert [row["epoch"] for row in records] == pytest.approx([1 / 3, 2, 11 / 3, 16 / 3, 7])
    assert [row["epoch"] for row in records if "val_top1" in row] == pytest.approx([16 / 3, 7])


def test_every_validation_is_in_the_log(protocol: ShardSet, tmp_path: Path) -> None:
    config = settings(protocol, tmp_path / "run", "cs_train", "cs_test")
    result = finetune(replace(config, run=replace(config.run, log_every=50)))
    found = {row["epoch"]: row["val_top1"] for row in read_metrics(config.run.out)}
    assert [*found] == [1, 2, 3] and found[result["epoch"]] == result["validation"]["top1"]


def test_without_validation_the_last_network_is_tested(protocol: ShardSet, tmp_path: Path) -> None:
    config = settings(protocol, tmp_path / "run", "cs_train", "cs_test", every=0)
    result = finetune(config)
    assert (result["network"], result["epoch"], result["labels"]) == ("last", 3, 6)
    assert read_card(config.run.out)["network"] == "last" and not (config.run.out / "best").exists()


def test_clips_that_teach_no_difference(tiny_shard_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Labels are the clips' numbers modulo 5: clips of one class are refused, classes without a clip to train on are named."""
    shards = with_splits(tiny_shard_folder, tmp_path / "shards", one=[KEYS[0], KEYS[5]], some=KEYS[:3], test=KEYS[3:6])
    names = shards.manifest.classes
    config = settings(shards, tmp_path / "run", "one", "test", every=0)
    with pytest.raises(UserError, match=rf"all clips of split 'one' are of class '{names[0]}': there is nothing to tell apart"):
        choose_clips(shards, config)
    with pytest.raises(UserError, match=r"all clips of split 'one' are of class"):
        finetune(config)
    assert not (tmp_path / "run").exists()
    choose_clips(shards, settings(shards, tmp_path / "run", "some", "test", every=0))
    (said,) = [record.getMessage() for record in caplog.records if "without a clip" in record.getMessage()]
    assert said.endswith(
        f"split 'test' tests 2 of 3 classes without a clip of split 'some' to learn them from: '{names[3]}', '{names[4]}'"
    )
    caplog.clear()
    choose_clips(shards, settings(shards, tmp_path / "run", "some", "some", every=0))
    assert not [record for record in caplog.records if "without a clip" in record.getMessage()]
