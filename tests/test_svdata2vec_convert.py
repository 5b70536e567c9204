"""Weights of the authors' network, converted, give its numbers: predictions, targets, loss, logits and gradients."""

import argparse
import copy
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from original_network import FinetuneHead, OriginalClassifier, OriginalPretrain, ProbeHead, shake
from torch import Tensor

from svdata2vec.cli.main import main
from svdata2vec.config.schema import FinetuneConfig, MaskConfig, PretrainConfig, RunConfig, TargetConfig
from svdata2vec.evaluation.evaluate import evaluate_run
from svdata2vec.evaluation.features import embed
from svdata2vec.model.classifier import Classifier
from svdata2vec.model.masking import Masks, draw_masks
from svdata2vec.model.student import SVData2Vec
from svdata2vec.model.teacher import Teacher
from svdata2vec.original.convert import convert_file, convert_state_dict, original_name
from svdata2vec.pipeline.sampling import draw_frames_original
from svdata2vec.runs.folder import is_finished
from svdata2vec.runs.published import load_classifier, load_encoder_weights, load_published
from svdata2vec.shards.boxes import crop_square, joint_box
from svdata2vec.shards.errors import UserError
from svdata2vec.shards.lock import folder_lock
from svdata2vec.shards.reading.shardset import ShardSet
from svdata2vec.training.pretrain import forward

SIZES = {"dim": 32, "depth": 3, "heads": 4, "stem": 16, "frames": 7, "persons": 2, "joints": 17}
CLASSES = 5


def inputs(batch: int = 3) -> tuple[Tensor, Tensor, Masks]:
    video = torch.randint(0, 256, (batch, SIZES["frames"], 32, 32, 3), dtype=torch.uint8)
    joints = 32 * torch.rand(batch, SIZES["persons"], SIZES["frames"], SIZES["joints"], 2)
    joints[0, 1] = 0
    masks = draw_masks([f"clip{i}" for i in range(batch)], SIZES["frames"], MaskConfig(0.4, 0.5), seed=1, epoch=0)
    return video, joints, masks


def original_pretrain() -> OriginalPretrain:
    network = shake(OriginalPretrain(decoder_depth=2, **SIZES))
    assert isinstance(network, OriginalPretrain)
    return network


def original_classifier(head: torch.nn.Module) -> OriginalClassifier:
    network = shake(OriginalClassifier(head, **SIZES))
    assert isinstance(network, OriginalClassifier)
    return network


def converted_student(network: OriginalPretrain) -> tuple[SVData2Vec, PretrainConfig]:
    weights, what = convert_state_dict(network.state_dict(), heads=SIZES["heads"])
    model = what.build()
    assert isinstance(model, SVData2Vec) and isinstance(what.config, PretrainConfig)
    model.load_state_dict(weights)
    return model, what.config


def close(found: Tensor, expected: Tensor, name: str) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4, msg=lambda text: f"{name}: {text}")


@pytest.mark.parametrize("train", [True, False], ids=["batch statistics", "running statistics"])
def test_pretraining_gives_the_originals_numbers_and_gradients(train: bool) -> None:
    theirs = original_pretrain().train(train)
    teacher_blocks = shake(copy.deepcopy(theirs.blocks)).eval()
    model, config = converted_student(theirs)
    model.train(train)
    teacher = Teacher(model.encoder.blocks)
    teacher.blocks.load_state_dict(teacher_blocks.state_dict())
    video, joints, masks = inputs()

    prediction = theirs.predict(video, joints, masks.keep_NK, masks.skeleton_hidden_NK)
    target = theirs.targets(joints, teacher_blocks, config.target.top_layers)  # type: ignore[arg-type]
    loss = theirs.loss(prediction, target, masks.keep_NK, masks.skeleton_hidden_NK)
    loss.backward()
    student_output = copy.deepcopy(model)(video, joints, masks)
    close(student_output.prediction_NTD, prediction, "prediction")
    close(teacher(student_output.teacher_tokens_BTD, config.target), target, "target")

    output = forward(model, teacher, video, joints, masks, config)
    close(output.loss, loss, "loss")
    output.loss.backward()
    named = dict(theirs.named_parameters())
    for name, parameter in model.named_parameters():
        expected = named[str(original_name(name))].grad
        assert expected is not None and parameter.grad is not None
        close(parameter.grad, expected.reshape(parameter.shape), name)
    if train:  # both have seen one batch: the running statistics moved alike
        buffers = dict(theirs.named_buffers())
        for name, buffer in model.named_buffers():
            if "running" in name:
                close(buffer, buffers[str(original_name(name))], name)


