"""Names of splits: usual ones are accepted silently, others are reported, and misspelt ones get a suggestion."""

from pathlib import Path

import pytest
from shards_data import annotation, write_pickle, write_video

from svdata2vec.cli.main import main
from svdata2vec.shards.readers.pyskl import read_pyskl
from svdata2vec.shards.split_names import meant, unusual_names


@pytest.mark.parametrize(("name", "usual"), [
    ("tset", "test"), ("tets", "test"), ("tst", "test"), ("testt", "test"), ("trian", "train"), ("tarin", "train"),
    ("vla", "val"), ("Tset", "test"), ("xsub_tset", "xsub_test"), ("vaildation", "validation"), ("trian1", "train1"),
    ("holdout", None), ("fold1", None), ("extra", None), ("unlabelled", None), ("", None),
])
def test_likely_meanings_of_a_split_name(name: str, usual: str | None) -> None:
    assert meant(name) == usual
    [said] = unusual_names({name: ["a", "b"]})
    assert said.startswith(f"split {name!r} of 2 clips: ") and ("did you mean" in said) == (usual is not None)
    assert usual is None or f"did you mean {usual!r}?" in said


@pytest.mark.parametrize("name", ["train", "Train", "val", "valid", "validation", "test", "dev", "xsub_train", "train1",
                                  "test-2", "cs_trainval", "all", "full", "eval"])
def test_usual_names_are_not_asked_about(name: str) -> None:
    assert meant(name) is None and unusual_names({name: ["a"]}) == []


def test_splits_that_differ_only_in_case_are_reported() -> None:
    """A table written by several people: three splits, each with a part of the clips."""
    said = unusual_names({"Train": ["a"], "val": ["b"], "train": ["c", "d"], "TRAIN": ["e"]})
    assert said == ["splits 'Train' of 1 clips and 'train' of 2 clips and 'TRAIN' of 1 clips differ in case alone, and are 3 "
                    "splits: spell them alike if they are one, and pack again"]


def test_classes_of_a_table_that_differ_only_in_case_are_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    own = table(tmp_path, "path,label", "a.mp4,Walk", "b.mp4,walk", "c.mp4,run")
    assert main(["shard", "csv", str(tmp_path / "out"), "--table", str(own), "--size", "96", "--workers", "1"]) == 0
    assert [text for text in caplog.messages if "case" in text] == [
        "classes 'Walk' of 1 clips and 'walk' of 1 clips differ in case alone, and are 2 classes: spell them alike if they are "
        "one, and pack again"]


def table(root: Path, header: str, *rows: str) -> Path:
    for name in ("a", "b", "c"):
        write_video(root / f"{name}.mp4", 4, seed=ord(name))
    path = root / "own.csv"
    path.write_text("\n".join([header, *rows]) + "\n")
    return path


def test_a_misspelt_split_of_a_table_is_reported_before_and_after_packing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    own = table(tmp_path, "path,label,split", "a.mp4,x,train", "b.mp4,x,tset", "c.mp4,y,holdout")
    with caplog.at_level("WARNING"):
        assert main(["shard", "csv", str(tmp_path / "out"), "--table", str(own), "--size", "96", "--workers", "1"]) == 0
    said = [text for text in caplog.messages if text.startswith("split ")]
    assert said == [
        "split 'tset' of 1 clips: did you mean 'test'? If so, correct it and pack again; else name it where it is used, as in "
        "--data.train-split",
        "split 'holdout' of 1 clips: no preset looks for it; name it where it is used, as in --data.train-split"]
    lines = capsys.readouterr().out.splitlines()
    assert [line.endswith("; did you mean test?") for line in lines if line.startswith("  split ")] == [False, True, False]


def test_columns_that_are_not_read_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture,
                                             capsys: pytest.CaptureFixture[str]) -> None:
    """With a warning for one that seems to be that of the splits: without it, all clips are trained on."""
    own = table(tmp_path, "path,label,splits,person", "a.mp4,x,train,1", "b.mp4,x,test,2")
    with caplog.at_level("INFO"):
        assert main(["shard", "csv", str(tmp_path / "out"), "--table", str(own), "--size", "96", "--workers", "1"]) == 0
    said = {text: level for _, level, text in caplog.record_tuples if "labels are" not in text and "own.csv: " in text}
    assert said == {f"{own}: no column split, all clips are in train; did you mean 'splits'?": 30,
                    f"{own}: columns that are not read: splits, person": 20}
    with pytest.raises(SystemExit):
        main(["shard", "csv", "--help"])
    assert "train, val (or valid, validation) and test" in " ".join(capsys.readouterr().out.replace("│", " ").split())


def test_splits_of_a_pickle_are_reported_too(tmp_path: Path) -> None:
    (tmp_path / "videos").mkdir()
    write_video(tmp_path / "videos" / "a.mp4", 4)
    pickle_path = write_pickle(tmp_path / "set.pkl", [annotation("a", 0, 4)], {"trian": ["a"]})
    [said] = unusual_names(read_pyskl(pickle_path, tmp_path / "videos").splits)
    assert "'trian' of 1 clips: did you mean 'train'?" in said
