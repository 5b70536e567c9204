"""The project's public face: the public Python names, its README's snippet, and the sections that docstrings cite."""

import ast
import contextlib
import io
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from repository import ROOT
from shards_data import write_video
from tiny import pretrain_config

import svdata2vec
from svdata2vec.cli.runs import PredictOptions
from svdata2vec.config.files import to_values
from svdata2vec.config.label_efficiency import LABEL_EFFICIENCY
from svdata2vec.config.presets import FINETUNE, PRETRAIN
from svdata2vec.config.probe import PROBE
from svdata2vec.evaluation.features import embed
from svdata2vec.shards.packing.pack import PackOptions
from svdata2vec.training.pretrain import pretrain

README = ROOT / "svdata2vec" / "README.md"
CITED = re.compile(r'([\w./]+\.md|README), "([^"]+)"')


def test_importing_the_package_costs_nothing() -> None:
    heavy = {"torch", "numpy", "nvidia", "cv2", "av", "triton", "tyro"}
    code = f"import sys, svdata2vec; print({heavy} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True).stdout == "set()\n"


def test_commands_that_do_not_train_do_not_import_the_compiler() -> None:
    modules = ("evaluation.predict", "evaluation.evaluate", "studies.jobs", "model.execution")
    code = f"import sys, svdata2vec.{', svdata2vec.'.join(modules)}; print('torch._dynamo' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True).stdout == "False\n"


def test_public_names_are_these_and_documented() -> None:
    assert svdata2vec.__all__ == ["ClipLoader", "PlanConfig", "UserError", "load_encoder", "open_shards"]
    for name in svdata2vec.__all__:
        assert getattr(svdata2vec, name).__doc__ and name in dir(svdata2vec)
    with pytest.raises(AttributeError, match=r"module 'svdata2vec' has no attribute 'pretrain'; it has ClipLoader, "):
        svdata2vec.pretrain  # noqa: B018
    with pytest.raises(ImportError, match="cannot import name 'nothing'"):
        from svdata2vec import nothing  # noqa: F401


def test_type_checkers_see_the_same_names_at_the_same_places() -> None:
    tree = ast.parse((ROOT / "svdata2vec" / "__init__.py").read_text())
    (guarded,) = (node for node in tree.body if isinstance(node, ast.If))
    seen = {node.names[0].name: node.module for node in guarded.body if isinstance(node, ast.ImportFrom)}
    assert seen == {name: f"svdata2vec.{home}" for name, home in svdata2vec._HOMES.items()}
    assert (ROOT / "svdata2vec" / "py.typed").is_file()


