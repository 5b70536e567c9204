"""Reads a checkpoint of the authors' code without running any code that is stored in it.

Such a file is a pickle of {'model', 'optimizer', 'epoch', 'scaler', 'args'} or of a bare state dict. Its 'args' may hold
objects of libraries that are not installed here: every class that is not part of a tensor is replaced by an empty stand-in.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from svdata2vec.config.schema import TargetConfig
from svdata2vec.runs.torch_file import read_torch_file
from svdata2vec.shards.errors import MachineError, UserError, require_file

PAPERS_HEADS = 8

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class OriginalFile:
    """Content of a checkpoint.

    Attributes:
        weights: its state dict on the CPU.
        settings: the `model_args` of the run that wrote it; empty if the file has none.
    """

    weights: dict[str, Tensor]
    settings: dict[str, Any]

    def heads(self, path: Path, given: int | None) -> int:
        """Number of attention heads, which shapes do not determine: as given, else as in the file, else the paper's."""
        if not self.settings.get("block_norm_first", True):
            raise UserError("its model_args say block_norm_first: False; this network normalises before attention and MLP")
        stored = self._whole("num_heads")
        if given is not None and stored not in (None, given):
            log.warning("%s says that it has %d attention heads: took %d, as asked", path, stored, given)
        heads = stored if given is None else given
        if heads is not None:
            return heads
        log.warning("%s does not say how many attention heads it has: took %d; --heads sets others", path, PAPERS_HEADS)
        return PAPERS_HEADS

    def target(self, default: TargetConfig) -> TargetConfig:
        """How the run computed its targets, as far as the file has these settings."""
        stored = self.settings
        changes: dict[str, Any] = {}
        if "instance_norm_target_layer" in stored:
            changes["normalise_layer"] = _only(stored, {k: f"{k}_norm_target_layer" for k in ("instance", "layer", "batch")})
        if "instance_norm_targets" in stored:
            changes["normalise_average"] = _only(stored, {k: f"{k}_norm_targets" for k in ("instance", "layer")})
        if "target_ffn" in stored:
            changes["feed_forward"] = bool(stored["target_ffn"])
        if "target_both" in stored:
            changes["teacher_input"] = "both" if stored["target_both"] else "skeleton"
        if top_layers := self._whole("num_layers_for_target"):
            changes["top_layers"] = top_layers
        return replace(default, **changes)

    def _whole(self, name: str) -> int | None:
        """A number above 0 of the settings; None if the file does not have it."""
        value = self.settings.get(name)
        if value is not None and (type(value) is not int or value < 1):
            raise UserError(f"its model_args say {name}: {value!r}; expected a whole number above 0")
        return value


def _only(settings: dict[str, Any], switches: dict[str, str]) -> str:
    """The normalisation that is switched on, or "none"."""
    chosen = [kind for kind, switch in switches.items() if settings.get(switch)]
    if len(chosen) > 1:
        raise UserError(f"its model_args switch on {', '.join(switches[k] for k in chosen)}; this network does one of them")
    return chosen[0] if chosen else "none"


def read_original(path: Path) -> OriginalFile:
    """The weights of a checkpoint, and the settings of their network as far as the file has them.

    Raises:
        UserError: no such file, no PyTorch checkpoint, or one without a state dict.
    """
    require_file(path, "a checkpoint of the authors' code")
    content = _read(path)
    settings: Any = {}
    if isinstance(content, Mapping) and isinstance(content.get("model"), Mapping):
        arguments = content.get("args")
        settings = (arguments if isinstance(arguments, Mapping) else getattr(arguments, "__dict__", {})).get("model_args")
        content = content["model"]
    if not isinstance(content, Mapping) or not content:
        raise UserError(f"{path} holds {type(content).__name__}; expected a state dict, or a dict with one under 'model'")
    wrong = [str(name) for name, value in content.items() if not (isinstance(name, str) and _is_dense(value))]
    if wrong:
        raise UserError(
            f"{path}: {', '.join(sorted(wrong)[:8])} are not dense tensors; expected a state dict, or a dict with one under "
            "'model'"
        )
    return OriginalFile(dict(content), dict(settings) if isinstance(settings, Mapping) else {})


def _is_dense(value: Any) -> bool:
    return isinstance(value, Tensor) and value.layout == torch.strided and not value.is_meta


def _read(path: Path) -> Any:
    replaced: set[str] = set()
    try:
        content = read_torch_file(path, replaced)
    except MachineError:
        raise
    except UserError as error:
        raise UserError(f"{path} cannot be read as a PyTorch checkpoint: {error}; copy it again") from error
    if replaced:
        names = ", ".join(sorted(replaced))
        log.warning("%s: left out objects that are not tensors, without running their code: %s", path, names)
    return content
