"""How pretraining scales to many GPUs, on paper: bytes per step, expected efficiency, storage bandwidth per node.

    python tools/bench/scaling_model.py --out tools/results/scaling.json     # render_results.py shows it
    python tools/bench/scaling_model.py --clips-per-second 1500 --batch 64

Nothing here is measured: every assumption is a field of `Assumptions`. The data-parallel model: each process computes its
gradients, and they are summed by a ring all-reduce while the backward pass still runs; what does not fit beside it is
waited for. BatchNorm's buffers are broadcast before each step, and are not hidden.
"""

import argparse
import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Annotated, Any

from file_options import file_to_write

from svdata2vec.config.schema import PretrainConfig
from svdata2vec.model.step_cost import step_flops, step_layers
from svdata2vec.model.student import SVData2Vec
from svdata2vec.runs.provenance import save
from svdata2vec.shards.errors import UserError
from svdata2vec.shards.ranges import ABOVE_0, Count, Range, Share, check_fields

Positive = Annotated[float, Range(ABOVE_0)]

NUM_JOINTS = 17
GPU_COUNTS = (8, 64, 512)
PACKING = Path(__file__).parent.parent / "results" / "packing_real_h264.json"


@dataclass(frozen=True)
class Assumptions:
    """What the model takes for granted.

    clips_per_second: of one GPU with nobody to wait for (the goal for one H200). batch: clips per GPU and step.
    node_gb_per_s: bandwidth of one GPU to its neighbours within a node (NVLink, one direction, as reached).
    network_gb_per_s: bandwidth of one node to the others, one direction, as reached (400 Gbit/s at 80 %).
    latency_us: of one message between nodes; within a node it is left out. backward_share: share of the step in which
    gradients can travel. straggler: share of the step lost for each doubling of the nodes, as some process is always late.
    clip_frames: frames of a stored clip. sampled_frames: those of them that a step needs.
    """

    clips_per_second: Positive = 1000.0
    batch: Count = 32
    gpus_per_node: Count = 8
    node_gb_per_s: Positive = 300.0
    network_gb_per_s: Positive = 40.0
    latency_us: Annotated[float, Range(0)] = 10.0
    backward_share: Share = 0.6
    straggler: Share = 0.005
    clip_frames: Count = 100
    sampled_frames: Count = 40

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True)
class Expected:
    """A run on `gpus` GPUs. Bytes are those that a GPU sends per step; seconds per step; efficiency against one GPU."""

    gpus: int
    sent_bytes: float
    compute_seconds: float
    communication_seconds: float
    waiting_seconds: float
    efficiency: float
    clips_per_second: float


def model_bytes(config: PretrainConfig) -> tuple[int, int]:
    """(bytes of the gradients, bytes of the buffers) of the student, float32."""
    student = SVData2Vec(config, NUM_JOINTS)
    gradients = sum(4 * parameter.numel() for parameter in student.parameters() if parameter.requires_grad)
    return gradients, sum(buffer.numel() * buffer.element_size() for buffer in student.buffers())


def ring_bytes(size: float, members: int) -> float:
    """Bytes that each member of a ring all-reduce sends: all but its own share, twice."""
    return 2 * size * (members - 1) / members


