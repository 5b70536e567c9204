"""The RGB classifier as one file for other programs: `torch.export` (.pt2) or ONNX (.onnx), with its card inside and beside it.

B clips, T frames, H W picture
"""

import io
import json
import logging
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from svdata2vec.config.schema import FinetuneConfig
from svdata2vec.model.classifier import Classifier
from svdata2vec.runs.failures import RunFailedError
from svdata2vec.runs.published import load_classifier
from svdata2vec.shards.atomic import beside, require_writable, write_atomically
from svdata2vec.shards.errors import UserError

# Of logits between the network and its export, the same operations fused differently; above 1 in parts of the largest logit.
TOLERANCE = 1e-4
INSIDE = "svdata2vec"  # name of the card within the file: an extra file of .pt2, a metadata property of .onnx
EXAMPLE_CLIPS = 2  # a batch of one would fix the batch size in the exported program

log = logging.getLogger(__name__)


class RgbClassifier(nn.Module):
    """Only the input that the export has: uint8 video (B, T, H, W, 3) -> logits (B, classes)."""

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, video_BTHWC: Tensor) -> Tensor:
        return self.classifier(video_BTHWC, None)


def load_rgb_classifier(run: Path) -> tuple[RgbClassifier, FinetuneConfig, dict[str, Any]]:
    """The RGB classifier of a finished run with every op as plain PyTorch, in evaluation mode."""
    model, config, card = load_classifier(run, impl="torch", fused_blocks=False)
    if config.modality != "rgb":
        raise UserError(f"{run} needs skeletons (modality {config.modality}); export takes a run with modality rgb")
    return RgbClassifier(model).eval(), config, card


def example_input(config: FinetuneConfig) -> Tensor:
    """Random video of the size that the network takes."""
    size = config.data.size
    generator = torch.Generator().manual_seed(0)
    shape = (EXAMPLE_CLIPS, config.data.num_frames, size, size, 3)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)


@torch.no_grad()
def export(run: Path, out: Path) -> dict[str, Any]:
    """Export the classifier of a finished run, read it back and compare its logits with the network's.

    Args:
        run: folder of a finetune or probe run with modality rgb.
        out: file to write; .pt2 (torch.export) or .onnx. Its card is in it and, as OUT.json, beside it.

    Returns:
        The card: classes, preprocessing, input and output, and the largest difference of logits.
    """
    if out.suffix not in (".pt2", ".onnx"):
        raise UserError(f"{out}: expected a file name that ends in .pt2 (torch.export) or .onnx")
    if out.suffix == ".onnx":
        _require_onnx(out)
    require_writable(out, ".json")
    model, config, card = load_rgb_classifier(run)
    video_BTHWC = example_input(config)
    description: dict[str, Any] = {
        **{name: card[name] for name in ("version", "kind", "classes", "preprocessing") if name in card},
        "input": {"name": "video_BTHWC", "dtype": "uint8", "shape": ["B", *video_BTHWC.shape[1:]]},
        "output": {"name": "logits", "dtype": "float32", "shape": ["B", len(card["classes"])]},
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of PyTorch's own code
        content, logits_BC = _exported(model, out, video_BTHWC, description)
    if logits_BC is not None:
        description["largest_logit_difference"] = compare_logits(out, logits_BC, model(video_BTHWC))
    about = beside(out, ".json")
    about.unlink(missing_ok=True)  # that of an older file would be taken for this one's
    write_atomically(out, content)
    write_atomically(about, json.dumps(description, indent=2).encode())
    return description


def _exported(
    model: RgbClassifier, out: Path, video_BTHWC: Tensor, description: dict[str, Any]
) -> tuple[bytes, Tensor | None]:
    """The file's bytes and the logits that they give, or None with a warning where nothing here can read them."""
    program = torch.export.export(model, (video_BTHWC,), dynamic_shapes={"video_BTHWC": {0: torch.export.Dim("B", min=1)}})
    if out.suffix == ".onnx":
        content = _onnx(program, description)
        return content, _onnx_logits(content, out, video_BTHWC)
    torch.export.save(program, buffer := io.BytesIO(), extra_files={INSIDE: json.dumps(description)})
    buffer.seek(0)
    return buffer.getvalue(), torch.export.load(buffer).module()(video_BTHWC)


def compare_logits(out: Path, found_BC: Tensor, expected_BC: Tensor) -> float:
    """The largest difference; RunFailedError if it is above TOLERANCE (or not a number).

    Logits of a linear probe may be thousands, of which float32 knows no 1e-4.
    """
    difference = (found_BC - expected_BC).abs().max().item()
    if not difference <= TOLERANCE * max(1.0, expected_BC.abs().max().item()):
        raise RunFailedError(f"{out}: logits differ from the network's by {difference:.2g}; nothing was written")
    return difference


def _require_onnx(out: Path) -> None:
    try:
        import onnxscript  # noqa: F401 - torch.onnx needs it
    except ImportError:
        raise UserError(f"{out}: ONNX needs onnx and onnxscript: pip install 'svdata2vec[export]'; or write .pt2") from None


def _onnx(program: torch.export.ExportedProgram, description: dict[str, Any]) -> bytes:
    # It warns of ops of a library that is not installed, which no network here has.
    logging.getLogger("torch.onnx._internal.exporter._registration").setLevel(logging.ERROR)
    onnx_program = torch.onnx.export(
        program, dynamo=True, verbose=False, input_names=["video_BTHWC"], output_names=["logits"]
    )
    assert onnx_program is not None
    onnx_program.model.metadata_props[INSIDE] = json.dumps(description)
    return onnx_program.model_proto.SerializeToString()


def _onnx_logits(content: bytes, out: Path, video_BTHWC: Tensor) -> Tensor | None:
    """By ONNX Runtime; None with a warning where that is not installed."""
    try:
        import onnxruntime
    except ImportError:
        log.warning("%s: not run, because onnxruntime is not installed; its logits were not compared", out)
        return None
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {"video_BTHWC": video_BTHWC.numpy()})[0])
