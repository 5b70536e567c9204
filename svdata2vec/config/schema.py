"""Settings as frozen dataclasses: each field with its meaning, unit and default, which are also its option's help.

A run is a preset (see `presets.py`) plus typed overrides from the command line. Configurations check themselves when they
are created, and are written as JSON beside every checkpoint.
"""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import tyro

from svdata2vec.pipeline.augment import AugmentConfig
from svdata2vec.pipeline.plan import Crop, FrameDraw, PlanConfig
from svdata2vec.shards.boxes import CROP_SCORES
from svdata2vec.shards.errors import UserError
from svdata2vec.shards.ranges import (
    ABOVE_0,
    LARGEST,
    Count,
    PositiveShare,
    Range,
    Seed,
    Share,
    check_fields,
    check_number,
)

Device = Literal["auto", "cpu", "cuda"]
Modality = Literal["rgb", "both", "skeleton"]

SMALLEST_SIZE, LARGEST_SIZE = 32, 2880  # of a crop's side, in pixels; larger ones exceed a GPU's grid

NumBlocks = Annotated[int, Range(1, 1000)]
Epochs = Annotated[float, Range(0, LARGEST)]
Frames = Annotated[int, Range(1, 10_000)]
Heads = Annotated[int, Range(1, 16_384)]
Side = Annotated[int, Range(SMALLEST_SIZE, LARGEST_SIZE, multiple=32)]  # the video encoder halves the picture five times
Views = Annotated[int, Range(1, 1000)]
BelowOne = Annotated[float, Range(0, 0.999)]


def check(condition: bool, message: str) -> None:
    if not condition:
        raise UserError(message)