@pytest.fixture(scope="module")
def pretrained(tiny_shard_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("public") / "run"
    pretrain(pretrain_config(tiny_shard_folder, out, epochs=1))
    return out


def test_the_snippet_of_the_readme_runs(
    pretrained: Path, tiny_shard_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it stands, but for the name of the split, in a folder where its shards, run and video lie."""
    (snippet,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert snippet.count("\n") <= 15
    for link, target in (("data/ntu60", tiny_shard_folder), ("runs/pre", pretrained)):
        (tmp_path / link).parent.mkdir(parents=True)
        (tmp_path / link).symlink_to(target)
    write_video(tmp_path / "video.mp4", 12, width=640, height=560)
    monkeypatch.chdir(tmp_path)
    found: dict[str, object] = {}
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(snippet.replace('"xsub_val"', '"all"'), found)
    assert "torch.Size([12, 2, 6, 17, 2]) torch.Size([12, 32])" in printed.getvalue()
    whole = embed(pretrained, "all", tmp_path / "features.npy", device="cpu")
    np.testing.assert_allclose(found["features_BD"], whole.features_nD, rtol=1e-5, atol=1e-6)  # type: ignore[call-overload]
    feature_D = found["feature_D"]
    assert isinstance(feature_D, torch.Tensor) and feature_D.shape == (32,) and torch.isfinite(feature_D).all()


def test_an_encoder_asks_for_what_it_sees(pretrained: Path, tmp_path: Path) -> None:
    encoder = svdata2vec.load_encoder(str(pretrained), "both", device="cpu")
    video, joints = torch.zeros(1, 6, 32, 32, 3, dtype=torch.uint8), torch.zeros(1, 2, 6, 17, 2)
    assert encoder.features(video, joints).shape == (1, 32)
    with pytest.raises(ValueError, match="this encoder sees both; give it video_BTHWC, joints_BMTVC, or both"):
        encoder.features(video)
    for wrong in (joints[:, :, :1], joints[:, :1], joints.transpose(1, 2), joints.double(), joints[..., :5, :], joints.numpy()):
        with pytest.raises(ValueError, match=r"joints_BMTVC is .*; expected a tensor of float32, .* \(B, 2, 6, 17, 2\)"):
            encoder.features(video, wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="video_BTHWC is of 1 clips, joints_BMTVC of 2"):
        encoder.features(video, joints.expand(2, -1, -1, -1, -1))
    with pytest.raises(svdata2vec.UserError, match="sees both, and a video has no skeletons; load it with modality rgb"):
        encoder.video_features(tmp_path / "none.mp4")
    skeletons = svdata2vec.load_encoder(pretrained, "skeleton", device="cpu")
    assert torch.equal(skeletons.features(video, joints), skeletons.features(joints_BMTVC=joints))
    with pytest.raises(svdata2vec.UserError, match=r"no model.safetensors; expected the folder of a finished run"):
        svdata2vec.load_encoder(tmp_path)
    with pytest.raises(svdata2vec.UserError, match=r"modality is 'x': expected 'rgb' or 'both' or 'skeleton'"):
        svdata2vec.load_encoder(pretrained, "x")  # type: ignore[arg-type]
    with pytest.raises(svdata2vec.UserError, match=r"device is 'gpu': expected 'auto' or 'cpu' or 'cuda'"):
        svdata2vec.load_encoder(pretrained, None, "gpu")  # type: ignore[arg-type]


def test_a_video_that_gives_no_features_is_named(pretrained: Path, tmp_path: Path) -> None:
    encoder = svdata2vec.load_encoder(pretrained, device="cpu")
    with pytest.raises(svdata2vec.UserError, match=r"none\.mp4: no such file"):
        encoder.video_features(tmp_path / "none.mp4")
    write_video(tmp_path / "video.mp4", 6)
    for box in ((0, 0, 0, 0), (5000, 0, 6000, 90), (0, 0, float("nan"), 90)):
        with pytest.raises(svdata2vec.UserError, match=r"box .* is empty, outside the .* picture of .*video\.mp4"):
            encoder.video_features(tmp_path / "video.mp4", box)


def test_every_cited_section_exists() -> None:
    """Docstrings and documents cite `folder/PAGE.md, "Section"`, or those of the repository's root; none that is not here."""
    folders = ("shards", "pipeline", "kernels", "svdata2vec", "tools", "tests/helpers")
    paths = [path for folder in folders for path in (ROOT / folder).rglob("*") if path.suffix in (".py", ".md")]
    paths += ROOT.glob("*.md")
    cited = {
        (str(path.relative_to(ROOT)), *found)
        for path in paths
        for found in CITED.findall(re.sub(r"\s+", " ", path.read_text()))
    }
    assert len(cited) > 30
    for path, readme, section in sorted(cited):
        target = ROOT / readme
        assert readme != "README" and target.is_file(), f"{path} cites {readme}"
        assert re.search(rf"^#+ {re.escape(section)}$", target.read_text(), re.MULTILINE), f"{path} cites {readme}, {section!r}"


def test_the_options_that_the_readme_names_exist() -> None:
    """As settings of a preset, a section of them (`--data.augment.*`), or options of packing or `predict`."""
    values = [to_values(table["demo"]()) for table in (PRETRAIN, FINETUNE, PROBE, LABEL_EFFICIENCY)]
    known = {f"{prefix}{name}" for table in values for prefix, name in dotted(table)} | vars(PackOptions()).keys()
    known |= {field.name for field in fields(PredictOptions)}
    known.add("from")  # the option's own name for `pretrained`
    named = set(re.findall(r"--([a-z][\w.-]*)", README.read_text()))
    assert len(named) > 12
    assert [name for name in sorted(named) if name.rstrip(".").replace("-", "_") not in known] == []


def dotted(values: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    found = [(prefix, name) for name in values]
    for name, value in values.items():
        found += dotted(value, f"{prefix}{name}.") if isinstance(value, dict) else []
    return found
