"""The Toyota Smarthome reader on miniature data in the published format, from files to packed clips."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from shards_data import WIDTH, clip_of, left_out, packed, write_video

from svdata2vec.shards.errors import UserError
from svdata2vec.shards.readers.smarthome import (
    CLASSES,
    PUBLISHED,
    VIEW_CLASSES,
    read_smarthome_json,
    smarthome_splits,
)
from svdata2vec.shards.readers.sources import open_dataset

FRAMES = 6
TALL_HEIGHT = 144  # of a video of the shape of 640x480


def smarthome_json(people: list[list[np.ndarray]], version: int) -> str:
    """A skeleton file from lists of (13, 2) LCR-Net joints per frame."""
    frames = [[{"pose2d": [*joints[:, 0].tolist(), *joints[:, 1].tolist()], "pose3d": [0.1] * 39,
                **({"cumscore": 1.5} if version == 1 else {})} for joints in persons] for persons in people]
    return json.dumps({"K": 20 if version == 1 else 5, "njts": 13, "frames": frames})


def smarthome_set(root: Path, stems: list[str], version: int) -> dict[str, object]:
    """640x480 videos are replaced by small ones: the joints are still in pixels of 640x480."""
    videos, skeletons = root / "mp4", root / "skeletons"
    videos.mkdir()
    skeletons.mkdir()
    lcr = np.stack([np.linspace(100, 148, 13), np.linspace(200, 320, 13)], axis=1)
    people = [[lcr + t] for t in range(FRAMES)]
    people[2] = []
    if version == 1:
        people[3] = [lcr + 3, lcr + 50]
    else:
        people = people[:-1]  # v1.2 has one pose fewer than the video has frames
    people[1][0][5] = -1
    people[4][0][7, 0] = -1  # seen, at the picture's edge
    suffix = "" if version == 1 else "_pose3d"
    for stem in stems:
        write_video(videos / f"{stem}.mp4", FRAMES, height=TALL_HEIGHT)
        (skeletons / f"{stem}{suffix}.json").write_text(smarthome_json(people, version))
    return {"videos": videos, "skeletons": skeletons}


@pytest.mark.parametrize("version", [1, 2])
def test_smarthome(tmp_path: Path, version: int) -> None:
    stems = ["Cook.Cleandishes_p02_r00_v02_c03", "Usetablet_p03_r01_v00_c01", "Pour.Fromcup_p03_r01_v00_c01"]
    sources = smarthome_set(tmp_path, stems, version)
    write_video(Path(str(sources["videos"])) / "Walk_p19_r00_v00_c05.mp4", FRAMES, height=TALL_HEIGHT)
    dataset = open_dataset("smarthome", **sources)
    assert {entry.key: entry.reason for entry in dataset.skipped} == {
        "Pour-Fromcup_p03_r01_v00_c01": "the data set's authors leave out Pour.Fromcup",
        "Walk_p19_r00_v00_c05": "no skeleton 'Walk_p19_r00_v00_c05.json' or 'Walk_p19_r00_v00_c05_pose3d.json'"}
    shards = packed(dataset, tmp_path)
    walk = "Walk_p19_r00_v00_c05"
    [video] = tmp_path.rglob(f"{walk}.mp4")
    assert left_out(shards.root)[walk] == (str(video), ["cs_val", "cv1_val", "cv2_val"])
    assert shards.manifest.splits["cs_test"] == ["Cook-Cleandishes_p02_r00_v02_c03"]
    assert shards.manifest.splits["cs_train"] == shards.manifest.splits["cv1_train"] == ["Usetablet_p03_r01_v00_c01"]
    assert not any("Fromcup" in key for keys in shards.manifest.splits.values() for key in keys)
    sample = clip_of(shards, "Usetablet_p03_r01_v00_c01")
    assert sample.label == CLASSES.index("Usetablet") == 27
    assert shards.label_map("cv1_train")[27] == VIEW_CLASSES.index("Usetablet") == 16
    assert shards.label_map("cv1_train")[0] == -1 and len(shards.split_classes("cv1_train")) == 19
    scale = np.array([WIDTH / 640, TALL_HEIGHT / 480])
    assert (sample.meta.subject, sample.meta.camera) == (3, 1)
    head, neck, hip = sample.pose_MTVC[0, 0, 0], sample.pose_MTVC[0, 0, 13], sample.pose_MTVC[0, 0, 14]
    assert np.allclose(head, np.array([148, 320]) * scale, atol=1e-3), "LCR-Net's last joint is the head"
    assert np.allclose(neck, np.array([142, 305]) * scale, atol=1e-3), "mean of the shoulders"
    assert np.allclose(hip, np.array([118, 245]) * scale, atol=1e-3), "mean of the hips"
    assert np.allclose(sample.pose_MTVC[0, 4, 5], np.array([-1, 274]) * scale, atol=1e-3), "missing where both are -1"
    assert not sample.pose_MTVC[0, 2].any(), "nobody found in this frame"
    assert not sample.pose_MTVC[0, 1, 7].any() and not sample.pose_MTVC[0, 1, 14].any(), "left hip, so mid-hip too"
    if version == 1:
        assert sample.pose_MTVC.shape[0] == 2 and sample.pose_MTVC[1, 3].any() and sample.meta.pose_frames is None
    else:
        assert sample.meta.pose_frames == FRAMES - 1
        assert np.array_equal(sample.pose_MTVC[:, -1], sample.pose_MTVC[:, -2]), "the last pose is repeated"


def test_smarthome_official_numbers() -> None:
    assert sum(PUBLISHED[f"cs_{part}"] for part in ("train", "val", "test")) == 16115
    assert len(CLASSES) == 31 and list(CLASSES) == sorted(CLASSES, key=str.lower) and len(VIEW_CLASSES) == 19
    stems = [f"Walk_p{p:02d}_r00_v00_c{c:02d}" for p in range(1, 27) for c in range(1, 8)]
    splits = smarthome_splits([*stems, *(f"Cook.Cleandishes_p01_r00_v00_c{c:02d}" for c in range(1, 8))])
    assert not any("Cook" in key for keys in splits.values() for key in keys), "not a class of the protocols by camera"
    cameras = {name: sorted({int(key[-2:]) for key in keys}) for name, keys in splits.items()}
    assert cameras["cv1_train"] == [1] and cameras["cv2_train"] == [1, 3, 4, 6, 7]
    assert cameras["cv1_val"] == cameras["cv2_val"] == [5] and cameras["cv1_test"] == cameras["cv2_test"] == [2]
    subjects = {name: sorted({int(re.findall(r"_p(\d+)", key)[0]) for key in keys})
                for name, keys in splits.items() if name.startswith("cs")}
    assert subjects["cs_train"] == [3, 4, 6, 7, 9, 12, 13, 15, 17]
    assert subjects["cs_val"] == [19, 25] and subjects["cs_test"] == [2, 10, 11, 14, 16, 18, 20]


def test_smarthome_skeletons_without_a_video_are_listed(tmp_path: Path) -> None:
    sources = smarthome_set(tmp_path, ["Walk_p02_r00_v00_c01", "Walk_p03_r00_v00_c01"], 2)
    video = next(Path(str(sources["videos"])).glob("Walk_p03*"))
    video.unlink()
    [entry] = open_dataset("smarthome", **sources).skipped
    assert (entry.key, entry.reason) == (video.stem, f"no video '{video.stem}' below {sources['videos']}")
    assert left_out(packed(open_dataset("smarthome", **sources), tmp_path).root) == {
        video.stem: (f"{sources['skeletons']}/{video.stem}_pose3d.json", ["cs_train", "cv1_train", "cv2_train"])}


def test_smarthome_skeletons_of_both_versions_are_refused(tmp_path: Path) -> None:
    """Of one video, where one of them would be taken, and of different ones."""
    sources = smarthome_set(tmp_path, ["Walk_p02_r00_v00_c01", "Walk_p03_r00_v00_c01"], 2)
    skeletons = Path(str(sources["skeletons"]))
    (skeletons / "splits.json").write_text("{}")
    assert len(open_dataset("smarthome", **sources).clips) == 2, "a file of another name is no skeleton"
    new = skeletons / "Walk_p03_r00_v00_c01_pose3d.json"
    for old in ("Walk_p02_r00_v00_c01.json", "Walk_p03_r00_v00_c01.json"):
        (skeletons / "old").mkdir(exist_ok=True)
        (skeletons / "old" / old).write_bytes(new.read_bytes())
    message = (rf"{skeletons}: has skeletons of both versions, {{}} of v1\.1 such as {skeletons}/old/Walk_p0\d_r00_v00_c01"
               rf"\.json and {{}} of v1\.2 such as {skeletons}/Walk_p02_r00_v00_c01_pose3d\.json; give the folder of one")
    with pytest.raises(UserError, match=message.format(2, 2)):
        open_dataset("smarthome", **sources)
    new.unlink()
    (skeletons / "old" / "Walk_p02_r00_v00_c01.json").unlink()
    with pytest.raises(UserError, match=message.format(1, 1)):
        open_dataset("smarthome", **sources)


def test_smarthome_faults(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"frames": [[{"pose2d": [1, 2, 3]}]]}')
    with pytest.raises(UserError, match=r"a\.json, frame 0: pose2d has shape \(3,\), expected 26 numbers"):
        read_smarthome_json(str(tmp_path / "a.json"))
    (tmp_path / "b.json").write_text("{}")
    with pytest.raises(UserError, match=r"b\.json: not a Smarthome skeleton"):
        read_smarthome_json(str(tmp_path / "b.json"))
    sources = smarthome_set(tmp_path, ["Dance_p02_r00_v02_c03"], 1)
    with pytest.raises(UserError, match=r"all 1 were left out, the first, .* unknown activity 'Dance'; expected one of Cook"):
        open_dataset("smarthome", **sources).check()