@dataclass(frozen=True)
class DataConfig:
    """Where clips come from and what the model sees of them."""

    shards: str = "data/shards"
    """Folder of packed shards (made by `svdata2vec shard`), or its URL (s3://, gs://, https://: extra `remote`); several sets,
    read as one, with commas between them."""
    train_split: str = "xsub_train"
    """Split to train on, as named in the shards' manifest; of several sets one name for all, or one for each with commas
    between them."""
    test_split: str = "xsub_val"
    """Split to evaluate on, once, at the end."""
    val_split: str | None = None
    """Split to validate on while fine-tuning; None = the data set's own (cs_val between cs_train and cs_test), or else
    `val_fraction` of the training clips."""
    val_fraction: Annotated[float, Range(ABOVE_0, 0.9)] = 0.1
    """Share of the labelled training clips to validate on if there is no split for it: by performer if the names contain
    performers, else by class. They are not trained on."""
    weights: tuple[Annotated[float, Range(ABOVE_0, 1000)], ...] = ()
    """How often a training epoch takes each clip of a set, a number per set: 2 = twice, 0.5 = half of the clips, the other half
    in the next epoch; none = all once."""
    layout: str | None = None
    """Joint layout to convert all skeletons to, by the names of the joints, e.g. coco17; joints that a set does not have stay
    missing. None = the layout of the sets."""
    num_frames: Frames = 40
    """Frames sampled from a clip (T)."""
    size: Side = 224
    """Side of the square crop that the model sees, in pixels, a multiple of 32: the encoder halves the picture five times."""
    crop: Crop = "joints"
    """Crop around the joints of the sampled frames, or around the stored person boxes of the whole clip."""
    crop_scores: tuple[Share, Share] = CROP_SCORES
    """Minimum score at which a joint counts for a crop around joints: inside the picture, and outside it; 0 0 counts all."""
    frame_draw: FrameDraw = "fixed"
    """Frames of an evaluation. fixed: drawn from the clip's name, always the same; original: exactly those of the authors'
    code; centre: no draw, the middle of each segment, regardless of the file's name."""
    decoder: Literal["dali", "reference"] = "dali"
    """Decode with NVIDIA DALI, or with the slow reference path (OpenCV, PyAV)."""
    threads: Annotated[int | None, Range(1, 256)] = None
    """Decoding threads per process; None = as `svdata2vec bench data --tune` found on this device, or else as many as it has
    cores, up to 16."""
    engine_share: Annotated[float | None, Range(0, 1)] = None
    """Share of JPEGs that a GPU's engines decode; its CUDA cores decode the rest. Only with 0 or 1 does a clip have the same
    bits in every batch, which exact resuming needs. None = as tuned, or else 1."""
    run_pictures: Annotated[int | None, Range(1, 100_000)] = None
    """Pictures that DALI decodes at once; None = as tuned, or else 256 on a CPU and 1,280 on a GPU."""
    readers: Annotated[int | None, Range(0, 100)] = None
    """Reader processes per training process, which read and plan clips; 0 = a thread does it; None = 0 on a CPU, with a GPU a
    quarter of the cores, up to 4 (shards in a folder)."""
    prefetch: Annotated[int, Range(1, 100)] = 2
    """Batches prepared ahead of the training step."""
    views: Views = 1
    """Frame draws per clip of an evaluation, whose scores are averaged."""
    metric: Literal["top1", "mean_class"] = "top1"
    """The figure that the protocol reports: the share of clips that are recognised, or the mean of that share over classes."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    """Training augmentation beyond the paper's."""
    check_hashes: bool = False
    """Compare every tar with the manifest's hash when it is first read (local shards)."""
    max_bad_rate: Share = 0.01
    """Share of clips that may be unusable: replaced in training, left out of an evaluation (one clip always may be, unless
    this is 0)."""
    remote_fetch: Literal["clips", "shards"] = "clips"
    """For shards behind a URL: read clip by clip, or fetch whole tars ahead of their use (worth it if the cache holds all)."""
    remote_cache_gb: Annotated[float, Range(ABOVE_0)] = 32.0
    """Maximum size of the cache of shards behind a URL on this machine, in gigabytes."""

    def __post_init__(self) -> None:
        check_fields(self, "data.")
        self.plan(views=self.views)

    def without_validation(self) -> "DataConfig":
        """These settings for work that validates nothing."""
        return replace(self, val_split=DataConfig.val_split, val_fraction=DataConfig.val_fraction)

    def plan(self, persons: int = 2, views: int = 1) -> PlanConfig:
        """Plan settings for a model that reads `persons` skeletons. UserError names the option out of range."""
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

    width: Annotated[int, Range(1, 16_384)] = 256
    """Token width (D)."""
    depth: NumBlocks = 8
    """Encoder blocks (L)."""
    decoder_depth: Annotated[int, Range(0, 1000)] = 3
    """Decoder blocks."""
    heads: Heads = 8
    """Attention heads."""
    mlp_ratio: Annotated[float, Range(ABOVE_0, 100)] = 4.0
    """Hidden width of the MLP, in token widths."""
    # Narrower stages crash in oneDNN: gradient of a strided 1x1 convolution in channels-last memory (torch 2.13, CPU).
    stem_width: Annotated[int, Range(16, 4096, multiple=16)] = 64
    """Channels of the first stage of the video encoder, a multiple of 16; later stages have 2, 4 and 8 times as many."""
    stem_init: Literal["random", "change"] = "random"
    """Initial weights of the stem: random, or, beyond the paper, without their mean over time, so that the network first sees
    only what changes from frame to frame. For small data sets with a camera that stands still."""
    persons: Annotated[int, Range(1, 100)] = 2
    """Persons per clip (M): more are dropped, fewer are filled up with zeros."""
    coordinates: Annotated[int, Range(1, 1000)] = 2
    """Coordinates per joint (C)."""
    joint_motion: Annotated[float, Range(0, 1000)] = 0.0
    """Beyond the paper: skeleton tokens also contain how far each joint moves between frames, times this; 0 = positions
    only."""
    checkpoint_activations: bool = False
    """Keep only the inputs of blocks and stages and recompute the rest for the gradient: less memory, more time."""
    impl: Literal["auto", "triton", "torch"] = "auto"
    """Implementation of the custom ops. auto: Triton if the tensors are on a GPU; triton: Triton kernels; torch: plain
    PyTorch."""
    fused_blocks: bool = False
    """Residual + LayerNorm, MLP epilogue and BatchNorm + PReLU as one kernel each. Makes a step faster on a GPU with run.launch
    graph; with kernels launched one by one it is slower."""
    init: Path | None = None
    """File of an image network's weights to start the video encoder from: the state dict of a ResNet-18 in torchvision's
    naming (.safetensors, or of torch.save). None = random."""

    def __post_init__(self) -> None:
        check_fields(self, "model.")
        check_number("model.mlp_ratio", self.mlp_ratio, 1 / self.width)  # at least one hidden channel
        check(
            self.width % self.heads == 0,
            f"model.width {self.width} is not divisible by model.heads {self.heads}; choose a divisor",
        )
        check(
            self.init is None or self.stem_init == "random",
            f"model.stem_init is {self.stem_init}, but model.init brings weights for the stem; set model.stem_init random, or "
            "leave model.init out",
        )


