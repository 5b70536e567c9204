"""`--model.init`: a video encoder that starts from an image network has its features, and logs which weights it used."""

import dataclasses
import hashlib
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from image_network import ImageNetwork, random_image_network
from tiny import MODEL, finetune_config, pretrain_config
from torch import Tensor

from svdata2vec.config.probe import ProbeConfig
from svdata2vec.config.schema import EmaConfig, MaskConfig, ModelConfig, TargetConfig
from svdata2vec.evaluation.probe import probe
from svdata2vec.model.image_weights import NotImageWeightsError, image_weights
from svdata2vec.model.student import Encoder
from svdata2vec.model.video_encoder import VideoEncoder
from svdata2vec.runs.checkpoint import Checkpoints
from svdata2vec.runs.image_init import start_from_images
from svdata2vec.runs.published import load_classifier
from svdata2vec.shards.errors import UserError
from svdata2vec.training import loop
from svdata2vec.training.finetune import finetune
from svdata2vec.training.pretrain import Pretraining, pretrain

T, SIZE = 7, 64
Weights = dict[str, Tensor]


def started(network: ImageNetwork, **changes: Any) -> VideoEncoder:
    encoder = VideoEncoder(ModelConfig(width=32, stem_width=network.conv1.out_channels, **changes))
    encoder.load_state_dict(image_weights(network.state_dict(), encoder).weights, strict=False)
    return encoder.eval()


