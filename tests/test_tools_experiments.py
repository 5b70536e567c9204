"""Experiments: the differences between their sides, runs from end to end, and tables of the records."""

import dataclasses
import json
import shlex
from pathlib import Path
from typing import Any

import codec_experiment as codec
import finetuning_experiment as finetuning
import pretraining_experiment as experiments
import pretraining_sides
import pytest
import results_studies as tables
import torch
from ending import reported
from pipeline_factory import clip_parts, write_shards
from pretraining_sides import RESULTS, make_parser, pretrainings, read_options, run_experiment, study_of
from safetensors.torch import load_file

from svdata2vec.config.presets import demo_finetune, demo_pretrain
from svdata2vec.model.step_cost import step_flops, step_layers
from svdata2vec.model.student import SVData2Vec
from svdata2vec.shards.errors import MachineError, UserError
from svdata2vec.shards.reading.shardset import ShardSet
from svdata2vec.studies.label_efficiency import lines
from svdata2vec.studies.rows import Cell, run_cell
from svdata2vec.studies.study import over_seeds
from svdata2vec.training.pretrain import pretrain

EXPERIMENTS = experiments.EXPERIMENTS


def differences(a: Any, b: Any, name: str = "") -> dict[str, Any]:
    """Dotted names of the fields in which two configurations differ, with what the second has."""
    if not dataclasses.is_dataclass(a):
        return {} if a == b else {name: b}
    names = (field.name for field in dataclasses.fields(a))
    parts = [differences(getattr(a, each), getattr(b, each), f"{name}.{each}".lstrip(".")) for each in names]
    return {key: value for part in parts for key, value in part.items()}


@pytest.mark.parametrize(("experiment", "side", "expected"), [
    ("claim", "pretrained", {}),
    ("claim", "shuffled_skeletons", {"target.shuffle_skeletons": True}),
    ("claim", "random_teacher", {"target.teacher": "encoder", "ema.start": 1.0, "ema.end": 1.0}),
    ("claim", "joint_regression", {"target.kind": "joints"}),
    ("claim", "standardised_joints", {"target.kind": "standardised_joints"}),
    ("claim", "rgb_data2vec", {
        "target.teacher": "encoder", "target.teacher_input": "rgb", "target.scored": "video", "mask.skeleton_ratio": 1.0}),
    ("controls", "untrained", {
        "target.teacher": "encoder", "ema.start": 1.0, "ema.end": 1.0, "run.epochs": 1, "optim.lr": 1e-12, "optim.min_lr": 0.0,
        "optim.weight_decay": 0.0}),
    ("masks", "masks_1", {}),
    ("masks", "masks_8", {"mask.repeats": 8}),
    ("masks", "masks_4_wider", {"mask.repeats": 4, "mask.encoded_frames": 8}),
    ("choices", "ema_original", {"ema.schedule": "original"}),
    ("choices", "all_frames", {"encode": "all_frames"}),
    ("choices", "other_precision", {"run.precision": "bf16"}),
])
def test_a_side_changes_what_it_says_and_nothing_else(experiment: str, side: str, expected: dict[str, Any]) -> None:
    base = demo_pretrain()
    assert differences(base, EXPERIMENTS[experiment].sides[side](base)) == expected


def test_an_untrained_network_has_the_weights_it_was_drawn_with(tiny_shard_folder: Path, tmp_path: Path) -> None:
    """What has moved are BatchNorm's statistics, which are those of the clips."""
    options = make_parser(None, [*EXPERIMENTS]).parse_args(words(tiny_shard_folder, tmp_path))
    sides = {name: experiments.CONTROLS[name] for name in ("pretrained", "untrained")}
    config = pretrainings(dataclasses.replace(EXPERIMENTS["controls"], sides=sides), options)["untrained", 0]
    pretrain(config)
    found = load_file(config.run.out / "model.safetensors")
    torch.manual_seed(config.run.seed)
    drawn = SVData2Vec(config, 17).state_dict()
    moved = {name for name, value in found.items() if not torch.allclose(value, drawn[name], rtol=0, atol=1e-9)}
    assert moved and all("running_" in name or "num_batches" in name for name in moved)


