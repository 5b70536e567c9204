"""Settings as frozen dataclasses: each field with its meaning, unit and default, which are also the help of its option.

A run is a preset (see `presets.py`) plus typed overrides from the command line. Configurations check themselves when they
are made and are written as JSON beside every checkpoint.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import tyro

from svdata2vec.pipeline.augment import AugmentConfig, check_number
from svdata2vec.pipeline.plan import PlanConfig
from svdata2vec.shards.boxes import CROP_SCORES
from svdata2vec.shards.errors import UserError

Device = Literal["auto", "cpu", "cuda"]
Modality = Literal["rgb", "both", "skeleton"]

LARGEST = 10**9  # of a setting that has no limit of its own
ABOVE_0 = 1e-15  # smallest value of a setting that must not be 0
LARGEST_SEED = 2**63 - 1
LARGEST_SIZE = 4096  # of a crop's side, in pixels


def check(condition: bool, message: str) -> None:
    if not condition:
        raise UserError(message)


def check_ranges(config: Any, section: str = "", **ranges: tuple[float, float]) -> None:
    """UserError unless each of these settings, or every number in it, is finite and within its bounds; None is left out."""
    for name, (low, high) in ranges.items():
        value = getattr(config, name)
        for number in value if isinstance(value, tuple) else () if value is None else (value,):
            check_number(f"{section}{name}", number, low, high)


def check_size(name: str, size: int) -> None:
    """UserError unless the video encoder takes pictures of this side."""
    check_number(name, size, 32, LARGEST_SIZE)
    check(size % 32 == 0, f"{name} is {size}; the video encoder halves the picture five times, take a multiple of 32")


@dataclass(frozen=True)
class DataConfig:
    """Where clips come from and what the model sees of them."""

    shards: str = "data/shards"
    """Folder of packed shards (made by `svdata2vec shard`), or its URL (s3://, gs://, https://: extra `remote`)."""
    train_split: str = "xsub_train"
    """Split to train on, as named in the shards' manifest."""
    test_split: str = "xsub_val"
    """Split to evaluate on."""
    num_frames: int = 40
    """Frames sampled from a clip (T)."""
    size: int = 224
    """Side of the square crop that the model sees, in pixels."""
    crop: Literal["joints", "boxes"] = "joints"
    """Crop around the joints of the sampled frames, or around the stored person boxes of the whole clip."""
    crop_scores: tuple[float, float] = CROP_SCORES
    """Least score of a joint that a crop around joints counts: inside the picture, and outside it; 0 0 counts all."""
    frame_draw: Literal["fixed", "original", "centre"] = "fixed"
    """Frames of an evaluation: drawn once and for all by the clip's name, number for number as the authors' code does, or
    without a draw the middle of each segment, whatever the file is called."""
    decoder: Literal["dali", "reference"] = "dali"
    """Decode with NVIDIA DALI, or with the slow reference path (OpenCV, PyAV)."""
    threads: int = 2
    """Decoding threads per process."""
    prefetch: int = 2
    """Batches prepared ahead of the training step."""
    views: int = 1
    """Frame draws per clip of an evaluation, whose scores are averaged."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    """Training augmentation beyond the paper's."""
    check_hashes: bool = False
    """Compare every tar with the manifest's hash when it is first read (local shards)."""
    remote_fetch: Literal["clips", "shards"] = "clips"
    """Of shards behind a URL: read clip by clip, or fetch whole tars ahead of their use (worth it if the cache holds all)."""
    remote_cache_gb: float = 32.0
    """What the cache of shards behind a URL may take on this machine, in gigabytes."""

    def __post_init__(self) -> None:
        check_ranges(
            self, "data.", num_frames=(1, 10_000), threads=(1, 1000), prefetch=(1, 1000), views=(1, 1000),
            remote_cache_gb=(ABOVE_0, LARGEST),
        )
        check_size("data.size", self.size)
        self.plan(views=self.views)

    def plan(self, persons: int = 2, views: int = 1) -> PlanConfig:
        """What a clip looks like to a model that reads `persons` skeletons. UserError names the option out of range."""
        try:
            return PlanConfig(
                num_frames=self.num_frames, size=self.size, persons=persons, crop=self.crop, crop_scores=self.crop_scores,
                frame_draw=self.frame_draw, views=views, augment=self.augment,
            )
        except UserError as error:
            raise UserError(f"data.{error}") from error


@dataclass(frozen=True)
class ModelConfig:
    """Widths and depths of the networks (svdata2vec/README.md, "Networks")."""

    width: int = 256
    """Token width (D)."""
    depth: int = 8
    """Encoder blocks (L)."""
    decoder_depth: int = 3
    """Decoder blocks."""
    heads: int = 8
    """Attention heads."""
    mlp_ratio: float = 4.0
    """Hidden width of the MLP, in token widths."""
    stem_width: int = 64
    """Channels of the first stage of the video encoder, a multiple of 16; later stages have 2, 4 and 8 times as many."""
    persons: int = 2
    """Persons per clip: more are cut, fewer are filled with zeros (M)."""
    coordinates: int = 2
    """Coordinates per joint (C)."""
    checkpoint_activations: bool = False
    """Keep only the inputs of blocks and stages and compute the rest again for the gradient: less memory, more time."""
    impl: Literal["auto", "triton", "torch"] = "auto"
    """Implementation of the custom ops: Triton kernels, plain PyTorch, or Triton where the tensors are on a GPU."""
    fused_blocks: bool = False
    """Residual + LayerNorm, MLP epilogue and BatchNorm + PReLU as one kernel each. On a GPU: with launch=graph, where it
    makes a step faster; launched one by one it is slower."""

    def __post_init__(self) -> None:
        check_ranges(
            self, "model.", width=(1, 65_536), depth=(1, 1000), decoder_depth=(0, 1000), heads=(1, 65_536), persons=(1, 1000),
            coordinates=(1, 1000),
        )
        check_ranges(self, "model.", mlp_ratio=(1 / self.width, 1000))  # at least one hidden channel
        check(
            self.width % self.heads == 0,
            f"model.width {self.width} is not divisible by model.heads {self.heads}; choose a divisor",
        )
        # Narrower stages crash in oneDNN: gradient of a strided 1x1 convolution in channels-last memory (torch 2.13, CPU).
        stem = self.stem_width
        check(stem % 16 == 0 and 0 < stem <= 4096, f"model.stem_width is {stem}; expected a multiple of 16, up to 4096")


@dataclass(frozen=True)
class MaskConfig:
    """What the student does not see (svdata2vec/README.md, "Masks")."""

    video_ratio: float = 0.66
    """Share of the frames hidden from the student altogether."""
    skeleton_ratio: float = 0.75
    """Share of the kept frames that show their video without their skeleton."""

    def __post_init__(self) -> None:
        check_ranges(self, "mask.", video_ratio=(0, 1), skeleton_ratio=(0, 1))


@dataclass(frozen=True)
class TargetConfig:
    """How the teacher's layers become targets (svdata2vec/README.md, "Targets, loss and teacher")."""

    top_layers: int = 8
    """Number of top blocks whose outputs are averaged."""
    normalise_layer: Literal["instance", "layer", "batch", "none"] = "instance"
    """Normalisation of each layer's output: per clip and channel over time, per token, per channel over the batch, none."""
    normalise_average: Literal["instance", "layer", "none"] = "none"
    """Normalisation of the average."""
    feed_forward: bool = False
    """Take the blocks' MLP outputs instead of the blocks' outputs."""
    teacher_input: Literal["skeleton", "rgb", "both"] = "skeleton"
    """What the teacher reads: all skeleton tokens, all video tokens, or the mean of both (the last two need
    encode=all_frames)."""


@dataclass(frozen=True)
class EmaConfig:
    """Decay of the teacher (svdata2vec/README.md, "Targets, loss and teacher")."""

    start: float = 0.999
    """Decay at step 0."""
    end: float = 0.99999
    """Decay from `anneal_steps` on."""
    anneal_steps: int = 50_000
    """Optimizer steps of the linear way from `start` to `end`."""
    schedule: Literal["global", "original"] = "global"
    """Count optimizer steps over the whole run, or, like the authors' code, within the epoch."""

    def __post_init__(self) -> None:
        check(
            0 <= self.start <= self.end <= 1,
            f"ema.start {self.start} and ema.end {self.end}: expected 0 <= start <= end <= 1",
        )
        check_ranges(self, "ema.", anneal_steps=(1, LARGEST))


@dataclass(frozen=True)
class OptimConfig:
    """AdamW and its schedule, per optimizer step: linear warm-up, then half a cosine (svdata2vec/README.md, "Training")."""

    lr: float = 1e-3
    """Peak learning rate."""
    min_lr: float = 5e-4
    """Learning rate at the end of the run."""
    warmup_epochs: float = 20.0
    """Epochs of linear warm-up from 0."""
    betas: tuple[float, float] = (0.9, 0.95)
    """AdamW's averaging coefficients."""
    weight_decay: float = 0.05
    """Weight decay (none on biases and other 1-D parameters)."""
    clip_grad: float = 0.0
    """Largest gradient norm; 0 = no clipping."""
    accumulate: int = 1
    """Batches whose gradients are summed for one optimizer step."""

    def __post_init__(self) -> None:
        check_ranges(
            self, "optim.", lr=(ABOVE_0, 1000), min_lr=(0, 1000), warmup_epochs=(0, LARGEST), betas=(0, 1 - ABOVE_0),
            weight_decay=(0, 1000), clip_grad=(0, LARGEST), accumulate=(1, 10_000),
        )


@dataclass(frozen=True)
class RunConfig:
    """What every training run has."""

    out: Path = Path("runs/run")
    """Folder of the run: configuration, checkpoints, metrics, results."""
    epochs: int = 400
    """Passes over the training split."""
    batch_size: int = 32
    """Clips per process and forward pass."""
    seed: int = 0
    """Seed of everything random: initialisation, order of clips, augmentation, masks."""
    device: Device = "auto"
    """Where the model runs; auto = the GPU if there is one."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Arithmetic of the networks (weights stay float32); auto = bf16 on a GPU, fp32 on a CPU. On a CPU that has bfloat16
    in hardware (AVX-512 BF16, AMX), bf16 is the faster one."""
    compile: bool = False
    """Compile the transformer blocks and the stages of the video encoder (torch.compile; needs a C++ compiler on a CPU)."""
    sync_batchnorm: bool = False
    """BatchNorm statistics over all processes instead of each process's own batch."""
    log_every: int = 50
    """Optimizer steps between two lines of the log."""
    checkpoint_every: int = 1000
    """Optimizer steps between two checkpoints (one is also written at the end)."""
    keep_checkpoints: int = 2
    """Newest checkpoints that are kept."""
    resume: Literal["auto", "never"] = "auto"
    """auto: continue from the newest readable checkpoint in `out`; never: refuse a folder that holds a run."""
    max_bad_steps: int = 10
    """Stop after so many steps in a row whose loss or gradient was not finite (each such step is skipped)."""

    def __post_init__(self) -> None:
        check_ranges(
            self, "run.", epochs=(1, LARGEST), batch_size=(1, LARGEST), seed=(0, LARGEST_SEED), log_every=(1, LARGEST),
            checkpoint_every=(1, LARGEST), keep_checkpoints=(1, LARGEST), max_bad_steps=(1, LARGEST),
        )


@dataclass(frozen=True)
class PretrainConfig:
    """Self-supervised pretraining on video + skeletons."""

    kind: ClassVar = "pretrain"
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    mask: MaskConfig = field(default_factory=MaskConfig)
    target: TargetConfig = field(default_factory=TargetConfig)
    ema: EmaConfig = field(default_factory=EmaConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    run: RunConfig = field(default_factory=RunConfig)
    encode: Literal["kept_frames", "all_frames"] = "kept_frames"
    """Encode the kept frames only (several times faster), or all frames as the original does (its BatchNorm statistics)."""
    launch: Literal["eager", "graph"] = "eager"
    """Launch the kernels of forward and backward pass one by one, or as one CUDA graph (one process on one GPU): the same
    run, faster where the host is the limit."""

    def __post_init__(self) -> None:
        ratio, frames = self.mask.video_ratio, self.data.num_frames
        check(int(frames * (1 - ratio)) >= 1, f"mask.video_ratio {ratio} keeps none of data.num_frames {frames} frames")
        check(
            1 <= self.target.top_layers <= self.model.depth,
            f"target.top_layers is {self.target.top_layers}, model.depth is {self.model.depth}: expected 1 to model.depth",
        )
        check(
            self.target.teacher_input == "skeleton" or self.encode == "all_frames",
            f"target.teacher_input={self.target.teacher_input} reads the video tokens of all frames; set encode=all_frames",
        )


@dataclass(frozen=True)
class HeadConfig:
    """The classifier on top of the encoder and what regularises fine-tuning (svdata2vec/README.md, "Training")."""

    hidden: int = 2048
    """Width of the head's hidden layer."""
    dropout: float = 0.3
    """Dropout before the head."""
    drop_path: float = 0.3
    """Stochastic depth of the last block (linear in depth from 0)."""
    label_smoothing: float = 0.1
    """Label smoothing of the cross-entropy."""
    layer_decay: float = 0.8
    """Factor on the learning rate from block to block, from the top down (1.0 = none; training from scratch uses 1.0)."""
    mixup: float = 0.0
    """Blend clips and labels in pairs: alpha of the Beta distribution that shares are drawn from; 0 = off."""

    def __post_init__(self) -> None:
        check_ranges(
            self, "head.", hidden=(1, 65_536), dropout=(0, 0.999), drop_path=(0, 0.999), label_smoothing=(0, 0.999),
            layer_decay=(0, 1), mixup=(0, 1000),
        )


@dataclass(frozen=True)
class FinetuneConfig:
    """Supervised training of a classifier, from a pretraining run or from scratch."""

    kind: ClassVar = "finetune"
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    head: HeadConfig = field(default_factory=HeadConfig)
    optim: OptimConfig = field(
        default_factory=lambda: OptimConfig(lr=3e-4, min_lr=1e-5, warmup_epochs=5, betas=(0.9, 0.999))
    )
    run: RunConfig = field(default_factory=lambda: RunConfig(epochs=100))
    pretrained: Annotated[Path | None, tyro.conf.arg(name="from", metavar="RUN")] = None
    """Folder of a finished run whose encoder to start from, as a rule a pretraining run; none = from scratch."""
    modality: Modality = "rgb"
    """What the classifier sees."""
    label_fraction: float = 1.0
    """Share of the training labels that is used, drawn per class by seed."""
    eval_every: int = 0
    """Epochs between evaluations while training, whose best network is kept in the folder `best`; 0 = none before the end."""

    def __post_init__(self) -> None:
        check_ranges(self, label_fraction=(ABOVE_0, 1), eval_every=(0, LARGEST))
