"""Weights of the authors' code under our names, and the configuration that follows from their shapes.

For the names see svdata2vec/README.md, "Checkpoints of the authors' code".

T frames, D width, M persons, C coordinates, V joints
"""

import json
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from svdata2vec.config.probe import ProbeConfig
from svdata2vec.config.schema import (
    DataConfig,
    FinetuneConfig,
    HeadConfig,
    Modality,
    ModelConfig,
    PretrainConfig,
    RunConfig,
    TargetConfig,
)
from svdata2vec.model.classifier import Classifier
from svdata2vec.model.student import SVData2Vec
from svdata2vec.original.checkpoint_file import read_original
from svdata2vec.runs.card import model_card
from svdata2vec.runs.folder import claimed_folder, parts_of_run, write_config
from svdata2vec.runs.published import publish
from svdata2vec.shards.errors import UserError
from svdata2vec.shards.reading.remote import open_shards
from svdata2vec.shards.reading.shardset import ShardSet

Kind = Literal["pretrain", "finetune", "probe"]

log = logging.getLogger(__name__)

# (name or prefix of names in the authors' code, the same here); the first that matches counts.
NAMES = (
    ("feature_extractor_video.resnet.frontend3D.0.", "encoder.video_encoder.stem.conv."),
    ("feature_extractor_video.resnet.frontend3D.1.", "encoder.video_encoder.stem.bn."),
    ("feature_extractor_video.resnet.frontend3D.2.", "encoder.video_encoder.stem.relu."),
    *((f"feature_extractor_video.resnet.trunk.layer{i + 1}.", f"encoder.video_encoder.stages.{i}.") for i in range(4)),
    ("feature_extractor_video.proj.", "encoder.video_encoder.proj."),
    ("joints_embed.proj.", "encoder.skeleton_embed.proj."),
    ("temp_embed", "encoder.temporal_embed"),
    ("blocks.", "encoder.blocks."),
    ("norm.", "encoder.norm."),
    ("mask_token", "decoder.mask_token"),
    ("decoder_temp_embed", "decoder.temporal_embed"),
    ("decoder_embed.", "decoder.embed."),
    ("decoder_blocks.", "decoder.blocks."),
    ("decoder_norm.", "decoder.norm."),
    ("decoder_pred.", "decoder.pred."),
    ("head.", "head."),
)
_COUNTER = "num_batches_tracked"  # of BatchNorm: old checkpoints lack it, and nothing here reads it
_SKELETON = "joints_embed.proj.weight"
_STEM = "feature_extractor_video.resnet.frontend3D.0.weight"
SHOWN_NAMES = 4  # of those that are unknown or missing
_PROBE_NORM_EPS = 1e-6  # of the BatchNorm without weights that the authors' linear probe puts before its Linear


@dataclass(frozen=True)
class Network:
    """The network that a set of weights belongs to, as far as shapes determine it.

    Attributes:
        kind: "pretrain" (student with decoder), "finetune" (encoder with head) or "probe" (encoder with one Linear).
        config: configuration of a run with such a network; settings that shapes do not determine have their defaults.
        num_joints: V; 0 for a network without a skeleton embedding.
        num_classes: outputs of the head; 0 for "pretrain".
    """

    kind: Kind
    config: PretrainConfig | FinetuneConfig
    num_joints: int
    num_classes: int

    def build(self) -> SVData2Vec | Classifier:
        """A network of this shape with new weights, to `load_state_dict` the converted ones into."""
        if isinstance(self.config, PretrainConfig):
            return SVData2Vec(self.config, self.num_joints)
        return Classifier(self.config, self.num_joints, self.num_classes, linear=self.kind == "probe")


def convert_state_dict(
    original: Mapping[str, Tensor], *, heads: int = 8, coordinates: int = 2, modality: Modality | None = None
) -> tuple[dict[str, Tensor], Network]:
    """Rename and reshape the weights of a network of the authors' code.

    Args:
        original: its state dict; the prefix "module." of DistributedDataParallel is removed.
        heads: attention heads, which shapes do not determine.
        coordinates: C; shapes only determine M * C.
        modality: what a classifier sees; default: every modality that it has an embedding for.

    Returns:
        (weights under our names in float32, their network): `network.build().load_state_dict(weights)` works.

    Raises:
        UserError: names are unknown or missing (all are listed), or shapes are inconsistent.
    """
    original = _fold_probe_norm({name.removeprefix("module."): tensor for name, tensor in original.items()})
    if modality is not None and not any(name.startswith("head.") for name in original):
        raise UserError("it is of pretraining, which has no head; leave out --modality, which is for classifiers")
    if modality == "rgb":
        original = {name: tensor for name, tensor in original.items() if not name.startswith("joints_embed.")}
    if modality == "skeleton":
        original = {name: tensor for name, tensor in original.items() if not name.startswith("feature_extractor_video.")}
    network = describe_network(original, heads, coordinates, modality)
    with torch.device("meta"):
        wanted = network.build().state_dict()
    expected = {str(original_name(name)): name for name in wanted}
    _refuse_names(
        [name for name in original if name not in expected],
        [name for name in expected if name not in original and not name.endswith(_COUNTER)],
    )
    weights = {
        ours: _reshape(theirs, original.get(theirs, torch.zeros((), dtype=torch.int64))) for theirs, ours in expected.items()
    }
    wrong = [
        f"{theirs} {tuple(original[theirs].shape)} instead of {tuple(wanted[ours].shape)}"
        for theirs, ours in sorted(expected.items()) if weights[ours].shape != wanted[ours].shape
    ]
    if wrong:
        raise UserError(f"{len(wrong)} weights have a shape that does not match the others: {', '.join(wrong)}")
    return weights, network