def test_kept_frames_equal_all_frames_in_evaluation_mode_gradients_included() -> None:
    model, config = converted_student(original_pretrain())
    teacher = Teacher(model.encoder.blocks)
    video, joints, masks = inputs()
    results: list[tuple[Tensor, dict[str, Tensor]]] = []
    for model.all_frames in (True, False):
        model.eval().zero_grad()
        loss = forward(model, teacher, video, joints, masks, config).loss
        loss.backward()
        results.append((loss.detach(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}))
    (loss_all, grads_all), (loss_kept, grads_kept) = results
    close(loss_kept, loss_all, "loss")
    assert grads_all.keys() == grads_kept.keys()
    for name, gradient in grads_all.items():
        close(grads_kept[name], gradient, name)


@pytest.mark.parametrize("kind", ["finetune", "probe"])
@pytest.mark.parametrize("seen", ["rgb", "skeleton", "both"])
@pytest.mark.parametrize("train", [True, False], ids=["batch statistics", "running statistics"])
def test_classifiers_give_the_originals_logits(kind: str, seen: Any, train: bool) -> None:
    head = FinetuneHead(SIZES["dim"], 24, CLASSES) if kind == "finetune" else ProbeHead(SIZES["dim"], CLASSES)
    theirs = original_classifier(head).train(train)
    weights, what = convert_state_dict(theirs.state_dict(), heads=SIZES["heads"], modality=seen)
    assert (what.kind, what.num_classes) == (kind, CLASSES)
    model = what.build().train(train)
    model.load_state_dict(weights)
    for module in model.modules():
        if hasattr(module, "rate") or isinstance(module, torch.nn.Dropout):
            module.eval()  # what is random in training is not part of the comparison
    video, joints, _ = inputs()
    given = video if seen != "skeleton" else None, joints if seen != "rgb" else None
    close(model(*given), theirs(*given), "logits")


def test_shapes_tell_the_configuration() -> None:
    _, what = convert_state_dict({f"module.{n}": t for n, t in original_pretrain().state_dict().items()}, heads=4)
    assert isinstance(what.config, PretrainConfig)
    model = what.config.model
    assert (model.width, model.depth, model.decoder_depth, model.heads, model.mlp_ratio) == (32, 3, 2, 4, 4.0)
    assert (model.stem_width, model.persons, what.num_joints, what.config.data.num_frames) == (16, 2, 17, 7)
    assert what.config.encode == "all_frames" and what.kind == "pretrain"


def test_a_classifier_without_a_skeleton_embedding_is_rgb() -> None:
    state = original_classifier(FinetuneHead(SIZES["dim"], 24, CLASSES)).state_dict()
    state = {name: tensor for name, tensor in state.items() if not name.startswith("joints_embed")}
    _, what = convert_state_dict(state, heads=4)
    assert isinstance(what.config, FinetuneConfig)
    assert (what.config.modality, what.config.head.hidden, what.num_joints) == ("rgb", 24, 0)
    assert (what.config.data.crop, what.config.data.frame_draw) == ("boxes", "original")


def test_unknown_and_missing_names_are_all_listed() -> None:
    state = original_pretrain().state_dict()
    del state["blocks.1.attn.qkv.weight"], state["decoder_norm.bias"]
    state["blocks.0.attn.gate"] = torch.zeros(1)
    state["pos_embed"] = torch.zeros(1)
    with pytest.raises(UserError, match=r"2 unknown names: blocks.0.attn.gate, pos_embed; "
                                        r"2 missing names: blocks.1.attn.qkv.weight, decoder_norm.bias"):
        convert_state_dict(state, heads=4)


def test_weights_of_another_network_are_refused_with_their_names() -> None:
    with pytest.raises(UserError, match=r"1 unknown names: fc.weight; 4 missing names: blocks.0.mlp.fc1.weight, "):
        convert_state_dict({"fc.weight": torch.zeros(2, 2)})


