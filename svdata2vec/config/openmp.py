"""Limits how long OpenMP's threads spin: set before PyTorch loads the library, unless the user has set it.

At the end of every operation threads wait for each other by spinning, with libgomp's default for some ten milliseconds. On
cores that other programs use as well, the spinning keeps the thread that they wait for from running, and training becomes
many times slower instead of half as fast. A short spin keeps most of the benefit on free cores (tools/bench/bench_openmp.py
measures both).
"""

import os
import sys

# libgomp (PyTorch's wheels) counts turns of its loop; libiomp (PyTorch of conda with MKL) milliseconds.
BOUNDED = {"GOMP_SPINCOUNT": "500", "KMP_BLOCKTIME": "0"}
# oneDNN computes gradients of weights with a barrier of its own (bench_openmp.py).
SPINNING = ("the threads of bfloat16 convolutions spin regardless of these variables; if other programs run as well, give each "
            "process cores of its own (taskset) or one thread (OMP_NUM_THREADS=1)")
OF_THE_USER = ("OMP_WAIT_POLICY", "KMP_LIBRARY", *BOUNDED)
LATE = "torch" in sys.modules and not any(name in os.environ for name in OF_THE_USER)  # the library has read its settings


def bound_waiting() -> None:
    """Set the variables of `BOUNDED`, for this process and those that it starts, unless one of `OF_THE_USER` is set."""
    if not any(name in os.environ for name in OF_THE_USER):
        os.environ.update(BOUNDED)


def waiting() -> str:
    """The settings in effect, for a log."""
    text = ", ".join(f"{name} {os.environ[name]}" for name in OF_THE_USER if name in os.environ)
    return f"{text} (without effect: import svdata2vec before torch)" if LATE else text