def _reshape(name: str, tensor: Tensor) -> Tensor:
    tensor = tensor.detach().float() if tensor.is_floating_point() else tensor.detach()
    if name == _SKELETON:
        tensor = tensor.flatten(1)  # (D, M*C, 1, V) of a convolution -> features ordered person, coordinate, joint
    return tensor.clone().contiguous()


def _fold_probe_norm(original: dict[str, Tensor]) -> dict[str, Tensor]:
    """The authors' linear probe saves (BatchNorm without weights, Linear) as `head.fc`: one Linear with the same logits.

    The features under it are frozen, so its running statistics are constants.
    """
    norm, linear = "head.fc.0.", "head.fc.1."
    if not any(name.startswith((norm, linear)) for name in original):
        return original
    parts = [f"{norm}running_mean", f"{norm}running_var", f"{linear}weight", f"{linear}bias"]
    _refuse_names([], [name for name in parts if name not in original])
    mean_D, var_D, weight_cD, bias_c = (original[name].double() for name in parts)
    if not (mean_D.shape == var_D.shape == weight_cD.shape[1:] and bias_c.shape == weight_cD.shape[:1] and weight_cD.ndim == 2):
        raise UserError(f"shapes do not match: {', '.join(f'{name} {tuple(original[name].shape)}' for name in parts)}")
    folded = {name: tensor for name, tensor in original.items() if not name.startswith((norm, linear))}
    scaled_cD = weight_cD * torch.rsqrt(var_D + _PROBE_NORM_EPS)
    folded["head.fc.weight"] = scaled_cD.float()
    folded["head.fc.bias"] = (bias_c - scaled_cD @ mean_D).float()
    return folded


def original_name(name: str) -> str | None:
    """The name in the authors' code of one of our weights; None for an unknown one."""
    return next((theirs + name.removeprefix(ours) for theirs, ours in NAMES if _fits(name, ours)), None)


def _fits(name: str, beginning: str) -> bool:
    return name == beginning or (beginning.endswith(".") and name.startswith(beginning))


def _refuse_names(unknown: list[str], missing: list[str]) -> None:
    faults = []
    if unknown:
        faults.append(f"{len(unknown)} unknown names: {_some(unknown)}")
    if missing:
        faults.append(f"{len(missing)} missing names: {_some(missing)}")
    if any(name.startswith("encoder.video_encoder.") for name in unknown):
        raise UserError("a checkpoint of this package, not of the authors' code; give the folder of its run to --from or embed")
    if faults:
        raise UserError(f"not the weights of the authors' network: {'; '.join(faults)}")


def _some(names: list[str]) -> str:
    return ", ".join([*sorted(names)[:SHOWN_NAMES], *(["..."] if len(names) > SHOWN_NAMES else [])])


def describe_network(
    original: Mapping[str, Tensor], heads: int, coordinates: int, modality: Modality | None
) -> Network:
    """Widths and depths from shapes. UserError lists the weights that are missing for that."""
    has_head = any(name.startswith("head.") for name in original)
    kind: Kind = "pretrain" if not has_head else "probe" if "head.fc.weight" in original else "finetune"
    needed = {"temp_embed": 3, "blocks.0.mlp.fc1.weight": 2}
    if kind == "pretrain" or _STEM in original or modality in ("rgb", "both"):
        needed[_STEM] = 5
    if kind == "pretrain" or _SKELETON in original or modality in ("skeleton", "both") or _STEM not in original:
        needed[_SKELETON] = 4
    if kind == "finetune":
        needed |= {"head.fc1.weight": 2, "head.fc2.weight": 2}
    missing = [name for name in needed if name not in original]
    if missing:
        _refuse_names([name for name in original if not any(_fits(name, theirs) for theirs, _ in NAMES)], missing)
    for name, dimensions in needed.items():
        if original[name].ndim != dimensions:
            raise UserError(f"{name} has shape {tuple(original[name].shape)}; expected {dimensions} dimensions")
    num_joints = original[_SKELETON].shape[3] if _SKELETON in needed else 0
    model = _model_config(original, heads, coordinates)
    data = DataConfig(num_frames=original["temp_embed"].shape[1], frame_draw="original")
    if kind == "pretrain":
        target = TargetConfig(top_layers=min(TargetConfig().top_layers, model.depth))
        return Network(kind, PretrainConfig(data=data, model=model, target=target, encode="all_frames"), num_joints, 0)
    seen: Modality = "both" if _STEM in needed and _SKELETON in needed else "rgb" if _STEM in needed else "skeleton"
    hidden = original["head.fc1.weight"].shape[0] if kind == "finetune" else HeadConfig().hidden
    classes = original["head.fc2.weight" if kind == "finetune" else "head.fc.weight"].shape[0]
    data = replace(data, crop="boxes" if seen == "rgb" else "joints")  # as the authors' code crops for each of them
    config = FinetuneConfig(data=data, model=model, head=HeadConfig(hidden=hidden), modality=seen)
    return Network(kind, config, num_joints, classes)


