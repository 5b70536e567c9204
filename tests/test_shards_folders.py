"""Users' folders as input of every reader: links, file extensions, hidden files, two videos of one name, encodings."""

import errno
import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from shards_data import annotation, packed, reasons, write_pickle, write_tree, write_video

from svdata2vec.cli.main import main
from svdata2vec.shards.errors import MachineError, UserError
from svdata2vec.shards.readers.sources import open_dataset
from svdata2vec.shards.readers.walk import walk
from svdata2vec.shards.reading.shardset import ShardSet

FRAMES = 4


def test_links_are_followed_and_loops_are_not(tmp_path: Path) -> None:
    elsewhere = write_tree(tmp_path / "elsewhere", "a.mp4", "b.mp4")
    root = write_tree(tmp_path / "own", "run/c.mp4")
    (root / "walk").symlink_to(elsewhere, target_is_directory=True)
    (root / "run" / "d.mp4").symlink_to(elsewhere / "a.mp4")
    (root / "run" / "above").symlink_to(root, target_is_directory=True)
    (root / "run" / "gone.mp4").symlink_to(tmp_path / "nowhere.mp4")
    os.mkfifo(root / "run" / "pipe.mp4")
    dataset = open_dataset("folder", root=root)
    assert dataset.classes == ("run", "walk")
    assert [clip.key for clip in dataset.clips] == ["run%2Fc", "run%2Fd", "walk%2Fa", "walk%2Fb"]
    found = reasons(dataset)
    assert set(found) == {"run/above", "run/gone.mp4", "run/pipe.mp4"}
    assert "a link to a folder above it" in found["run/above"]
    assert "nowhere.mp4, which cannot be reached" in found["run/gone.mp4"]
    assert "neither a file nor a folder" in found["run/pipe.mp4"]
    shards = packed(dataset, tmp_path)
    assert shards.manifest.num_clips == 4
    listed = [json.loads(line) for line in (tmp_path / "packed" / "skipped.jsonl").read_text().splitlines()]
    assert {entry["key"] for entry in listed} == set(found)


def test_an_unreadable_folder_is_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write_tree(tmp_path / "own", "run/a.mp4", "walk/b.mp4")
    real = os.scandir

    def scandir(path: str) -> Any:
        if str(path).endswith("walk"):
            raise PermissionError(13, "Permission denied")
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    assert reasons(open_dataset("folder", root=root)) == {"walk": f"{root / 'walk'}: cannot be read (Permission denied)"}


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE])
def test_a_disk_that_fails_leaves_nothing_out(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its folders are as good as ever, and could not be added to a finished set."""
    root = write_tree(tmp_path / "own", "run/a.mp4", "walk/b.mp4")
    real = os.scandir

    def scandir(path: str) -> Any:
        if str(path).endswith("walk"):
            raise OSError(number, os.strerror(number))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    said = rf"^{root / 'walk'}: cannot be read \({os.strerror(number)}\); its disk or server fails"
    with pytest.raises(MachineError, match=said):
        open_dataset("folder", root=root)


def test_a_folder_below_an_inaccessible_one_is_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Names are read (mode 644), but nothing else of what they call; no link is among them."""
    root = write_tree(tmp_path / "own", "run/a.mp4", "train/walk/b.mp4")
    real = os.scandir

    def refuse() -> None:
        raise PermissionError(13, "Permission denied")

    def scandir(path: str) -> Any:
        if not str(path).endswith("train"):
            return real(path)
        return [SimpleNamespace(name=entry.name, path=entry.path, is_file=lambda: False, stat=refuse) for entry in real(path)]

    monkeypatch.setattr(os, "scandir", scandir)
    assert reasons(open_dataset("folder", root=root)) == {
        "train/walk": f"{root / 'train/walk'}: cannot be read (Permission denied)"}


def test_only_unreadable_files_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write_tree(tmp_path / "own", "run/a.mp4", "walk/b.mp4")
    real = Path.stat

    def stat(path: Path, **options: bool) -> os.stat_result:
        if path.name == "b.mp4":
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, **options)

    monkeypatch.setattr(Path, "stat", stat)
    assert packed(open_dataset("folder", root=root), tmp_path).manifest.num_clips == 1
    (listed,) = (tmp_path / "packed" / "skipped.jsonl").read_text().splitlines()
    assert json.loads(listed)["reason"] == f"{root / 'walk/b.mp4'}: cannot be read (Permission denied)"


def test_a_dead_link_among_pictures_leaves_out_their_video_alone(tmp_path: Path) -> None:
    root = write_tree(tmp_path / "own", "run/a.mp4")
    (root / "walk" / "b").mkdir(parents=True)
    for number in range(3):
        (root / "walk" / "b" / f"{number}.jpg").symlink_to(tmp_path / "nowhere")
    (root / "walk" / "b" / "3.jpg").write_bytes(b"picture")
    assert packed(open_dataset("folder", root=root), tmp_path).manifest.num_clips == 1
    listed = map(json.loads, (tmp_path / "packed" / "skipped.jsonl").read_text().splitlines())
    assert {entry["key"]: entry["reason"] for entry in listed}["walk%2Fb"] == (
        f"{root / 'walk/b/0.jpg'}: cannot be read (No such file or directory)")