def test_our_own_weights_are_not_taken_for_the_originals() -> None:
    weights, _ = convert_state_dict(original_pretrain().state_dict(), heads=4)
    with pytest.raises(UserError, match="a checkpoint of this package, not of the authors' code; give the folder of its run"):
        convert_state_dict(weights, heads=4)
    many = {f"layer{number}.weight": torch.zeros(2) for number in range(9)}
    with pytest.raises(UserError, match=r"9 unknown names: layer0\.weight, .*, layer3\.weight, \.\.\.; 4 missing names: "):
        convert_state_dict(many)


def test_shapes_that_do_not_go_together_are_refused() -> None:
    state = original_pretrain().state_dict()
    state["decoder_pred.weight"] = torch.zeros(32, 16)
    state["blocks.2.norm1.bias"] = torch.zeros(31)
    with pytest.raises(UserError, match=r"2 weights have a shape .* blocks.2.norm1.bias \(31,\) instead of \(32,\), "
                                        r"decoder_pred.weight \(32, 16\) instead of \(32, 32\)$"):
        convert_state_dict(state, heads=4)
    with pytest.raises(UserError, match=r"not divisible by model\.heads 5"):
        convert_state_dict(original_pretrain().state_dict(), heads=5)


def test_a_converted_checkpoint_can_be_fine_tuned(tmp_path: Path) -> None:
    theirs = original_pretrain()
    state = {f"module.{name}": tensor for name, tensor in theirs.state_dict().items()}
    args = argparse.Namespace(batch_size=32, yaml="ntu60.yaml")
    torch.save({"model": state, "optimizer": {}, "epoch": 3, "scaler": {}, "args": args}, tmp_path / "original.pth")
    assert main(["convert", str(tmp_path / "original.pth"), str(tmp_path / "run"), "--heads", "4"]) == 0
    weights, card = load_published(tmp_path / "run")
    assert card["kind"] == "pretrain" and card["num_joints"] == 17 and card["converted_from"] == "original.pth"
    assert card["preprocessing"]["mean"] == [123.675, 116.28, 103.53] and card["preprocessing"]["num_frames"] == 7
    model, config = converted_student(theirs)
    classifier = Classifier(FinetuneConfig(data=config.data, model=config.model), 17, CLASSES)
    load_encoder_weights(classifier.encoder, tmp_path / "run")
    torch.testing.assert_close(classifier.encoder.norm.weight, model.encoder.norm.weight)
    torch.testing.assert_close(weights["decoder.mask_token"], theirs.mask_token.detach())
    (tmp_path / "begun").mkdir()
    shutil.copy(tmp_path / "run" / "config.json", tmp_path / "begun")
    for there in ("run", "begun"):
        with pytest.raises(UserError, match=rf"{there} holds a run already \(config\.json"):
            convert_file(tmp_path / "original.pth", tmp_path / there, heads=4)
    with pytest.raises(UserError, match=r"run holds model\.safetensors, which was not trained in this folder"):
        is_finished(PretrainConfig(run=RunConfig(out=tmp_path / "run")))
    with pytest.raises(UserError, match="it is of pretraining, which has no head; leave out --modality"):
        convert_file(tmp_path / "original.pth", tmp_path / "other", heads=4, modality="rgb")
    assert not (tmp_path / "other").exists()
    (tmp_path / "busy").mkdir()
    with folder_lock(tmp_path / "busy", "training in"), pytest.raises(UserError, match="is training in this"):
        convert_file(tmp_path / "original.pth", tmp_path / "busy", heads=4)


def test_the_batchnorm_of_the_authors_linear_probe_becomes_part_of_its_linear() -> None:
    """They save it as `head.fc`, a BatchNorm without weights (eps 1e-6) and the Linear."""
    head = ProbeHead(SIZES["dim"], CLASSES)
    theirs = original_classifier(head)
    norm = torch.nn.BatchNorm1d(SIZES["dim"], affine=False, eps=1e-6)
    norm.running_mean, norm.running_var = torch.randn(SIZES["dim"]), 0.1 + torch.rand(SIZES["dim"])
    head.fc = torch.nn.Sequential(norm, head.fc)  # type: ignore[assignment]
    weights, what = convert_state_dict(theirs.state_dict(), heads=4)
    assert (what.kind, what.num_classes) == ("probe", CLASSES)
    model = what.build().eval()
    model.load_state_dict(weights)
    video, joints, _ = inputs()
    close(model(video, joints), theirs.eval()(video, joints), "logits")
    state = theirs.state_dict()
    del state["head.fc.0.running_var"]
    with pytest.raises(UserError, match=r"1 missing names: head.fc.0.running_var$"):
        convert_state_dict(state, heads=4)
    state["head.fc.0.running_var"] = torch.ones(3)
    with pytest.raises(UserError, match=r"shapes do not match: .* head.fc.0.running_var \(3,\), head.fc.1"):
        convert_state_dict(state, heads=4)


