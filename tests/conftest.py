"""Shared test set-up: one thread per process, reproducible random numbers, and skips that depend on the machine."""

import os
import random
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import tiny_shards

os.environ["SVDATA2VEC_DECODING"] = ""  # no settings that somebody tuned on this machine
LONG_LIMIT_FACTOR = 3  # times `timeout` of setup.cfg


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """One thread for every test and fixture: what is compared bit for bit must be summed in one order."""
    torch.set_num_threads(1)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip what this machine cannot do (REQUIRE_GPU=1: not `gpu` tests); slow tests get a longer limit and come first."""
    reasons = {}
    if not torch.cuda.is_available() and os.environ.get("REQUIRE_GPU") != "1":
        reasons["gpu"] = "needs an NVIDIA GPU (REQUIRE_GPU=1 makes this a failure)"
    if shutil.which("g++") is None or " " in torch.__file__:
        reasons["inductor"] = "PyTorch's compiler needs g++, and its own libraries in a path without a space"
    if os.environ.get("PACKAGE_INDEX") != "1":
        reasons["index"] = "installs foreign programs from a package index (PACKAGE_INDEX=1 runs it)"
    files, long = Counter(item.path for item in items), set()
    for item in items:
        for name, reason in reasons.items():
            if item.get_closest_marker(name):  # keywords hold the ids of parameters, too
                item.add_marker(pytest.mark.skip(reason=reason))
        if any(map(item.get_closest_marker, ("slow", "installs", "index"))):
            item.add_marker(pytest.mark.timeout(LONG_LIMIT_FACTOR * float(config.getini("timeout"))))
            long.add(item.path)
    # Files with slow tests first, then those with many, so that no process is left alone with a long one at the end.
    items.sort(key=lambda item: (item.path not in long, -files[item.path], item.path))


@pytest.fixture(autouse=True)
def restore_random_state() -> Iterator[None]:
    """Give every test the same random state and leave none behind."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    yield
    random.setstate(states[0])
    np.random.set_state(states[1])
    torch.set_rng_state(states[2])


@pytest.fixture(scope="session")
def tiny_shard_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Packed shards of twelve small clips in a split "all"; tests read them only."""
    return tiny_shards(tmp_path_factory.mktemp("tiny") / "shards")
