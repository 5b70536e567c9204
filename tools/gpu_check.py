"""The first thing to run on a machine with an NVIDIA GPU: does everything work, how fast could it be, how fast is it.

    bash tools/gpu_check.sh --out results       # gpu_check.json and gpu_check.txt; at most eight minutes

First correctness, several parts at once: driver, decoding, kernels, whole steps, NCCL. Then, one by one: ceilings (decoder,
copy, matrix products), `bench run` on JPEGs against the authors' way and on pictures in blocks, how far decoding and training
overlap, fused blocks on and off.
Every part runs in its own process, so that a crash or a hang is one line of the table. A part whose libraries are not
installed, or for which no time is left, is reported as "not run", never as passed. Exit status: 0 all parts passed; 1
something failed; 2 wrong options; 3 no usable GPU; 4 nothing failed, but parts were not run; 130 Ctrl+C, 143 SIGTERM: running
parts are ended too, and nothing is written.

Only Python's standard library is needed to start it.
"""

import argparse
import contextlib
import importlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

FORMAT, VERSION = "svdata2vec-gpu-check", 1
ROOT = Path(__file__).resolve().parent.parent
PASSED, FAILED, NOT_RUN = "passed", "failed", "not run"
AT_ONCE = 8  # processes on one GPU
WHOLE_S = 480  # of all parts together
FOLDER = "SVDATA2VEC_GPU_CHECK"  # environment variable: folder of the clips that one part makes for all
EXIT_FAILED, EXIT_OPTIONS, EXIT_NO_GPU, EXIT_INCOMPLETE, EXIT_INTERRUPTED = 1, 2, 3, 4, 128 + signal.SIGINT
ANSWER = "svdata2vec-gpu-check-part: "  # prefix of the line in which a part's process reports its outcome
LIBRARIES = ("torch", "triton", "nvidia-dali-cuda130", "nvidia-dali-cuda120", "numpy", "av", "opencv-python-headless",
             "webdataset", "tyro", "fsspec", "tensorboard")

CODECS = ("jpeg", "vp9", "h264", "hevc")
KERNELS = ("gather_frames", "gather_frames folded", "gather_blocks", "gather_blocks folded", "fuse_tokens", "restore_tokens",
           "attention", "layer_targets", "masked_mse", "add_layer_norm", "bias_gelu", "batch_norm_prelu",
           "batch_norm_prelu_pool")
CONFIGURATION = ("torch", "triton", "numpy")


@dataclass(frozen=True)
class Part:
    """One line of the table. Its function is in gpu_check_parts.py, or in gpu_check_speed.py if it is timed.

    limit_s: seconds after which it has failed. least_s: seconds that must be left for it to be started. timed: it measures, so
    it runs alone.
    """

    name: str
    function: str
    needs: tuple[str, ...] = ("torch",)
    arguments: tuple[str, ...] = ()
    limit_s: int = 120
    least_s: int = 15
    timed: bool = False

    @property
    def module(self) -> str:
        return "gpu_check_speed" if self.timed else "gpu_check_parts"


@dataclass(frozen=True)
class Outcome:
    """Outcome of a part; `figures`: its measurements."""

    name: str
    status: str
    note: str = ""
    figures: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0


DECODING = ("torch", "numpy", "cv2", "av", "nvidia.dali")
COMMAND = ("torch", "numpy", "cv2", "av", "triton", "tyro", "fsspec", "tensorboard", "matplotlib", "psutil")
RUNS = (*COMMAND, "nvidia.dali")

PARTS = (
    Part("driver", "check_driver", limit_s=60),
    Part("clips", "make_clips", ("torch", "numpy", "cv2", "av", "webdataset"), limit_s=180),
    *(Part(f"decode {codec}", "check_decoding", DECODING, (codec,)) for codec in CODECS),
    Part("decode blocks", "check_blocks", (*CONFIGURATION, "cv2", "av")),
    *(Part(f"kernel {op}", "check_kernel", CONFIGURATION, (op,)) for op in KERNELS),
    Part("training step", "check_training_step", CONFIGURATION),
    Part("bf16 step", "check_bf16_step", CONFIGURATION),
    Part("fine-tuning", "check_finetuning", CONFIGURATION),
    Part("graph against eager", "check_graph", CONFIGURATION),
    Part("nccl", "check_collectives"),
    Part("decoder ceiling", "measure_decoder", (*DECODING, "psutil"), limit_s=100, least_s=40, timed=True),
    Part("copy and matmul", "measure_device", ("torch", "numpy", "psutil"), limit_s=45, timed=True),
    Part("bench", "run_bench", RUNS, limit_s=220, least_s=80, timed=True),
    Part("bench blocks", "run_bench_blocks", COMMAND, limit_s=100, least_s=40, timed=True),
    Part("overlap", "measure_overlap", RUNS, limit_s=100, least_s=40, timed=True),
    Part("step speed", "measure_step", CONFIGURATION, limit_s=130, least_s=40, timed=True),
)