@pytest.mark.parametrize("ending", [".wmv", ".flv", ".mts", ".3gp", ".MP4", ".clip"])
def test_a_video_is_what_can_be_decoded_whatever_its_name_ends_with(tmp_path: Path, ending: str) -> None:
    root = write_tree(tmp_path / "own", f"run/a{ending}", "walk/b.mp4")
    assert open_dataset("folder", root=root).classes == ("run", "walk")
    path = write_pickle(tmp_path / "set.pkl", [annotation("a", 0, FRAMES)])
    assert packed(open_dataset("pyskl", pickle_path=path, videos=root), tmp_path).manifest.num_clips == 1


def test_files_that_are_no_data_are_skipped_and_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = write_tree(tmp_path / "own", "run/a.mp4", "run/._a.mp4", ".cache/x.mp4", "__MACOSX/run/a.mp4", "run/@eaDir/a.mp4")
    (root / "notes.txt").write_text("hello")
    (root / "run" / "picture.jpg").write_bytes(b"\xff\xd8\xff\xd9")
    write_video(root / "run" / "photo.mp4", 1).rename(root / "run" / "photo.HEIC")  # decoders take one for a video
    (root / "run" / "blob").write_bytes(np.random.default_rng(0).bytes(5000))
    with caplog.at_level("INFO"):
        dataset = open_dataset("folder", root=root)
    assert [clip.key for clip in dataset.clips] == ["run%2Fa"] and dataset.skipped == []
    assert "hidden files and folders are skipped: 4, among them .cache, __MACOSX, run/._a.mp4" in caplog.text
    assert "files that are no videos: 4, among them notes.txt, run/blob, run/photo.HEIC" in caplog.text


