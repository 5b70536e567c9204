"""The scaling model: its bytes are the network's, its efficiencies follow from the assumptions, and the page has them."""

import json
from dataclasses import replace

import pytest
import render_results
import scaling_model as scaling
from repository import ROOT

from svdata2vec.config.schema import PretrainConfig
from svdata2vec.shards.errors import UserError

GIVEN = scaling.Assumptions()


def test_bytes_are_those_of_the_network() -> None:
    gradients, buffers = scaling.model_bytes(PretrainConfig())
    assert gradients / 4e6 == pytest.approx(20.21, abs=0.02)  # parameters, millions
    # Mean and variance of 5 widths of BatchNorm (stem; 4 or 5 per stage), a counter each, and the pictures' mean and std.
    channels = 64 + 4 * 64 + 5 * (128 + 256 + 512)
    norms = 1 + 4 + 3 * 5
    assert buffers == 4 * 2 * channels + 8 * norms + 2 * 3 * 4


def test_a_ring_sends_all_but_its_own_share_twice() -> None:
    assert scaling.ring_bytes(80.0, 1) == 0
    assert scaling.ring_bytes(80.0, 2) == 80.0
    assert scaling.ring_bytes(80.0, 8) == pytest.approx(140.0)


def test_one_gpu_waits_for_none_and_a_slow_network_for_long() -> None:
    alone = scaling.expect(1, 8e7, 4e4, GIVEN)
    assert alone.efficiency == 1 and alone.sent_bytes == 0 and alone.clips_per_second == GIVEN.clips_per_second
    efficiencies = [scaling.expect(gpus, 8e7, 4e4, GIVEN).efficiency for gpus in (8, 16, 64, 512, 4096)]
    assert efficiencies == sorted(efficiencies, reverse=True) and efficiencies[-1] > 0
    slow = scaling.expect(16, 8e7, 0, replace(GIVEN, network_gb_per_s=1.0, straggler=0.0, latency_us=0.0))
    within, between = 1.75 * 8e7 / 300e9, 8e7 / 1e9
    compute = 32 / 1000
    assert slow.compute_seconds == pytest.approx(compute)
    assert slow.waiting_seconds == pytest.approx(within + between - 0.6 * compute)
    assert slow.efficiency == pytest.approx(compute / (compute + slow.waiting_seconds))
    hidden = scaling.expect(16, 8e7, 0, replace(GIVEN, straggler=0.0, latency_us=0.0))
    assert hidden.efficiency == 1 and hidden.communication_seconds > 0  # all of it beside the backward pass


def test_nodes_are_full() -> None:
    """One that is larger than the run is not."""
    with pytest.raises(UserError, match="gpus_per_node is 12: 64 GPUs do not fill such nodes; expected a number that divides"):
        scaling.expect(64, 8e7, 4e4, replace(GIVEN, gpus_per_node=12))
    assert scaling.expect(8, 8e7, 4e4, replace(GIVEN, gpus_per_node=12)) == scaling.expect(8, 8e7, 4e4, GIVEN)


def test_storage_by_hand() -> None:
    # 2 MiB per 100 frames, clips of 50 frames: 1 MiB per clip, 8 GPUs of 1000 clips/s.
    assert scaling.storage_gb_per_s(2.0, 50, 1000.0, 8) == pytest.approx(8000 * 2**20 / 1e9)


def test_the_page_says_what_the_model_says() -> None:
    text = render_results.section("scaling") + render_results.section("scaling_storage")
    found = scaling.figures(PretrainConfig(), GIVEN)
    assert json.loads((ROOT / "tools" / "results" / "scaling.json").read_text()) == json.loads(json.dumps(found))
    for run in found["runs"]:
        assert f"| {run['gpus']} |" in text and f"{100 * run['efficiency']:.1f} %" in text
    jpeg, video = found["storage"][0], found["storage"][1]
    assert jpeg["codec"] == "jpeg" and jpeg["least_gb_per_s"] == pytest.approx(0.4 * jpeg["whole_clips_gb_per_s"])
    assert video["least_gb_per_s"] == video["whole_clips_gb_per_s"]
    assert "`jpeg` q90" in text and "`vp9` q24" in text