def test_equal_work_is_equal_multiply_adds(tiny_shard_folder: Path) -> None:
    base = demo_pretrain()
    base = dataclasses.replace(base, data=dataclasses.replace(base.data, shards=str(tiny_shard_folder)))
    changed = EXPERIMENTS["masks"].sides["masks_8_work"](base)
    flops = [config.run.epochs * step_flops(step_layers(config, 17)) for config in (base, changed)]
    assert changed.mask.repeats == 8 and changed.run.epochs < base.run.epochs
    assert flops[1] == pytest.approx(flops[0], rel=0.5 / changed.run.epochs)


def words(shards: Path, tmp_path: Path) -> list[str]:
    network = (
        "--data.train-split all --data.num-frames 6 --data.size 32 --model.width 32 --model.depth 2 --model.decoder-depth 1 "
        "--model.heads 2 --model.stem-width 16 --run.batch-size 4 --run.device cpu --optim.warmup-epochs 0.5"
    )
    return [
        "claim", "--shards", str(shards), "--work", str(tmp_path / "work"), "--out", str(tmp_path / "claim.json"),
        "--seeds", "2", "--jobs", "1", "--sides", "pretrained", "joint_regression",
        "--pretrain", f"{network} --run.epochs 1 --target.top-layers 2",
        "--study", f"{network} --data.test-split all --steps 2 --ways scratch finetune linear --fractions 1 "
        "--search.weight-decay 0.001 0.1 --search.seeds 1",
    ]


def test_an_experiment_from_end_to_end(tiny_shard_folder: Path, tmp_path: Path) -> None:
    """Same networks in pretraining and study, one run per side and seed, a record that the tables can show."""
    options = make_parser(None, [*EXPERIMENTS]).parse_args(words(tiny_shard_folder, tmp_path))
    record = run_experiment(EXPERIMENTS["claim"], options)
    assert json.loads((tmp_path / "claim.json").read_text()) == record
    assert (tmp_path / "claim.png").stat().st_size > 10_000
    assert (tmp_path / "work" / "study" / "label_efficiency.png").read_bytes() == (tmp_path / "claim.png").read_bytes()
    assert list(record["sides"]) == ["pretrained", "joint_regression"]
    assert record["sides"]["joint_regression"] == ["target.kind latents -> joints"] and record["experiment"] == "claim"
    names = ["scratch", "pretrained", "pretrained_linear", "joint_regression", "joint_regression_linear"]
    assert [row["name"] for row in record["rows"]] == names
    assert str(tmp_path) not in json.dumps({name: record[name] for name in ("pretraining", "data", "rows", "search")})
    table = tables.label_efficiency(record)
    assert table.splitlines()[0] == "|  | 100 % (12) |" and "| from scratch | " in table and "2 seeds ± half" in table
    apart = tables.label_differences(record)
    assert apart.startswith("|  | better than | 100 % |") and "not corrected for their number, 6" in apart
    pairs = [tuple(line.split(" | ")[:2]) for line in apart.splitlines()[2:8]]
    ours, others = ("| pretrained, fine-tuned", "| pretrained, linear probe"), ("from scratch", "joint regression, fine-tuned")
    assert [pair for pair in pairs if pair[1] in others] == [(mine, other) for mine in ours for other in others]
    means = {row["title"]: row["cells"][0]["mean"] for row in record["rows"]}
    shown = tables.at_one_share(record, share=1)
    header, _, *beside = [line.split(" | ") for line in shown.splitlines()[:5]]
    assert header[1:] == ["top-1 after 3 steps", "lead of pretrained, fine-tuned, points |"]
    assert "100 % of the labels of 12 synthetic clips (12), all of which" in shown
    assert [row[0].strip("| ") for row in beside] == ["from scratch", "pretrained, fine-tuned", "joint regression, fine-tuned"]
    for title, top_1, better in beside:
        expected = means[title.strip("| ")]
        assert top_1.startswith(f"{100 * expected:.1f} ± ")
        if title == ours[0]:
            assert better.strip("| ") == ""
        else:
            assert better.lstrip("*").startswith(f"{100 * (means[ours[0].strip('| ')] - expected):+.1f} (")
    costs = tables.label_costs(record)
    assert "| from scratch | 12 | 3 | 12 |" in costs and "weight_decay 0." in costs
    assert "| pretrained, linear probe | 12 |  |  | " in costs
    assert "| joint regression, difference | " in tables.sides(record)
    record["sides"]["joint_regression"].append("run.epochs 1 -> 3")
    assert "| joint regression (3 epochs), difference | " in tables.sides(record), "what the note below the table promises"