@pytest.mark.parametrize("kept", [False, True], ids=["all frames", "kept frames"])
@pytest.mark.parametrize("fused", [False, True], ids=["plain", "fused"])
@pytest.mark.parametrize("width", [16, 64])
def test_a_still_clip_has_the_features_of_its_picture(width: int, fused: bool, kept: bool) -> None:
    """Where the window of five frames lies within the clip; at its ends there is less of the picture."""
    network = random_image_network(width).double()
    encoder = started(network, fused_blocks=fused).double()
    seen: list[Tensor] = []
    encoder.proj.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    picture_HWC = torch.randint(0, 256, (SIZE, SIZE, 3), dtype=torch.uint8)
    encoder(picture_HWC.expand(1, T, -1, -1, -1).contiguous(), torch.arange(T)[None] if kept else None)
    mean, std = (torch.tensor(values, dtype=torch.float64) for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    normalised = ((picture_HWC / 255.0 - mean) / std).permute(2, 0, 1)[None]  # as torchvision's transforms do it
    want = network.features(normalised)
    assert want.std() > 0.01
    torch.testing.assert_close(seen[0][2:-2], want.expand(T - 4, -1), rtol=1e-5, atol=1e-6)
    assert (seen[0][:2] - want).abs().amax(1).min() > 1e-3


def test_what_is_taken_and_left() -> None:
    network = random_image_network(16)
    encoder = VideoEncoder(ModelConfig(width=32, stem_width=16))
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    found = image_weights(network.state_dict(), encoder)
    assert found.left == ["fc.weight", "fc.bias"] and len(found.taken) == 120 == len(network.state_dict()) - 2
    assert set(before) - set(found.weights) == {"proj.weight", "proj.bias"}
    torch.testing.assert_close(found.weights["stem.conv.weight"].sum(2), network.conv1.weight.detach())
    assert found.weights["stem.bn.num_batches_tracked"] == 7
    assert all(not tensor.any() for name, tensor in found.weights.items() if "relu" in name)


def test_older_files_count_no_batches() -> None:
    state = {name: tensor for name, tensor in random_image_network(16).state_dict().items() if "num_batches" not in name}
    encoder = VideoEncoder(ModelConfig(width=32, stem_width=16))
    found = image_weights(state, encoder)
    assert found.weights["stages.0.0.bn1.num_batches_tracked"] == 0 and len(found.taken) == 100


def without(name: str) -> Callable[[Weights], Weights]:
    return lambda state: {key: tensor for key, tensor in state.items() if key != name}


WRONG: dict[str, tuple[Callable[[Weights], Weights], str]] = {
    "missing": (without("layer3.1.conv2.weight"), r"1 weights of a .* are missing \(layer3.1.conv2.weight\), 0 are of none"),
    "other names": (lambda state: {f"backbone.{name}": tensor for name, tensor in state.items()}, "100 weights .* are missing"),
    "deeper": (lambda _: random_image_network(16, (3, 4, 6, 3)).state_dict(), r"0 weights .*, 96 are of none \(layer1.2.bn1"),
    "wider": (lambda _: random_image_network(32).state_dict(), r"conv1.weight .*\(32, 3, 7, 7\), expected .*model.stem_width"),
    "flat": (lambda state: {**state, "conv1.weight": torch.ones(16)}, r"conv1.weight is torch.float32 \(16,\), expected"),
    "three dimensions": (lambda state: {**state, "bn1.weight": torch.ones(16, 1)}, r"bn1.weight .*\(16, 1\), expected"),
    "whole numbers": (lambda state: {**state, "bn1.weight": torch.ones(16, dtype=torch.int64)}, r"bn1.weight is torch.int64"),
    "NaN": (lambda state: {**state, "bn1.bias": torch.full((16,), torch.nan)}, "bn1.bias holds values that are not finite"),
    "beyond float32": (lambda state: {**state, "bn1.bias": 1e300 * torch.ones(16).double()}, "bn1.bias holds values that"),
    "variances": (lambda state: {**state, "bn1.running_var": -torch.ones(16)}, "bn1.running_var holds .* variances below 0"),
}


@pytest.mark.parametrize("case", WRONG)
def test_other_networks_are_refused(case: str) -> None:
    change, message = WRONG[case]
    with pytest.raises(NotImageWeightsError, match=message):
        image_weights(change(random_image_network(16).state_dict()), VideoEncoder(MODEL))


# ---- files and runs -------------------------------------------------------------------------------------------------


def with_init(config: Any, path: Path, **changes: Any) -> Any:
    return dataclasses.replace(config, model=dataclasses.replace(config.model, init=path), **changes)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("images") / "resnet18.pth"
    torch.save(random_image_network(16).state_dict(), path)
    return path


@pytest.mark.parametrize("suffix", [".pth", ".safetensors", "old.pth"])
def test_a_file_becomes_the_start_of_a_run(
    suffix: str, file: Path, tiny_shard_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    state, path = torch.load(file, weights_only=True), tmp_path / f"weights{suffix}"
    if suffix == ".safetensors":
        safetensors.torch.save_file(state, path)
    else:
        torch.save(state, path, _use_new_zipfile_serialization=suffix == ".pth")
    config = with_init(pretrain_config(tiny_shard_folder, tmp_path / "run"), path)
    encoder = Encoder(config.model, 6, 17)
    entry = start_from_images(encoder, config)["initialised_from"]
    assert entry == {
        "file": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest(), "network": "ResNet-18 (torchvision)",
        "taken": 120, "left": ["fc.weight", "fc.bias"],
    }
    torch.testing.assert_close(encoder.video_encoder.stages[3][1].conv2.weight.detach(), state["layer4.1.conv2.weight"])
    (line,) = [record.message for record in caplog.records if "model.init" in record.message]
    assert "took 120 tensors into the video encoder" in line and "left fc.weight, fc.bias;" in line and "\n" not in line


def make_wrong(folder: Path, kind: str) -> Path:
    path = folder / ("a.safetensors" if kind == "torn safetensors" else "a.pth")
    state = random_image_network(16).state_dict()
    if kind == "text":
        path.write_text("conv1.weight")
    elif kind == "torn":
        torch.save(state, path)
        path.write_bytes(path.read_bytes()[:-5000])
    elif kind == "torn safetensors":
        safetensors.torch.save_file(state, path)
        path.write_bytes(path.read_bytes()[:-5000])
    elif kind == "code":
        torch.save({"conv1.weight": Path("code")}, path)
    elif kind == "a list":
        torch.save([state["conv1.weight"]], path)
    elif kind == "nested":
        torch.save({"state_dict": state}, path)
    elif kind == "another network":
        torch.save(random_image_network(16, (3, 4, 6, 3)).state_dict(), path)
    return path


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("missing", "cannot be read"), ("text", "not a"), ("torn", "not a"), ("torn safetensors", "."), ("code", "pathlib"),
        ("a list", "no dictionary of names and tensors"), ("nested", "no dictionary of names and tensors"),
        ("another network", "96 are of none"),
    ],
)
def test_wrong_files_end_in_one_line(kind: str, message: str, tmp_path: Path) -> None:
    path = make_wrong(tmp_path, kind)
    config = with_init(pretrain_config(tmp_path, tmp_path / "run"), path)
    with pytest.raises(UserError, match=rf"^--model.init .*{message}.*; expected the state dict of a ResNet-18") as caught:
        start_from_images(Encoder(config.model, 6, 17), config)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_run_resumes_without_the_file_and_its_card_names_it(
    file: Path, tiny_shard_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "copy.pth"
    copy.write_bytes(file.read_bytes())
    step = Pretraining.step

    def interrupted(run: Pretraining, batches: list) -> None:
        if run.stepper.step == 3:
            raise KeyboardInterrupt
        step(run, batches)

    losses = {}
    for name, path in (("whole", file), ("stopped", copy)):
        config = with_init(pretrain_config(tiny_shard_folder, tmp_path / name), path)
        if name == "stopped":
            with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
                patch.setattr(Pretraining, "step", interrupted)
                pretrain(config)
            copy.unlink()
        losses[name] = pretrain(config)["loss"]
        card = json.loads((tmp_path / name / "model.json").read_text())
        assert card["initialised_from"]["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
        assert card["initialised_from"]["file"] == path.name
    assert losses["stopped"] == losses["whole"]
    random = pretrain(pretrain_config(tiny_shard_folder, tmp_path / "random"))["loss"]
    assert random != losses["whole"]
    probe(ProbeConfig(data=config.data, pretrained=tmp_path / "stopped", out=tmp_path / "probe", device="cpu"))
    assert load_classifier(tmp_path / "probe")[1].model.init == copy  # where it began; nobody reads it


def test_a_teacher_that_sees_video_starts_from_the_file_too(file: Path, tiny_shard_folder: Path, tmp_path: Path) -> None:
    target = TargetConfig(2, teacher="encoder", teacher_input="rgb", scored="video")
    config = with_init(pretrain_config(tiny_shard_folder, tmp_path / "run", epochs=1), file, target=target)
    pretrain(dataclasses.replace(config, ema=EmaConfig(1.0, 1.0), mask=MaskConfig(0.5, 1.0)))  # it stays what it was
    state = Checkpoints(tmp_path / "run", 2).load_newest()
    assert state is not None
    begun = state["teacher"]["embeddings.video_encoder.stages.0.0.conv1.weight"]
    assert torch.equal(begun, torch.load(file, weights_only=True)["layer1.0.conv1.weight"])


def test_a_run_that_began_without_the_file_does_not_take_it(
    file: Path, tiny_shard_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = pretrain_config(tiny_shard_folder, tmp_path / "run")
    pretrain(config)
    (tmp_path / "run" / "result.json").unlink()
    with pytest.raises(UserError, match=r"does not fit these settings \(model.init None -> .*resnet18.pth\)"):
        pretrain(with_init(config, file))
    monkeypatch.setattr(loop, "changed_settings", lambda *_: [])  # as of a version that did not know the setting
    with pytest.raises(UserError, match=r"does not fit these settings \(model.init None -> .*resnet18.pth\)"):
        pretrain(with_init(config, file))


def test_a_classifier_starts_from_one_of_two(file: Path, tiny_shard_folder: Path, tmp_path: Path) -> None:
    config = with_init(finetune_config(tiny_shard_folder, tmp_path / "run", epochs=1), file)
    finetune(config)
    assert json.loads((tmp_path / "run" / "model.json").read_text())["initialised_from"]["taken"] == 120
    run = dataclasses.replace(config.run, out=tmp_path / "other")
    with pytest.raises(UserError, match=r"^--model.init is .* and --from is .*: give one start of the video encoder"):
        finetune(dataclasses.replace(config, run=run, pretrained=tmp_path / "run"))
    with pytest.raises(UserError, match="modality skeleton has no video encoder to start"):
        finetune(dataclasses.replace(config, run=run, modality="skeleton"))
