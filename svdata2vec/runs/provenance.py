"""Where a record comes from: its format, date, machine, versions and commit; of benchmarks, studies and experiments alike."""

import datetime
import functools
import importlib.metadata
import json
import os
import platform
import re
import subprocess
import time
from pathlib import Path
from typing import Any

import torch

from svdata2vec import __version__
from svdata2vec.config.checked_json import NUMBER
from svdata2vec.runs.cores import cpu_name
from svdata2vec.shards.atomic import make_folder, write_atomically
from svdata2vec.shards.cores import job_cores

# What a measurement writes and the next one does not read, as git names it.
RECORDS = [f":(top,exclude,glob)tools/results/*.{ending}" for ending in ("json", "png")]
UNKNOWN = "unknown"  # in place of a commit that nobody wrote down
CPU = torch.device("cpu")

# What `head` and `hardware` write, as a schema (config/checked_json.py).
HEAD: dict[str, Any] = {
    "format": str, "version": int, "date": str,
    "machine": {
        "device": str, "cpu": str, "cores": int, "torch_threads": int, "load_average": NUMBER, "versions": {"torch": str},
    },
}


def head(kind: str, version: int) -> dict[str, Any]:
    """How a record begins: its format and the date."""
    return {"format": kind, "version": version, "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}


def save(record: dict[str, Any], out: Path) -> None:
    """Write a record as JSON; its folder is made if needed."""
    make_folder(out.parent)
    write_atomically(out, (json.dumps(record, indent=1) + "\n").encode())


def hardware(device: torch.device) -> dict[str, Any]:
    """Hardware, versions, and how busy the machine was with other things."""
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "cpu": cpu_name(), "cores": job_cores(), "torch_threads": torch.get_num_threads(),
        "load_average": os.getloadavg()[0], "versions": versions(),
    }


def machine(device: torch.device = CPU) -> dict[str, Any]:
    """The same in short, for records of experiments. `device`: what they ran on; a GPU beside work on the CPU is not named."""
    return {
        "machine": f"{job_cores()} CPU cores ({cpu_name()})", "cores": job_cores(),
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None, "load_average": os.getloadavg()[0],
        "versions": versions(), "commit": commit(), "date": datetime.date.today().isoformat(),
    }


def versions() -> dict[str, str | None]:
    """Of this package and of what its speed depends on; None for what is not there."""
    installed = {name: _installed(name) for name in ("triton", "nvidia-dali-cuda130", "nvidia-dali-cuda120")}
    return {
        "svdata2vec": __version__, "python": platform.python_version(), "torch": torch.__version__,
        "cuda": torch.version.cuda, "driver": _driver(), **{name: version for name, version in installed.items() if version},
    }


def _installed(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _driver() -> str | None:
    """Version of NVIDIA's driver."""
    file = Path("/proc/driver/nvidia/version")
    found = re.search(r"\b\d{3,}\.\d[\d.]*\b", file.read_text()) if file.is_file() else None
    return found[0] if found else None


@functools.cache
def commit() -> str | None:
    """The commit that this package's files are of, with -dirty if any but records were changed; None outside a checkout.

    As it was when a process first asked: later commits and changes are not what it has imported.
    """
    here = Path(__file__).resolve()

    def git(*words: str) -> str:
        unlocked = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}  # a look must not stop somebody's `git commit`
        done = subprocess.run(["git", *words], cwd=here.parent, env=unlocked, check=True, capture_output=True, text=True)
        return done.stdout.strip()

    try:
        if not git("ls-files", here.name):  # installed somewhere inside another checkout
            return None
        changed = git("status", "-s", "-uno", "--", ":/", *RECORDS)
        return git("rev-parse", "HEAD")[:12] + ("-dirty" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return None