def missing(names: Sequence[str]) -> list[str]:
    """The modules that are not installed."""

    def absent(name: str) -> bool:
        try:
            return importlib.util.find_spec(name) is None
        except ModuleNotFoundError:  # the package around it
            return True

    return [name for name in names if absent(name)]


def run_here(part: Part, load: Callable[[Part], Callable[..., dict[str, Any]]]) -> Outcome:
    """Run a part in this process. An exception becomes its outcome."""
    lacking = missing(part.needs)
    if lacking:
        return Outcome(part.name, NOT_RUN, f"not installed: {', '.join(lacking)}")
    started = time.perf_counter()
    try:
        figures = load(part)(*part.arguments)
    except Exception as error:  # noqa: BLE001 - any error belongs in the table
        text = " ".join(f"{type(error).__name__}: {error}".split())
        return Outcome(part.name, FAILED, text[:400], seconds=time.perf_counter() - started)
    note = ", ".join(f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
                     for name, value in figures.items() if not isinstance(value, dict | list))
    return Outcome(part.name, PASSED, note, figures, time.perf_counter() - started)


AtWork = set[subprocess.Popen[str]]


def run_apart(part: Part, command: Sequence[str], limit_s: float | None = None, at_work: AtWork | None = None) -> Outcome:
    """Run a part in its own process; a crash, a hang or silence is a failure. Processes that it started end with it.

    at_work: contains the process while it runs.
    """
    at_work = set() if at_work is None else at_work
    started, limit = time.perf_counter(), part.limit_s if limit_s is None else limit_s
    process = subprocess.Popen(
        [*command, "--part", part.name], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace",
        start_new_session=True,  # a group of its own, with what it starts
    )
    at_work.add(process)
    try:
        stdout, stderr = process.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        return Outcome(part.name, FAILED, f"did not finish within {limit:.0f} s", seconds=time.perf_counter() - started)
    finally:
        kill_group(process)
        at_work.discard(process)
        process.wait()
    for line in reversed(stdout.splitlines()):
        if line.startswith(ANSWER) and process.returncode == 0:
            with contextlib.suppress(ValueError, TypeError):  # not whole
                return Outcome(**json.loads(line[len(ANSWER):]))
    lines, status = [line.strip() for line in stderr.splitlines() if line.strip()], process.returncode
    how = f"ended by {signal.Signals(-status).name}" if status < 0 else f"ended with {status}"
    return Outcome(part.name, FAILED, f"{how}: {lines[-1][:300] if lines else 'no message'}",
                   seconds=time.perf_counter() - started)


def kill_group(process: subprocess.Popen[str]) -> None:
    """End a part's process and those that it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def run_all(parts: Sequence[Part], command: Sequence[str], whole_s: float = WHOLE_S) -> list[Outcome]:
    """The outcome of every part, in `whole_s` seconds: the checks, several at once, then the measurements, one by one.

    An interruption ends the running parts.
    """
    deadline, at_work = time.monotonic() + whole_s, AtWork()

    def run(part: Part) -> Outcome:
        left = deadline - time.monotonic()
        if left < min(part.least_s, part.limit_s):
            return Outcome(part.name, NOT_RUN, f"no time left: it needs {part.least_s} s, the whole may take {whole_s:.0f} s")
        print(f"{part.name} ...", file=sys.stderr, flush=True)
        return run_apart(part, command, min(part.limit_s, left), at_work)

    with ThreadPoolExecutor(max(1, min(AT_ONCE, (os.cpu_count() or 1) // 2))) as pool:
        checks = {part.name: pool.submit(run, part) for part in parts if not part.timed}
        try:
            wait(checks.values())
        except BaseException:  # the pool would wait for parts as long as their limits allow
            pool.shutdown(wait=False, cancel_futures=True)
            while not all(check.done() for check in checks.values()):
                for process in [*at_work]:
                    kill_group(process)
                time.sleep(0.1)
            raise
    return [run(part) if part.timed else checks[part.name].result() for part in sorted(parts, key=lambda part: part.timed)]


def gpu_problem() -> str | None:
    """Why there is no GPU to check, or None."""
    if missing(["torch"]):
        return f"PyTorch is not installed for {sys.executable}; run `bash tools/test.sh` once, or set PYTHON"
    import torch

    if torch.cuda.is_available():
        return None
    if torch.version.cuda is None:
        return f"PyTorch {torch.__version__} is built without CUDA; install a CUDA build to use a GPU"
    return (
        f"PyTorch {torch.__version__} finds no NVIDIA GPU here (nvidia-smi reports: {nvidia_smi() or 'nothing'}); "
        "check the driver and CUDA_VISIBLE_DEVICES"
    )


def nvidia_smi() -> str:
    """Name, driver and memory of every GPU, as the driver's own tool reports; empty without one."""
    query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=30)
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return ""
    return "; ".join(done.stdout.split("\n")).strip("; ") if done.returncode == 0 else ""