@dataclass(frozen=True)
class MaskConfig:
    """Masks: the input that is hidden from the student (svdata2vec/README.md, "Masks")."""

    video_ratio: Share = 0.66
    """Share of the frames that are completely hidden from the student."""
    skeleton_ratio: Share = 0.75
    """Share of the kept frames whose video is visible but not their skeleton."""
    repeats: Annotated[int, Range(1, 100)] = 1
    """Masks per clip and step, each with a prediction of its own; they share the encoded frames and the teacher's targets."""
    encoded_frames: Annotated[int, Range(0, 10_000)] = 0
    """Frames of a clip that the video encoder sees and its masks choose from; 0 = the frames that the first mask keeps, and all
    other masks keep the same."""

    def __post_init__(self) -> None:
        check_fields(self, "mask.")


ROUNDING = 1e-9  # rounding of binary ratios: 40 * (1 - 0.8) is a little less than 8


def mask_counts(num_frames: int, video_ratio: float, skeleton_ratio: float) -> tuple[int, int]:
    """Number of frames that a mask keeps (K), and how many of them also show their skeleton (paper: 13 and 3 of 40), rounded
    down from the ratios as they are written in decimal.

    Raises:
        UserError: the mask keeps no frame.
    """
    kept = int(num_frames * (1 - video_ratio) + ROUNDING)
    check(kept >= 1, f"mask.video_ratio {video_ratio} keeps none of data.num_frames {num_frames} frames")
    return kept, int(kept * (1 - skeleton_ratio) + ROUNDING)


