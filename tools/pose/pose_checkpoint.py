"""Checkpoints of OpenMMLab: downloaded once, and read without running code that they might contain. Runs in .venv-pose."""

import contextlib
import importlib
import pickle
import re
import urllib.error
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from svdata2vec.shards.errors import UserError


def read_checkpoint(source: str, *, trust: bool = False) -> dict[str, torch.Tensor]:
    """The weights in a checkpoint file or URL of OpenMMLab's form.

    Such files are pickles. They are read with torch's safe unpickler, which is set to allow the log buffer that mmengine saves
    beside the weights. A file with anything else could run code: without `trust` that is a UserError.
    """
    path = fetch(source) if "://" in source else Path(source)
    if not path.is_file():
        raise UserError(f"{source}: no such file; expected a checkpoint of mmpose")
    try:
        with _known_globals():
            content = _load(source, path, weights_only=True)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL (\S+)", str(error))
        if found is None:
            raise UserError(f"{source}: not a checkpoint ({first_line(error)})") from error
        if not trust:
            raise UserError(f"{source}: holds {found.group(1)} beside weights, which could run code; "
                            "if you trust its source, pass --trust-checkpoint") from error
        content = _load(source, path, weights_only=False)
    state = content.get("state_dict", content) if isinstance(content, dict) else {}
    if not state or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise UserError(f"{source}: holds no weights; expected a dictionary with 'state_dict'")
    return state


def _load(source: str, path: Path, *, weights_only: bool) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=weights_only)
    except (RuntimeError, EOFError, ValueError, KeyError, AttributeError, ImportError, OSError) as error:
        raise UserError(f"{source}: not a checkpoint ({first_line(error)})") from error


@contextlib.contextmanager
def _known_globals() -> Iterator[None]:
    """The classes that mmengine's checkpoints contain beside weights: HistoryBuffer, made of NumPy arrays."""
    from mmengine.logging.history_buffer import HistoryBuffer

    kinds: list[Any] = [HistoryBuffer, np.ndarray, np.dtype, (_statistic, "builtins.getattr"), (_statistic, "getattr")]
    kinds += [type(np.dtype(kind)) for kind in ("float64", "float32", "int64", "int32", "bool")]
    for name in ("_reconstruct", "scalar"):
        function = getattr(importlib.import_module("numpy._core.multiarray"), name)
        kinds += [(function, f"numpy.core.multiarray.{name}"), (function, f"numpy._core.multiarray.{name}")]
    with torch.serialization.safe_globals(kinds):
        yield


def _statistic(owner: Any, name: str) -> Any:
    """Replaces `getattr`, by which a HistoryBuffer's pickle names its four methods; unrestricted it could reach anything."""
    from mmengine.logging.history_buffer import HistoryBuffer

    if (owner is not HistoryBuffer and type(owner) is not HistoryBuffer) or name not in ("min", "max", "mean", "current"):
        raise pickle.UnpicklingError(f"GLOBAL getattr({owner!r}, {name!r})")
    return getattr(owner, name)


def fetch(url: str) -> Path:
    """The file of a URL, in torch's cache, checked against the 8 digits of its hash that OpenMMLab puts into names."""
    name = url.rpartition("/")[2]
    target = Path(torch.hub.get_dir()) / "checkpoints" / name
    if target.is_file():
        return target
    hash_start = re.search(r"-([0-9a-f]{8})_\d{8}\.pth$", name)
    print(f"downloading {url} into {target.parent} (once)", flush=True)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(target), hash_start.group(1) if hash_start else None, progress=False)
    except (urllib.error.URLError, OSError, RuntimeError, ValueError) as error:
        raise UserError(f"{url}: cannot be downloaded ({first_line(error)}); download it yourself and pass the file "
                        "with --checkpoint") from error
    return target


def first_line(error: Exception) -> str:
    """The first line of an error's message, or its name."""
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
