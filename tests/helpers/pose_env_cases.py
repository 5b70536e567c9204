"""Tests that run inside .venv-pose (test_tools_extract_poses.py starts them): mmpose's models and checkpoints.

`bash tools/pose/pose_env.sh && .venv-pose/bin/python -m pytest --noconftest tests/helpers/pose_env_cases.py` runs them alone.
"""

import hashlib
from pathlib import Path

import extract_poses
import numpy as np
import pytest
import torch
from pose_checkpoint import fetch, read_checkpoint
from pose_models import NUM_JOINTS, PoseModel, choose_device, import_mmpose
from pose_zoo import MODELS, OPENMMLAB
from shards_data import write_video

from svdata2vec.shards.errors import UserError

torch.set_num_threads(1)
CPU = torch.device("cpu")


class Suspicious:
    """Something that a checkpoint has no business to hold."""


def picture(seed: int, height: int = 120, width: int = 160) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


@pytest.fixture(scope="module")
def rtmo() -> PoseModel:
    model = PoseModel("rtmo-t", CPU, input_size=128, min_score=0.0, batch=2)
    model.draw_weights(seed=1)
    return model


@pytest.fixture(scope="module")
def hrnet() -> PoseModel:
    model = PoseModel("hrnet-w32", CPU, batch=4)
    model.draw_weights(seed=1)
    return model


def test_rtmo_finds_the_same_in_a_batch_as_alone(rtmo: PoseModel) -> None:
    frames = [picture(seed) for seed in range(3)]
    together = rtmo.predict([rtmo.prepare(frame) for frame in frames])
    assert len(together) == 3
    for frame, found in zip(frames, together, strict=True):
        alone = rtmo.predict([rtmo.prepare(frame)])[0]
        assert len(found) == len(alone) > 0
        assert np.allclose(found.box_N4, alone.box_N4, atol=1e-2) and np.allclose(found.score_N, alone.score_N, atol=1e-5)
        assert found.joints_NV2.shape == (len(found), 17, 2) and np.isfinite(found.joints_NV2).all()


def test_the_same_seed_draws_the_same_weights(rtmo: PoseModel) -> None:
    again = PoseModel("rtmo-t", CPU, input_size=128, min_score=0.0)
    again.draw_weights(seed=1)
    first, second = rtmo.model.state_dict(), again.model.state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    other = PoseModel("rtmo-t", CPU, input_size=128, min_score=0.0)
    other.draw_weights(seed=2)
    name = "backbone.stem.conv.conv.weight"
    assert not torch.equal(first[name], other.model.state_dict()[name])


def test_hrnet_puts_joints_into_the_given_boxes(hrnet: PoseModel) -> None:
    """Two boxes in the first frame, none in the second, one in the third."""
    boxes = [np.array([[10, 10, 60, 110], [80, 5, 150, 115]], np.float32), np.zeros((0, 4), np.float32),
             np.array([[20, 20, 90, 100]], np.float32)]
    found = hrnet.predict([hrnet.prepare(picture(seed), box) for seed, box in enumerate(boxes)])
    assert [len(entry) for entry in found] == [2, 0, 1]
    for box_N4, entry in zip(boxes, found, strict=True):
        assert np.allclose(entry.box_N4, box_N4)
        if not len(entry):
            continue
        center_N2 = (box_N4[:, :2] + box_N4[:, 2:]) / 2
        height_N = np.maximum(box_N4[:, 3] - box_N4[:, 1], (box_N4[:, 2] - box_N4[:, 0]) * 256 / 192)
        reach_NV = np.abs(entry.joints_NV2 - center_N2[:, None]).max(axis=-1) / height_N[:, None]
        assert (reach_NV < 0.5 * 1.25 * 1.05).all(), "the heatmap covers the box and a quarter more"
    with pytest.raises(ValueError, match="hrnet-w32 needs boxes"):
        hrnet.prepare(picture(0))


def test_weights_come_back_from_a_file(rtmo: PoseModel, tmp_path: Path) -> None:
    """As mmengine saves them: with a log buffer and NumPy numbers beside the weights, which the safe loader knows."""
    from mmengine.logging.history_buffer import HistoryBuffer

    file = tmp_path / "epoch_600.pth"
    history = {"train/loss": HistoryBuffer([0.5, 0.25], [1, 1])}
    torch.save({"meta": {"epoch": 600}, "message_hub": {"log_scalars": history, "best": np.float64(0.7)},
                "state_dict": rtmo.model.state_dict()}, file)
    other = PoseModel("rtmo-t", CPU, input_size=128, min_score=0.0)
    other.draw_weights(seed=5)
    frame = picture(7)
    before, expected = (model.predict([model.prepare(frame)])[0] for model in (other, rtmo))
    assert not np.array_equal(before.box_N4, expected.box_N4)
    other.load_weights(str(file))
    found = other.predict([other.prepare(frame)])[0]
    assert np.array_equal(expected.box_N4, found.box_N4) and np.array_equal(expected.joints_NV2, found.joints_NV2)


class Reaching:
    """Wants more of the log buffer than its methods."""

    def __reduce__(self) -> tuple[object, ...]:
        from mmengine.logging.history_buffer import HistoryBuffer

        return getattr, (HistoryBuffer, "__init__")


def test_the_log_buffer_opens_no_door(tmp_path: Path) -> None:
    torch.save({"state_dict": {"a": torch.ones(2)}, "extra": Reaching()}, tmp_path / "x.pth")
    with pytest.raises(UserError, match="beside weights, which could run code"):
        read_checkpoint(str(tmp_path / "x.pth"))


