"""Write the result tables of README.md and of the pages in tools/results/ from the records, the JSON files there.

    python tools/results/render_results.py           # rewrites the pages between their markers
    python tools/results/render_results.py --check   # exit status 1 if a page does not say what the records say

Sections are marked `<!-- results:NAME -->` ... `<!-- /results -->`; SECTIONS lists them with their records. What was not
measured stays empty and says so. The kernels have a page of their own: tools/bench/render_kernels.py.
"""

import argparse
import json
import re
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from result_cells import Record
from results_learning import codec_agreement, codec_experiment, demo, motion_check
from results_scaling import scaling, scaling_measured, scaling_storage
from results_speed import (
    bench_run,
    bench_run_gpu,
    block_encoder,
    blocks_bound,
    encodings,
    geometry,
    gpu_check,
    gpu_exploration,
    host,
    index,
    loader,
    memory,
    op_calls,
    openmp,
    profiles,
    training_step,
)
from results_studies import (
    at_one_share,
    finetuning,
    label_costs,
    label_differences,
    label_efficiency,
    more_steps,
    sides,
    skeletons,
)
from results_trust import fuzz, kill_loop

from svdata2vec.shards.atomic import write_atomically

ROOT = Path(__file__).parent.parent.parent
RESULTS = Path(__file__).parent
PAGES = ("README.md", *(f"tools/results/{name}.md" for name in ("README", "studies", "speed", "gpu", "robustness")))
COMMAND = "python tools/results/render_results.py"
MARKED = re.compile(r"(<!-- results:(\w+) -->\n).*?(<!-- /results -->)", re.DOTALL)
NOT_MEASURED = "Not measured yet.\n"
HEADLINES = (  # ways of loading that README.md shows
    "ours, jpeg", "ours, jpeg, pretraining", "ours, jpeg 4:4:4", "ours, blocks", "ours, vp9", "ours, h264",
    "original style, pyav", "original style, pyav, uint8", "original style, decord", "original style, torchcodec",
    "plain webdataset + pyav",
)

# Name of a section -> what writes it, and the records that it is given, the first of which must be there.
SECTIONS: dict[str, tuple[Callable[..., str], tuple[str, ...]]] = {
    "demo": (demo, ("demo", "demo_gpu")),
    "motion_check": (motion_check, ("motion_clips_check", "motion_clips_check_hard")),
    "claim": (partial(label_efficiency, chart="longer.png"), ("longer",)),
    "claim_differences": (label_differences, ("longer",)),
    "claim_costs": (label_costs, ("longer",)),
    "first_round": (label_efficiency, ("label_efficiency",)),
    "first_round_differences": (label_differences, ("label_efficiency",)),
    "first_round_costs": (label_costs, ("label_efficiency",)),
    "controls": (sides, ("controls",)),
    "masks": (sides, ("masks",)),
    "masks_work": (sides, ("masks_work",)),
    "joint_targets": (sides, ("joint_targets",)),
    "ema": (sides, ("ema",)),
    "encoded_frames": (sides, ("encoded_frames",)),
    "choices": (sides, ("choices",)),
    "motion": (sides, ("motion",)),
    "finetuning": (finetuning, ("finetuning",)),
    "finetuning_longer": (finetuning, ("finetuning_longer",)),
    "recognition": (at_one_share, ("longer", "more_steps", "more_steps_scratch", "more_steps_80")),
    "more_steps": (
        partial(more_steps, of_ours="the record of the table above, of another machine and packing"),
        ("more_steps", "same_steps", "more_steps_scratch", "longer"),
    ),
    "more_steps_pretrained": (
        partial(more_steps, of_ours="after 12 epochs in float32, on the machine and clips of the others"),
        ("more_steps", "more_steps_scratch", "more_steps_pretrained"),
    ),
    "more_steps_80": (
        partial(more_steps, of_ours="after 80 epochs in float32, on the machine and clips of the others"),
        ("more_steps", "more_steps_scratch", "more_steps_80"),
    ),
    "busier": (
        partial(more_steps, of_ours="after 80 epochs in float32 on these clips, on the machine of the others"),
        ("busier_rivals", "busier_more_steps", "busier_scratch", "busier_more_scratch", "busier_pretrained"),
    ),
    "skeletons": (skeletons, ("skeletons", "skeletons_positions", "longer")),
    "codec_agreement": (codec_agreement, ("codec_agreement",)),
    "codec_experiment": (codec_experiment, ("codec_experiment",)),
    "training_step": (training_step, ("training_step_cpu", "training_step_gpu")),
    "bench_run": (bench_run, ("bench_run_cpu", "bench_run_demo_cpu")),
    "bench_run_gpu": (bench_run_gpu, tuple(f"bench_run_gpu{more}" for more in ("", "_b128", "_blocks", "_blocks_b128"))),
    "profiles": (profiles, ("profile_gpu_jpeg", "profile_gpu_blocks")),
    "gpu_check": (gpu_check, ("gpu_check", "gpu_check_kernels")),
    "gpu_exploration": (gpu_exploration, ("gpu_exploration",)),
    "loader": (loader, ("bench_data",)),
    "loading": (partial(loader, ways=HEADLINES), ("bench_data",)),
    "geometry": (geometry, ("bench_geometry",)),
    "host": (host, ("bench_host", "bench_host_blocks")),
    "memory": (memory, ("loader_memory",)),
    "encodings": (encodings, ("packing_real_h264", "bench_data")),
    "block_encoder": (block_encoder, ("block_encoder",)),
    "blocks_bound": (blocks_bound, ("packing_real_h264",)),
    "encodings_synthetic": (encodings, ("packing_synthetic_540p",)),
    "index": (index, ("bench_index", "bench_index_10m")),
    "openmp": (openmp, ("bench_openmp",)),
    "openmp_avx2": (openmp, ("bench_openmp_avx2",)),
    "op_calls": (op_calls, ("op_calls",)),
    "scaling": (scaling, ("scaling",)),
    "scaling_storage": (scaling_storage, ("scaling",)),
    "scaling_measured": (scaling_measured, ("scaling_measured",)),
    "fuzz": (fuzz, ("fuzz",)),
    "kill_loop": (kill_loop, ("kill_loop",)),
}


def read(name: str) -> Record | None:
    """A record, or None if nobody has measured it."""
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text()) if path.is_file() else None


def section(name: str) -> str:
    """The Markdown of a section. KeyError for an unknown name."""
    write, names = SECTIONS[name]
    first, *others = map(read, names)
    return NOT_MEASURED if first is None else write(first, *others)


def render(page: str, text: str) -> str:
    """A page with every marked section rendered again; an unknown section name is an error."""

    def fill(match: re.Match[str]) -> str:
        name = match.group(2)
        if name not in SECTIONS:
            raise SystemExit(f"{page}: unknown results section {name!r}; expected one of {', '.join(SECTIONS)}")
        return match.group(1) + section(name) + match.group(3)

    return MARKED.sub(fill, text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; say whether the pages are up to date")
    options = parser.parse_args()
    before = {page: (ROOT / page).read_text() for page in PAGES}
    after = {page: render(page, text) for page, text in before.items()}
    stale = [page for page in PAGES if before[page] != after[page]]
    if options.check and stale:
        sys.exit(f"{' and '.join(stale)}: not what the records in tools/results/ say; run: {COMMAND}")
    for page in stale:
        write_atomically(ROOT / page, after[page].encode())


if __name__ == "__main__":
    main()
