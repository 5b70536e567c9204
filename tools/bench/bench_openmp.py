"""Cost of waiting OpenMP threads on cores that other programs use: training with the demo's network on two cores.

    python tools/bench/bench_openmp.py --out tools/results/bench_openmp.json

Every setting has its own process, which trains for as many seconds as it is told. In each round, every setting gets its turn:
alone, then beside two processes that are always busy, all on the same two cores; then in a control group that may use one
core's time (skipped if none can be made). Rates are medians over the rounds; `share` is beside / alone. Other programs lower
all rates: compare the settings with each other, and check the load average.
"""

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from file_options import file_to_write

from svdata2vec.config.openmp import BOUNDED, OF_THE_USER
from svdata2vec.shards.cores import CONTROL_GROUPS
from svdata2vec.shards.ranges import Range

OWN = "libgomp's own"
BF16 = "SVDATA2VEC_BENCH_BF16"  # of a worker's environment: train in bfloat16
TURNS = int(BOUNDED["GOMP_SPINCOUNT"])  # what the product sets
SETTINGS = {
    OWN: {"GOMP_SPINCOUNT": "300000"}, "passive": {"OMP_WAIT_POLICY": "passive"},
    **{f"{count} turns": {"GOMP_SPINCOUNT": str(count)} for count in (100, TURNS, 1000, 10000)},
    f"{TURNS} turns, bf16": {"GOMP_SPINCOUNT": str(TURNS), BF16: "1"},
}
SPINNER = "import os, sys\nwhile os.getppid() == int(sys.argv[1]):\n    for _ in range(10**6): pass"  # ends with its parent
GROUP, WORKER = "svdata2vec-bench", "--worker"


class Worker:
    """A process that trains for a given time on request."""

    def __init__(self, setting: dict[str, str], cores: set[int], clips: int, group: Path | None = None) -> None:
        environment = {name: text for name, text in os.environ.items() if name not in (*OF_THE_USER, "OMP_NUM_THREADS")}

        def place() -> None:
            os.sched_setaffinity(0, cores)
            if group is not None:
                (group / "cgroup.procs").write_text(str(os.getpid()))

        self.process = subprocess.Popen(
            [sys.executable, __file__, WORKER, str(clips)], env=environment | setting, preexec_fn=place,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )
        self.threads = self._answer()["threads"]

    def train(self, seconds: float) -> float:
        """Clips per second."""
        assert self.process.stdin is not None
        print(seconds, file=self.process.stdin, flush=True)
        answer = self._answer()
        return answer["clips"] / answer["seconds"]

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        answer: dict[str, Any] = json.loads(self.process.stdout.readline())
        return answer

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def work(clips: int) -> None:
    """The worker's side: one line of seconds in, one of figures out."""
    import torch
    from pretraining_step import Step, make_batch

    from svdata2vec.config.presets import PRETRAIN
    from svdata2vec.runs.cores import usable_cores
    from svdata2vec.runs.runtime import keep_freed_memory

    keep_freed_memory()
    torch.set_num_threads(min(torch.get_num_threads(), usable_cores()))
    config = PRETRAIN["demo"]()
    step = Step(config, make_batch(config, clips, torch.device("cpu")), bf16=BF16 in os.environ)
    step.run()
    print(json.dumps({"threads": torch.get_num_threads()}), flush=True)
    for line in sys.stdin:
        started, steps = time.perf_counter(), 0
        while time.perf_counter() - started < float(line):
            step.run()
            steps += 1
        print(json.dumps({"clips": steps * clips, "seconds": time.perf_counter() - started}), flush=True)


@contextlib.contextmanager
def spinners(count: int, cores: set[int]) -> Iterator[None]:
    """Processes that are always busy."""
    processes = [
        subprocess.Popen([sys.executable, "-c", SPINNER, str(os.getpid())], preexec_fn=lambda: os.sched_setaffinity(0, cores))
        for _ in range(count)
    ]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


@contextlib.contextmanager
def one_core_group() -> Iterator[Path | str]:
    """A control group (version 1 or 2) of one core's time; or the reason why there is none."""
    first_version = (CONTROL_GROUPS / "cpu").is_dir()
    group = (CONTROL_GROUPS / "cpu" if first_version else CONTROL_GROUPS) / f"{GROUP}-{os.getpid()}"
    try:
        group.mkdir()
    except OSError as error:
        yield f"no control group can be made ({error.strerror})"
        return
    try:
        file, text = ("cpu.cfs_quota_us", "100000") if first_version else ("cpu.max", "100000 100000")
        (group / file).write_text(text)
        (group / "cgroup.procs").read_text()
    except OSError as error:
        yield f"control groups grant no processor time here ({error.strerror})"
    else:
        yield group
    finally:
        group.rmdir()


def measure(rounds: int, seconds: float, clips: int, cores: set[int]) -> dict[str, Any]:
    """The median rate per setting and situation."""
    rates: dict[str, dict[str, list[float]]] = {name: {} for name in SETTINGS}
    not_run: dict[str, str] = {}

    def turn(workers: dict[str, Worker], situation: str) -> None:
        for name, worker in workers.items():
            rates[name].setdefault(situation, []).append(worker.train(seconds))

    with contextlib.ExitStack() as stack:
        free = {name: Worker(setting, cores, clips) for name, setting in SETTINGS.items()}
        for worker in free.values():
            stack.callback(worker.close)
        group = stack.enter_context(one_core_group())
        limited: dict[str, Worker] = {}
        if isinstance(group, str):
            not_run["quota"] = group
        else:
            limited = {name: Worker(setting, cores, clips, group) for name, setting in SETTINGS.items()}
            for worker in limited.values():
                stack.callback(worker.close)
        for _ in range(rounds):
            turn(free, "alone")
            with spinners(len(cores), cores):
                turn(free, "beside")
            turn(limited, "quota")
        threads = {"free": free[OWN].threads, **({"quota": limited[OWN].threads} if limited else {})}
    rows = {name: {situation: statistics.median(found) for situation, found in row.items()} for name, row in rates.items()}
    for row in rows.values():
        row["share"] = row["beside"] / row["alone"]
    return {"threads": threads, "not_run": not_run, "clips_per_second": rows, "all_rounds": rates}


def main() -> None:
    if sys.argv[1:2] == [WORKER]:
        work(int(sys.argv[2]))
        return
    from svdata2vec.runs.provenance import machine, save

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=file_to_write)
    parser.add_argument("--rounds", type=Range(1).parser(int), default=5)
    parser.add_argument("--seconds", type=Range(0.1).parser(float), default=4.0, help="per setting and situation")
    parser.add_argument("--clips", type=Range(2).parser(int), default=8, help="per step")
    options = parser.parse_args()
    cores = set(sorted(os.sched_getaffinity(0))[:2])
    load = os.getloadavg()[0]
    result = measure(options.rounds, options.seconds, options.clips, cores)
    setting = {name: getattr(options, name) for name in ("rounds", "seconds", "clips")}
    result = {**machine(), "load_average": load, "cores": len(cores), **setting, **result}
    print(json.dumps({name: result[name] for name in ("threads", "not_run", "clips_per_second", "load_average")}, indent=1))
    if options.out:
        save(result, options.out)


if __name__ == "__main__":
    main()