def test_code_in_a_checkpoint_needs_trust(rtmo: PoseModel, tmp_path: Path) -> None:
    file = tmp_path / "x.pth"
    torch.save({"state_dict": {"a": torch.ones(2)}, "extra": Suspicious()}, file)
    with pytest.raises(UserError, match=r"x\.pth: holds \S*Suspicious beside weights, which could run code"):
        read_checkpoint(str(file))
    assert read_checkpoint(str(file), trust=True)["a"].tolist() == [1, 1]


def test_a_wrong_checkpoint_is_named(rtmo: PoseModel, hrnet: PoseModel, tmp_path: Path) -> None:
    torch.save({"state_dict": hrnet.model.state_dict()}, tmp_path / "hrnet.pth")
    with pytest.raises(UserError, match=r"hrnet\.pth: not the weights of rtmo-t: \d+ of \d+ arrays are missing"):
        rtmo.load_weights(str(tmp_path / "hrnet.pth"))
    with pytest.raises(UserError, match="no such file"):
        rtmo.load_weights(str(tmp_path / "nothing.pth"))
    (tmp_path / "half.pth").write_bytes((tmp_path / "hrnet.pth").read_bytes()[:5000])
    (tmp_path / "text.pth").write_bytes(b"hello")
    torch.save({"state_dict": {"a": 1}}, tmp_path / "numbers.pth")
    for name in ("half", "text"):
        with pytest.raises(UserError, match=rf"{name}\.pth: not a checkpoint"):
            read_checkpoint(str(tmp_path / f"{name}.pth"), trust=True)
    with pytest.raises(UserError, match="holds no weights"):
        read_checkpoint(str(tmp_path / "numbers.pth"))


def test_a_wrong_checkpoint_ends_the_command_with_one_line(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    write_video(tmp_path / "a.mp4", 2)
    (tmp_path / "weights.pth").write_bytes(b"no weights")
    words = [tmp_path / "a.mp4", "--out", tmp_path / "x.pkl", "--checkpoint", tmp_path / "weights.pth", "--model", "rtmo-t"]
    assert extract_poses.main([*map(str, words)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and "weights.pth: not a checkpoint" in line


def test_a_download_is_held_against_the_hash_in_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "cache"))
    source = tmp_path / "source.pth"
    torch.save({"state_dict": {"a": torch.ones(2)}}, source)
    digest = hashlib.sha256(source.read_bytes()).hexdigest()[:8]
    good = source.rename(tmp_path / f"model-{digest}_20231211.pth")
    assert read_checkpoint(good.as_uri())["a"].tolist() == [1, 1]
    good.unlink()
    assert fetch(good.as_uri()).is_file(), "the second time it comes from the cache"
    bad = tmp_path / "model-01234567_20231211.pth"
    bad.write_bytes(b"damaged")
    with pytest.raises(UserError, match=r"cannot be downloaded \(invalid hash value"):
        fetch(bad.as_uri())
    assert not (tmp_path / "cache" / "checkpoints" / bad.name).exists()
    with pytest.raises(UserError, match=r"cannot be downloaded .* pass the file with --checkpoint"):
        fetch((tmp_path / "nowhere.pth").as_uri())


def test_the_addresses_of_the_weights_are_mmposes_own() -> None:
    root = Path(import_mmpose().__file__).parent / ".mim" / "configs" / "body_2d_keypoint"
    for choice in MODELS.values():
        listed = "".join(file.read_text() for file in (root / choice.config).parent.glob("*.yml"))
        assert OPENMMLAB + choice.weights in listed
        assert (root / choice.config).is_file()


def test_missing_libraries_raise_on_use(tmp_path: Path) -> None:
    import_mmpose()
    from mmcv.ops import DeformConv2d
    from mmdet.utils import reduce_mean
    from mmpose.datasets.datasets.base.base_coco_style_dataset import COCO
    from mmpose.datasets.transforms.bottomup_transforms import cocomask

    with pytest.raises(NotImplementedError, match=r"xtcocotools\.coco\.COCO is not installed"):
        COCO(tmp_path / "annotations.json")
    with pytest.raises(NotImplementedError, match=r"xtcocotools\.mask\.frPyObjects is not installed"):
        cocomask.frPyObjects([], 4, 4)
    with pytest.raises(NotImplementedError, match=r"mmcv\.ops\.DeformConv2d is not installed"):
        DeformConv2d(3, 3, 3)
    with pytest.raises(NotImplementedError, match=r"mmdet\.utils\.reduce_mean is not installed"):
        reduce_mean(torch.ones(1))


def test_wrong_sizes_and_devices_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="--input-size 100: expected a multiple of 32"):
        PoseModel("rtmo-t", CPU, input_size=100)
    with pytest.raises(UserError, match="hrnet-w32 has a fixed input size"):
        PoseModel("hrnet-w32", CPU, input_size=256)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto").type == "cpu"
    with pytest.raises(UserError, match="--device cuda: this torch sees no GPU"):
        choose_device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose_device("auto").type == "cuda"


def test_a_full_gpu_is_said_so(rtmo: PoseModel, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(batch: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(rtmo.model, "test_step", full)
    with pytest.raises(MemoryError, match="the GPU's memory is full"):
        rtmo.predict([rtmo.prepare(picture(0))])


def test_every_model_can_be_built() -> None:
    for name in MODELS:
        model = PoseModel(name, CPU)
        assert not model.model.training
        assert sum(array.numel() for array in model.model.parameters()) > 1e6
        assert model.model.dataset_meta["num_keypoints"] == NUM_JOINTS
