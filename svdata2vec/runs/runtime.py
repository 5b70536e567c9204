"""Process, device and precision of a run: alone, or as one of many under `torchrun`."""

import ctypes
import gc
import logging
import os
import signal
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from svdata2vec.config.schema import Device, RunConfig
from svdata2vec.model.execution import compile_parts, use_channels_last
from svdata2vec.model.sync_batchnorm import convert_sync_batchnorm
from svdata2vec.pipeline.keyed import keyed_generator
from svdata2vec.runs.cores import announced, cpu_lacks_bfloat16, cpu_name, usable_cores
from svdata2vec.shards.errors import UserError
from svdata2vec.shards.ranges import check_known

log = logging.getLogger(__name__)

EMULATED = "bf16: this processor has no instructions for it and emulates it; --run.precision fp32 is faster, often by far"
WITHOUT_BF16 = "this GPU has no bfloat16 (compute capability below 8.0): the run computes in float32"
DRIVER_GPUS = Path("/proc/driver/nvidia/gpus")  # a folder for each
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # glibc's malloc.h
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


@dataclass(frozen=True)
class Runtime:
    """Where this process runs and which part of the work it has.

    Attributes:
        device: where its tensors live.
        rank, world_size: its number among `world_size` processes.
        bf16: matrix products and convolutions in bfloat16 (weights stay float32).
    """

    device: torch.device
    rank: int
    world_size: int
    bf16: bool

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def autocast(self) -> AbstractContextManager[None]:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16)

    def wrap(self, model: nn.Module, config: RunConfig) -> nn.Module:
        """The model on its device, laid out and compiled as configured, with gradients averaged over all processes."""
        model = model.to(self.device)
        use_channels_last(model)
        if config.launch == "compiled":
            compile_parts(model)
        if self.world_size == 1:
            return model
        if config.sync_batchnorm:
            model = convert_sync_batchnorm(model, self.device)
        devices = [self.device] if self.device.type == "cuda" else None
        return DistributedDataParallel(model, device_ids=devices, gradient_as_bucket_view=True)

    def sum(self, values: Tensor) -> Tensor:
        """Sum over all processes."""
        if self.world_size > 1:
            values = values.to(self.device)
            dist.all_reduce(values)
        return values.cpu()

    def gather(self, mine: Any) -> list[Any]:
        """The values of all processes, by rank; the same list on all of them."""
        parts = [mine]
        if self.world_size > 1:
            parts = [None] * self.world_size
            dist.all_gather_object(parts, mine)
        return parts

    def require_same(self, mine: Any, problem: str) -> None:
        """UserError, on all processes, unless all have the same value."""
        if any(each != mine for each in self.gather(mine)):
            raise UserError(problem)

    def share_buffers(self, model: nn.Module) -> None:
        """Give every process the buffers of the first one: those that checkpoints and published weights hold.

        Each process updates BatchNorm's running statistics by its own batches, and DistributedDataParallel spreads those of
        the first one only when the next training step begins.
        """
        if self.world_size > 1:
            for buffer in model.buffers():
                dist.broadcast(buffer, 0)

    def share_weights(self, model: nn.Module) -> None:
        """Give every process the weights and buffers of the first one."""
        for tensor in model.state_dict().values() if self.world_size > 1 else ():
            plain = tensor.contiguous()
            dist.broadcast(plain, 0)
            tensor.copy_(plain)

    def barrier(self) -> None:
        if self.world_size > 1:
            dist.barrier()


