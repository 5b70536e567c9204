"""One process of the fuzzer: runs cases of one area and writes a line for each to a file. `fuzz.py` starts it and watches it.

    python tools/fuzz/fuzz_child.py MODULE.CLASS WORK_FOLDER RESULTS SEED ...
"""

import argparse
import faulthandler
import importlib
import json
import random
import resource
import shutil
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from svdata2vec.shards.ranges import Range

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent.parent / "tests" / "helpers")]
MOST_MEMORY = 48 << 30  # of addresses; what asks for more fails here and not in the machine


def run_case(area: Any, work: Path, clean: Any, seed: int) -> dict[str, Any]:
    """The outcome of one case."""
    from fuzz_case import CleanError, judge

    from svdata2vec.runs.failures import RunFailedError
    from svdata2vec.shards.errors import UserError

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


def main() -> None:
    """Prepare the good input if need be, then run the cases."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("area", metavar="MODULE.CLASS", help="one of those in fuzz.py")
    parser.add_argument("work", type=Path, metavar="WORK_FOLDER", help="of the good input and the case")
    parser.add_argument("results", type=Path, metavar="RESULTS", help="file that gets a line per case")
    parser.add_argument("seeds", type=Range(0).parser(int), nargs="*", metavar="SEED", help="of the cases")
    given = parser.parse_args()
    faulthandler.enable()
    resource.setrlimit(resource.RLIMIT_AS, (MOST_MEMORY, MOST_MEMORY))
    module, _, kind = given.area.rpartition(".")
    area = getattr(importlib.import_module(module), kind)()
    good, case = given.work / "good", given.work / "case"
    shutil.rmtree(case, ignore_errors=True)
    if good.is_dir():
        shutil.copytree(good, case, symlinks=True)
    else:
        case.mkdir(parents=True)
        area.prepare(case)  # where all cases lie, because some files name their folder
        shutil.copytree(case, good.with_name("making"), symlinks=True, dirs_exist_ok=True)
        good.with_name("making").rename(good)
    clean = area.run(case)
    with given.results.open("a") as file:
        for seed in given.seeds:
            file.write(json.dumps({"begun": seed}) + "\n")
            file.flush()
            started = time.monotonic()
            outcome = run_case(area, given.work, clean, seed)
            file.write(json.dumps(outcome | {"seconds": round(time.monotonic() - started, 3)}) + "\n")
            file.flush()


if __name__ == "__main__":
    main()
