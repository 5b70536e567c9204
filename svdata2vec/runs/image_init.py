"""`--model.init FILE`: a run whose video encoder starts from an image network, and what the run's card says of it."""

import hashlib
import io
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

from svdata2vec.config.schema import FinetuneConfig, PretrainConfig
from svdata2vec.model.image_weights import NotImageWeightsError, image_weights
from svdata2vec.model.student import Encoder
from svdata2vec.runs.checkpoint import has_checkpoints
from svdata2vec.runs.failures import first_line
from svdata2vec.runs.torch_file import read_torch_file
from svdata2vec.shards.errors import MachineError, UserError

EXPECTED = "expected the state dict of a ResNet-18 in torchvision's naming (.safetensors, or a file of torch.save)"

log = logging.getLogger(__name__)


def start_from_images(encoder: Encoder, config: PretrainConfig | FinetuneConfig) -> dict[str, Any]:
    """Load `model.init` into the video encoder of a run that begins; one that continues does not need the file any more.

    Returns:
        What the card says of it, under `initialised_from`; nothing without such a file, or for a run that continues.

    Raises UserError where there is no such video encoder, or where it starts from another run.
    """
    path = config.model.init
    if path is None:
        return {}
    if isinstance(config, FinetuneConfig) and config.modality == "skeleton":
        raise UserError(f"--model.init is {path}, but --modality skeleton has no video encoder to start; leave it out")
    if isinstance(config, FinetuneConfig) and config.pretrained is not None:
        raise UserError(f"--model.init is {path} and --from is {config.pretrained}: give one start of the video encoder")
    if has_checkpoints(config.run.out):
        return {}
    content = _bytes(path)
    try:
        found = image_weights(_state_dict(path, content), encoder.video_encoder)
    except NotImageWeightsError as error:
        raise UserError(f"--model.init {path}: {error}; {EXPECTED}") from error
    encoder.video_encoder.load_state_dict(found.weights, strict=False)
    entry: dict[str, Any] = {
        "file": path.name, "sha256": hashlib.sha256(content).hexdigest(), "network": "ResNet-18 (torchvision)",
        "taken": len(found.taken), "left": found.left,
    }
    log.info(
        "--model.init %s (sha256 %s...): took %d tensors into the video encoder, the stem inflated over time, PReLUs at slope "
        "0; left %s; the encoder's last linear map stays random",
        path, entry["sha256"][:12], len(found.taken), ", ".join(found.left) or "nothing",
    )
    return {"initialised_from": entry}


def images_hash(path: Path) -> str:
    """Of the file, in hexadecimal; UserError if it cannot be read."""
    return hashlib.sha256(_bytes(path)).hexdigest()


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"--model.init {path}: cannot be read ({error.strerror or error}); {EXPECTED}") from error


def _state_dict(path: Path, content: bytes) -> dict[str, Tensor]:
    """The tensors of a file. Nothing in it can run code."""
    try:
        found: Any = safetensors.torch.load(content) if path.suffix == ".safetensors" else read_torch_file(io.BytesIO(content))
    except MachineError:
        raise
    except (UserError, safetensors.SafetensorError, ValueError) as error:
        raise UserError(f"--model.init {path}: {first_line(error)}; {EXPECTED}") from error
    if not isinstance(found, Mapping) or not all(
        isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in found.items()
    ):
        raise UserError(f"--model.init {path}: it is no dictionary of names and tensors; {EXPECTED}")
    return dict(found)
