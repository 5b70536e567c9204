"""Feeds the program damaged and crafted input of every kind, thousands of times, and counts the outcomes.

    python tools/fuzz/fuzz.py --cases 5000 --out tools/results/fuzz.json   # half an hour on two cores; 200 take a minute
    python tools/fuzz/fuzz.py --areas loader --seeds 17 18                 # these cases again, in full

A case is a function of its area and seed. It runs in a child process with a time limit and is judged by the rule in
`fuzz_case.py`. The exit status is 1 if any case fails.
"""

import argparse
import json
import multiprocessing
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from fuzz_case import GOOD
from fuzz_child import run_cases

from svdata2vec.runs.provenance import machine, save
from svdata2vec.shards.atomic import WriteFailedError, require_writable
from svdata2vec.shards.ranges import Range

# Children are forked from a process that has PyTorch imported, which takes longer than most cases.
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["torch._dynamo", "svdata2vec.cli.main", "svdata2vec.training.pretrain"])
sys.path.append(str(Path(__file__).parents[2] / "tests" / "helpers"))  # makes the good input
# Area -> its class, and its share of the cases.
AREAS: dict[str, tuple[str, int]] = {
    "loader": ("fuzz_shards.LoaderArea", 6),
    "video loader": ("fuzz_shards.VideoLoaderArea", 1),
    "blocks loader": ("fuzz_shards.BlocksLoaderArea", 2),
    "verify": ("fuzz_shards.VerifyArea", 4),
    "pickle": ("fuzz_sources.PickleArea", 4),
    "table": ("fuzz_sources.TableArea", 2),
    "video": ("fuzz_sources.VideoArea", 1),
    "NTU skeletons": ("fuzz_sources.SkeletonArea", 2),
    "Smarthome JSON": ("fuzz_sources.SmarthomeArea", 1),
    "packing resumed": ("fuzz_sources.ResumeArea", 1),
    "report": ("fuzz_runs.ReportArea", 1),
    "evaluate": ("fuzz_runs.EvaluateArea", 2),
    "pretraining resumed": ("fuzz_runs.ResumeArea", 2),
    "option values": ("fuzz_runs.OptionsArea", 1),
}


def shares(cases: int, areas: Sequence[str]) -> dict[str, Sequence[int]]:
    """The seeds of every area; at least one."""
    total = sum(AREAS[name][1] for name in areas)
    return {name: range(max(cases * AREAS[name][1] // total, 1)) for name in areas}


def run_area(kind: str, seeds: Sequence[int], work: Path, limit_seconds: float) -> Iterator[dict[str, Any]]:
    """Outcomes of the cases. A child that dies or takes too long is an outcome, too; the next cases get a new child."""
    left = list(seeds)
    while left:
        results = work / f"results-{len(left)}"
        results.touch()
        child = SERVER.Process(target=run_cases, args=(kind, work, results, left, work / "log"))
        child.start()
        hung = _watch(child, results, limit_seconds)
        lines = [json.loads(line) for line in results.read_text().splitlines()]
        done = [line for line in lines if "outcome" in line]
        yield from done
        finished = {line["seed"] for line in done}
        if finished >= set(left):
            return
        begun = [line["begun"] for line in lines if "begun" in line and line["begun"] not in finished]
        end = (work / "log").read_text(errors="replace")[-3000:]
        if not begun:
            raise SystemExit(f"{kind}: the good input could not be made or read:\n{end}")
        assert child.exitcode is not None
        status = "hang" if hung else f"signal {-child.exitcode}" if child.exitcode < 0 else f"status {child.exitcode}"
        yield {"seed": begun[0], "outcome": status, "what": "", "message": end}
        left = [seed for seed in left if seed not in finished and seed != begun[0]]


def _watch(child: BaseProcess, results: Path, limit_seconds: float) -> bool:
    """Wait for a child. True if it was killed because a case took too long; making the good input may take four times that."""
    size, since, allowed = 0, time.monotonic(), 4 * limit_seconds
    while child.is_alive():
        child.join(0.05)
        if results.stat().st_size != size:
            size, since, allowed = results.stat().st_size, time.monotonic(), limit_seconds
        if time.monotonic() - since > allowed:
            child.kill()
            child.join()
            return True
    return False


def fuzz(seeds: dict[str, Sequence[int]], limit_seconds: float = 120, show: bool = False) -> dict[str, Any]:
    """The record of a run: area -> outcomes counted, and all cases that failed."""
    counts: dict[str, dict[str, int]] = {}
    failures = []
    with tempfile.TemporaryDirectory() as root:
        for name, chosen in seeds.items():
            work = Path(root) / name.replace(" ", "-")
            work.mkdir()
            found: Counter[str] = Counter()
            for case in run_area(AREAS[name][0], chosen, work, limit_seconds):
                good = case["outcome"] in GOOD
                found[case["outcome"] if good else "failed"] += 1
                if not good:
                    failures.append({"area": name, **case})
                if show or not good:
                    print(json.dumps({"area": name, **case}, indent=1), flush=True)
            counts[name] = {outcome: found[outcome] for outcome in (*GOOD, "failed")}
            print(f"{name}: {sum(found.values())} cases, {dict(found)}", flush=True)
    return {"areas": counts, "failures": failures}


def main() -> int:
    """Run the cases, print failures, write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=Range(1).parser(int), default=200, help="cases of all areas together")
    parser.add_argument("--areas", nargs="+", choices=AREAS, default=list(AREAS), help="only these")
    parser.add_argument("--seeds", nargs="+", type=Range(0).parser(int), help="these cases of every area, shown in full")
    parser.add_argument("--limit", type=Range(1).parser(float), default=120, help="seconds for one case")
    parser.add_argument("--out", type=Path, help="write the record, a JSON file")
    options = parser.parse_args()
    try:
        require_writable(options.out)
    except WriteFailedError as error:
        parser.error(str(error))
    seeds = shares(options.cases, options.areas)
    if options.seeds:
        seeds = dict.fromkeys(options.areas, options.seeds)
    started = time.monotonic()
    record = fuzz(seeds, options.limit, show=bool(options.seeds))
    if options.out:
        save({**record, "minutes": round((time.monotonic() - started) / 60, 1), "date": time.strftime("%Y-%m-%d"),
              "machine": machine()}, options.out)
    return bool(record["failures"])


if __name__ == "__main__":
    sys.exit(main())
