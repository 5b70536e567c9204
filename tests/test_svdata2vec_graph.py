"""`launch=graph`: refused where it cannot run; on a GPU the run that it gives is the eager one."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny import pretrain_config

from svdata2vec.config.schema import MaskConfig, PretrainConfig
from svdata2vec.pipeline.batch import ClipBatch
from svdata2vec.runs.data import build_loader
from svdata2vec.runs.runtime import Runtime
from svdata2vec.shards.errors import UserError
from svdata2vec.shards.reading.shardset import ShardSet
from svdata2vec.training.graph import require_graph
from svdata2vec.training.pretrain import Pretraining, pretrain

CPU, GPU = Runtime(torch.device("cpu"), 0, 1, False), Runtime(torch.device("cuda"), 0, 1, False)


@pytest.mark.parametrize(
    ("section", "changes", "runtime", "named"),
    [
        ("run", {}, CPU, "run.device cpu"),
        ("run", {}, replace(GPU, world_size=4), "4 processes"),
        ("run", {"compile": True}, GPU, "run.compile"),
        ("optim", {"accumulate": 2}, GPU, "optim.accumulate 2"),
        ("model", {"checkpoint_activations": True}, GPU, "model.checkpoint_activations"),
    ],
)
def test_a_graph_is_refused_where_it_cannot_run(section: str, changes: dict, runtime: Runtime, named: str) -> None:
    config = PretrainConfig(launch="graph")
    config = replace(config, **{section: replace(getattr(config, section), **changes)})
    with pytest.raises(UserError, match=f"^launch is graph, which does not go with {named}; use --launch eager$"):
        require_graph(config, runtime)


def test_a_run_that_cannot_have_its_graph_does_not_begin(tiny_shard_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="launch is graph"):
        pretrain(replace(pretrain_config(tiny_shard_folder, tmp_path / "run"), launch="graph"))
    assert not list((tmp_path / "run").glob("**/*.pt"))


@pytest.mark.gpu
@pytest.mark.parametrize(("fused", "repeats"), [(False, 1), (True, 1), (False, 3)], ids=["plain", "fused blocks", "3 masks"])
def test_a_run_with_a_graph_is_the_eager_run(fused: bool, repeats: int, tiny_shard_folder: Path, tmp_path: Path) -> None:
    def trained(launch: str) -> tuple[list[float], dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        config = replace(pretrain_config(tiny_shard_folder, tmp_path, device="cuda"), launch=launch)
        config = replace(config, model=replace(config.model, fused_blocks=fused), mask=MaskConfig(repeats=repeats))
        with build_loader(ShardSet.open(tiny_shard_folder), config, CPU, train=True) as loader:
            run = Pretraining(config, GPU, loader)
        generator, losses = torch.Generator().manual_seed(0), []
        for step in range(4):
            batch = ClipBatch(
                torch.randint(0, 256, (4, 6, 32, 32, 3), dtype=torch.uint8, generator=generator),
                32 * torch.rand(4, 2, 6, 17, 2, generator=generator), torch.zeros(4, dtype=torch.int64),
                tuple(f"clip {step} {i}" for i in range(4)),
            )
            run.step([(step, batch)])
            losses.append(run.stepper.averages.take()["loss"])
        return losses, run.model.state_dict(), run.teacher.state_dict()

    torch.testing.assert_close(trained("graph"), trained("eager"), rtol=1e-5, atol=1e-5)
