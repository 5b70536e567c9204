"""Names by which extracted poses are matched with their videos, in packing and in prediction."""

from pathlib import Path

import cv2
import numpy as np
from pose_inputs import find_videos
from shards_data import annotation, frame_picture, write_pickle, write_tree

from svdata2vec.evaluation.persons import persons_of_poses
from svdata2vec.shards.readers.sources import open_dataset
from svdata2vec.shards.video import VideoReader


def test_videos_with_odd_extensions_keep_their_own_poses(tmp_path: Path) -> None:
    """An extension that no list knows; a name that ends like a video's, beside the one that it would be cut to; a folder."""
    root = write_tree(tmp_path / "own", "run/a.dat", "run/a.mov.mp4", "run/b.clip")
    (root / "run" / "c.mp4").mkdir()
    for number in range(4):
        cv2.imwrite(str(root / "run" / "c.mp4" / f"{number}.png"), frame_picture(0, number))
    name_of = {v.path.removeprefix(f"{root}/run/"): v.name for v in find_videos([str(root)]).videos}
    assert name_of == {"a.dat": "a", "a.mov.mp4": "a.mov", "b.clip": "b", "c.mp4": "c.mp4"}
    edges = {name: 80.0 + place for place, name in enumerate(name_of.values())}  # of each video's box
    poses = write_pickle(tmp_path / "own.pkl", [
        annotation(name, 0, 4, bboxes=np.float32([[10, 10, edge, 90]] * 4)) for name, edge in edges.items()])
    dataset = open_dataset("pyskl", pickle_path=poses, videos=root)
    assert dataset.skipped == [] and sorted(dataset.splits["train"]) == ["a", "a-mov", "b", "c-mp4"]
    assert {clip.key: Path(clip.video).name for clip in dataset.clips} == {
        "a": "a.dat", "a-mov": "a.mov.mp4", "b": "b.clip", "c-mp4": "c.mp4"}
    for file, name in name_of.items():
        with VideoReader(root / "run" / file) as reader:
            assert persons_of_poses(poses, root / "run" / file, reader.info).box == (10, 10, edges[name], 90)