def expect(gpus: int, gradients: float, buffers: float, given: Assumptions) -> Expected:
    """One step on `gpus` GPUs: reduced within each node, then between the nodes over the network that its GPUs share.

    UserError where they would leave a node partly empty.
    """
    if gpus > given.gpus_per_node and gpus % given.gpus_per_node:
        raise UserError(f"gpus_per_node is {given.gpus_per_node}: {gpus} GPUs do not fill such nodes; expected a number that "
                        f"divides each of {', '.join(map(str, GPU_COUNTS))} which is above it")
    inside, nodes = min(gpus, given.gpus_per_node), max(1, gpus // given.gpus_per_node)
    compute = given.batch / given.clips_per_second
    latency = 2 * (nodes - 1) * given.latency_us * 1e-6
    within = ring_bytes(gradients, inside) / (given.node_gb_per_s * 1e9)
    between = ring_bytes(gradients, nodes) / (given.network_gb_per_s * 1e9) + latency
    broadcast = buffers / (given.network_gb_per_s * 1e9) * (nodes > 1) + (nodes > 1) * latency / 2
    late = given.straggler * compute * (nodes - 1).bit_length()
    waiting = max(0.0, within + between - given.backward_share * compute) + broadcast + late
    efficiency = compute / (compute + waiting)
    return Expected(
        gpus, ring_bytes(gradients, gpus), compute, within + between + broadcast, waiting, efficiency,
        gpus * given.clips_per_second * efficiency,
    )


def storage_gb_per_s(mib_per_100_frames: float, frames: int, clips_per_second: float, gpus_per_node: int) -> float:
    """GB/s that a node reads so that its GPUs do not wait, whole clips of `frames` frames at this size."""
    return mib_per_100_frames * 2**20 * frames / 100 * clips_per_second * gpus_per_node / 1e9


def storage(given: Assumptions, packing: dict[str, Any]) -> list[dict[str, Any]]:
    """Per encoding at its default quality: GB/s of a node; `packing` is tools/results/packing_real_h264.json."""
    rows = []
    for row in packing["rows"]:
        codec = row["codec"]
        if codec not in ("jpeg", "vp9", "h264", "hevc") or not row["by_default"]:
            continue
        size = 100 * row["kib_per_frame"] / 1024
        whole = storage_gb_per_s(size, given.clip_frames, given.clips_per_second, given.gpus_per_node)
        share = given.sampled_frames / given.clip_frames if codec == "jpeg" else 1.0
        rows.append({"codec": codec, "quality": row["quality"], "mib_per_100_frames": size, "least_gb_per_s": whole * share,
                     "whole_clips_gb_per_s": whole})
    return rows


def figures(config: PretrainConfig, given: Assumptions) -> dict[str, Any]:
    """Everything that the page of results says about scaling on paper."""
    gradients, buffers = model_bytes(config)
    return {
        "assumptions": asdict(given), "gradient_bytes": gradients, "buffer_bytes": buffers,
        "flops_per_clip": step_flops(step_layers(config, NUM_JOINTS)),
        "runs": [asdict(expect(gpus, gradients, buffers, given)) for gpus in GPU_COUNTS],
        "storage": storage(given, json.loads(PACKING.read_text())),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for field in fields(Assumptions):
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=type(field.default), default=field.default)
    parser.add_argument("--out", type=file_to_write, help="JSON file to write")
    options = vars(parser.parse_args())
    out = options.pop("out")
    if out is not None and out.resolve() == PACKING.resolve():
        parser.error(f"argument --out: {out} is read here and would be lost; give the file to write another name")
    try:
        found = figures(PretrainConfig(), Assumptions(**options))
    except UserError as error:
        parser.error(str(error))
    if out is not None:
        save(found, out)
    print(f"gradients {found['gradient_bytes'] / 1e6:.1f} MB, buffers {found['buffer_bytes'] / 1e3:.1f} kB, "
          f"{found['flops_per_clip'] / 1e9:.1f} GFLOP per clip and step")
    for run in found["runs"]:
        print(f"{run['gpus']:4d} GPUs: {run['sent_bytes'] / 1e6:6.1f} MB sent per GPU and step, efficiency "
              f"{100 * run['efficiency']:5.1f} %, {run['clips_per_second']:9.0f} clips/s")
    for row in found["storage"]:
        least, whole = row["least_gb_per_s"], row["whole_clips_gb_per_s"]
        print(f"{row['codec']:5s} {least:5.1f} GB/s per node at the least, {whole:5.1f} for whole clips")


if __name__ == "__main__":
    main()
