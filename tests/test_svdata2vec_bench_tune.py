"""`bench data --tune` finds a planted optimum beyond noise and stores it for runs; options take precedence; damaged files."""

import json
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny import pretrain_config

from svdata2vec.bench import tune as tuning
from svdata2vec.bench.config import DataBenchOptions
from svdata2vec.bench.tune import axes, search
from svdata2vec.cli.main import main
from svdata2vec.config.schema import DataConfig
from svdata2vec.pipeline.graph import FRAMES_PER_RUN
from svdata2vec.pipeline.plan import PlanConfig
from svdata2vec.runs.cores import cpu_name, fit_loader
from svdata2vec.runs.data import build_loader
from svdata2vec.runs.runtime import Runtime
from svdata2vec.runs.tuned import Tuned, load_tuned, store_tuned, tuned_file
from svdata2vec.shards.reading.shardset import ShardSet

START = Tuned(16)
CPU = Runtime(torch.device("cpu"), 0, 1, False)


@pytest.fixture
def stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file that settings are stored in, not there yet."""
    path = tmp_path / "cache" / "decoding.json"
    monkeypatch.setenv("SVDATA2VEC_DECODING", str(path))
    return path


class Planted:
    """Rates of a machine whose best settings are known; `noise`: how far its rounds lie apart."""

    def __init__(self, gains: dict[tuple[str, float], float], noise: float = 0.005) -> None:
        self.gains, self.noise, self.measured = gains, noise, 0

    def rate(self, one: Tuned) -> float:
        total = 10_000.0
        for (name, value), gain in self.gains.items():
            total *= gain if getattr(one, name) == value else 1.0
        return total

    def __call__(self, settings: Sequence[Tuned]) -> dict[Tuned, list[float]]:
        self.measured += len(settings)
        return {one: [self.rate(one) * (1 + self.noise * step) for step in (-1, 0, 1, -0.5, 0.5)] for one in settings}


@pytest.mark.parametrize(
    ("gains", "noise", "expected"),
    [
        ({("threads", 4): 1.5, ("threads", 8): 1.2, ("run_pictures", 2560): 1.1}, 0.005, Tuned(4, 1.0, 2560)),
        ({("run_pictures", 640): 1.2}, 0.005, Tuned(16, 1.0, 640)),
        ({}, 0.005, START),
        ({("threads", 2): 1.02}, 0.001, START),            # certain, but too little
        ({("threads", 2): 1.10}, 0.2, START),              # within the noise
        ({("threads", 2): 1.10}, 0.02, Tuned(2)),
        ({("engine_share", 0.75): 1.3}, 0.005, START),     # the clip's bits would depend on its batch
        ({("engine_share", 0.0): 1.3, ("engine_share", 0.5): 1.6}, 0.005, Tuned(16, 0.0)),
    ],
)
def test_the_planted_best_is_found_beyond_noise(gains: dict[tuple[str, float], float], noise: float, expected: Tuned) -> None:
    machine = Planted(gains, noise)
    best, rows = search(machine, START, axes("cuda", 16))
    assert best == expected
    assert machine.measured == len(rows) <= 14
    chosen = [row for row in rows if row["chosen"]]
    assert [row["axis"] for row in chosen] == ["threads", "engine_share", "run_pictures"]
    assert chosen[-1]["pictures_per_s"] == pytest.approx(machine.rate(expected))


def test_the_table_says_what_only_the_user_can_decide() -> None:
    best, rows = search(Planted({("engine_share", 0.75): 1.3}), START, axes("cuda", 16))
    record = {
        "rows": rows, "chosen": vars(best), "name": "GPU X", "codec": "jpeg", "file": "/somewhere",
        "chroma_pictures_per_s": {"444": 10_000.0, "420": 15_000.0},
    }
    text = tuning.as_table(record)
    assert "GPU X, jpeg: 16 threads, engine share 1: 10,000 pictures/s, 250.0 clips/s" in text
    assert "an engine share of 0.75 is faster (13,000 pictures/s), but a clip's last bits" in text
    assert "`--chroma 444`, 2 to 3 dB nearer to their sources: 10,000 pictures/s, those of 4:2:0 then 15,000" in text
    assert "stored in /somewhere" in text and "stored nowhere" in tuning.as_table({**record, "file": None})


@pytest.mark.parametrize(("device", "cores"), [("cpu", 1), ("cpu", 2), ("cpu", 64), ("cuda", 2), ("cuda", 208)])
def test_no_more_threads_than_cores_are_tried(device: str, cores: int) -> None:
    ways = {axis.name: axis for axis in axes(device, cores)}
    assert all(count < cores for count in ways["threads"].values)
    assert ("engine_share" in ways) == (device == "cuda")


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_no_two_settings_decode_a_batch_in_the_same_runs(device: str) -> None:
    at_once = [FRAMES_PER_RUN[device], *tuning.RUNS[device]]
    clips = [min(pictures // PlanConfig().num_frames, tuning.BATCH[device]) for pictures in at_once]
    assert len(set(clips)) == len(clips)


# ---- the file ---------------------------------------------------------------------------------------------------------


def test_devices_and_codecs_have_entries_of_their_own(stored: Path) -> None:
    assert load_tuned("GPU X", "jpeg") is None
    for device, codec, one in (("GPU X", "jpeg", Tuned(2, 1.0, 1280)), ("GPU X", "vp9", Tuned(7)), ("CPU Y", "jpeg", Tuned(3))):
        assert store_tuned(device, codec, one) == stored
    assert load_tuned("GPU X", "jpeg") == Tuned(2, 1.0, 1280) and load_tuned("GPU X", "vp9") == Tuned(7)
    assert load_tuned("CPU Y", "jpeg") == Tuned(3) and load_tuned("CPU Y", "h264") is None
    assert [path.name for path in stored.parent.iterdir()] == ["decoding.json"]


def test_the_path_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SVDATA2VEC_DECODING", "")
    assert tuned_file() is None and store_tuned("X", "jpeg", Tuned(1)) is None and load_tuned("X", "jpeg") is None
    monkeypatch.delenv("SVDATA2VEC_DECODING")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert tuned_file() == tmp_path / "svdata2vec" / "decoding.json"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert tuned_file() == tmp_path / "home" / ".cache" / "svdata2vec" / "decoding.json"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not JSON"), ("[]", "the file is list, expected an object"),
        ('{"format": "svdata2vec-decoding", "version": 9, "devices": {}}', "version is int 9"),
        (json.dumps({"format": "svdata2vec-decoding", "version": 1,
                     "devices": {"X": {"jpeg": {"threads": "many"}}}}), "threads"),
        (json.dumps({"format": "svdata2vec-decoding", "version": 1,
                     "devices": {"X": {"jpeg": {"threads": 2, "engine_share": 7}}}}), "engine_share is 7"),
        (None, "decoding.json"),  # a folder
    ],
)
def test_a_file_that_cannot_be_read_is_one_line(
    stored: Path, caplog: pytest.LogCaptureFixture, content: str | None, message: str
) -> None:
    stored.parent.mkdir()
    if content is None:
        stored.mkdir()
    else:
        stored.write_text(content)
    with caplog.at_level(logging.WARNING):
        assert load_tuned("X", "jpeg") is None
    (record,) = caplog.records
    assert message in record.getMessage() and str(stored) in record.getMessage()
    assert "`svdata2vec bench data --tune` writes a new one" in record.getMessage()
    assert "\n" not in record.getMessage()
    if content is not None:
        store_tuned("X", "jpeg", Tuned(5))
        assert load_tuned("X", "jpeg") == Tuned(5)


# ---- runs -------------------------------------------------------------------------------------------------------------


def test_an_unreadable_home_folder_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Even the question whether it is there is refused, as in a container whose HOME is another user's."""
    def refused(path: Path, **_: bool) -> bool:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setenv("SVDATA2VEC_DECODING", str(tmp_path / "closed" / "decoding.json"))
    monkeypatch.setattr(Path, "exists", refused)
    assert load_tuned("a device", "jpeg") is None
    (record,) = caplog.records
    assert "Permission denied: '" in record.getMessage() and "; decoding with defaults until" in record.getMessage()


