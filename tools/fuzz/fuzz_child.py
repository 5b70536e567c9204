"""One process of the fuzzer: runs cases of an area and writes a line for each to a file. `fuzz.py` starts and watches it."""

import faulthandler
import importlib
import json
import os
import random
import resource
import shutil
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fuzz_case import CleanError, judge

from svdata2vec.runs.failures import RunFailedError
from svdata2vec.shards.errors import UserError

MOST_MEMORY = 48 << 30  # of address space; asking for more fails here instead of exhausting the machine's memory


def _run_case(area: Any, work: Path, clean: Any, seed: int) -> dict[str, Any]:
    """The outcome of one case."""
    folder = work / "case"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(work / "good", folder, symlinks=True)
    damage = area.damage(random.Random(f"{type(area).__name__} {seed}"), folder)
    case: dict[str, Any] = {"seed": seed, "what": damage.what}
    try:
        outcome = judge(damage, clean, area.run(folder))
    except (CleanError, UserError, RunFailedError, OSError) as error:
        return {**case, "outcome": "error", "message": str(error)[:500]}
    except BaseException:  # noqa: BLE001 - whatever it is, it is what the fuzzer looks for
        return {**case, "outcome": "traceback", "message": traceback.format_exc()[-3000:]}
    return {**case, "outcome": outcome}


def run_cases(kind: str, work: Path, results: Path, seeds: Sequence[int], log: Path) -> None:
    """Main function of a child: prepare the good input of the area MODULE.CLASS if necessary, then run the cases.

    Its output goes to `log`, one outcome per line to `results`.
    """
    with log.open("w") as file, Path(os.devnull).open() as nothing:
        for number, target in enumerate((nothing, file, file)):
            os.dup2(target.fileno(), number)
    faulthandler.enable()
    resource.setrlimit(resource.RLIMIT_AS, (MOST_MEMORY, MOST_MEMORY))
    module, _, name = kind.rpartition(".")
    area = getattr(importlib.import_module(module), name)()
    good, case = work / "good", work / "case"
    shutil.rmtree(case, ignore_errors=True)
    if good.is_dir():
        shutil.copytree(good, case, symlinks=True)
    else:
        case.mkdir(parents=True)
        area.prepare(case)  # the same folder for all cases, because some files contain its name
        shutil.copytree(case, good.with_name("making"), symlinks=True, dirs_exist_ok=True)
        good.with_name("making").rename(good)
    clean = area.run(case)
    with results.open("a") as file:
        for seed in seeds:
            file.write(json.dumps({"begun": seed}) + "\n")
            file.flush()
            started = time.monotonic()
            outcome = _run_case(area, work, clean, seed)
            file.write(json.dumps(outcome | {"seconds": round(time.monotonic() - started, 3)}) + "\n")
            file.flush()