def test_the_file_tells_what_no_shape_does(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    state = original_pretrain().state_dict()
    said = {
        "num_heads": 4, "num_layers_for_target": 2, "instance_norm_target_layer": False, "layer_norm_target_layer": False,
        "batch_norm_target_layer": True, "instance_norm_targets": False, "layer_norm_targets": True, "target_ffn": True,
        "target_both": True, "block_norm_first": True,
    }

    def converted(name: str, heads: int | None = None, **changes: Any) -> PretrainConfig:
        args = argparse.Namespace(model_args={**said, **changes}, output_dir=Path("of/another/machine"))
        torch.save({"model": state, "args": args}, tmp_path / f"{name}.pth")
        config = convert_file(tmp_path / f"{name}.pth", tmp_path / name, heads=heads).config
        assert isinstance(config, PretrainConfig)
        return config

    config = converted("full")
    assert config.model.heads == 4
    assert config.target == TargetConfig(2, "batch", "layer", True, "both")
    assert "attention heads" not in caplog.text
    assert converted("plain", batch_norm_target_layer=False).target.normalise_layer == "none"
    assert converted("asked", heads=8).model.heads == 8
    assert "says that it has 4 attention heads: took 8, as asked" in caplog.text
    with pytest.raises(UserError, match=r"post.pth: its model_args say block_norm_first: False"):
        converted("post", block_norm_first=False)
    with pytest.raises(UserError, match=r"switch on layer_norm_target_layer, batch_norm_target_layer; this network does one"):
        converted("two", layer_norm_target_layer=True)
    for name, value in (("num_heads", True), ("num_heads", "4"), ("num_layers_for_target", 2.0), ("num_layers_for_target", 0)):
        with pytest.raises(UserError, match=rf"its model_args say {name}: {value!r}; expected a whole number above 0"):
            converted("wrong", **{name: value})
    assert converted("silent", num_layers_for_target=None).target.top_layers == 3
    torch.save(state, tmp_path / "bare.pth")
    convert_file(tmp_path / "bare.pth", tmp_path / "bare")
    assert "bare.pth does not say how many attention heads it has: took 8; --heads sets others" in caplog.text


class Setting:
    """An object that a safe loader refuses; unpickling it must not run anything of this class."""

    def __init__(self) -> None:
        self.rate = 1.0

    def __setstate__(self, state: dict[str, Any]) -> None:
        raise AssertionError("code of a stored object ran")


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "old format"])
def test_foreign_objects_in_a_checkpoint_are_left_out_without_running_them(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, zipped: bool
) -> None:
    theirs = original_classifier(FinetuneHead(SIZES["dim"], 24, CLASSES))
    content = {"model": theirs.state_dict(), "args": Setting(), "epoch": 1}
    torch.save(content, tmp_path / "tuned.pth", _use_new_zipfile_serialization=zipped)
    convert_file(tmp_path / "tuned.pth", tmp_path / "run", heads=4)
    assert "left out objects that are not tensors" in caplog.text and "test_svdata2vec_convert.Setting" in caplog.text
    model, config, card = load_classifier(tmp_path / "run")
    assert config.modality == "both" and card["classes"] == [f"class {i}" for i in range(CLASSES)]
    video, joints, _ = inputs()
    close(model(video, joints), theirs.eval()(video, joints), "logits")


