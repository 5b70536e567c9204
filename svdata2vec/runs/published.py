"""Published weights: `model.safetensors` and their card `model.json`, and the networks rebuilt from them."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from svdata2vec import __version__
from svdata2vec.config.checked_json import sealed
from svdata2vec.config.files import from_dict, with_todays_names
from svdata2vec.config.schema import DataConfig, FinetuneConfig, Modality, ModelConfig, PretrainConfig
from svdata2vec.model.classifier import Classifier
from svdata2vec.model.student import Encoder
from svdata2vec.runs.card import opened_weights, read_card, run_folder
from svdata2vec.runs.failures import RunFailedError
from svdata2vec.runs.folder import CARD, WEIGHTS
from svdata2vec.shards.atomic import make_folder, write_atomically
from svdata2vec.shards.errors import UserError

# Of the card, in the header of the weights.
IN_THE_WEIGHTS = ("version", "kind", "modality", "num_joints", "classes", "preprocessing")


# Options and settings of the network that an encoder's weights belong to; of what reads videos, and skeletons.
NETWORK = {
    "--model.width": "width", "--model.depth": "depth", "--model.heads": "heads", "--model.mlp-ratio": "mlp_ratio",
}
VIDEO, SKELETON = {"--model.stem-width": "stem_width"}, {"--model.joint-motion": "joint_motion"}


def publish(folder: Path, weights: dict[str, Tensor], card: dict[str, Any]) -> None:
    """Write `model.safetensors`, with what other programs need of the card in its header, and after it the card `model.json`.

    Both have the hash of the weights, so that nobody takes one of them for the other one's.

    Raises:
        RunFailedError: a weight is NaN or infinite; nothing is written.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    broken = [name for name, tensor in tensors.items() if not tensor.isfinite().all()]
    if broken:
        found = f"{len(broken)} of {len(tensors)} weights are not finite ({', '.join(broken[:4])})"
        raise RunFailedError(f"{folder}: {found} and are not published; try a lower learning rate, or precision fp32")
    make_folder(folder)
    card = {"version": __version__, **card}
    inside = {name: card[name] for name in IN_THE_WEIGHTS if name in card}
    found = digest(tensors, inside)
    header = {"svdata2vec": json.dumps({**inside, "sha256": found})}
    write_atomically(folder / WEIGHTS, safetensors.torch.save(tensors, header))
    write_atomically(folder / CARD, sealed({**card, "weights": found}))


def digest(weights: dict[str, Tensor], inside: dict[str, Any]) -> str:
    """SHA-256 of what a file's header says, and of every weight by name: its name, type, shape and bytes (on the CPU)."""
    found = hashlib.sha256(json.dumps(inside, sort_keys=True).encode())
    for name, tensor in sorted(weights.items()):
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        found.update(tensor.flatten().view(torch.uint8).numpy().data)
    return found.hexdigest()


def load_published(run: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Weights and card of a finished run, given its folder or its `model.safetensors`.

    The file of the weights carries their hash, so damage is noticed wherever it is copied to. One of an earlier version
    has none and is taken as it is.

    Raises:
        UserError: one of the two is missing or damaged, or they are of two runs.
    """
    card = read_card(run)
    path = run_folder(run) / WEIGHTS
    with opened_weights(run) as (file, inside):
        weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no dictionary
        stored = inside.pop("sha256", None)
    if stored is not None and stored != digest(weights, inside):
        raise UserError(f"{path} is damaged: its content is not what was written (sha256); copy it again")
    if stored is not None and card.get("weights", stored) != stored:
        raise UserError(f"{path} and {CARD} beside it were not written together; copy both from one run")
    return weights, card


def published_config(card: dict[str, Any], run: Path) -> PretrainConfig | FinetuneConfig:
    """The settings of the networks that a card describes. Triton's kernels, where they were asked for, are no part of them."""
    kind: type[PretrainConfig | FinetuneConfig] = PretrainConfig if card["kind"] == "pretrain" else FinetuneConfig
    values = with_todays_names(card["config"])
    if isinstance(data := values.get("data"), dict):  # up to 0.2.0 crops counted every joint
        values = {**values, "data": {"crop_scores": [0, 0], **data}}
    config = from_dict(kind, values, f"{run}/{CARD}: config")
    model = config.model
    return config if model.impl != "triton" else replace(config, model=replace(model, impl="auto"))  # it may run on a CPU now


def input_settings(config: PretrainConfig | FinetuneConfig, modality: Modality) -> DataConfig:
    """How clips are prepared for the encoder of a run with these settings where it sees `modality`.

    They are the run's own, but RGB alone after training with skeletons is cropped around the stored boxes, as fine-tuning does:
    a crop around joints would tell it where they are.
    """
    with_skeletons = isinstance(config, PretrainConfig) or config.modality != "rgb"
    return replace(config.data, crop="boxes") if with_skeletons and modality == "rgb" else config.data


def require_same_network(run: Path, made: ModelConfig, wanted: ModelConfig, whose: str, modality: Modality) -> None:
    """UserError if a run's weights would mean something else in the network `wanted`, whatever their shapes, or be left out.

    Args:
        whose: network, as the message has it.
        modality: what it reads.
    """
    own = {"rgb": VIDEO, "skeleton": SKELETON, "both": VIDEO | SKELETON}
    settings = [f"{option} {getattr(made, name)}" for option, name in (NETWORK | own[modality]).items()
                if getattr(made, name) != getattr(wanted, name)]
    if settings:
        raise UserError(f"{run} has another network than {whose}; set {' '.join(settings)}")


def load_encoder_weights(encoder: Encoder, source: Path) -> None:
    """Take the encoder's weights from a finished run; anything missing or of another shape is an error that lists it."""
    weights, _ = load_published(source)
    prefix = "encoder."
    found = {name.removeprefix(prefix): tensor for name, tensor in weights.items() if name.startswith(prefix)}
    wanted = encoder.state_dict()
    missing = sorted(set(wanted) - set(found))
    if missing:
        raise UserError(
            f"{source}: {len(missing)} weights of the encoder are missing: {', '.join(missing[:8])}; use the model.* settings "
            "and a modality that the run was made with (its config.json)"
        )
    wrong = [
        f"{name} {tuple(found[name].shape)} instead of {tuple(wanted[name].shape)}"
        for name in wanted
        if found[name].shape != wanted[name].shape
    ]
    if wrong:
        raise UserError(
            f"{source}: {len(wrong)} weights have another shape: {', '.join(wrong[:4])}; use the model.* and data.num_frames "
            "settings that the run was made with (its config.json), and shards of its joint layout if skeletons are read"
        )
    encoder.load_state_dict({name: found[name] for name in wanted})


def load_classifier(run: Path, **model_settings: Any) -> tuple[Classifier, FinetuneConfig, dict[str, Any]]:
    """The classifier of a finished fine-tuning or probe run, in evaluation mode, with its configuration and model card.

    `model_settings` take the place of the run's own, those that leave the weights as they are (`impl`, `fused_blocks`).
    """
    weights, card = load_published(run)
    if card.get("kind") not in ("finetune", "probe"):
        raise UserError(f"{run} is a {card.get('kind', 'foreign')} run without a classifier; give a finetune or probe run")
    config = published_config(card, run)
    assert isinstance(config, FinetuneConfig)
    config = replace(config, model=replace(config.model, **model_settings))
    model = Classifier(config, card["num_joints"], len(card["classes"]), linear=card["kind"] == "probe")
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        found = " ".join(str(error).split())[:200]
        raise UserError(f"{run_folder(run) / CARD} does not describe the weights beside it ({found})") from error
    return model.eval(), config, card
