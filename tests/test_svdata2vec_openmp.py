"""Waiting OpenMP threads leave the cores to others: set before the library loads, never over the user's own setting."""

import dataclasses
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Literal

import pytest
import torch
from repository import ROOT
from tiny import pretrain_config

from svdata2vec.config import openmp
from svdata2vec.config.openmp import BOUNDED, OF_THE_USER, SPINNING, bound_waiting, waiting
from svdata2vec.training.pretrain import pretrain

CLEAN = {name: text for name, text in os.environ.items() if name not in (*OF_THE_USER, "OMP_NUM_THREADS")}


GIVEN: list[dict[str, str]] = [{"OMP_WAIT_POLICY": "active"}, {"GOMP_SPINCOUNT": "7"}, {"KMP_BLOCKTIME": "200"}, {"A": "b"}]


@pytest.mark.parametrize("given", GIVEN)
def test_a_user_who_has_set_one_variable_has_set_them_all(given: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    environment = dict(given)
    monkeypatch.setattr(os, "environ", environment)
    bound_waiting()
    assert environment == (given | BOUNDED if "A" in given else given)
    monkeypatch.setattr(os, "environ", {"OMP_WAIT_POLICY": "passive", "X": "y"})
    monkeypatch.setattr(openmp, "LATE", False)
    assert waiting() == "OMP_WAIT_POLICY passive"


@pytest.mark.parametrize(("given", "seen"), [({}, BOUNDED["GOMP_SPINCOUNT"]), ({"GOMP_SPINCOUNT": "77"}, "77"),
                                             ({"OMP_WAIT_POLICY": "passive"}, "0")])
def test_the_library_that_pytorch_loads_has_it(given: dict[str, str], seen: str) -> None:
    """libgomp shows its settings when it is loaded; importing this package alone loads neither it nor PyTorch."""
    program = "import sys, svdata2vec; assert 'torch' not in sys.modules; import torch; torch.ones(4).sum()"
    environment = CLEAN | {"OMP_DISPLAY_ENV": "verbose", "PYTHONPATH": str(ROOT)} | given
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    if "GOMP_SPINCOUNT" not in done.stderr:
        pytest.skip("this PyTorch has another OpenMP library than libgomp")
    assert f"GOMP_SPINCOUNT = '{seen}'" in done.stderr


@pytest.mark.parametrize(("first", "given", "late"), [("torch", {}, True), ("svdata2vec", {}, False),
                                                      ("torch", {"GOMP_SPINCOUNT": "77"}, False)])
def test_variables_that_are_set_too_late_are_reported(first: str, given: dict[str, str], late: bool) -> None:
    program = f"import {first}, svdata2vec, torch; from svdata2vec.config.openmp import waiting; print(waiting())"
    done = subprocess.run([sys.executable, "-c", program], env=CLEAN | {"PYTHONPATH": str(ROOT)} | given, capture_output=True,
                          text=True, check=True)
    assert done.stdout.endswith("(without effect: import svdata2vec before torch)\n") == late
    assert done.stdout.startswith("GOMP_SPINCOUNT ")


def test_the_log_of_a_run_says_it_once(tiny_shard_folder: Path, tmp_path: Path, caplog) -> None:
    caplog.set_level(logging.INFO)
    config = pretrain_config(tiny_shard_folder, tmp_path / "run", epochs=1)
    pretrain(dataclasses.replace(config, run=dataclasses.replace(config.run, log_every=50)))
    said = [record.getMessage() for record in caplog.records if "wait for each other" in record.getMessage()]
    assert said == [f"on 1 threads per process, which wait for each other by {waiting()}"]


@pytest.mark.parametrize(("precision", "threads", "warned"), [("bf16", 2, 1), ("bf16", 1, 0), ("fp32", 2, 0)])
def test_a_run_in_bfloat16_on_several_threads_says_that_they_spin(
    precision: Literal["bf16", "fp32"], threads: int, warned: int, tiny_shard_folder: Path, tmp_path: Path, caplog, monkeypatch
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    config = pretrain_config(tiny_shard_folder, tmp_path / "run", epochs=1)
    pretrain(dataclasses.replace(config, run=dataclasses.replace(config.run, precision=precision)))
    assert [record.getMessage() for record in caplog.records].count(f"bf16: {SPINNING}") == warned