def device_name(device: torch.device) -> str:
    """The GPU, or for the CPU the processor, as its maker calls it: the name that tuned settings are stored under."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name()


def asks_for_bf16(config: RunConfig, device: torch.device) -> bool:
    """Whether a run on this device computes in bf16, if the device can."""
    return config.precision == "bf16" or (config.precision == "auto" and device.type == "cuda")


@contextmanager
def running(config: RunConfig) -> Iterator[Runtime]:
    """Join the process group that `torchrun` announces (or run alone), and leave it at the end.

    A process that fails does not leave it: NCCL ends a group on all processes together, so it would wait for the others, which
    wait for it in the middle of a step, and its error would never be shown.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ:  # a process of torchrun
        end_with_parent()
    rank, world_size = announced_place()
    device = pick_device(config.device)
    if device.type == "cuda":
        torch.cuda.set_device(device)
        torch.backends.cudnn.benchmark = True  # shapes are fixed: the fastest convolutions are measured once
    else:
        keep_freed_memory()
    if world_size > 1:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    if "OMP_NUM_THREADS" not in os.environ:  # PyTorch looks at the machine, not at the quota of a container
        torch.set_num_threads(min(torch.get_num_threads(), usable_cores()))
    bf16 = asks_for_bf16(config, device)
    if bf16 and device.type == "cpu" and rank == 0 and cpu_lacks_bfloat16():
        log.warning(EMULATED)
    if bf16 and device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        bf16 = False  # cuDNN has no convolution for it, though PyTorch's matrix products would do
        if rank == 0:
            log.warning(WITHOUT_BF16)
    gc.collect()  # what an earlier run of this process has left, such as a captured graph, would be frozen too
    gc.freeze()  # otherwise each full collection walks all of PyTorch's objects, and every thread waits for 0.1 s
    together = world_size > 1
    try:
        yield Runtime(device, rank, world_size, bf16)
    except (Exception, KeyboardInterrupt):
        together = False
        raise
    finally:
        gc.unfreeze()
        if together:
            dist.destroy_process_group()


def announced_place() -> tuple[int, int]:
    """Rank and number of processes, as `torchrun` announces them in the environment; (0, 1) without it.

    Raises:
        UserError: part of the announcement is missing or makes no sense, as where one variable is left over in a shell.
    """
    if os.environ.get("WORLD_SIZE", "1") == "1":
        return 0, 1
    texts = {name: os.environ.get(name, "") for name in ("WORLD_SIZE", "RANK", "MASTER_PORT", "MASTER_ADDR")}
    world_size, rank, port = (int(text) if text.isdecimal() else -1 for text in list(texts.values())[:3])
    if not (0 <= rank < world_size and port >= 0 and texts["MASTER_ADDR"]):
        found = ", ".join(f"{name} {text!r}" if text else f"no {name}" for name, text in texts.items())
        raise UserError(
            f"the environment announces one of several processes, but not as a launcher does ({found}); start it with "
            "torchrun, or `unset WORLD_SIZE`"
        )
    return rank, world_size


def end_with_parent() -> None:
    """Have the kernel send SIGTERM to this process when its parent dies, so that it does not run on unnoticed (Linux)."""
    prctl = getattr(ctypes.CDLL(None), "prctl", None)
    if prctl is not None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def keep_freed_memory() -> None:
    """Let glibc keep what tensors free for the next ones: otherwise every training step on a CPU fetches its pages again.

    Measured once on 2 cores at the paper's sizes (2026-11-22, no record): 4.6 times fewer page faults, a training step 1.2
    times faster. Elsewhere than on glibc this does nothing.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, -1)


def pick_device(name: str) -> torch.device:
    """auto -> this process's GPU if there is one. UserError for "cuda" without one, and for one that only the driver sees."""
    check_known("device", name, get_args(Device))
    if name == "cpu":
        return torch.device("cpu")
    if torch.cuda.is_available():
        number, count = announced("LOCAL_RANK", 0), torch.cuda.device_count()
        if number >= count:
            raise UserError(f"process {number} of this machine has no GPU of its own, there are {count}; start fewer processes")
        return torch.device("cuda", number)
    if unused := gpus_of_the_driver():
        raise UserError(
            f"NVIDIA's driver shows {unused} GPUs, but PyTorch {torch.__version__} sees none: install a build for a CUDA "
            "version that the driver supports (pytorch.org/get-started), or leave the GPU alone with the device cpu"
        )
    if name == "cuda":
        raise UserError("device is cuda, but PyTorch finds no NVIDIA GPU here; use cpu or auto")
    return torch.device("cpu")


def gpus_of_the_driver() -> int:
    """GPUs that NVIDIA's driver shows; 0 where CUDA_VISIBLE_DEVICES hides all of them on purpose."""
    if os.environ.get("CUDA_VISIBLE_DEVICES", "all") in ("", "-1", "NoDevFiles"):
        return 0
    return len(list(DRIVER_GPUS.iterdir())) if DRIVER_GPUS.is_dir() else 0


def seed_step(seed: int, step: int, rank: int) -> None:
    """Make PyTorch's random numbers of a step a function of (seed, step, rank): a resumed run draws the same ones."""
    torch.manual_seed(int(keyed_generator("step", seed, step, rank).integers(2**63)))
