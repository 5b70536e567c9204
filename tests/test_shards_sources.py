"""Users' tables and annotations as input of every reader: labels, class names, encodings, odd items, splits."""

import json
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from shards_data import HEIGHT, WIDTH, annotation, block_pose, packed, reasons, write_pickle, write_tree

from svdata2vec.shards.annotations import ClipAnnotation, safe_key
from svdata2vec.shards.errors import UserError
from svdata2vec.shards.layouts import COCO17, layout
from svdata2vec.shards.packing.pack import PackOptions, pack
from svdata2vec.shards.readers.labels import read_labels
from svdata2vec.shards.readers.pyskl import pose_of
from svdata2vec.shards.readers.sources import open_dataset
from svdata2vec.shards.readers.splits import split_by
from svdata2vec.shards.reading.shardset import ShardSet

FRAMES = 4


# ---------------------------------------------------------------------------------------------------- labels

@pytest.mark.parametrize(("values", "of", "classes"), [
    (["0", "10", "2"], [0, 10, 2], 11),
    (["0", "10", "2", "-1"], [0, 10, 2, "label -1: unlabelled"], 11),
    (["0", "10", "2.0", " 2"], [0, 10, 2, 2], 11),
    ([0, np.int64(1), 2.0, np.float32(1)], [0, 1, 2, 1], 3),
    (["1", "2", "3", "1"], [0, 1, 2, 0], ("class_1", "class_2", "class_3")),
    (["1", "3"], [1, 3], 4),
    (["1"], [1], 2),
    (["b", "a", " b"], [1, 0, 1], ("a", "b")),
    (["b", "a", "", None, float("nan"), "NaN"],
     [1, 0, "label '': unlabelled", "label None: unlabelled", "label nan: unlabelled",
      "label 'NaN': unlabelled; name the classes if it is one"],
     ("a", "b")),
    (["b", "a", "3"], [1, 0, "label 3 is a number, most others are names; name the classes if it is one"], ("a", "b")),
    ([0, "walk"], [0, "label 'walk' is a name, most others are numbers"], 1),
    ([0, [1], True, 0.5],
     [0, "label '[1]' is of type list, expected a number or a name",
      "label 'True' is of type bool, expected a number or a name", "label 0.5: expected a whole number"], 1),
    ([0, 10**9, "1000000000"], [0, *["label 1000000000: expected at most 99999"] * 2], 1),
])
def test_labels(values: list[Any], of: list[Any], classes: Any) -> None:
    labels = read_labels(values)
    assert labels.of == of
    assert labels.classes == (tuple(f"class_{i}" for i in range(classes)) if isinstance(classes, int) else classes)


@pytest.mark.parametrize(("values", "classes", "of"), [
    (["0", "1"], ("run", "walk"), [0, 1]),
    (["1", "2"], ("run", "walk"), [0, 1]),
    (["1", "2"], ("run", "walk", "jump"), [1, 2]),
    (["walk", "run", "1"], ("run", "walk"), [1, 0, "label '1' is not among the classes run, walk"]),
    (["2", "10"], ("10", "2"), [1, 0]),
    (["01", "02"], ("01", "02", "03"), [0, 1]),
    (["none", " N/A", "run", "None"], ("run", "none", "N/A"),
     [1, 2, 0, "label 'None': unlabelled; name the classes if it is one"]),
    (["2", "0", "99999"], ("run", "walk"),
     ["label 2, but there are 2 classes, from 0 on", 0, "label 99999, but there are 2 classes, from 0 on"]),
    (["walk", "run"], ("run",), ["label 'walk' is not among the classes run", 0]),
])
def test_labels_of_given_classes(values: list[Any], classes: tuple[str, ...], of: list[Any]) -> None:
    assert read_labels(values, classes).of == of


def test_the_reading_of_labels_is_explained_in_one_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_tree(tmp_path / "clips", "a.mp4", "b.mp4", "c.mp4")
    (tmp_path / "t.csv").write_text("path,label\nclips/a.mp4,0\nclips/b.mp4,2\nclips/c.mp4,-1\n")
    with caplog.at_level("INFO"):
        dataset = open_dataset("csv", table=tmp_path / "t.csv")
    assert "t.csv: labels are numbers of 3 classes, counted from 0; no clip of 1" in caplog.text
    assert reasons(dataset) == {"line 4": f"{tmp_path / 't.csv'}, line 4: label -1: unlabelled"}


# ---------------------------------------------------------------------------------------------------- class files

