"""The exported classifier: the same logits as the network, for any number of clips, without any op of ours in it."""

import errno
import json
import sys
from pathlib import Path

import pytest
import torch
from tiny import MODEL
from torch import Tensor

from svdata2vec.cli.main import main
from svdata2vec.config.schema import DataConfig, FinetuneConfig, HeadConfig, Modality
from svdata2vec.evaluation import export as export_module
from svdata2vec.evaluation.export import compare_logits, export, load_rgb_classifier
from svdata2vec.model.classifier import Classifier, LinearHead
from svdata2vec.runs.card import model_card
from svdata2vec.runs.failures import RunFailedError
from svdata2vec.runs.published import load_classifier, publish
from svdata2vec.shards.errors import UserError

DATA = DataConfig(num_frames=6, size=32)
CLASSES = ["sit", "stand", "walk"]


def publish_classifier(folder: Path, modality: Modality = "rgb", kind: str = "finetune") -> Path:
    """A run's folder with random weights; BatchNorm has seen some clips, so that its buffers matter."""
    config = FinetuneConfig(data=DATA, model=MODEL, head=HeadConfig(hidden=16), modality=modality)
    model = Classifier(config, 17, len(CLASSES))
    if kind == "probe":
        model.head = LinearHead(MODEL.width, len(CLASSES))
    if modality == "rgb":
        for _ in range(3):
            model(clips(4), None)
    folder.mkdir(parents=True)
    publish(folder, model.state_dict(), model_card(kind, config, num_joints=17, classes=CLASSES))
    return folder


def clips(count: int, seed: int = 5) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 6, 32, 32, 3), dtype=torch.uint8, generator=generator)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(run, file): a classifier exported by the command."""
    folder = tmp_path_factory.mktemp("export")
    run = publish_classifier(folder / "run")
    assert main(["export", str(run), str(run / "model.pt2")]) == 0
    return run, run / "model.pt2"


def test_exported_program_gives_the_networks_logits_for_any_number_of_clips(exported: tuple[Path, Path]) -> None:
    run, file = exported
    program = torch.export.load(file)
    model, _, _ = load_classifier(run)
    for count in (1, 2, 5):
        with torch.no_grad():
            torch.testing.assert_close(program.module()(clips(count)), model(clips(count), None), rtol=1e-4, atol=1e-4)
    names = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert names and not {name for name in names if "svdata2vec" in name}, "needs the ops of this library"


def test_the_card_beside_the_export_says_how_to_use_it(exported: tuple[Path, Path]) -> None:
    card = json.loads(exported[1].with_name("model.pt2.json").read_text())
    assert card["classes"] == CLASSES and card["input"]["shape"] == ["B", 6, 32, 32, 3]
    assert card["output"]["shape"] == ["B", 3] and card["preprocessing"]["size"] == 32
    assert card["largest_logit_difference"] < 1e-4


@pytest.mark.parametrize("kind", ["finetune", "probe"])
def test_plain_pytorch_gives_the_logits_of_the_ops(tmp_path: Path, kind: str) -> None:
    run = publish_classifier(tmp_path / "run", kind=kind)
    with torch.no_grad():
        torch.testing.assert_close(
            load_rgb_classifier(run)[0](clips(2)), load_classifier(run)[0](clips(2), None), rtol=1e-4, atol=1e-4
        )


def test_export_is_of_the_network_in_evaluation_mode(tmp_path: Path) -> None:
    model, _, _ = load_rgb_classifier(publish_classifier(tmp_path / "run"))
    assert not any(module.training for module in model.modules())
    torch.testing.assert_close(model(clips(1)), model(clips(3))[:1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("wrong", [1e-3, float("nan")])
def test_a_wrong_export_is_noticed(wrong: float) -> None:
    logits = torch.randn(2, 3)
    assert compare_logits(Path("model.pt2"), logits + 1e-6, logits) < 1e-5
    with pytest.raises(RunFailedError, match=r"model\.pt2: logits differ from the network's by"):
        compare_logits(Path("model.pt2"), logits + wrong, logits)


def test_large_logits_differ_by_their_rounding() -> None:
    """The next float32 after 3000 is 2.4e-4 away."""
    logits = torch.tensor([[3000.0, -20.0]])
    assert 1e-4 < compare_logits(Path("model.onnx"), torch.nextafter(logits, logits + 1), logits) < 1e-3
    with pytest.raises(RunFailedError, match=r"logits differ from the network's by 1; nothing was written"):
        compare_logits(Path("model.onnx"), logits + 1, logits)


def test_a_wrong_export_leaves_an_older_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, out = publish_classifier(tmp_path / "run"), tmp_path / "model.pt2"
    out.write_bytes(b"older")
    monkeypatch.setattr(export_module, "TOLERANCE", -1.0)
    with pytest.raises(RunFailedError, match="nothing was written"):
        export(run, out)
    assert out.read_bytes() == b"older" and {path.name for path in tmp_path.iterdir()} == {"run", out.name}


def test_an_older_card_is_not_taken_for_that_of_a_new_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the disk is full behind the network."""
    run, out = publish_classifier(tmp_path / "run"), tmp_path / "model.pt2"
    (tmp_path / "model.pt2.json").write_text('{"classes": ["of", "another", "run"]}')

    def write(path: Path, content: bytes) -> None:
        if path != out:
            raise OSError(errno.ENOSPC, "no space")
        path.write_bytes(content)

    monkeypatch.setattr(export_module, "_exported", lambda *_: (b"new", None))
    monkeypatch.setattr(export_module, "write_atomically", write)
    with pytest.raises(OSError, match="no space"):
        export(run, out)
    assert {path.name for path in tmp_path.iterdir()} == {"run", out.name}


@pytest.mark.slow
def test_onnx_gives_the_networks_logits(tmp_path: Path) -> None:
    import onnxruntime

    run = publish_classifier(tmp_path / "run")
    card = export(run, tmp_path / "model.onnx")
    assert card["largest_logit_difference"] < 1e-4
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    model, _, _ = load_classifier(run)
    for count in (1, 5):
        logits = torch.from_numpy(session.run(None, {"video_BTHWC": clips(count).numpy()})[0])
        with torch.no_grad():
            torch.testing.assert_close(logits, model(clips(count), None), rtol=1e-4, atol=1e-4)


def test_onnx_without_its_packages_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = publish_classifier(tmp_path / "run")
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(UserError, match=r"pip install 'svdata2vec\[export\]'; or write .pt2"):
        export(run, tmp_path / "model.onnx")
    assert not (tmp_path / "model.onnx").exists() and not (tmp_path / "model.onnx.json").exists()


def test_wrong_requests_are_named(tmp_path: Path) -> None:
    run = publish_classifier(tmp_path / "run")
    with pytest.raises(UserError, match=r"model\.pth: expected a file name that ends in \.pt2"):
        export(run, tmp_path / "model.pth")
    with pytest.raises(UserError, match=r"no model\.safetensors"):
        export(tmp_path, tmp_path / "model.pt2")
    both = publish_classifier(tmp_path / "both", "both")
    with pytest.raises(UserError, match=r"needs skeletons \(modality both\); export takes a run with modality rgb"):
        export(both, tmp_path / "model.pt2")
