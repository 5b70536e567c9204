"""Commands on the results of training. Heavy imports happen when a command runs."""

import json
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from svdata2vec.cli.main import is_first_process
from svdata2vec.config.probe import ProbeConfig
from svdata2vec.config.schema import Device, Heads, Modality, Side, Views
from svdata2vec.shards.errors import UserError
from svdata2vec.shards.ranges import LARGEST, READ_ALONE, Count, Range, check_fields, check_number
from svdata2vec.shards.shown import shown_lines

LARGEST_SIDE = 10**6  # of a picture, in pixels

FrameNumber = Annotated[int, Range(0, LARGEST)]

# The folder of a run as the first word after the command.
RunFolder = Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]


def run_probe(config: ProbeConfig) -> None:
    from svdata2vec.evaluation.probe import probe
    from svdata2vec.runs.folder import PROBES

    result = probe(config)
    names = ("count", "clips", "top1", "top5", "mean_class", "intervals")  # results of earlier versions do not have all of them
    probes = {"linear": result, **{probe: result[probe] for probe in PROBES if probe in result}}
    found = {probe: {name: figures[name] for name in names if name in figures} for probe, figures in probes.items()}
    _print({"run": str(config.out), **found})


@dataclass(frozen=True)
class EvaluateOptions:
    """Evaluate a finished fine-tuning or probe run: accuracies with their intervals, the weakest classes, confusions."""

    run: RunFolder
    """Folder of a finetune or probe run."""
    shards: str | None = None
    """Folder of shards, or its URL; None = the run's own."""
    split: str | None = None
    """Split to evaluate; None = the run's test split."""
    views: Views | None = None
    """Draws of frames whose scores are averaged; None = as many as the run has (`data.views`)."""
    device: Device = "auto"
    """Where the model runs; auto = the GPU if there is one."""
    json: bool = False
    """Print everything as JSON instead: all classes and the whole confusion matrix."""

    def __post_init__(self) -> None:
        check_fields(self)


def run_evaluate(options: EvaluateOptions) -> None:
    from svdata2vec.evaluation.evaluate import evaluate_run
    from svdata2vec.reports.results import summary

    result = evaluate_run(options.run, options.shards, options.split, options.views, options.device)
    if options.json:
        _print(result)
    elif is_first_process():
        sys.stdout.write(shown_lines(summary(result, shutil.get_terminal_size().columns)))


@dataclass(frozen=True)
class EmbedOptions:
    """Write the features of a split's clips to a file: the encoder's output, averaged over time."""

    run: RunFolder
    """Folder of a finished run (pretrain, finetune or probe)."""
    split: str
    """Split to take."""
    out: Path
    """File to write: .npy (names and labels beside it, in OUT.json), or .parquet (needs the extra `parquet`)."""
    shards: str | None = None
    """Folder of shards, or its URL; None = the run's own."""
    modality: Modality | None = None
    """Modality that the encoder sees; None = rgb after pretraining, else the classifier's."""
    views: Views | None = None
    """Draws of frames whose features are averaged; None = as many as the run has (`data.views`)."""
    batch_size: Count = 32
    """Clips per process and forward pass."""
    device: Device = "auto"
    """Where the encoder runs; auto = the GPU if there is one."""

    def __post_init__(self) -> None:
        check_fields(self)


def run_embed(options: EmbedOptions) -> None:
    from svdata2vec.evaluation.features import embed

    features = embed(**vars(options))
    clips, width = features.features_nD.shape
    _print({"out": str(options.out), "clips": clips, "lost": features.lost, "width": width})


@dataclass(frozen=True)
class PredictOptions:
    """Recognise the action in a video file (RGB alone).

    The frames are sampled as in an evaluation. A network that was trained on whole pictures sees the whole picture. For other
    networks the clip is cropped around the given box, around the persons of a pose file, or else around what moves in the
    video, which requires a stationary camera.
    """

    run: RunFolder
    """Folder of a finetune or probe run with modality rgb."""
    video: Annotated[Path, READ_ALONE, tyro.conf.Positional, tyro.conf.arg(metavar="VIDEO")]
    """Video file, or a folder of numbered pictures."""
    box: str | None = None
    """Person box x1,y1,x2,y2 in pixels of the picture; it is enlarged by a tenth around its centre and made square."""
    poses: Path | None = None
    """Instead of a box: annotation pickle of tools/pose/extract_poses.py that contains the persons of this video."""
    whole_picture: bool = False
    """Use the whole picture instead of looking for persons; networks that were trained on person crops do badly on it."""
    frames: Annotated[tuple[FrameNumber, FrameNumber] | None, tyro.conf.arg(metavar="START STOP")] = None
    """Part of the video to use: the frames from START, counted from 0, up to STOP, which is excluded; None = all. The video is
    decoded from its beginning, the only reliable way to count its frames: to use many parts of a long video, cut them out
    first."""
    views: Views | None = None
    """Draws of frames whose scores are averaged; None = as many as the run has (`data.views`)."""
    top: Count = 5
    """Number of top classes to print."""
    picture: Path | None = None
    """PNG file to write, with the sampled frames and the top classes."""
    device: Device = "auto"
    """Where the network runs; auto = the GPU if there is one."""

    def __post_init__(self) -> None:
        check_fields(self)
        parse_box(self.box)