@dataclass(frozen=True)
class TargetConfig:
    """Targets: how they are computed from the teacher's layers (svdata2vec/README.md, "Targets, loss and teacher")."""

    top_layers: NumBlocks = 8
    """Number of top blocks whose outputs are averaged."""
    normalise_layer: Literal["instance", "layer", "batch", "none"] = "instance"
    """Normalisation of each layer's output: per clip and channel over time, per token, per channel over the batch, none."""
    normalise_average: Literal["instance", "layer", "none"] = "none"
    """Normalisation of the average."""
    feed_forward: bool = False
    """Use the blocks' MLP outputs instead of the blocks' outputs."""
    teacher_input: Literal["skeleton", "rgb", "both"] = "skeleton"
    """Input of the teacher: all skeleton tokens, all video tokens, or the mean of both (the last two need encode=all_frames, or
    teacher=encoder)."""
    teacher: Literal["blocks", "encoder"] = "blocks"
    """Part of the student that the teacher is an average of: the encoder's blocks, which read the student's own tokens, or,
    beyond the paper, the whole encoder with its embeddings. With ema.start 1 and ema.end 1 it keeps its initial weights."""
    scored: Literal["skeleton", "video"] = "skeleton"
    """Frames that are predicted: those whose skeleton the student does not see, or, beyond the paper, those whose video it does
    not see."""
    kind: Literal["latents", "joints", "standardised_joints"] = "latents"
    """Kind of target: the teacher's latents, or, beyond the paper and without a teacher, the joints themselves, or their
    differences from their means over the clip (with model.joint_motion also how far they move), in units of the clip's
    spread."""
    shuffle_skeletons: bool = False
    """Beyond the paper, as a control: give every clip the skeletons of another clip of its batch, unrelated to its video."""

    def __post_init__(self) -> None:
        check_fields(self, "target.")

    @property
    def predicts_joints(self) -> bool:
        """Whether the joints are the target, in one form or another."""
        return self.kind != "latents"

    @property
    def normalised(self) -> bool:
        """Whether the targets' variance is about 1."""
        return self.predicts_joints or self.normalise_layer != "none" or self.normalise_average != "none"

    @property
    def student_tokens(self) -> Literal["skeleton", "rgb", "both"]:
        """Kind of the student's own tokens that the teacher reads; skeleton if it embeds its input itself, and reads none."""
        return self.teacher_input if (self.kind, self.teacher) == ("latents", "blocks") else "skeleton"

    @property
    def teacher_reads_video(self) -> bool:
        """Whether the teacher is a separate encoder that sees all frames of the video."""
        return self.teacher == "encoder" and self.teacher_input != "skeleton"


@dataclass(frozen=True)
class EmaConfig:
    """Decay of the teacher's average (svdata2vec/README.md, "Targets, loss and teacher")."""

    start: Share = 0.999
    """Decay at step 0."""
    end: Share = 0.99999
    """Decay from `anneal_steps` on."""
    anneal_steps: Count = 50_000
    """Optimizer steps of the linear change from `start` to `end`."""
    anneal_share: Share = 0.0
    """Instead of `anneal_steps`: share of the run; 0 = use `anneal_steps`."""
    schedule: Literal["global", "original"] = "global"
    """Count optimizer steps over the whole run, or, like the authors' code, within the epoch."""

    def __post_init__(self) -> None:
        check_fields(self, "ema.")
        check(self.start <= self.end, f"ema.start is {self.start}, ema.end is {self.end}: expected start <= end")


@dataclass(frozen=True)
class OptimConfig:
    """AdamW and its schedule, per optimizer step: linear warm-up, then half a cosine (svdata2vec/README.md, "Training")."""

    lr: Annotated[float, Range(ABOVE_0, 1000)] = 1e-3
    """Peak learning rate."""
    base_lr: Annotated[float, Range(0, 1000)] = 0.0
    """Instead of `lr`: peak learning rate for 256 clips per optimizer step (of all processes together), scaled, like `min_lr`,
    to the run's clips per step; 0 = use `lr`."""
    lr_batch: Annotated[int, Range(0)] = 128
    """Clips per optimizer step that `lr` is meant for; with another number a run warns. 0 = any."""
    min_lr: Annotated[float, Range(0, 1000)] = 5e-4
    """Learning rate at the end of the run."""
    min_lr_share: Share = 0.0
    """Instead of `min_lr`: share of the peak; 0 = use `min_lr`."""
    warmup_epochs: Epochs = 20.0
    """Epochs of linear warm-up from 0; a tenth of the run if it would end within them."""
    warmup_share: BelowOne = 0.0
    """Instead of `warmup_epochs`: share of the run; 0 = use `warmup_epochs`."""
    betas: Annotated[tuple[float, float], Range(0, 1 - ABOVE_0)] = (0.9, 0.95)
    """AdamW's averaging coefficients."""
    weight_decay: Annotated[float, Range(0, 1000)] = 0.05
    """Weight decay (none on biases and other 1-D parameters)."""
    clip_grad: Annotated[float, Range(0)] = 0.0
    """Largest gradient norm; 0 = no clipping."""
    accumulate: Annotated[int, Range(0, 10_000)] = 1
    """Batches whose gradients are summed for one optimizer step; 0 = as many as make up `lr_batch` clips."""

    def __post_init__(self) -> None:
        check_fields(self, "optim.")