@pytest.mark.parametrize(("more", "message"), [
    (["--sides", "pretrained", "rgb"], "--sides rgb: expected some of pretrained, shuffled_skeletons"),
    (["--pretrain", "--run.epoch 3"], "unknown option '--run.epoch'; did you mean --run.epochs?"),
    (["--pretrain", "--run.out x"], "--pretrain sets run.out, which the experiment sets itself; leave it out"),
    (["--pretrain", "--target.kind joints"], "the sides pretrained and joint_regression are the same; leave one out"),
    (["--shards", "nothing-here"], "nothing-here"),
    (["--pretrain", "--run.seed 7"], "the study has the seeds 0, 1, pretraining 7, 8; give --pretrain and"),
    (["--study", "--data.test-split all --data.train-split all --seeds 3"], "study has the seeds 0, 1, 2, pretraining 0, 1"),
    (["--study", "--data.test-split all --data.train-split all --data.num-frames 6"], "-0 has another network than the study"),
    (["--study", "--data.test-split nowhere --data.train-split all"], "no split 'nowhere'"),
])
def test_wrong_input_is_one_line(
    more: list[str], message: str, tiny_shard_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert experiments.main([*words(tiny_shard_folder, tmp_path), *more]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and message in line
    assert not (tmp_path / "work").exists(), "before anything is trained"


def test_the_chart_is_tried_before_anything_is_trained(
    tiny_shard_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "claim.png").mkdir()
    assert experiments.main(words(tiny_shard_folder, tmp_path)) == 1
    assert capsys.readouterr().err == f"error: {tmp_path}/claim.png could not be written: a folder has this name\n"
    assert not (tmp_path / "work").exists()


def test_a_preset_that_is_a_side_itself_is_refused(tiny_shard_folder: Path, tmp_path: Path) -> None:
    """The authors' files count the decay within the epoch and encode all frames: no other side does it again."""
    given = ["choices", "--shards", str(tiny_shard_folder), "--work", str(tmp_path), "--preset", "as-published"]
    options = make_parser(None, [*EXPERIMENTS]).parse_args(given)
    with pytest.raises(UserError, match="the sides pretrained and ema_original are the same; leave one out by --sides"):
        pretrainings(EXPERIMENTS["choices"], options)


@pytest.mark.parametrize(("precision", "device", "other"), [
    ("auto", "cuda", "fp32"), ("auto", "cpu", "bf16"), ("bf16", "cpu", "fp32"), ("fp32", "cuda", "bf16"),
])
def test_the_other_precision_is_another_one(
    precision: Any, device: str, other: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU auto is bf16."""
    monkeypatch.setattr(experiments, "pick_device", lambda _: torch.device(device))
    base = demo_pretrain()
    base = dataclasses.replace(base, run=dataclasses.replace(base.run, precision=precision))
    assert experiments.other_precision(base).run.precision == other


def test_options_that_masks_would_be_set_over_are_refused(tiny_shard_folder: Path, tmp_path: Path) -> None:
    given = ["masks", "--shards", str(tiny_shard_folder), "--work", str(tmp_path), "--pretrain", "--mask.repeats 2"]
    options = make_parser(None, [*EXPERIMENTS]).parse_args(given)
    with pytest.raises(UserError, match=r"--pretrain sets mask\.repeats, which the experiment sets itself"):
        pretrainings(EXPERIMENTS["masks"], options)


def test_preset_own_takes_what_it_needs_from_the_shards(tmp_path: Path) -> None:
    """Splits, frames and batch; the study agrees with pretraining, which is still to come."""
    names = [f"clip{i:05d}" for i in range(8)]
    clips = [(name, 80, clip_parts(name, 80, size=64, label=i % 5, seed=i)) for i, name in enumerate(names)]
    write_shards(tmp_path / "shards", clips, splits={"train": names[:6], "test": names[6:]}, size=64)
    given = ["claim", "--preset", "own", "--shards", str(tmp_path / "shards"), "--work", str(tmp_path / "work")]
    options = make_parser(None, [*EXPERIMENTS]).parse_args([*given, "--pretrain", "--data.size 64 --model.width 64"])
    first = pretrainings(EXPERIMENTS["claim"], options)["pretrained", 0]
    study = study_of(EXPERIMENTS["claim"], options, first)
    for data in (first.data, study.data):
        assert (data.train_split, data.test_split, data.num_frames, data.size) == ("train", "test", 24, 64)
    assert first.model == study.model and study.model.width == 64


def test_a_run_that_fails_ends_an_experiment_in_one_line(
    tiny_shard_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "work").write_text("no folder")
    assert experiments.main(words(tiny_shard_folder, tmp_path)) == 1
    assert [line[:7] for line in capsys.readouterr().err.splitlines()] == ["error: "]


def test_the_small_network_has_the_labels_and_steps_of_the_others(tiny_shard_folder: Path, tmp_path: Path) -> None:
    options = make_parser(None, [*EXPERIMENTS]).parse_args(words(tiny_shard_folder, tmp_path))
    row = experiments.SmallCnnRow(study_of(EXPERIMENTS["claim"], options, demo_pretrain()))
    found = run_cell(row, Cell(1.0, 0, (("lr", 0.002), ("steps", 3))), tmp_path)
    assert (found["labels"], found["steps"], found["clips_seen"]) == (12, 3, 12) and 0 <= found["score"] <= 1
    assert row.run(Cell(0.5, 0), tmp_path)["steps"] == 2
    assert row.run(Cell(1.0, 0, validate=True), tmp_path)["labels"] == 11, "one is held out"
    others = dataclasses.replace(row.study, data=dataclasses.replace(row.study.data, layout="coco17", threads=3))
    assert row.settings()["data"]["layout"] is None and "threads" not in row.settings()["data"]
    assert dataclasses.replace(row, study=others).settings() != row.settings()


@pytest.mark.parametrize(("more", "validate", "steps"), [
    ("--run.epochs 3", False, 9), ("--run.epochs 3", True, 7), ("--steps 5", False, 5),  # of 12 clips one is held out
])
def test_the_small_network_has_the_budget_of_fine_tuning(
    more: str, validate: bool, steps: int, tiny_shard_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without steps its epochs; its clips per step, gradients of how many batches it ever accumulates."""
    given = words(tiny_shard_folder, tmp_path)
    given[-1] = given[-1].replace("--steps 2", f"--run.batch-size 2 --optim.accumulate 2 {more}")
    options = make_parser(None, [*EXPERIMENTS]).parse_args(given)
    asked: list[tuple[int, int]] = []
    monkeypatch.setattr(
        experiments.small_cnn, "run", lambda config, steps, **_: asked.append((steps, config.run.batch_size)) or {}
    )
    study = study_of(EXPERIMENTS["claim"], options, demo_pretrain())
    experiments.SmallCnnRow(study).run(Cell(1.0, 0, validate=validate), tmp_path)
    assert asked == [(steps, 4)]


def test_without_sides_rivals_alone_are_trained(tiny_shard_folder: Path, tmp_path: Path) -> None:
    given = words(tiny_shard_folder, tmp_path)
    first, last = given.index("--sides"), given.index("--study")
    given[first + 1 : last] = []
    study = given[-1].replace("scratch finetune linear", "scratch")
    given[-1] = study.replace("--search.weight-decay 0.001 0.1", "--search.steps 3")
    assert experiments.main(given) == 0
    record = json.loads((tmp_path / "claim.json").read_text())
    assert [row["name"] for row in record["rows"]] == ["small_cnn", "scratch"]
    assert all(cell["steps"] == 3 for row in record["rows"] for cell in row["cells"])
    assert "sides" not in record and not list((tmp_path / "work").glob("pretrained*"))


def test_the_study_and_pretraining_have_the_same_folders(tiny_shard_folder: Path, tmp_path: Path) -> None:
    options = make_parser(None, [*EXPERIMENTS]).parse_args(words(tiny_shard_folder, tmp_path))
    runs = pretrainings(EXPERIMENTS["claim"], options)
    study = study_of(EXPERIMENTS["claim"], options, runs["pretrained", 0])
    assert len(runs) == 2 * len(experiments.CLAIM) and study.seeds == 2 and study.steps == 2
    for start in study.pretrained:
        name, _, folder = start.partition("=")
        for seed in (0, 1):
            assert runs[name, seed].run.out == Path(folder.format(seed=seed)) and runs[name, seed].run.seed == seed
    assert ShardSet.open(tiny_shard_folder).manifest.splits.keys() == {"all"}


def test_the_command_of_the_page_is_one_that_runs() -> None:
    """Its texts of options are those of the two commands."""
    pages = (Path(experiments.__file__).parents[1] / "results").glob("*.md")
    text = "".join(page.read_text() for page in pages).replace("\\\n", " ")
    lines = [line for line in text.splitlines() if "pretraining_experiment.py" in line]
    named = set()
    for line in lines:
        options = make_parser(None, [*EXPERIMENTS]).parse_args(shlex.split(line)[2:])
        experiment = EXPERIMENTS[options.experiment]
        named.add(options.experiment)
        fractions = study_of(experiment, options, demo_pretrain()).fractions
        fewer = "--fractions" in options.study
        assert {*fractions} < {*experiment.fractions} if fewer else fractions == experiment.fractions
        assert options.out is None or options.out.is_relative_to("tools/results")
    assert named == {*EXPERIMENTS}


def planted(low: float, high: float | None) -> dict[str, Any]:
    return {"mean": 0.1, "interval": None if high is None else [low, high]}


@pytest.mark.parametrize(("each", "text"), [
    (planted(0.05, 0.15), "**+10.0 (+5.0 to +15.0)**"), (planted(-0.05, 0.25), "+10.0 (-5.0 to +25.0)"),
    (planted(0, None), "+10.0"),
])
def test_intervals_that_include_zero_are_not_bold(each: dict[str, Any], text: str) -> None:
    assert tables._points(each, 3) == text
    turned = tables._points(tables._turned(each), 3)
    assert turned.count("**") == text.count("**") and "-10.0" in turned


def test_figures_of_fewer_seeds_than_a_record_has_are_marked() -> None:
    """As `--collect` leaves them, on pages and on the terminal; rows of other seeds are not paired."""
    longer, found = (json.loads((RESULTS / f"{name}.json").read_text()) for name in ("longer", "same_steps"))
    cell = found["rows"][0]["cells"][0]
    cell["scores"][1] = cell["cpu_seconds"][1] = None
    cell.update(over_seeds(cell["scores"]))
    assert "| small CNN, from scratch | 83.9 ± 15.6 %, 2 of 3 seeds |" in tables.label_efficiency(found)
    assert "83.9 +- 15.6, 2 of 3 seeds" in lines(found)[1] and "seeds" not in lines(longer)[1]
    first = tables.more_steps(found, longer, of_ours="").splitlines()[2]
    assert "| 300 | 83.9 ± 15.6 %, 2 of 3 seeds | +6.6 (-17.9 to +31.0), 2 of 3 seeds |" in first
    with pytest.raises(AssertionError, match="seeds that do not pair"):
        tables.more_steps({**found, "seeds": [3, 4, 5]}, longer, of_ours="")


def test_codecs_are_compared_by_pairs_of_seeds(tmp_path: Path) -> None:
    """Seeds may differ by more than the codecs do: the interval is that of the differences."""
    seeds = [{"seed": seed, "top1": {"jpeg": base, "blocks": base + change}, "probe_top1": {"jpeg": 0.4, "blocks": 0.5},
              "loss": {"jpeg": 0.9, "blocks": 0.9}}
             for seed, (base, change) in enumerate([(0.1, 0.02), (0.5, 0.03), (0.3, 0.01)])]
    compared = codec.compare(seeds)
    assert compared["top1"]["difference"] == pytest.approx(0.02) and compared["top1"]["mean"]["jpeg"] == pytest.approx(0.3)
    assert compared["top1"]["interval"] == pytest.approx([0.02 - 4.3027 * 0.01 / 3**0.5, 0.02 + 4.3027 * 0.01 / 3**0.5])
    codec.plot({"comparison": compared, "seeds": seeds}, tmp_path / "codec_experiment.png")
    assert (tmp_path / "codec_experiment.png").stat().st_size > 10_000


@pytest.mark.parametrize(("parser", "given"), [
    (codec.make_parser(), ["--shards", "x", "--blocks", "y", "--work", "work", "--out", "out.json"]),
    (finetuning.make_parser(), ["--shards", "x", "--from", "start-{seed}", "--work", "work"]),
])
def test_one_pair_has_no_interval(parser: Any, given: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert parser.parse_args([*given, "--seeds", "2"]).seeds == 2
    with pytest.raises(SystemExit):
        parser.parse_args([*given, "--seeds", "1"])
    assert "--seeds" in capsys.readouterr().err


@pytest.mark.parametrize(("side", "expected"), [
    ("plain", {}),
    ("colours", {"data.augment.brightness": 0.2, "data.augment.contrast": 0.2, "data.augment.saturation": 0.3,
                 "data.augment.hue": 0.5}),
    ("drop_path", {"head.drop_path": 0.2}),
    ("mixup", {"head.mixup": 0.2}),
])
def test_a_way_to_fine_tune_changes_what_it_says_and_nothing_else(side: str, expected: dict[str, Any]) -> None:
    base = finetuning.SIDES["plain"](demo_finetune())
    assert differences(base, finetuning.SIDES[side](demo_finetune())) == expected


@pytest.mark.parametrize(("more", "message"), [
    ("--run.seed 7 --data.augment.hue 0.2", r"--finetune sets data\.augment\.hue, run\.seed, which the experiment sets itself"),
    ("--head.mixup 0.2", "the sides plain and mixup are the same; leave one out by --sides, or change --finetune"),
    ("--from x --run.out y", r"--finetune sets pretrained, run\.out, which"),
])
def test_options_that_ways_to_fine_tune_would_be_set_over_are_refused(more: str, message: str) -> None:
    given = ["--shards", "x", "--from", "start-{seed}", "--work", "work", "--finetune"]
    with pytest.raises(UserError, match=message):
        finetuning.runs_of(finetuning.make_parser().parse_args([*given, more]))
    runs = finetuning.runs_of(finetuning.make_parser().parse_args([*given, "--optim.lr 0.003"]))
    assert {config.optim.lr for config in runs.values()} == {0.003} and len(runs) == 3 * len(finetuning.SIDES)


@pytest.mark.slow
def test_ways_to_fine_tune_from_end_to_end(
    tiny_shard_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """From one pretraining run per seed; the record says what was changed and what came of it, and is made once."""
    every = words(tiny_shard_folder, tmp_path)
    network = every[every.index("--pretrain") + 1]
    for seed in (0, 1):
        own = f"--data.shards {tiny_shard_folder} --run.seed {seed} --run.out {tmp_path}/start-{seed}"
        pretrain(read_options("pretrain", "demo", shlex.split(f"{network} {own}")))
    given = [
        "--shards", str(tiny_shard_folder), "--from", str(tmp_path / "start-{seed}"), "--work", str(tmp_path / "work"),
        "--out", str(tmp_path / "finetuning.json"), "--test-split", "all", "--seeds", "2", "--jobs", "1",
        "--sides", "colours", "plain", "colours_longer",
        "--finetune", f"{network.split('--target')[0]} --label-fraction 1",
    ]
    assert finetuning.main(given) == 0
    record = json.loads((tmp_path / "finetuning.json").read_text())
    assert list(record["sides"]) == ["plain", "colours", "colours_longer"], "in the order of the comparison"
    assert record["sides"]["plain"]["changes"] == [] and "data.augment.hue 0.0 -> 0.5" in record["sides"]["colours"]["changes"]
    seen = {name: [spent["clips_seen"] for spent in side["costs"]] for name, side in record["sides"].items()}
    assert seen["colours"] == seen["plain"] and seen["colours_longer"] == [3 * clips for clips in seen["plain"]]
    for side in record["sides"].values():
        pairs = zip(side["scores"], record["sides"]["plain"]["scores"], strict=True)
        assert side["difference"]["mean"] == pytest.approx(sum(mine - its for mine, its in pairs) / 2)
    assert str(tmp_path) not in json.dumps(record)
    shown = tables.finetuning(record)
    assert shown.splitlines()[2].startswith("| plain | ") and "| colours longer | " in shown and "2 seeds" in shown
    runs = {path: path.stat().st_mtime_ns for path in (tmp_path / "work").glob("*/result.json")}
    assert len(runs) == 6 and finetuning.main(given) == 0
    assert {path: path.stat().st_mtime_ns for path in runs} == runs
    capsys.readouterr()
    assert finetuning.main([*given, "--from", str(tmp_path / "nowhere"), "--work", str(tmp_path / "other")]) == 2
    assert capsys.readouterr().err.startswith("error: ")


@pytest.mark.parametrize(("file", "status", "said"), [("file.json", 0, "done"), ("", 1, "error: ")])
def test_a_script_looks_at_its_files_before_it_begins(
    file: str, status: int, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    begun = []

    def work() -> str:
        begun.append(True)
        return "done\n"

    assert reported(work, None, tmp_path / file) == status and len(begun) == 1 - status
    assert said in "".join(capsys.readouterr())


def test_a_script_keeps_the_files_that_it_reads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "run").mkdir()
    for name in ("set.json", "run/result.json"):
        (tmp_path / name).write_text("{}")
    (tmp_path / "alias").symlink_to(tmp_path / "run")
    read = [tmp_path / "set.json", tmp_path / "run"]
    for name in ("set.json", "run/result.json", "alias/result.json"):
        assert reported(lambda: "done\n", tmp_path / name, reads=read) == 2
        assert capsys.readouterr().err.startswith(f"error: {tmp_path / name} is read here and would be lost")
    for name in ("run/new.json", "run.json"):
        assert reported(lambda: "done\n", tmp_path / name, reads=read) == 0


@pytest.mark.parametrize(("error", "status"), [
    (UserError("no such split"), 2), (MachineError("no GPU"), 1), (OSError("disk full"), 1), (KeyboardInterrupt(), 130),
])
def test_a_script_s_errors_are_one_line(error: BaseException, status: int, capsys: pytest.CaptureFixture[str]) -> None:
    def work() -> str:
        raise error

    assert reported(work) == status
    assert capsys.readouterr().err == (f"error: {error}\n" if str(error) else "interrupted\n")


@pytest.mark.parametrize(("more", "asked", "found"), [("", "auto", "cuda"), ("--run.device cpu", "cpu", "cpu")])
def test_fine_tunings_share_the_device_that_their_record_names(
    more: str, asked: str, found: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a machine with a GPU, too."""
    told: list[str] = []
    result = {"top1": 0.5, "dataset": "d", "split": "s", "clips": 1, "labels": 1}
    monkeypatch.setattr(finetuning, "run_all", lambda jobs, _, device="auto": told.append(device) or [result for _ in jobs])
    monkeypatch.setattr(finetuning, "pick_device", lambda name: torch.device("cuda" if name == "auto" else name))
    monkeypatch.setattr(finetuning, "hardware", lambda device: {"device": device.type})
    monkeypatch.setattr(finetuning, "read_card", lambda _: {"config": {"run": {"epochs": 1}}})
    given = ["--shards", "x", "--from", "y", "--work", str(tmp_path), "--out", str(tmp_path / "record.json")]
    assert finetuning.main([*given, f"--finetune={more}"]) == 0
    assert told == [asked] and json.loads((tmp_path / "record.json").read_text())["machine"] == {"device": found}


def test_pretraining_is_given_the_device_of_its_runs(
    tiny_shard_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(jobs: Any, at_once: int, device: str = "auto") -> None:
        raise UserError(device)

    monkeypatch.setattr(pretraining_sides, "run_all", stop)
    with pytest.raises(UserError, match=r"^cpu$"):
        run_experiment(EXPERIMENTS["claim"], make_parser(None, [*EXPERIMENTS]).parse_args(words(tiny_shard_folder, tmp_path)))


def test_an_experiment_whose_record_cannot_be_written_trains_nothing(tmp_path: Path, tiny_shard_folder: Path) -> None:
    words = ["motion", "--shards", str(tiny_shard_folder), "--work", str(tmp_path / "work"), "--out", str(tmp_path)]
    with pytest.raises(OSError, match="a folder has this name"):
        run_experiment(EXPERIMENTS["motion"], make_parser("", [*EXPERIMENTS]).parse_args(words))
    assert not (tmp_path / "work").exists()
