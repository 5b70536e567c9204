"""Ways of launching a step (`run.launch`), and what each cannot be combined with: refused before a run begins."""

import os
import shlex
import shutil

from svdata2vec.config.schema import FinetuneConfig, PretrainConfig
from svdata2vec.kernels.attention import MAX_HEAD_DIM, MAX_TOKENS
from svdata2vec.kernels.dispatch import INTERPRETED
from svdata2vec.runs.runtime import Runtime
from svdata2vec.shards.errors import UserError


def launch_obstacles(
    launch: str, config: PretrainConfig | FinetuneConfig, device_type: str, world_size: int = 1
) -> list[str]:
    """Options and circumstances that rule out a way of launching, as the user knows them; empty if it can run."""
    obstacles: dict[str, bool] = {}
    if launch == "graph":
        obstacles = {
            f"--run.device {device_type}": device_type != "cuda",
            f"{world_size} processes": world_size > 1,
            "fine-tuning": config.kind == "finetune",  # encodes every frame: its launches are hidden behind the GPU's work
            f"--optim.accumulate {config.optim.accumulate}": config.optim.accumulate != 1,
            "--model.checkpoint-activations": config.model.checkpoint_activations,
        }
    if launch == "compiled":
        compiler = shlex.split(os.environ.get("CXX") or "g++")
        switches = [f"{name}=1" for name in ("TORCH_COMPILE_DISABLE", "TORCHDYNAMO_DISABLE") if os.environ.get(name) == "1"]
        obstacles = {
            f"a CPU without the C++ compiler {' '.join(compiler)}": device_type == "cpu" and shutil.which(compiler[0]) is None,
            **dict.fromkeys(switches, True),
        }
    return [name for name, there in obstacles.items() if there]


def require_launch(config: PretrainConfig | FinetuneConfig, runtime: Runtime) -> None:
    """Raise UserError where a run cannot be launched as it is set."""
    launch = config.run.launch
    if config.model.impl == "triton":
        without, problem = _without_kernel(config), ""
        if runtime.device.type == "cpu" and not INTERPRETED:
            problem = "whose kernels run on a GPU, but the device is a CPU"
        elif without:
            problem = f"but there is no kernel for {' and '.join(without)}"
        if problem:
            raise UserError(f"--model.impl is triton, {problem}; use --model.impl auto")
    found = launch_obstacles(launch, config, runtime.device.type, runtime.world_size)
    if found:
        raise UserError(f"--run.launch is {launch}, which does not go with {' and '.join(found)}; use --run.launch eager")


def _without_kernel(config: PretrainConfig | FinetuneConfig) -> list[str]:
    """Options that no kernel supports, so that plain PyTorch would compute them, as the user knows them."""
    frames, model = config.data.num_frames, config.model
    settings = {
        f"--data.num-frames {frames} (more than {MAX_TOKENS})": frames > MAX_TOKENS,
        f"--model.heads {model.heads} (wider than {MAX_HEAD_DIM})": model.width // model.heads > MAX_HEAD_DIM,
    }
    if isinstance(config, PretrainConfig) and not config.target.predicts_joints:
        target = config.target
        settings |= {
            f"--target.normalise-layer {target.normalise_layer}": target.normalise_layer != "instance",
            f"--target.normalise-average {target.normalise_average}": target.normalise_average != "none",
        }
    return [name for name, there in settings.items() if there]
