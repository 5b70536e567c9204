"""The committed experiments: what differs between their sides, and how their runs are compared."""

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

import claim_experiment as claim
import codec_experiment as codec
import encode_experiment as encode
import pytest
import render_results

OPTIONS = argparse.Namespace(
    work=Path("work"), shards=Path("shards"), epochs=24, steps=270, precision="fp32", seeds=2, jobs=1
)


def differences(a: Any, b: Any, name: str = "") -> set[str]:
    """Dotted names of the fields in which two configurations differ."""
    if not dataclasses.is_dataclass(a):
        return set() if a == b else {name}
    fields = (field.name for field in dataclasses.fields(a))
    return {found for field in fields for found in differences(getattr(a, field), getattr(b, field), f"{name}.{field}")}


def test_kinds_of_pretraining_differ_in_the_teachers_input_alone() -> None:
    skeleton, rgb, untrained = (claim.pretrain_config(OPTIONS, kind, 1) for kind in ("skeleton", "rgb", "untrained"))
    assert differences(skeleton, rgb) == {".encode", ".target.teacher_input", ".run.out"}
    assert skeleton.encode == "kept_frames" and rgb.target.teacher_input == "rgb"
    assert untrained.optim.lr == claim.STILL and untrained.run.epochs == 1


def planted() -> dict[str, list[dict[str, Any]]]:
    """Two seeds: pretraining on skeletons is better with few labels, equal with all."""
    top1 = {"scratch": (0.1, 0.2, 0.5), "rgb": (0.15, 0.2, 0.4), "skeleton": (0.3, 0.4, 0.5)}
    tuned = [
        {"start": start, "fraction": fraction, "seed": seed, "labels": int(720 * fraction), "top1": value + 0.01 * seed}
        for start, values in top1.items() for fraction, value in zip(claim.FRACTIONS, values, strict=True) for seed in (0, 1)
    ]
    probes = [
        {"kind": kind, "seed": seed, "linear_top1": 0.2 + 0.1 * seed, "knn_top1": 0.1}
        for kind in claim.PROBED for seed in (0, 1)
    ]
    pretraining = [
        {"kind": kind, "seed": seed, "loss_first_last": [1.5, 0.2 + 0.1 * seed], "target_std": 0.9}
        for kind in claim.PROBED for seed in (0, 1)
    ]
    return {"finetuning": tuned, "probes": probes, "pretraining": pretraining}


def test_claim_is_compared_per_share_of_labels() -> None:
    compared = claim.compare(planted())
    few, _, all_labels = compared["fractions"]
    assert few["labels"] == 36 and few["mean_top1"]["skeleton"] == pytest.approx(0.305)
    assert few["range_top1"]["scratch"] == pytest.approx([0.1, 0.11])
    assert few["seeds_above_scratch"] == {"rgb": 2, "skeleton": 2}
    assert all_labels["seeds_above_scratch"] == {"rgb": 0, "skeleton": 0}
    assert compared["probes"]["rgb"] == pytest.approx({"linear_top1": 0.25, "knn_top1": 0.1})


def test_claim_is_plotted_and_rendered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = planted()
    record = {
        "machine": "2 CPU cores", "versions": {"torch": "2.13"}, "date": "2026-11-22", "epochs": 24, "steps": 270, "seeds": 2,
        "precision": "fp32", "classes": 12, "clips": {"xsub_train": 720, "xsub_val": 480},
        "comparison": claim.compare(found), **found,
    }
    claim.plot(record, tmp_path / "claim.png")
    assert (tmp_path / "claim.png").stat().st_size > 10_000
    (tmp_path / "claim.json").write_text(json.dumps(record))
    monkeypatch.setattr(render_results, "RESULTS", tmp_path)
    text = render_results.section("claim")
    assert "| 36 (5 %) | 10.5 % (10.0 to 11.0) | 15.5 % (15.0 to 16.0) | 30.5 % (30.0 to 31.0) | 2 of 2 |" in text
    assert "chance 8.3 %" in text
    assert "| pretraining loss at the end |  | 0.25 | 0.25 |" in render_results.section("claim_probes")


@pytest.mark.parametrize(("other", "within"), [(0.27, True), (0.4, False)])
def test_ways_of_encoding_are_compared_against_the_spread_of_seeds(other: float, within: bool) -> None:
    seeds = [
        {"top1": {"scratch": 0.1, "kept_frames": 0.25 + 0.02 * seed, "all_frames": other + 0.02 * seed},
         "probe_top1": {"kept_frames": 0.5 + 0.01 * seed, "all_frames": 0.6},
         "loss": {way: [[1, 1.0], [2, 0.9 + 0.01 * seed]] for way in encode.WAYS}}
        for seed in (0, 1, 2)
    ]
    compared = encode.compare(seeds)
    assert compared["top1_within_seed_spread"] is within and compared["final_loss_within_seed_spread"] is True
    assert compared["top1_seed_spread"] == pytest.approx(0.04)
    assert compared["probe_top1_within_seed_spread"] is False and compared["mean_probe_top1"]["kept_frames"] == 0.51


def test_codecs_are_compared_by_pairs_of_seeds(tmp_path: Path) -> None:
    """Seeds may differ by more than the codecs do: the interval is that of the differences."""
    seeds = [{"seed": seed, "top1": {"jpeg": base, "blocks": base + change}, "probe_top1": {"jpeg": 0.4, "blocks": 0.5},
              "loss": {"jpeg": 0.9, "blocks": 0.9}}
             for seed, (base, change) in enumerate([(0.1, 0.02), (0.5, 0.03), (0.3, 0.01)])]
    compared = codec.compare(seeds)
    assert compared["top1"]["difference"] == pytest.approx(0.02) and compared["top1"]["mean"]["jpeg"] == pytest.approx(0.3)
    assert compared["top1"]["interval"] == pytest.approx([0.02 - 4.3027 * 0.01 / 3**0.5, 0.02 + 4.3027 * 0.01 / 3**0.5])
    codec.plot({"comparison": compared, "seeds": seeds}, tmp_path / "codec_experiment.png")
    assert (tmp_path / "codec_experiment.png").stat().st_size > 10_000
