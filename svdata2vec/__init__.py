"""SV-data2vec: self-supervised pretraining on video + skeletons at the speed of the GPU.

From Python: `open_shards` a packed data set, iterate over its batches with a `ClipLoader`, prepared as a `PlanConfig` says, and
take features of clips or video files by the encoder of a finished run (`load_encoder`). Wrong input raises `UserError`. Each of
them is imported when it is first used, so that `import svdata2vec` costs nothing.

The sub-packages `svdata2vec.shards`, `svdata2vec.pipeline` and `svdata2vec.kernels` are the top-level folders of the
repository, reached through relative symlinks.
"""

import pkgutil
from typing import TYPE_CHECKING, Any

from svdata2vec.config.openmp import bound_waiting

if TYPE_CHECKING:
    from svdata2vec.evaluation.features import load_encoder
    from svdata2vec.pipeline.loader import ClipLoader
    from svdata2vec.pipeline.plan import PlanConfig
    from svdata2vec.shards.errors import UserError
    from svdata2vec.shards.reading.remote import open_shards

__version__ = "0.3.0.dev0"
__all__ = ["ClipLoader", "PlanConfig", "UserError", "load_encoder", "open_shards"]

bound_waiting()  # before anything here imports PyTorch

_HOMES = {
    "ClipLoader": "pipeline.loader",
    "PlanConfig": "pipeline.plan",
    "UserError": "shards.errors",
    "load_encoder": "evaluation.features",
    "open_shards": "shards.reading.remote",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}")
    return pkgutil.resolve_name(f"{__name__}.{_HOMES[name]}:{name}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
