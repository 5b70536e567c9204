"""MediaPipe instead of mmpose: its landmarks as detections, its options, messages that name its environment. For real joints on
a real person: `bash tools/pose/check_mediapipe.sh`, which installs it."""

import sys
import types
from pathlib import Path

import extract_poses
import numpy as np
import pytest
from pose_mediapipe import MediaPipeModel, detection_of
from pose_work import WorkFolder
from shards_data import HEIGHT, WIDTH, block_xy, write_video

from svdata2vec.shards.layouts import MEDIAPIPE33
from svdata2vec.shards.readers.pyskl import load_pickle


def landmarks(x: float, y: float, width: int, height: int) -> np.ndarray:
    """(33, 3): a figure of 24x40 pixels with its upper left corner at (x, y), its ankles below the picture and not seen."""
    spread_V = np.linspace(0, 1, 33)
    marks_V3 = np.stack([(x + 24 * spread_V) / width, (y + 40 * spread_V[::-1]) / height, np.full(33, 0.9)], 1)
    marks_V3[27:29] = (x / width, 1.5, 0.05)
    return marks_V3


def test_landmarks_become_coco_joints_in_pixels() -> None:
    marks_V3 = landmarks(60, 40, WIDTH, HEIGHT)
    found = detection_of(marks_V3, WIDTH, HEIGHT)
    assert len(found) == 1 and found.joints_NV2.shape == (1, 17, 2)
    for joint, name in ((0, "nose"), (5, "l_shoulder"), (10, "r_wrist"), (15, "l_ankle")):
        x, y, score = marks_V3[MEDIAPIPE33.joints.index(name)]
        assert found.joints_NV2[0, joint] == pytest.approx([x * WIDTH, y * HEIGHT], abs=1e-3)
        assert found.joint_score_NV[0, joint] == pytest.approx(score)
    assert found.score_N[0] == pytest.approx(0.9), "of the joints in the picture"
    x1, y1, x2, y2 = found.box_N4[0]
    assert 60 <= x1 < x2 <= 84 and 40 <= y1 < y2 <= 80, "around the joints that are seen"
    assert len(detection_of(None, WIDTH, HEIGHT)) == 0
    assert detection_of(np.full((33, 3), (2.0, 2.0, 0.01)), WIDTH, HEIGHT).score_N[0] == 0


class BrightBlock:
    """In the place of mediapipe's Pose: a figure on the bright block of `shards_data.write_video`, in real pixels."""

    def __init__(self, **options: object) -> None:
        assert options == {"static_image_mode": True, "model_complexity": 1}

    def process(self, frame_rgb: np.ndarray) -> types.SimpleNamespace:
        assert frame_rgb.dtype == np.uint8 and frame_rgb.flags.c_contiguous
        rows, columns = np.nonzero((frame_rgb[..., 0].astype(int) > 220) & (frame_rgb[..., 0] > frame_rgb[..., 2]))
        if rows.size < 100:
            return types.SimpleNamespace(pose_landmarks=None)
        marks = landmarks(np.percentile(columns, 1), np.percentile(rows, 1), *frame_rgb.shape[1::-1])
        listed = [types.SimpleNamespace(x=x, y=y, visibility=score) for x, y, score in marks]
        return types.SimpleNamespace(pose_landmarks=types.SimpleNamespace(landmark=listed))


def test_a_video_becomes_a_pickle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through the whole tool, with a package that has mediapipe's names."""
    package = types.SimpleNamespace(solutions=types.SimpleNamespace(pose=types.SimpleNamespace(Pose=BrightBlock)))
    monkeypatch.setitem(sys.modules, "mediapipe", package)
    (tmp_path / "videos").mkdir()
    write_video(tmp_path / "videos" / "a.mp4", 7)
    words = [str(tmp_path / "videos"), "--model", "mediapipe", "--batch", "3", "--out", str(tmp_path / "a.pkl")]
    assert extract_poses.main(words) == 0
    (entry,) = load_pickle(tmp_path / "a.pkl")["annotations"]
    assert entry["keypoint"].shape == (1, 7, 17, 2)
    for t in range(7):
        x, y = block_xy(t)
        assert entry["keypoint"][0, t, 0] == pytest.approx([x, y + 40], abs=1.5), "the nose: landmark 0"
    assert extract_poses.settings_of(extract_poses.parse(words))["weights"] == "mediapipe"
    with pytest.raises(extract_poses.UserError, match="holds results made with model=mediapipe"):
        WorkFolder(tmp_path / "a.work", extract_poses.settings_of(extract_poses.parse([*words, "--model", "rtmo-m"])))


@pytest.mark.parametrize("words", [["--checkpoint", "x"], ["--random-weights"], ["--input-size", "64"], ["--device", "cuda"]])
def test_options_of_mmpose_are_refused(words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert extract_poses.main([str(tmp_path), "--out", str(tmp_path / "a.pkl"), "--model", "mediapipe", *words]) == 2
    assert "--model mediapipe runs on the CPU with the weights" in capsys.readouterr().err


def test_the_environment_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mediapipe", None)
    with pytest.raises(extract_poses.UserError, match=r"run `bash tools/pose/pose_env\.sh mediapipe`"):
        MediaPipeModel(4)