def own_pickle(root: Path, *labels: Any, **more: Any) -> dict[str, Any]:
    """A pickle and videos of clips with these labels."""
    names = [f"v{number}" for number in range(len(labels))]
    videos = write_tree(root / "videos", *(f"{name}.mp4" for name in names))
    entries = [annotation(name, label, FRAMES) for name, label in zip(names, labels, strict=True)]
    content = {"annotations": entries, "split": {"train": names}, **more}
    (root / "set.pkl").write_bytes(pickle.dumps(content))
    return {"pickle_path": root / "set.pkl", "videos": videos}


def test_class_names_beside_the_pickle(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    sources, names = own_pickle(tmp_path, 0, 1, 2), tmp_path / "classes.txt"
    names.write_bytes("\ufeffwalk\nrun\ngrüßen\n".encode())
    with caplog.at_level("INFO"):
        assert open_dataset("pyskl", **sources).classes == ("walk", "run", "grüßen")
    assert f"class names from {names}" in caplog.text
    names.write_bytes("walk\r\nrun\r\ngrüßen\r\n".encode("latin-1"))
    assert open_dataset("pyskl", **sources).classes == ("walk", "run", "grüßen")
    for others in ("drink\neat\n", "drink\neat\nsit\nstand\n"):
        names.write_text(others)
        with pytest.raises(UserError, match=r"classes\.txt: \d class names, but there are labels of 3 classes; if they are "
                                            r"those of .*set\.pkl, pass --classes .*classes\.txt, else move that file away"):
            open_dataset("pyskl", **sources)
    assert open_dataset("pyskl", **sources, classes=names).classes == ("drink", "eat", "sit", "stand")
    names.write_text("walk\nrun\nwalk\n")
    with pytest.raises(UserError, match=r"classes\.txt: 'walk' is listed twice; expected the name of every class once"):
        open_dataset("pyskl", **sources)


def test_class_names_of_a_table(tmp_path: Path) -> None:
    """A list, or a file with one: the file's name is not a class."""
    (tmp_path / "t.csv").write_text("path,label\na.mp4,0\nb.mp4,1\n")
    names = tmp_path / "names.txt"
    names.write_bytes(b"\xef\xbb\xbfwalk\r\n\r\nrun\x0cor jump\r\n")
    for classes in (names, str(names), ("walk", "run\x0cor jump")):
        assert open_dataset("csv", table=tmp_path / "t.csv", classes=classes).classes == ("walk", "run\x0cor jump")
    for wrong, message in ((("walk", "walk"), "'walk' is listed twice"), ((), "class names: there is none"),
                           (str(tmp_path / "none.txt"), "no such file")):
        with pytest.raises(UserError, match=message):
            open_dataset("csv", table=tmp_path / "t.csv", classes=wrong)


def test_class_names_in_the_pickle(tmp_path: Path) -> None:
    sources = own_pickle(tmp_path, 0, 1, classes=["walk", "run", "sit"])
    assert open_dataset("pyskl", **sources).classes == ("walk", "run", "sit")
    (tmp_path / "classes.txt").write_text("drink\neat\nsit\n")
    with pytest.raises(UserError, match=r"classes\.txt: other class names than those in .*set\.pkl"):
        open_dataset("pyskl", **sources)


@pytest.mark.parametrize("classes", [{"walk": 0, "run": 1}, {0: "walk", 1: "run"}, {"walk", "run"}, "walk"])
def test_class_names_without_an_order_are_refused(tmp_path: Path, classes: object) -> None:
    sources = own_pickle(tmp_path, 0, 1, classes=classes)
    with pytest.raises(UserError, match=r"set\.pkl: 'classes' is of type (dict|set|str), expected a list of the names"):
        open_dataset("pyskl", **sources)


# ---------------------------------------------------------------------------------------------------- tables

@pytest.mark.parametrize("content", [
    b"path,label,split\nclips/gr\xc3\xbc\xc3\x9f.mp4,walk,val\n",
    b"\xef\xbb\xbfpath,label,split\r\nclips/gr\xc3\xbc\xc3\x9f.mp4,walk,val\r\n",
    b"path;label;split\nclips/gr\xfc\xdf.mp4;walk;val\n",
    b"Path\tlabel \tSPLIT\tnote\nclips/gr\xfc\xdf.mp4\twalk\tval\tx\n",
    "path, label, split\n clips/grüß.mp4, walk, val\n\n".encode("utf-16"),
    b"path,label,split\rclips/gr\xfc\xdf.mp4,walk,val\r",
    b"\nsep=;\npath;label;split\nclips/gr\xfc\xdf.mp4;walk;val\n",
    b'"path","label","split"\n"clips/gr\xc3\xbc\xc3\x9f.mp4","walk","val"\n',
])
def test_tables_as_people_have_them(tmp_path: Path, content: bytes) -> None:
    write_tree(tmp_path / "clips", "grüß.mp4")
    (tmp_path / "t.csv").write_bytes(content)
    dataset = open_dataset("csv", table=tmp_path / "t.csv")
    assert dataset.classes == ("walk",) and dataset.splits == {"val": ["clips%2Fgr%C3%BC%C3%9F"]}
    assert Path(dataset.clips[0].video).is_file()


@pytest.mark.parametrize(("content", "message"), [
    ('H\na.mp4,"walk\nb.mp4,run\n', "cannot be read: lines 2 to 3: a field extends over them. Is a quotation mark left open?"),
    (f"H\na.mp4,{'x' * 200_000}\n", "cannot be read: line 2: field larger than field limit (131072). Is"),
    (f'H\na.mp4,"walk\nb.mp4,run"\nc.mp4,run\nd.mp4,{"x" * 200_000}\n\n"e.mp4,run\nf.mp4,walk\n',
     "lines 2 to 3: a field extends over them; line 5: field larger than field limit (131072); lines 7 to 8: a field extends"),
    ('H\n' + 'a.mp4,"walk\nb.mp4,run"\n' * 12, "lines 20 to 21: a field extends over them; and 2 more. Is"),
    ('path,"label\na.mp4,walk\nb.mp4,"run\n', "t.csv: cannot be read: lines 1 to 3: a field"),
    ('x' * 200_000, "t.csv: expected a header with path and label"),
    ("H,split, Split\na.mp4,walk,train,test\n", "t.csv: the header names column 'split' twice; expected it once"),
    ("H\na.mp4,walk,train\nb.mp4,walk,,\nc.mp4,run,test\n",
     "cannot be read: line 2: 'train' is in a column that the header does not name; line 4: 'test' is in a column that the"),
])
def test_lines_that_cannot_be_read_swallow_no_clips(tmp_path: Path, content: str, message: str) -> None:
    """All lines that must be corrected are named at once."""
    (tmp_path / "t.csv").write_text(content.replace("H", "path,label", 1))
    with pytest.raises(UserError, match=re.escape(message)):
        open_dataset("csv", table=tmp_path / "t.csv")


def test_a_row_that_is_too_short_is_one_skipped_clip(tmp_path: Path) -> None:
    write_tree(tmp_path, "a.mp4")
    (tmp_path / "t.csv").write_text("label,path\nrun\nwalk,a.mp4\n")
    dataset = open_dataset("csv", table=tmp_path / "t.csv")
    assert [clip.key for clip in dataset.clips] == ["a"]
    assert reasons(dataset) == {"line 2": f"{tmp_path}/t.csv, line 2: the path is empty"}


def test_a_class_spelled_in_two_ways_is_one_class(tmp_path: Path) -> None:
    """A Mac writes an accent after its letter, other systems as a part of it: both look alike."""
    root = write_tree(tmp_path / "own", "train/u\u0308bung/a.mp4", "val/\u00fcbung/b.mp4")
    assert open_dataset("folder", root=root).classes == ("\u00fcbung",)
    (tmp_path / "t.csv").write_text("path,label\na.mp4,u\u0308bung\nb.mp4,\u00fcbung\n", encoding="utf-8")
    assert open_dataset("csv", table=tmp_path / "t.csv").classes == ("\u00fcbung",)
    assert open_dataset("csv", table=tmp_path / "t.csv", classes=["u\u0308bung"]).clips[1].label == 0


@pytest.mark.parametrize(("file", "row"), [("cafe\u0301", "caf\u00e9"), ("caf\u00e9", "cafe\u0301"), ("a", "a")])
def test_a_row_finds_its_file_in_either_spelling(tmp_path: Path, file: str, row: str) -> None:
    write_tree(tmp_path, f"{file}/{file}.mp4")
    (tmp_path / "t.csv").write_text(f"path,label\n{row}/{row}.mp4,walk\n", encoding="utf-8")
    assert [Path(clip.video).is_file() for clip in open_dataset("csv", table=tmp_path / "t.csv").clips] == [True]


def test_paths_of_a_table_may_be_written_as_on_windows(tmp_path: Path) -> None:
    write_tree(tmp_path, "walk/ü.mp4", "odd\\name.mp4")  # a backslash may also be a part of a name
    (tmp_path / "t.csv").write_text("path,label\n.\\walk\\u\u0308.mp4,a\nodd\\name.mp4,b\n", "utf-8")
    clips = open_dataset("csv", table=tmp_path / "t.csv").clips
    assert [Path(clip.video) for clip in clips] == [tmp_path / "walk" / "ü.mp4", tmp_path / "odd\\name.mp4"]


@pytest.mark.parametrize(("video", "name"), [
    ("cafe\u0301.mp4", "caf\u00e9"), ("caf\u00e9.mp4", "cafe\u0301"), ("a.m2v", "a"), ("a.m2v", "a.m2v"), ("a.b.m2v", "a.b")])
def test_poses_have_the_name_of_their_video_in_any_spelling(tmp_path: Path, video: str, name: str) -> None:
    """An accent within its letter or behind it; a video's extension, also an unusual one, left out or not."""
    write_tree(tmp_path / "own", f"walk/{video}")
    (tmp_path / "poses").mkdir()
    np.savez(tmp_path / "poses" / f"{name}.npz", keypoint=block_pose(FRAMES))
    dataset = open_dataset("poses-json", videos=tmp_path / "own", poses=tmp_path / "poses", format="npz")
    assert [Path(clip.video).name for clip in dataset.clips] == [video]


def test_a_file_spelled_in_two_ways_is_one_clip(tmp_path: Path) -> None:
    write_tree(tmp_path / "clips", "a.mp4", "b.mp4")
    (tmp_path / "link").symlink_to(tmp_path / "clips", target_is_directory=True)
    rows = ["clips/a.mp4,walk,train", "./clips/a.mp4,walk,test", f"{tmp_path}/clips/../clips/a.mp4,walk,test",
            "link/a.mp4,walk,test", "clips/b.mp4,walk,test"]
    (tmp_path / "t.csv").write_text("path,label,split\n" + "\n".join(rows) + "\n")
    dataset = open_dataset("csv", table=tmp_path / "t.csv")
    assert dataset.splits == {"train": ["clips%2Fa"], "test": ["clips%2Fb", "line 3", "line 4", "line 5"]}
    assert [entry.reason.partition(": ")[2] for entry in dataset.skipped] == [
        f"'{name}' is the file of line 2, which is taken"
        for name in ("./clips/a.mp4", f"{tmp_path}/clips/../clips/a.mp4", "link/a.mp4")]


def test_a_clip_has_the_split_of_its_own_row(tmp_path: Path) -> None:
    """Not that of an earlier row of the same file, which is left out."""
    write_tree(tmp_path, "a.mp4", "b.mp4")
    (tmp_path / "t.csv").write_text("path,label,split\na.mp4,,train\na.mp4,walk,test\na.mp4,walk,val\nb.mp4,run,train\n")
    dataset = open_dataset("csv", table=tmp_path / "t.csv")
    assert dataset.splits == {"test": ["a"], "train": ["b", "line 2"], "val": ["line 4"]}
    assert list(reasons(dataset)) == ["line 2", "line 4"]


def test_one_video_is_one_clip_of_a_pickle(tmp_path: Path) -> None:
    """Under one name, and under names with and without folder or extension; the name whose folders fit is used."""
    root = write_tree(tmp_path / "own", "walk/a.mp4", "run/b_rgb.mp4", "c.mp4")
    names = ["sit/a", "walk/a", "a", "walk/a", "b", "b_rgb", "c.mp4", "c.avi"]
    path = write_pickle(tmp_path / "set.pkl", [annotation(name, 0, FRAMES) for name in names], {"train": names})
    dataset = open_dataset("pyskl", pickle_path=path, videos=root)
    assert [clip.key for clip in dataset.clips] == ["walk%2Fa", "b_rgb", "c"]
    assert reasons(dataset) == {
        "walk%2Fa (again)": f"{root}/walk/a.mp4 is listed twice", "c (again)": f"{root}/c.mp4 is listed twice",
        "sit%2Fa": f"{root}/walk/a.mp4 is the video of 'walk%2Fa', which is taken",
        "a": f"{root}/walk/a.mp4 is the video of 'walk%2Fa', which is taken",
        "b": f"{root}/run/b_rgb.mp4 is the video of 'b_rgb', which is taken"}
    assert packed(dataset, tmp_path).manifest.splits == {"train": ["walk%2Fa", "b_rgb", "c"]}


@pytest.mark.parametrize(("names", "videos", "taken"), [
    (["walk/a", "walk/b"], ["run/a.mp4", "walk/b.mp4"], ["walk%2Fb"]),  # walk is a folder of videos, too
    (["walk/a", "run/b"], ["run/a.mp4", "run/b.mp4"], ["run%2Fb"]),  # run is one of names, too
    (["val/walk/a", "train/walk/b"], ["train/walk/a.mp4", "train/walk/b.mp4"], ["train%2Fwalk%2Fb"]),
    (["walk/a", "walk/b"], ["part1/a.mp4", "b_rgb.mp4"], ["walk%2Fa", "walk%2Fb"]),
    (["train/a", "train/b"], ["train/walk/a.mp4", "train/run/b.mp4"], ["train%2Fa", "train%2Fb"]),
])
def test_a_video_of_another_folder_is_of_another_clip(
    tmp_path: Path, names: list[str], videos: list[str], taken: list[str]
) -> None:
    root = write_tree(tmp_path / "own", *videos)
    path = write_pickle(tmp_path / "set.pkl", [annotation(name, 0, FRAMES) for name in names], {"train": names})
    dataset = open_dataset("pyskl", pickle_path=path, videos=root)
    assert [clip.key for clip in dataset.clips] == taken
    assert all(f"no video '{names[0]}' below {root}: {root}/{videos[0]}, which has the same name, is of folder" in entry.reason
               for entry in dataset.skipped)


def test_absolute_paths_never_become_keys(tmp_path: Path) -> None:
    write_tree(tmp_path / "disk", "x/walk/a.mp4", "x/run/a.mp4")
    write_tree(tmp_path / "tables" / "clips", "c.mp4")
    rows = [f"{tmp_path}/disk/x/walk/a.mp4,walk", f"file://{tmp_path}/disk/x/run/a.mp4,run", "clips/c.mp4,run",
            "memory://bucket/d.mp4,run"]
    (tmp_path / "tables" / "t.csv").write_text("path,label\n" + "\n".join(rows[:3]) + "\n")
    dataset = open_dataset("csv", table=tmp_path / "tables" / "t.csv")
    assert [clip.key for clip in dataset.clips] == ["walk%2Fa", "run%2Fa", "clips%2Fc"]
    (tmp_path / "tables" / "t.csv").write_text("path,label\n" + "\n".join(rows[2:]) + "\n")
    assert [clip.key for clip in open_dataset("csv", table=tmp_path / "tables" / "t.csv").clips] == ["clips%2Fc", "d"]
    entries = [annotation(f"{tmp_path}/disk/x/{name}/a", 0, FRAMES) for name in ("walk", "run")]
    path = write_pickle(tmp_path / "set.pkl", entries)
    dataset = open_dataset("pyskl", pickle_path=path, videos=tmp_path / "disk")
    assert [clip.key for clip in dataset.clips] == dataset.splits["train"] == ["walk%2Fa", "run%2Fa"]
    assert [Path(clip.video).parent.name for clip in dataset.clips] == ["walk", "run"]


# ---------------------------------------------------------------------------------------------------- odd items

ODD: dict[str, tuple[Any, str]] = {
    "label_list": ({"label": [1]}, "label '[1]' is of type list"),
    "label_none": ({"label": None}, "label None: unlabelled"),
    "label_name": ({"label": "walk"}, "label 'walk' is a name, most others are numbers"),
    "frames_none": ({"total_frames": None}, "total_frames is 'None', expected a whole number"),
    "frames_text": ({"total_frames": "4"}, "total_frames is '4', expected a whole number"),
    "shape_text": ({"img_shape": "wide"}, "img_shape is wide, expected (height, width)"),
    "shape_one": ({"img_shape": 3}, "img_shape is 3, expected (height, width)"),
    "joints_text": ({"keypoint": "none"}, "keypoint is of type str, expected an array of numbers"),
    "joints_ragged": ({"keypoint": [[1], [2, 3]]}, "keypoint is of type list, expected an array of numbers"),
    "joints_dict": ({"keypoint": {}}, "keypoint is of type dict, expected an array of numbers"),
    "scores_text": ({"keypoint_score": "high"}, "keypoint_score is of type str"),
    "joints_objects": ({"keypoint": np.array([[None, 1], [2, 3]], object)}, "keypoint has shape (2, 2)"),
    "joints_words": ({"keypoint": np.array(["a", "b"])}, "keypoint is of type ndarray, expected an array of numbers"),
    "score_inside": ({"keypoint": np.full((1, FRAMES, 17, 3), 60.0), "keypoint_score": None},
                     "expected (persons, frames, joints, 2); if the third number is a score, it belongs in keypoint_score"),
    "metres": ({"keypoint": np.full((1, FRAMES, 17, 3), 2.5)}, "keypoint has 3 coordinates: these are metres, not pixels"),
    "boxes_text": ({"bboxes": "none"}, "bboxes is of type str, expected an array of numbers"),
    "boxes_short": ({"bboxes": np.zeros((FRAMES, 3))}, "bboxes has a row of 3 numbers"),
    "boxes_long": ({"bboxes": np.ones((FRAMES, 10))}, "bboxes has a row of 10 numbers, expected x1, y1, x2, y2 and"),
    "boxes_deep": ({"bboxes": np.ones((FRAMES, 2, 3))}, "bboxes has a row of 2 x 3 numbers"),
    "subject_list": ({"subject": [1]}, "subject is '[1]', expected a whole number"),
}


def test_an_odd_annotation_is_one_skipped_clip(tmp_path: Path) -> None:
    """Each is left out with its name and reason; all others are packed."""
    videos = write_tree(tmp_path / "videos", "good.mp4", "better.mp4", *(f"{name}.mp4" for name in ODD))
    better = annotation("better", "1", FRAMES, names=np.array(["a"]))
    entries: list[Any] = [annotation("good", 0, FRAMES), better, 7, None,
                          annotation("nameless", 0, FRAMES, frame_dir=["x"])]
    entries += [annotation(name, 0, FRAMES) | changes for name, (changes, _) in ODD.items()]
    path = tmp_path / "set.pkl"
    path.write_bytes(pickle.dumps({"annotations": entries, "split": {"train": ["good", "better", *ODD, "unknown", "good"]}}))
    dataset = open_dataset("pyskl", pickle_path=path, videos=videos)
    assert [clip.key for clip in dataset.clips] == ["good", "better"] and dataset.classes == ("class_0", "class_1")
    found = reasons(dataset)
    assert "unknown" in found and "in split train, but without annotation" in found["unknown"]
    assert {name for name, (_, reason) in ODD.items() if reason not in found[name]} == set()
    listed = [entry.reason for entry in dataset.skipped if entry.key == "(annotation without name)"]
    assert listed == [f"the annotation is of type {kind}, expected a dictionary" for kind in ("int", "NoneType")]
    shards = packed(dataset, tmp_path)
    assert shards.manifest.splits == {"train": ["good", "better"]}


BOXES = np.array([[[20, 30, 40, 60], [50, 20, 90, 70]], [[25, 30, 45, 60], [0, 0, 0, 0]]], np.float32)  # of two frames
AROUND = [[20, 20, 90, 70], [25, 30, 45, 60]]


@pytest.mark.parametrize(("boxes", "around"), [
    (BOXES, AROUND),
    (np.concatenate([BOXES, np.full((2, 2, 1), 0.9)], axis=2), AROUND),
    ([BOXES[0], BOXES[1, :1]], AROUND),
    ([BOXES[0], []], [AROUND[0], [0, 0, 0, 0]]),
    (BOXES[:, :1], BOXES[:, 0]),
    (BOXES[:, 1], BOXES[:, 1]),
])
def test_boxes_of_a_person_each_become_the_one_around_them(boxes: Any, around: Any) -> None:
    pose = pose_of(annotation("a", 0, 2, bboxes=boxes))
    assert pose.box_T4 is not None and pose.box_T4.dtype == np.float32 and np.array_equal(pose.box_T4, around)


def test_facts_that_an_annotation_states_about_its_clip(tmp_path: Path) -> None:
    """Its numbers, the picture of its joints, and with --as-coco17 every joint's own score."""
    videos = write_tree(tmp_path / "videos", "a.mp4", "b.mp4")
    joints: dict[str, Any] = {
        "keypoint": block_pose(FRAMES, 25), "keypoint_score": np.tile(np.arange(25, dtype=np.float32), (1, FRAMES, 1))}
    entries = [annotation("a", 0, FRAMES, original_shape=(720, 1280), subject=1, camera=2, setup=3, **joints),
               annotation("b", 0, FRAMES, img_shape=None, original_shape=(720, 1280), **joints)]
    path = write_pickle(tmp_path / "set.pkl", entries)
    first, second = open_dataset("pyskl", pickle_path=path, videos=videos, joints="kinect25", as_coco17=True).clips
    assert (first.subject, first.camera, first.setup, second.subject) == (1, 2, 3, None)
    assert (first.width, first.height, second.width, second.height) == (WIDTH, HEIGHT, 1280, 720)
    number = {name: place for place, name in enumerate(layout("kinect25").joints)}
    assert first.score_MTV is not None and first.score_MTV[0, 3].tolist() == [number.get(name, 0) for name in COCO17.joints]


def test_a_name_without_annotation_is_one_skipped_clip(tmp_path: Path) -> None:
    """Once, even if it is in several splits."""
    splits = {"xsub_train": ["a", "z"], "xview_train": ["z", "a"], "xset_train": ["a", "y"]}
    path = write_pickle(tmp_path / "set.pkl", [annotation("a", 0, FRAMES)], splits)
    dataset = open_dataset("pyskl", pickle_path=path, videos=write_tree(tmp_path / "videos", "a.mp4"))
    assert [(entry.key, entry.reason) for entry in dataset.skipped] == [
        ("z", "in splits xsub_train, xview_train, but without annotation"),
        ("y", "in split xset_train, but without annotation")]


def test_a_split_that_is_a_set_has_one_order(tmp_path: Path) -> None:
    """That of a set of names changes from run to run: a packing could not be resumed."""
    sources = own_pickle(tmp_path, *range(8))
    content = pickle.loads(sources["pickle_path"].read_bytes())
    names = [entry["frame_dir"] for entry in content["annotations"]]
    content["split"] = {"train": set(names)}
    sources["pickle_path"].write_bytes(pickle.dumps(content))
    assert open_dataset("pyskl", **sources).splits == {"train": sorted(names)}


def test_annotations_as_a_dictionary_by_name(tmp_path: Path) -> None:
    videos = write_tree(tmp_path / "videos", "a.mp4", "b.mp4")
    entries = {name: {key: value for key, value in annotation(name, 0, FRAMES).items() if key != "frame_dir"} for name in "ab"}
    (tmp_path / "set.pkl").write_bytes(pickle.dumps({"annotations": entries, "split": {"train": ["a", "b"]}}))
    assert [clip.key for clip in open_dataset("pyskl", pickle_path=tmp_path / "set.pkl", videos=videos).clips] == ["a", "b"]


ODD_JSON = ['{"frames": [[3]]}', '{"frames": {"a": 1}}', '{"frames": [{"pose2d": 1}]}', '{"frames": [[{"pose2d": "x"}]]}', "[]",
            '{"frames": [[{"pose2d": null}]]}', '{"frames": null}', "\x00", '{"frames": []}']


def test_an_odd_smarthome_file_is_one_skipped_clip(tmp_path: Path) -> None:
    stems = [f"Walk_p{number + 2:02d}_r00_v00_c01" for number in range(len(ODD_JSON) + 1)]
    names = (*(f"{stem}.mp4" for stem in stems), "._Cook.Cleandishes_p02_r00_v02_c03.mp4", "holiday.mp4")
    videos = write_tree(tmp_path / "mp4", *names, height=144)  # of the shape of 640x480
    (tmp_path / "json").mkdir()
    good = json.dumps({"frames": [[{"pose2d": list(range(20, 46))}]] * FRAMES})
    for stem, text in zip(stems, [good, *ODD_JSON], strict=True):
        (tmp_path / "json" / f"{stem}.json").write_text(text)
    dataset = open_dataset("smarthome", videos=videos, skeletons=tmp_path / "json")
    assert "expected a Smarthome name like Cook.Cleandishes_p02_r00_v02_c03.mp4" in reasons(dataset)["holiday"]
    pack(dataset, tmp_path / "out", PackOptions(workers=1, size=96))
    listed = [json.loads(line) for line in (tmp_path / "out" / "skipped.jsonl").read_text().splitlines()]
    assert sorted(entry["key"] for entry in listed) == sorted([*stems[1:], "holiday"])
    assert all(entry["key"] in entry["reason"] or "frame" in entry["reason"] for entry in listed[:-1])
    assert ShardSet.open(tmp_path / "out").manifest.num_clips == 1
    pack(dataset, tmp_path / "out", PackOptions(workers=1, size=96, resume=True))  # meets it again and goes on


# ---------------------------------------------------------------------------------------------------- splits

def test_a_list_of_annotations_and_made_splits(tmp_path: Path) -> None:
    names = [f"S001C00{camera}P{person:03d}R001A001" for camera in (1, 2) for person in range(1, 11)]
    videos = write_tree(tmp_path / "videos", *(f"{name}.mp4" for name in names))
    (tmp_path / "set.pkl").write_bytes(pickle.dumps([annotation(name, 0, FRAMES) for name in names]))
    sources: dict[str, Any] = {"pickle_path": tmp_path / "set.pkl", "videos": videos}
    for rule, part, size in (("subject", slice(8, 12), 4), ("camera", slice(4, 8), 10), ("random:0.5", slice(0, 20), 10)):
        splits = open_dataset("pyskl", **sources, split_by=rule).splits
        assert sorted(splits["train"] + splits["val"]) == names and len(splits["val"]) == size
        assert not {key[part] for key in splits["train"]} & {key[part] for key in splits["val"]}
        assert open_dataset("pyskl", **sources, split_by=rule).splits == splits
    for rule, message in (("setup", "all clips belong together"), ("person", "expected subject, camera, setup or random"),
                          ("random:2", "expected subject")):
        with pytest.raises(UserError, match=message):
            open_dataset("pyskl", **sources, split_by=rule)
    assert sorted(open_dataset("ntu60", **sources).splits) == ["xsub_train", "xsub_val", "xview_train", "xview_val"]
    folder = write_tree(tmp_path / "own", *(f"run/{number}.mp4" for number in range(10)))
    assert len(open_dataset("folder", root=folder, split_by="random").splits["val"]) == 2
    with pytest.raises(UserError, match=r"--split-by subject: 10 clips have no subject, e\.g\. run%2F0; add its number"):
        open_dataset("folder", root=folder, split_by="subject")


@pytest.mark.parametrize(("form", "rules"), [
    ("S{0:03d}C{1:03d}P001R001A001", ("setup", "camera")), ("S001C{1:03d}P{0:03d}R001A001", ("subject", "camera")),
    ("Walk_p{0:02d}_r00_v00_c{1:02d}", ("subject", "camera")), ("P{0:03d}S{1:02d}G10B00H10UC1LC0", ("subject", "setup")),
])
def test_splits_by_the_numbers_in_names(form: str, rules: tuple[str, str]) -> None:
    clips = [ClipAnnotation(form.format(*divmod(i, 4)), 0, f"{i}.mp4") for i in range(16)]
    for place, rule in enumerate(rules):
        splits = split_by(f"{rule}:0.25", clips)
        train, val = ({divmod(i, 4)[place] for i in range(16) if clips[i].key in splits[part]} for part in ("train", "val"))
        assert len(train) == 3 and train | val == {0, 1, 2, 3} and len(val) == 1
    assert [len(keys) for keys in split_by(f"{rules[0]}:0.99", clips).values()] == [4, 12], "one group is left for training"


def test_parts_of_one_video_are_in_one_made_split() -> None:
    clips = [ClipAnnotation(f"000{i // 5}-L_00{i % 5}", 0, "a.avi", start_frame=i, end_frame=i + 1) for i in range(20)]
    assert [len({key[:6] for key in keys}) for keys in split_by("random", clips).values()] == [3, 1]


def test_keys_of_names_in_utf8_are_as_before() -> None:
    assert safe_key("grüß/a.b") == "gr%C3%BC%C3%9F%2Fa-b"
    assert block_pose(FRAMES).shape == (1, FRAMES, 17, 2)


# ---------------------------------------------------------------------------------------------------- packed again

def test_resume_after_a_video_was_repaired_says_how_to_continue(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = write_tree(tmp_path / "own", "run/a.mp4", "walk/b.mp4", "walk/c.mp4")
    whole = (root / "walk" / "c.mp4").read_bytes()
    (root / "walk" / "c.mp4").write_bytes(b"broken")
    options = PackOptions(workers=1, size=96, resume=True)
    pack(open_dataset("folder", root=root), tmp_path / "out", options)
    before = (tmp_path / "out" / "manifest.json").read_bytes()
    with caplog.at_level("INFO"):
        pack(open_dataset("folder", root=root), tmp_path / "out", options)
    lacks = "1 clips of this input, e.g. walk%2Fc, are not in it (see skipped.jsonl)"
    assert f"out: finished already, kept; {lacks}: to try them again, pack into another folder" in caplog.text
    (root / "walk" / "c.mp4").write_bytes(whole)
    with pytest.raises(UserError, match=re.escape(f"or videos have changed since; {lacks}; nothing is added to a finished set: "
                                                  "pack into another folder, or delete this one")):
        pack(open_dataset("folder", root=root), tmp_path / "out", options)
    assert (tmp_path / "out" / "manifest.json").read_bytes() == before
    assert pack(open_dataset("folder", root=root), tmp_path / "again", options).num_clips == 3