@pytest.mark.parametrize(
    ("data", "cores", "expected"),
    [
        (DataConfig(), 16, (2, 0.0, 640)), (DataConfig(threads=9), 16, (9, 0.0, 640)), (DataConfig(), 1, (1, 0.0, 640)),
        (DataConfig(engine_share=0.5, run_pictures=100), 16, (2, 0.5, 100)),
    ],
)
def test_options_and_cores_stand_above_what_was_tuned(data: DataConfig, cores: int, expected: tuple[int, float, int]) -> None:
    fitted = fit_loader(data, "cuda", cores, Tuned(2, 0.0, 640))
    assert (fitted.threads, fitted.engine_share, fitted.run_pictures) == expected
    untuned = fit_loader(data, "cuda", cores)
    assert untuned.run_pictures == data.run_pictures and untuned.engine_share == (data.engine_share or 1.0)


def test_a_run_decodes_as_tuned_and_says_so(
    stored: Path, tiny_shard_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config, shards = pretrain_config(tiny_shard_folder, tmp_path / "run"), ShardSet.open(tiny_shard_folder)
    config = replace(config, data=replace(config.data, threads=None))
    with caplog.at_level(logging.INFO):
        build_loader(shards, config, CPU, train=True)
    assert "as tuned" not in caplog.text
    store_tuned(cpu_name(), "jpeg", Tuned(1, 1.0, 12))
    with caplog.at_level(logging.INFO):
        with build_loader(shards, config, CPU, train=True) as loader:
            decoder = loader.make_producer().turns.lanes[0].decoder
            assert decoder.num_threads == 1 and decoder.clips_per_run(6) == 2  # type: ignore[union-attr]
        build_loader(shards, replace(config, data=replace(config.data, run_pictures=600)), CPU, train=True)
    told = [record.getMessage() for record in caplog.records if "as tuned" in record.getMessage()]
    assert told == [
        f"decoding as tuned on {cpu_name()}: 1 threads, engine share 1, 12 pictures at once",
        f"decoding as tuned on {cpu_name()}: 1 threads, engine share 1, 600 pictures at once, options and cores considered",
    ]


def test_other_run_sizes_and_threads_give_the_same_frames(tiny_shard_folder: Path, tmp_path: Path) -> None:
    config, shards = pretrain_config(tiny_shard_folder, tmp_path / "run"), ShardSet.open(tiny_shard_folder)
    batches = []
    for threads, pictures in ((1, 6), (2, 1000), (2, 13)):
        data = replace(config.data, threads=threads, run_pictures=pictures)
        with build_loader(shards, replace(config, data=data), CPU, train=True) as loader:
            batches.append([batch.video_BTHWC for batch in loader])
    for others in batches[1:]:
        assert all(torch.equal(one, other) for one, other in zip(batches[0], others, strict=True))


def test_the_command_measures_on_this_machine(
    stored: Path, tiny_shard_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On small clips in place of its own, which take a minute to make."""
    asked = []
    monkeypatch.setattr(tuning, "SECONDS", 0.05)
    monkeypatch.setitem(tuning.BATCH, "cpu", 4)
    monkeypatch.setattr(tuning, "make_sources", lambda folder, count: asked.append((folder, count)))
    monkeypatch.setattr(tuning, "packed", lambda *_, chroma="420": asked.append(chroma) or ShardSet.open(tiny_shard_folder))
    monkeypatch.setattr(tuning, "usable_cores", lambda: 2)
    out = tmp_path / "tuned.json"
    words = ["--folder", str(tmp_path / "clips"), "--sources", "4", "--out", str(out)]
    assert main(["bench", "data", "--tune", *words]) == 0
    assert asked == [(tmp_path / "clips" / "source", 4), "420", "444"]
    record = json.loads(out.read_text())
    assert len(record["rows"]) == 6 and all(row["pictures_per_s"] > 0 for row in record["rows"])
    chosen = record["chosen"] | ({"threads": 0} if record["chosen"]["threads"] == 2 else {})  # one for every core
    assert load_tuned(cpu_name(), "jpeg") == Tuned(**chosen) and f"stored in {stored}" in capsys.readouterr().out
    assert main(["bench", "data", "--tune", "--method", "ours, jpeg"]) == 2
    assert "exclude each other" in capsys.readouterr().err
    assert main(["bench", "data", "--tune", "--rounds", "2"]) == 2
    assert "rounds is 2 with tune" in capsys.readouterr().err
    assert DataBenchOptions().tune is False


@pytest.mark.parametrize(("fast", "threads"), [(None, (4, 12)), (2, (2, 2))])
def test_a_job_with_few_cores_does_not_bind_those_with_more(
    fast: int | None, threads: tuple[int, int], stored: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tuned on four cores, where all of them are the best, or two."""
    monkeypatch.setattr(tuning, "make_sources", lambda *_: None)
    monkeypatch.setattr(tuning, "packed", lambda *_, **__: None)
    monkeypatch.setattr(tuning, "usable_cores", lambda: 4)
    monkeypatch.setattr(tuning, "in_turns", lambda jobs, *_: {
        one: [2.0 if getattr(one, "threads", 0) == fast else 1.0] * 3 for one in jobs
    })
    record = tuning.tune(DataBenchOptions(folder=tmp_path, tune=True))
    assert record["chosen"]["threads"] == threads[0]
    for cores, expected in zip((4, 12), threads, strict=True):
        assert fit_loader(DataConfig(), "cpu", cores, load_tuned(cpu_name(), "jpeg")).threads == expected


@pytest.mark.parametrize("place", ["taken/decoding.json", "folder"])
def test_an_unwritable_output_is_reported_before_measuring(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "taken").write_text("")
    (tmp_path / "folder").mkdir()
    monkeypatch.setenv("SVDATA2VEC_DECODING", str(tmp_path / place))
    assert main(["bench", "data", "--tune", "--folder", str(tmp_path / "clips")]) in (1, 2)
    error = capsys.readouterr().err
    assert str(tmp_path / place.partition("/")[0]) in error and error.count("\n") == 1 and not (tmp_path / "clips").exists()
