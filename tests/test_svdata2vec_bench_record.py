"""Records of `bench run` are checked when they are read, and compared; earlier versions' too."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from repository import ROOT

from svdata2vec.bench.record import SCHEMA, as_table, compare, decoding_line, load_record
from svdata2vec.cli import main as cli
from svdata2vec.config.checked_json import faults
from svdata2vec.shards.errors import UserError

RECORD = ROOT / "tools" / "results" / "bench_run_cpu.json"


@pytest.fixture
def record() -> dict[str, Any]:
    return json.loads(RECORD.read_text())


def test_records_are_checked(record: dict[str, Any], tmp_path: Path) -> None:
    assert faults(record, SCHEMA) == []
    broken = copy.deepcopy(record)
    del broken["stages"]["train"]["q80"]
    broken["mfu"] = "high"
    assert faults(broken, SCHEMA) == ["no stages.train.q80", "mfu is str 'high'"]
    path = tmp_path / "a.json"
    with pytest.raises(UserError, match="no such file; expected one written by"):
        load_record(path)
    for content, message in (
        ("{", "not JSON"), ("[]", "not a record"), (json.dumps({**record, "format": "other"}), "not a record"),
        (json.dumps({**record, "version": 99}), "version 99, this program reads 1"),
        (json.dumps(broken), r"a.json is damaged: no stages.train.q80, mfu is str"),
    ):
        path.write_text(content)
        with pytest.raises(UserError, match=message):
            load_record(path)


def test_compare_says_what_changed(record: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = copy.deepcopy(record)
    other["stages"]["train"] = {name: 2 * record["stages"]["train"][name] for name in ("clips_per_s", "q20", "q80")}
    other["stages"]["train"]["rounds"] = []
    other["setting"]["batch_size"] = 99
    other["machine"]["device"] = "another GPU"
    lines = compare(record, other).splitlines()
    assert lines[0].startswith("different machines: cpu") and "another GPU" in lines[0]
    assert lines[1] == f"different settings: batch_size {record['setting']['batch_size']} | 99"
    (train,) = (line for line in lines if line.startswith("train "))
    assert train.split()[-1] == "2.00"
    (model,) = (line for line in lines if line.startswith("model "))
    assert model.endswith("1.00  within the spread")
    for name, one in (("a", record), ("b", other)):
        (tmp_path / f"{name}.json").write_text(json.dumps(one))
    assert cli.main(["bench", "compare", str(tmp_path / "a.json"), str(tmp_path / "b.json")]) == 0
    assert capsys.readouterr().out == compare(record, other)


def test_compare_leaves_out_no_stage_and_claims_no_spread_of_one_round(record: dict[str, Any]) -> None:
    """Whichever of the two was measured beside the authors' way."""
    other = copy.deepcopy(record)
    for name in ("original model", "original train"):
        del other["stages"][name]
    other["stages"]["read"] = {"clips_per_s": 0.0123, "q20": 0.0123, "q80": 0.0123, "rounds": [0.0123]}
    rate = f"{record['stages']['original model']['clips_per_s']:.2f}"
    for pair in ((record, other), (other, record)):
        lines = compare(*pair).splitlines()
        (alone,) = (line for line in lines if line.startswith("original model"))
        assert alone == f"original model  {rate:>{12 if pair[0] is record else 24}s}"
        (read,) = (line for line in lines if line.startswith("read "))
        assert "0.01" in read.split() and read.endswith("  of one round: no spread")


@pytest.mark.parametrize(
    ("setting", "launch"),
    [
        ({"compile": True}, "compiled"), ({"compile": True, "launch": "eager"}, "compiled"), ({"launch": "graph"}, "graph"),
        ({"compile": False, "launch": "graph"}, "graph"), ({"launch": "eager"}, "eager"), ({"compile": False}, "eager"),
        ({}, "eager"),
    ],
)
def test_compare_says_which_was_launched_in_another_way(setting: dict[str, Any], launch: str, record: dict[str, Any]) -> None:
    """Records of earlier versions too, which have `compile`."""
    other = copy.deepcopy(record)
    del other["setting"]["launch"]
    other["setting"] |= setting
    said = [line for line in compare(record, other).splitlines() if line.startswith("different")]
    assert said == ([] if launch == "eager" else [f"different settings: launch eager | {launch}"])