@dataclass(frozen=True)
class RunConfig:
    """Settings of every training run."""

    out: Path = Path("runs/run")
    """Folder of the run: configuration, checkpoints, metrics, results."""
    epochs: Count = 400
    """Passes over the training split."""
    batch_size: Count = 32
    """Clips per process and forward pass."""
    seed: Seed = 0
    """Seed of everything random: initialisation, order of clips, augmentation, masks."""
    device: Device = "auto"
    """Where the model runs; auto = the GPU if there is one."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Arithmetic of the networks (weights stay float32); auto = bf16 on a GPU, fp32 on any CPU. A GPU before Ampere (T4, V100)
    has no bf16 and computes in fp32, which is logged. On a CPU with bfloat16 (AVX-512 BF16, AMX) bf16 is 1.2 to 1.5 times as
    fast, more with larger networks; no difference in what is learnt was observed (tools/results/studies.md, "EMA, encoded
    frames, precision"). Its threads spin while they wait, so do not use it on cores that other programs use as well
    (tools/results/speed.md, "Beside other programs"). A CPU without bfloat16 emulates it, far slower than fp32, which is
    logged."""
    launch: Literal["eager", "compiled", "graph"] = "eager"
    """How a training step's kernels are launched: one by one; with the blocks of student, teacher and video encoder compiled
    (torch.compile; needs a C++ compiler on a CPU); or, in pretraining by one process on one GPU, forward and backward pass as
    one CUDA graph. The training is the same, and faster if the host is the bottleneck."""
    sync_batchnorm: bool = False
    """BatchNorm statistics over all processes instead of each process's own batch. On GPUs PyTorch's layers then wait for the
    device three times each, in every step."""
    log_every: Count = 50
    """Optimizer steps between two records of the log, which also has one of every validation."""
    checkpoint_every: Count = 1000
    """Optimizer steps between two checkpoints (one is also written at the end)."""
    keep_checkpoints: Count = 2
    """Number of newest checkpoints to keep."""
    resume: Literal["auto", "never"] = "auto"
    """auto: continue from the newest readable checkpoint in `out`; never: refuse a folder that holds a run or a part of one
    (settings, checkpoints, weights, final figures)."""
    max_bad_steps: Count = 10
    """Stop after this many consecutive steps whose loss or gradient was not finite (each such step is skipped)."""

    def __post_init__(self) -> None:
        check_fields(self, "run.")


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
    """Encode only the kept frames (several times faster), or all frames as the original does (for its BatchNorm statistics)."""
    collapse_records: Annotated[int, Range(0)] = 10
    """End the run after this many consecutive log records whose targets or predictions are the same for every clip
    (`target_std` or `prediction_std` below 0.001), and warn after as many whose targets are nearly the same (0.3), or whose
    loss is above 10; 0 = never."""

    def __post_init__(self) -> None:
        check_fields(self)
        ratio, frames = self.mask.video_ratio, self.data.num_frames
        encoded, repeats = self.mask.encoded_frames, self.mask.repeats
        kept, shown = mask_counts(frames, ratio, self.mask.skeleton_ratio)
        check(
            shown < frames,
            f"mask.video_ratio {ratio} and mask.skeleton_ratio {self.mask.skeleton_ratio} hide nothing; raise one of them",
        )
        check(
            kept < frames or self.target.scored == "skeleton",
            f"mask.video_ratio {ratio} hides no frame, and target.scored video predicts those that are hidden; raise it",
        )
        check(
            encoded == 0 or kept <= encoded <= frames,
            f"mask.encoded_frames is {encoded}: expected 0, or {kept} (which mask.video_ratio {ratio} keeps) to "
            f"data.num_frames {frames}",
        )
        check(
            repeats == 1 or encoded > kept or 0 < shown < kept,
            f"mask.repeats is {repeats}, but the masks of a clip would all be equal: they keep the same {kept} frames and show "
            f"the skeletons of {shown}; set mask.encoded_frames above {kept}, or another mask.skeleton_ratio",
        )
        check(
            self.run.batch_size * self.num_encoded * self.data.size > SMALLEST_SIZE,
            f"run.batch_size is 1 with one encoded frame of data.size {self.data.size}: BatchNorm needs two values per "
            "channel; raise one of them",
        )
        check(
            self.target.top_layers <= self.model.depth,
            f"target.top_layers is {self.target.top_layers}, model.depth is {self.model.depth}: expected 1 to model.depth",
        )
        check(
            self.target.student_tokens == "skeleton" or self.encode == "all_frames",
            f"target.teacher_input={self.target.teacher_input} reads the video tokens of all frames; set --encode all_frames",
        )
        check(
            self.run.batch_size > 1 or not self.target.shuffle_skeletons,
            "run.batch_size is 1 with target.shuffle_skeletons: a clip gets the skeletons of another one of its batch",
        )

    @property
    def num_encoded(self) -> int:
        """Frames of a clip that the video encoder sees (E)."""
        kept, _ = mask_counts(self.data.num_frames, self.mask.video_ratio, self.mask.skeleton_ratio)
        return self.data.num_frames if self.encode == "all_frames" else self.mask.encoded_frames or kept