def machine() -> dict[str, Any]:
    """The machine that the results describe."""
    versions: dict[str, str] = {"python": platform.python_version()}
    for name in LIBRARIES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return {"gpu": nvidia_smi(), "cores": os.cpu_count(), "system": platform.platform(), "versions": versions}


def table(outcomes: Sequence[Outcome], where: dict[str, Any]) -> str:
    """Human-readable results: the machine, a line per part, the totals."""
    versions = " ".join(f"{name} {version}" for name, version in where["versions"].items())
    lines = [f"{where['gpu'] or 'no GPU'}; {where['cores']} CPU cores", versions, ""]
    wide = max((len(outcome.name) for outcome in outcomes), default=0) + 2
    for outcome in outcomes:
        if outcome.status == NOT_RUN:
            lines.append(f"{outcome.name:{wide}s}not run: {outcome.note}")
        else:
            lines.append(f"{outcome.name:{wide}s}{outcome.status:8s}{outcome.seconds:7.1f} s  {outcome.note}".rstrip())
    counts = [f"{sum(outcome.status == status for outcome in outcomes)} {status}" for status in (PASSED, FAILED, NOT_RUN)]
    return "\n".join([*lines, "", ", ".join(counts), ""])


def exit_status(outcomes: Sequence[Outcome]) -> int:
    """0 only if every part passed."""
    found = {outcome.status for outcome in outcomes}
    if FAILED in found:
        return EXIT_FAILED
    return EXIT_INCOMPLETE if NOT_RUN in found or not found else 0


def load_part(part: Part) -> Callable[..., dict[str, Any]]:
    sys.path[:0] = [str(ROOT), str(ROOT / "tools"), str(ROOT / "tools" / "bench")]
    return getattr(importlib.import_module(part.module), part.function)


def check(parts: Sequence[Part], out: Path) -> int:
    """Run the parts and write both files into the folder; returns the exit status."""
    problem = gpu_problem()
    if problem:
        print(f"no GPU to check: {problem}", file=sys.stderr)
        return EXIT_NO_GPU
    try:  # fail now, not after eight minutes
        out.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=out).close()
    except OSError as error:
        print(f"--out {out}: {error.strerror}; give a folder that can be written", file=sys.stderr)
        return EXIT_OPTIONS
    with tempfile.TemporaryDirectory(prefix="svdata2vec-gpu-check-") as folder:
        os.environ[FOLDER] = folder
        started = time.monotonic()
        outcomes = run_all(parts, [sys.executable, str(Path(__file__).resolve())])
        seconds = time.monotonic() - started
    where = machine()
    record = {"format": FORMAT, "version": VERSION, "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), **where,
              "seconds": seconds, "parts": [asdict(outcome) for outcome in outcomes]}
    text = f"{table(outcomes, where)}{seconds:.0f} s\n"
    for name, content in (("gpu_check.json", json.dumps(record, indent=1) + "\n"), ("gpu_check.txt", text)):
        temporary = out / f"{name}.tmp"  # readers see the old file or the whole new one
        temporary.write_text(content)
        temporary.replace(out / name)
    print(text, end="")
    return exit_status(outcomes)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [part.name for part in PARTS]
    parser.add_argument("--out", type=Path, default=Path(), help="folder for gpu_check.json and gpu_check.txt")
    parser.add_argument("--only", nargs="+", choices=names, metavar="PART", help=f"some of: {', '.join(names)}")
    parser.add_argument("--part", choices=names, help=argparse.SUPPRESS)
    options = parser.parse_args()
    by_name = {part.name: part for part in PARTS}
    if options.part:
        print(ANSWER + json.dumps(asdict(run_here(by_name[options.part], load_part))), flush=True)
        return 0
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        return check([by_name[name] for name in options.only or names], options.out)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
