"""Host time of a call of each op: through PyTorch's operator, and around it as in eager mode (kernels/register.py).

    python tools/bench/bench_op_calls.py --out tools/results/op_calls.json

Forward and backward pass on tensors of a few values, so that almost all of the CPU time is overhead, which the host of a GPU
has as well. Both ways run the same reference, in turn, round after round; medians of the CPU time per call.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Sequence

import svdata2vec  # noqa: F401 - before PyTorch loads OpenMP (svdata2vec/config/openmp.py)

# isort: split
import torch
from file_options import file_to_write
from kernel_inputs import CALLS, Call, Draw, Sizes
from torch import Tensor

from svdata2vec.kernels import register
from svdata2vec.runs.provenance import machine, save
from svdata2vec.shards.ranges import Range

TINY = Sizes(B=1, T=4, K=2, D=16, L=2, H=2, hidden=16, side=32, maps=(2, 16, 2, 2))
WAYS = ("operator", "direct")


def always(tensors: Sequence[Tensor]) -> bool:
    """Replaces `register._recorded`: every call goes through the operator."""
    return True


def passes(call: Call) -> Callable[[], object]:
    """Forward pass and, if the op has gradients, backward pass."""
    leaves = [tensor.requires_grad_() for tensor in call.inputs.values()]

    def run() -> object:
        results = call(*leaves, impl="auto")
        trained = [result for result in results if result.requires_grad]
        return torch.autograd.grad(trained, leaves, [torch.ones_like(x) for x in trained]) if trained else results

    return run


def microseconds(run: Callable[[], object], calls: int) -> float:
    started = time.process_time()
    for _ in range(calls):
        run()
    return (time.process_time() - started) / calls * 1e6


def measure(op: str, rounds: int, calls: int) -> dict[str, float]:
    """CPU microseconds per call of either way."""
    run, recorded = passes(CALLS[op](TINY, Draw())), register._recorded
    times: dict[str, list[float]] = {way: [] for way in WAYS}
    try:
        for number in range(rounds + 1):
            for way in WAYS:
                register._recorded = always if way == "operator" else recorded
                spent = microseconds(run, calls)
                if number:  # the first round is a warm-up
                    times[way].append(spent)
    finally:
        register._recorded = recorded
    return {way: statistics.median(values) for way, values in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=Range(1).parser(int), default=5, help="rounds in which the two ways take turns")
    parser.add_argument("--calls", type=Range(1).parser(int), default=50, help="calls timed per round")
    parser.add_argument("--out", type=file_to_write, required=True, help="JSON file to write")
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = {op: measure(op, options.rounds, options.calls) for op in CALLS}
    save({**machine(), "rounds": options.rounds, "calls": options.calls, "microseconds": found}, options.out)
    for op, row in found.items():
        print(f"{op}: {row['operator']:.0f} us through the operator, {row['direct']:.0f} us beside it")


if __name__ == "__main__":
    main()
