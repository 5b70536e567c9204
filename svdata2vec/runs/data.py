"""From a configuration to loaders: the one place where the trainer meets shards and pipeline."""

from pathlib import Path

import numpy as np

from svdata2vec.config.schema import DataConfig, FinetuneConfig, Modality, PretrainConfig
from svdata2vec.pipeline.loader import ClipLoader
from svdata2vec.runs.runtime import Runtime
from svdata2vec.shards.errors import UserError
from svdata2vec.shards.reading.remote import open_shards
from svdata2vec.shards.reading.shardset import ShardSet


def open_data(data: DataConfig) -> ShardSet:
    """The shards of a configuration: a folder, or a URL with its cache."""
    return open_shards(data.shards, fetch=data.remote_fetch, cache_bytes=int(data.remote_cache_gb * 1e9))


def build_loader(
    shards: ShardSet,
    config: PretrainConfig | FinetuneConfig,
    runtime: Runtime,
    *,
    train: bool,
    modality: Modality = "both",
    rows: np.ndarray | None = None,
    views: int = 1,
) -> ClipLoader:
    """Loader of the training split (shuffled, augmented, last short batch dropped) or of the test split (every clip once).

    Args:
        modality: what the batches hold.
        rows: index rows to take instead of the whole split.
        views: frame draws per clip of the test split; the caller averages over them.

    Raises UserError for a split or a joint layout that does not fit.
    """
    data, model = config.data, config.model
    if modality != "rgb" and model.coordinates != 2:
        raise UserError(f"model.coordinates is {model.coordinates}; shards hold 2 per joint, x and y")
    return ClipLoader(
        shards,
        data.train_split if train else data.test_split,
        data.plan(model.persons, views),
        batch_size=config.run.batch_size,
        train=train,
        seed=config.run.seed,
        rank=runtime.rank,
        world_size=runtime.world_size,
        device=str(runtime.device),
        decoder=data.decoder,
        num_threads=data.threads,
        prefetch=data.prefetch,
        video=modality != "skeleton",
        joints=modality != "rgb",
        limit=rows,
        last_batch="drop" if train else "partial",
        check_hashes=data.check_hashes,
    )


def require_joints(shards: ShardSet, run: Path | None, num_joints: int, modality: Modality) -> None:
    """Refuse shards whose skeletons are not those that a finished run reads (`num_joints`, from its card)."""
    layout = shards.manifest.layout
    if modality != "rgb" and len(layout.joints) != num_joints:
        raise UserError(
            f"{shards.root} has {len(layout.joints)} joints ({layout.name}), {run} was trained on {num_joints}; "
            "give shards of the run's joint layout"
        )


def labelled_rows(shards: ShardSet, split: str, fraction: float, seed: int) -> np.ndarray:
    """Index rows of a share of a split, drawn per class by seed (at least one clip of every class that occurs)."""
    rows = shards.rows(split)
    if fraction == 1:
        return rows
    labels = shards.index["label"][rows]
    rng = np.random.Generator(np.random.Philox(seed))
    chosen = []
    for label in np.unique(labels):
        members = rng.permutation(rows[labels == label])
        chosen.append(members[: max(1, round(fraction * len(members)))])
    return np.sort(np.concatenate(chosen))