def test_a_folder_without_a_video_is_named_for_it_makes_no_class(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = write_tree(tmp_path / "own", "run/a.mp4", "train/walk/b.mp4", "run/thumbnails/c.mp4.part", "jump/d.mp4.part",
                "train/sit/more/e.zip")
    (root / "stand").mkdir()
    dataset = open_dataset("folder", root=root)
    assert dataset.classes == ("run", "walk")
    assert caplog.messages == [
        f"{root}: folders without a video, which make no class: jump (found d.mp4.part), stand (found nothing), train/sit "
        "(found e.zip)", f"{root}: folders beside those of the splits, whose videos are in train: run"]
    caplog.clear()
    open_dataset("folder", root=f"file://{root}")  # where folders are but parts of names
    assert caplog.messages[-2].endswith("no class: jump (found d.mp4.part), train/sit (found e.zip)")


@pytest.mark.parametrize(("folders", "splits"), [(("train/walk", "val/walk"), ["train", "val"]), (("walk", "run"), ["train"])])
def test_folders_are_those_of_splits_or_of_classes(tmp_path: Path, folders: tuple[str, str], splits: list[str],
                                                   caplog: pytest.LogCaptureFixture) -> None:
    """A mix of both is logged: stray videos (raw/b.mp4) would silently become a class."""
    dataset = open_dataset("folder", root=write_tree(tmp_path / "own", *(f"{folder}/a.mp4" for folder in folders)))
    assert [*dataset.splits] == splits and not caplog.text


def test_spaces_around_a_folder_s_name_make_no_other_class(tmp_path: Path) -> None:
    """Lists of classes, such as the one that pose extraction writes, cannot contain them."""
    root = write_tree(tmp_path / "own", "train/walk/a.mp4", "test/walk /b.mp4", "train/ run/c.mp4")
    dataset = open_dataset("folder", root=root)
    assert dataset.classes == ("run", "walk") and {clip.key: clip.label for clip in dataset.clips} == {
        "test%2Fwalk%20%2Fb": 1, "train%2F%20run%2Fc": 0, "train%2Fwalk%2Fa": 1}


def test_urls_are_walked_like_folders(tmp_path: Path) -> None:
    import fsspec
    memory = fsspec.filesystem("memory")
    content = write_video(tmp_path / "a.mp4", FRAMES).read_bytes()
    for name in ("train/run/a.mp4", "train/run/._a.mp4", "val/walk/b.wmv"):
        memory.pipe(f"/walked/{name}", content)
    dataset = open_dataset("folder", root="memory://walked")
    assert [clip.key for clip in dataset.clips] == ["train%2Frun%2Fa", "val%2Fwalk%2Fb"]
    assert packed(dataset, tmp_path).manifest.num_clips == 2
    with pytest.raises(UserError, match="memory://none: no such folder; expected the one with the videos"):
        walk("memory://none", "the videos")


def test_one_name_twice(tmp_path: Path) -> None:
    root = write_tree(tmp_path / "own", "run/a.mp4", "run/a.mkv", "walk/a.mp4")
    dataset = open_dataset("folder", root=root)
    assert [clip.key for clip in dataset.clips] == ["run%2Fa", "walk%2Fa"], "one name in two classes is no trouble"
    assert reasons(dataset) == {
        "run%2Fa (again)": f"{root / 'run/a.mp4'} has the name of another video, '{root / 'run/a.mkv'}'; rename one"}
    path = write_pickle(tmp_path / "set.pkl", [annotation("walk/a", 0, FRAMES), annotation("a", 0, FRAMES)])
    dataset = open_dataset("pyskl", pickle_path=path, videos=root)
    assert [clip.key for clip in dataset.clips] == ["walk%2Fa"]
    assert "both fit a or a_rgb; rename or remove one" in reasons(dataset)["a"]


def test_two_videos_that_one_name_finds(tmp_path: Path) -> None:
    """NAME and NAME_rgb: which one is meant is not guessed, unless both have annotations or the folders decide."""
    root = write_tree(tmp_path / "own", "a.mp4", "a_rgb.avi", "b.mp4", "b_rgb.avi", "walk/c.mp4", "run/c_rgb.avi")
    path = write_pickle(tmp_path / "set.pkl", [annotation(name, 0, FRAMES) for name in ("a", "b", "b_rgb", "walk/c", "run/c")])
    dataset = open_dataset("pyskl", pickle_path=path, videos=root)
    assert {clip.key: str(clip.video).removeprefix(f"{root}/") for clip in dataset.clips} == {
        "b": "b.mp4", "b_rgb": "b_rgb.avi", "walk%2Fc": "walk/c.mp4", "run%2Fc": "run/c_rgb.avi"}
    assert reasons(dataset) == {"a": f"{root}/a.mp4 and {root}/a_rgb.avi both fit a or a_rgb; rename or remove one"}


def test_a_file_and_links_to_it_are_one_video(tmp_path: Path) -> None:
    root = write_tree(tmp_path / "own", "all/a.mp4")
    (root / "by" / "walk").mkdir(parents=True)
    (root / "by" / "walk" / "a.mp4").symlink_to(root / "all" / "a.mp4")
    path = write_pickle(tmp_path / "set.pkl", [annotation("a", 0, FRAMES)])
    assert [clip.video for clip in open_dataset("pyskl", pickle_path=path, videos=root).clips] == [str(root / "all" / "a.mp4")]


@pytest.mark.skipif(sys.platform != "linux", reason="file names are bytes there")
def test_names_that_are_not_utf8(tmp_path: Path) -> None:
    root = write_tree(tmp_path / "own", "run/a.mp4")
    os.rename(os.fsencode(root / "run" / "a.mp4"), os.fsencode(root / "run") + b"/gr\xfc\xdf.mp4")  # noqa: PTH104 - bytes
    broken = os.fsencode(root / "run") + b"/br\xf6ken.mp4"
    with open(broken, "wb") as file:  # noqa: PTH123 - bytes
        file.write(b"broken")
    shards = packed(open_dataset("folder", root=root), tmp_path)
    assert shards.manifest.splits == {"train": ["run%2Fgr%FC%DF"]}
    assert shards.sample(0).meta.source == "gr\ufffd\ufffd.mp4"
    (listed,) = (json.loads(line) for line in (tmp_path / "packed" / "skipped.jsonl").read_text(encoding="utf-8").splitlines())
    assert listed["key"] == "run%2Fbr%F6ken" and "br\ufffdken.mp4" in listed["reason"]


def test_classes_whose_names_are_not_utf8(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They stay different, and everything written about them, and about a folder with such a name, is UTF-8."""
    names = [os.fsdecode(b"gr%c/a.mp4" % byte) for byte in (0xFC, 0xFD)]
    root = write_tree(tmp_path / os.fsdecode(b"own\xfc"), *names, "run/a.mp4")
    monkeypatch.chdir(root)
    assert main(["shard", "folder", str(tmp_path / "packed"), "--root", ".", "--size", "96", "--workers", "1"]) == 0
    shards = ShardSet.open(tmp_path / "packed")
    assert shards.manifest.dataset == "own\ufffd" and shards.manifest.num_clips == 3
    assert shards.manifest.classes == ("gr\\udcfc", "gr\\udcfd", "run")
    assert json.loads((tmp_path / "packed" / "summary.json").read_text(encoding="utf-8"))["packed"] == 3


def test_an_accent_written_in_two_ways(tmp_path: Path) -> None:
    root = write_tree(tmp_path / "own", "u\u0308bung.mp4")
    path = write_pickle(tmp_path / "set.pkl", [annotation("\u00fcbung", 0, FRAMES)])
    assert len(open_dataset("pyskl", pickle_path=path, videos=root).clips) == 1