def _model_config(original: Mapping[str, Tensor], heads: int, coordinates: int) -> ModelConfig:
    width = original["temp_embed"].shape[2]
    defaults = ModelConfig()
    channels = original[_SKELETON].shape[1] if _SKELETON in original else defaults.persons * coordinates
    if channels % coordinates:
        raise UserError(f"{_SKELETON} has {channels} input channels, no multiple of {coordinates} coordinates; set coordinates")
    return ModelConfig(
        width=width,
        depth=_count_blocks(original, "blocks"),
        decoder_depth=_count_blocks(original, "decoder_blocks") or defaults.decoder_depth,
        heads=heads,
        mlp_ratio=original["blocks.0.mlp.fc1.weight"].shape[0] / width,
        stem_width=original[_STEM].shape[0] if _STEM in original else defaults.stem_width,
        persons=channels // coordinates,
        coordinates=coordinates,
    )


def _count_blocks(original: Mapping[str, Tensor], prefix: str) -> int:
    numbers = [int(found[1]) for name in original if (found := re.match(rf"{prefix}\.(\d+)\.", name))]
    return max(numbers, default=-1) + 1


def convert_file(
    checkpoint: Path,
    out: Path,
    *,
    heads: int | None = None,
    coordinates: int = 2,
    modality: Modality | None = None,
    size: int = 224,
    shards: str | None = None,
    split: str | None = None,
) -> Network:
    """Write a checkpoint of the authors' code as the folder of a finished run, for `finetune`, `probe` or `evaluate`.

    Arguments as the options of `svdata2vec convert`; the default split is the one that `DataConfig` names.
    """
    _require_no_run(out)
    try:
        file = read_original(checkpoint)
        weights, network = convert_state_dict(
            file.weights, heads=file.heads(checkpoint, heads), coordinates=coordinates, modality=modality
        )
        if isinstance(network.config, PretrainConfig):
            network = replace(network, config=replace(network.config, target=file.target(network.config.target)))
    except UserError as error:
        text = str(error)
        raise UserError(text if text.startswith(str(checkpoint)) else f"{checkpoint}: {text}") from error
    packed = open_shards(shards) if shards is not None else None
    if packed is not None and split is not None:
        packed.rows(split)  # an error if there is none of that name
    data = network.config.data
    data = replace(data, size=size, shards=data.shards if shards is None else shards, test_split=split or data.test_split)
    config = replace(network.config, data=data, run=RunConfig(out=out))
    classes = _class_names(network, packed, data.test_split)
    card = model_card(network.kind, config, num_joints=network.num_joints, classes=classes)
    with claimed_folder(out, "converting into"):
        _require_no_run(out)
        if isinstance(config, FinetuneConfig) and network.kind == "probe":
            write_config(out, ProbeConfig(data=data, out=out, modality=config.modality))
        else:
            write_config(out, config)
        publish(out, weights, {**card, "converted_from": checkpoint.name})
    log.info("%s: %s", out, json.dumps(summary(network)))
    return replace(network, config=config)


def _require_no_run(out: Path) -> None:
    if left := parts_of_run(out):
        raise UserError(f"{out} holds a run already ({', '.join(left)}); choose another folder")


def _class_names(network: Network, shards: ShardSet | None, split: str) -> list[str]:
    if network.kind == "pretrain":
        return []
    if shards is None:
        return [f"class {number}" for number in range(network.num_classes)]
    classes = list(shards.split_classes(split))
    if len(classes) != network.num_classes:
        raise UserError(
            f"{shards.where} has {len(classes)} classes in split {split}, the checkpoint {network.num_classes}; "
            "give the data set and split that it was trained on"
        )
    return classes


def summary(network: Network) -> dict[str, object]:
    """Summary of the network for the user."""
    model = network.config.model
    found: dict[str, object] = {
        "kind": network.kind, "frames": network.config.data.num_frames, "width": model.width, "blocks": model.depth,
        "heads": model.heads, "stem_width": model.stem_width, "persons": model.persons, "joints": network.num_joints,
    }
    if isinstance(network.config, FinetuneConfig):
        found |= {"modality": network.config.modality, "classes": network.num_classes}
    else:
        found |= {"decoder_blocks": model.decoder_depth}
    return found
