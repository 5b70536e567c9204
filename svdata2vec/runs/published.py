"""Published weights: `model.safetensors` and their card `model.json`, and the networks that are made of them again."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

from svdata2vec import __version__
from svdata2vec.config.files import from_dict
from svdata2vec.config.schema import FinetuneConfig, PretrainConfig
from svdata2vec.model.classifier import Classifier
from svdata2vec.model.student import Encoder
from svdata2vec.runs.card import read_card, run_folder
from svdata2vec.runs.failures import RunFailedError
from svdata2vec.shards.atomic import write_atomically
from svdata2vec.shards.errors import UserError

# Of the card, in the header of the weights.
IN_THE_WEIGHTS = ("version", "kind", "modality", "num_joints", "classes", "preprocessing")


def publish(folder: Path, weights: dict[str, Tensor], card: dict[str, Any]) -> None:
    """Write `model.safetensors`, with what other programs need of the card in its header, and after it the card `model.json`.

    Raises:
        RunFailedError: a weight is NaN or infinite; nothing is written.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    broken = [name for name, tensor in tensors.items() if not tensor.isfinite().all()]
    if broken:
        found = f"{len(broken)} of {len(tensors)} weights are not finite ({', '.join(broken[:4])})"
        raise RunFailedError(f"{folder}: {found} and are not published; try a lower learning rate, or precision fp32")
    folder.mkdir(parents=True, exist_ok=True)
    card = {"version": __version__, **card}
    inside = {"svdata2vec": json.dumps({name: card[name] for name in IN_THE_WEIGHTS if name in card})}
    write_atomically(folder / "model.safetensors", safetensors.torch.save(tensors, inside))
    write_atomically(folder / "model.json", json.dumps(card, indent=2).encode())


def load_published(run: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Weights and card of a finished run, given its folder or its `model.safetensors`."""
    card = read_card(run)
    return safetensors.torch.load_file(run_folder(run) / "model.safetensors"), card


def published_config(card: dict[str, Any], run: Path) -> PretrainConfig | FinetuneConfig:
    """The settings of the networks that a card describes."""
    kind: type[PretrainConfig | FinetuneConfig] = PretrainConfig if card["kind"] == "pretrain" else FinetuneConfig
    return from_dict(kind, card["config"], f"{run}/model.json: config")


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
    model.load_state_dict(weights)
    return model.eval(), config, card