def test_class_names_come_from_the_data_set(tmp_path: Path, tiny_shard_folder: Path) -> None:
    torch.save(original_classifier(ProbeHead(SIZES["dim"], 5)).state_dict(), tmp_path / "a.pth")
    convert_file(tmp_path / "a.pth", tmp_path / "run", heads=4, shards=str(tiny_shard_folder), split="all")
    card = json.loads((tmp_path / "run" / "model.json").read_text())
    assert card["classes"] == list("abcde") and card["kind"] == "probe" and card["config"]["data"]["test_split"] == "all"
    convert_file(tmp_path / "a.pth", tmp_path / "numbered", heads=4)
    message = r"numbered was trained on \(the first that differs: 'a' instead of 'class 0'\); give"
    with pytest.raises(UserError, match=message):
        evaluate_run(tmp_path / "numbered", str(tiny_shard_folder), "all")
    torch.save(original_pretrain().state_dict(), tmp_path / "pre.pth")
    for name in ("a.pth", "pre.pth"):
        with pytest.raises(UserError, match="no split 'NOPE'; it has all"):
            convert_file(tmp_path / name, tmp_path / "other", heads=4, shards=str(tiny_shard_folder), split="NOPE")
        assert not (tmp_path / "other").exists()
    torch.save(original_classifier(ProbeHead(SIZES["dim"], 7)).state_dict(), tmp_path / "b.pth")
    with pytest.raises(UserError, match="has 5 classes in split all, the checkpoint 7"):
        convert_file(tmp_path / "b.pth", tmp_path / "other", heads=4, shards=str(tiny_shard_folder), split="all")


def test_files_that_are_no_checkpoint_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none.pth: no such file"):
        convert_file(tmp_path / "none.pth", tmp_path / "run")
    (tmp_path / "text.pth").write_text("not a checkpoint")
    with pytest.raises(UserError, match=r"text.pth cannot be read as a PyTorch checkpoint"):
        convert_file(tmp_path / "text.pth", tmp_path / "run")
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(UserError, match=r"list.pth holds list; expected a state dict"):
        convert_file(tmp_path / "list.pth", tmp_path / "run")
    torch.save({"state_dict": {"a": torch.zeros(1)}}, tmp_path / "nested.pth")
    with pytest.raises(UserError, match=r"nested.pth: state_dict are not dense tensors"):
        convert_file(tmp_path / "nested.pth", tmp_path / "run")
    for tensor in (torch.eye(3).to_sparse(), torch.empty(3, device="meta")):
        torch.save({"blocks": tensor}, tmp_path / "odd.pth")
        with pytest.raises(UserError, match=r"odd.pth: blocks are not dense tensors"):
            convert_file(tmp_path / "odd.pth", tmp_path / "run")


def test_a_converted_classifier_is_evaluated_on_the_originals_frames(tmp_path: Path, tiny_shard_folder: Path) -> None:
    theirs = original_classifier(FinetuneHead(SIZES["dim"], 24, CLASSES)).eval()
    torch.save(theirs.state_dict(), tmp_path / "tuned.pth")
    convert_file(
        tmp_path / "tuned.pth", tmp_path / "run", heads=4, size=32, shards=str(tiny_shard_folder), split="all",
        modality="skeleton",
    )
    seen = embed(tmp_path / "run", "all", tmp_path / "seen.npy", device="cpu").features_nD
    result = evaluate_run(tmp_path / "run", device="cpu")
    confusion = np.zeros((CLASSES, CLASSES), int)
    features: list[Tensor] = []
    theirs.head.register_forward_pre_hook(lambda _, inputs: features.append(inputs[0].mean(1)))
    shards = ShardSet.open(tiny_shard_folder)
    for row in shards.rows("all").tolist():
        sample = shards.sample(row, video=False)
        frames = draw_frames_original(SIZES["frames"], sample.meta.num_frames)
        joints = in_the_crop(sample.pose_MTVC[:, frames], sample.meta.width, sample.meta.height)
        confusion[sample.label, int(theirs(None, joints).argmax())] += 1
    close(torch.from_numpy(seen), torch.cat(features), "features")
    assert result["confusion"] == confusion.tolist()


def in_the_crop(pose_MTVC: np.ndarray, width: int, height: int) -> Tensor:
    """Joints (1, 2, T, V, 2) in the pixels of a 32 px crop around them, by hand."""
    x1, y1, x2, y2 = crop_square(joint_box(pose_MTVC), width, height)
    moved = (pose_MTVC - (x1, y1)) * 32 / np.array([x2 - x1, y2 - y1])
    moved[(pose_MTVC == 0).all(-1)] = 0
    joints = torch.zeros(1, 2, *pose_MTVC.shape[1:])
    joints[0, : len(moved)] = torch.from_numpy(moved)
    return joints