@pytest.mark.parametrize(
    ("name", "first", "second"),
    [
        ("dataset", "ntu60", "pku"), ("split", "xsub_train", "xview_train"), ("readers", 0, 4), ("prefetch", 2, 8),
        ("engine_share", 1.0, 0.5), ("run_pictures", None, 2560), ("codec_options", {"quality": 85}, {"quality": 50}),
        ("target", {"teacher": "blocks"}, {"teacher": "encoder"}), ("augment", {"blur": 0.0}, {"blur": 0.5}),
        ("check_hashes", False, True), ("crop", "joints", "boxes"), ("weights", [], [2, 1]),
    ],
)
def test_compare_tells_what_decides_rates_where_both_records_name_it(
    name: str, first: Any, second: Any, record: dict[str, Any]
) -> None:
    one, other, earlier = (copy.deepcopy(record) for _ in range(3))
    one["setting"][name], other["setting"][name] = first, second
    assert f"different settings: {name} {first} | {second}" in compare(one, other).splitlines()
    earlier["setting"].pop(name, None)
    if name != "dataset":  # which every record names
        assert "different" not in compare(earlier, other) + compare(other, earlier) + compare(one, one)


def test_compare_tells_masks_of_others_that_a_record_does_not_name(record: dict[str, Any]) -> None:
    """Records of before name them only where there are several, or where more frames are encoded than one mask keeps."""
    paper, several, wide = (copy.deepcopy(record) for _ in range(3))
    masks = {"video_ratio": 0.66, "skeleton_ratio": 0.75, "repeats": 1, "encoded_frames": 0}
    paper["setting"]["masks"], several["setting"]["masks"] = masks, {**masks, "repeats": 4}
    wide["setting"]["masks"] = {**masks, "video_ratio": 0.5}
    assert "masks" not in record["setting"] and "different" not in compare(record, paper) + compare(paper, record)
    assert compare(record, several).startswith("different settings: masks {'repeats': 1} | {'repeats': 4}\n\n")
    assert compare(wide, paper).startswith("different settings: masks {'video_ratio': 0.5} | {'video_ratio': 0.66}\n\n")


def test_compare_tells_other_processors_threads_and_versions(record: dict[str, Any]) -> None:
    """Every CPU is the device "cpu"."""
    for changes in ({"cpu": "Another CPU"}, {"torch_threads": 64}, {"cores": 64}):
        other = {**record, "machine": {**record["machine"], **changes}}
        said = [line for line in compare(record, other).splitlines() if line.startswith("different")]
        assert len(said) == 1 and said[0].startswith("different machines: cpu, ")
        assert str(*changes.values()) in said[0].partition(" | ")[2]
    versions = {**record["machine"]["versions"], "torch": "9.9"}
    other = {**record, "machine": {**record["machine"], "versions": versions}}
    before = record["machine"]["versions"]["torch"]
    assert compare(record, other).startswith(f"different versions: torch {before} | torch 9.9\n\n")


def test_the_bound_by_decoding_is_one_line(record: dict[str, Any]) -> None:
    whole = {"codec": "vp9", "by": "decode", "pictures_per_clip": 100.0, "sampled_per_clip": 6,
             "given_pictures_per_s": 500.0, "needed_pictures_per_s": 1000.0}
    assert decoding_line(whole) == (
        "decoder, vp9: 500 pictures/s, 5.00 clips of 100, all of its pictures for 6; the model would take 1,000 pictures/s, "
        "and the decoder gives 0.5 times that"
    )
    uploaded = decoding_line({**whole, "codec": "blocks", "by": "upload"})
    assert uploaded.startswith("upload, blocks: 500") and uploaded.endswith("and the upload gives 0.5 times that")
    assert decoding_line({name: value for name, value in whole.items() if name != "by"}) == decoding_line(whole)
    masked = {**whole, "codec": "jpeg", "pictures_per_clip": 35.0, "sampled_per_clip": 40, "seen_per_clip": 36.0}
    earlier = {name: value for name, value in masked.items() if name != "seen_per_clip"}
    for cost in (masked, earlier):
        assert "clips of 35, of 40 those that masks let be seen; " in decoding_line(cost)
    assert "clips of 35, as some are shorter than 40 frames; " in decoding_line({**masked, "seen_per_clip": 40.0})
    assert "clips of 40; " in decoding_line({**masked, "pictures_per_clip": 40.0, "seen_per_clip": 40.0})
    earlier = {name: value for name, value in record.items() if name != "decoding"}
    assert faults(earlier, SCHEMA) == [] and "decoder, " not in as_table(earlier)


def test_records_that_the_schema_accepts_are_shown(record: dict[str, Any]) -> None:
    """Whatever a stranger's record leaves out or has as zero."""
    strange = copy.deepcopy(record)
    strange["decoding"] |= {"pictures_per_clip": 0, "needed_pictures_per_s": 0.0}
    strange["masks"] = {"repeats": 1, "counted_share": 0.007}
    assert faults(strange, SCHEMA) == []
    said = as_table(strange).splitlines()
    assert "masks per clip: 1; one more takes 0.7 % of the step with one by count" in said
    assert any(line.startswith("decoder, jpeg: ") for line in said)