def run_predict(options: PredictOptions) -> None:
    """Print the top classes of a video file, and how they were found."""
    from svdata2vec.evaluation.predict import predict

    result = predict(**{**vars(options), "box": parse_box(options.box)})
    for line in result["did"]:
        sys.stdout.write(shown_lines(f"{line}\n"))
    for best in result["classes"]:
        sys.stdout.write(shown_lines(f"{100 * best['probability']:6.2f} %  {best['name']}\n"))


def parse_box(text: str | None) -> tuple[float, float, float, float] | None:
    """ "x1,y1,x2,y2" -> four numbers; None stays None."""
    if text is None:
        return None
    try:
        x1, y1, x2, y2 = (float(part) for part in text.split(","))
    except ValueError:
        raise UserError(f"--box is {text!r}; expected four numbers x1,y1,x2,y2 in pixels") from None
    for number in (x1, y1, x2, y2):
        check_number("--box", number, -LARGEST_SIDE, LARGEST_SIDE)
    return x1, y1, x2, y2


@dataclass(frozen=True)
class ConvertOptions:
    """Turn a checkpoint of the authors' code into a finished run that finetune, probe and evaluate take.

    Sizes are derived from the weights. Unknown or missing names are an error that lists them. Such a checkpoint does not
    contain the teacher, so pretraining cannot be continued from it.
    """

    checkpoint: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="CHECKPOINT")]
    """File of the authors' code: {'model': ...} or a bare state dict. No code stored in it is run."""
    out: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")]
    """Folder to create."""
    heads: Heads | None = None
    """Attention heads (shapes do not determine them); None = as in the file, else the paper's 8."""
    coordinates: Annotated[int, Range(1, 1000)] = 2
    """Coordinates per joint."""
    modality: Modality | None = None
    """Modality that a classifier sees; None = every one that it has an embedding for."""
    size: Side = 224
    """Side of the crop that the network was trained on, in pixels."""
    shards: str | None = None
    """Packed data set to take the class names from; None = classes are named by their numbers, and `evaluate` refuses all
    shards."""
    split: str | None = None
    """Split of it to evaluate on."""

    def __post_init__(self) -> None:
        check_fields(self)


def run_convert(options: ConvertOptions) -> None:
    from svdata2vec.original.convert import convert_file, summary

    _print({"run": str(options.out), **summary(convert_file(**vars(options)))})


@dataclass(frozen=True)
class ExportOptions:
    """Write the RGB classifier as one file: uint8 video (B, T, H, W, 3) in, logits (B, classes) out.

    The file is read back and its logits are compared with the network's.
    """

    run: RunFolder
    """Folder of a finetune or probe run with modality rgb."""
    out: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")]
    """File to write: .pt2 (torch.export) or .onnx (needs the extra `export`); its card lies beside it as OUT.json."""

    def __post_init__(self) -> None:
        check_fields(self)


def run_export(options: ExportOptions) -> None:
    from svdata2vec.evaluation.export import export

    card = export(options.run, options.out)
    shown: dict[str, Any] = {name: card[name] for name in ("input", "output", "largest_logit_difference") if name in card}
    _print({"out": str(options.out), **shown})


@dataclass(frozen=True)
class ReportOptions:
    """Write one HTML page about one or several runs; it opens without a network."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="[RUN [RUN ...]]")]
    """Folders of the runs, one or more."""
    out: Path = Path("report.html")
    """File to write: .html."""
    label_efficiency: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Record of `svdata2vec label-efficiency`: its curves come first, with the runs' classifiers as points on them."""

    def __post_init__(self) -> None:
        check_fields(self)


def run_report(options: ReportOptions) -> None:
    from svdata2vec.reports.report import write_report

    write_report(options.runs, options.out, options.label_efficiency)
    sys.stdout.write(shown_lines(f"{options.out}\n"))


def _print(values: dict[str, Any]) -> None:
    """JSON with a line per value."""
    if is_first_process():
        lines = ",\n".join(f"  {json.dumps(name)}: {json.dumps(value)}" for name, value in values.items())
        sys.stdout.write(shown_lines(f"{{\n{lines}\n}}\n"))