@dataclass(frozen=True)
class HeadConfig:
    """The classifier on top of the encoder, and the regularisation of fine-tuning (svdata2vec/README.md, "Training")."""

    hidden: Annotated[int, Range(1, 65_536)] = 2048
    """Width of the head's hidden layer."""
    dropout: BelowOne = 0.3
    """Dropout before the head."""
    drop_path: BelowOne = 0.3
    """Stochastic depth of the last block (linear in depth from 0)."""
    label_smoothing: BelowOne = 0.1
    """Label smoothing of the cross-entropy."""
    layer_decay: Share = 0.8
    """Factor on the learning rate from block to block, from the top down (1.0 = none; training from scratch uses 1.0)."""
    mixup: Annotated[float, Range(0, 1000)] = 0.0
    """Mixup, which blends clips and labels in pairs: alpha of the Beta distribution of the shares; 0 = off."""

    def __post_init__(self) -> None:
        check_fields(self, "head.")


@dataclass(frozen=True)
class FinetuneConfig:
    """Supervised training of a classifier, from a pretraining run or from scratch."""

    kind: ClassVar = "finetune"
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    head: HeadConfig = field(default_factory=HeadConfig)
    optim: OptimConfig = field(
        default_factory=lambda: OptimConfig(lr=3e-4, lr_batch=64, min_lr=1e-5, warmup_epochs=5, betas=(0.9, 0.999))
    )
    run: RunConfig = field(default_factory=lambda: RunConfig(epochs=100))
    pretrained: Annotated[Path | None, tyro.conf.arg(name="from", metavar="RUN")] = None
    """Folder of a finished run whose encoder to start from, as a rule a pretraining run; none = from scratch."""
    modality: Modality = "rgb"
    """Modality that the classifier sees."""
    label_fraction: PositiveShare = 1.0
    """Share of the training labels that is used, drawn per class by seed."""
    eval_every: Annotated[int, Range(0)] = 0
    """Epochs between validations; the last epoch is always validated. The network that is best by `data.metric` becomes the
    run's result. 0 = no validation: all labelled clips are trained on, and the last network is the result."""

    def __post_init__(self) -> None:
        check_fields(self)
        check(
            self.head.mixup == 0 or self.modality == "rgb" or self.model.joint_motion == 0,
            "head.mixup blends joints, and model.joint_motion would take those that one of two clips lacks for moving; leave "
            "one of them out",
        )
