"""Tells by DALI's message whether a clip or the machine made a run of DALI fail. Imports nothing heavy.

A damaged clip is replaced and training continues; a fault of the machine would be taken for damage to every clip or, if
intermittent, silently lose good ones. The messages are those of DALI 2.4 and nvImageCodec 0.9 (numbers: `nvimgcodecStatus_t`).
"""

import re
from dataclasses import dataclass
from typing import Literal

from svdata2vec.shards.errors import MachineError, UserError

Kind = Literal["memory", "driver", "format", "cuda"]

# In this order: a CUDA error may also mean that memory ran out. nvImageCodec's codes for damaged pictures ('#3', '#4', '#6')
# match none of these.
_WORDS: tuple[tuple[Kind, str], ...] = (
    ("memory", r"out of memory|bad_alloc|Can't allocate|CUDA allocation failed|ALLOCATOR_FAILURE|nvImageCodec failure: '#1?5'"),
    ("driver", r"nvcuvid|CUDA driver version is insufficient|NO_DEVICE|cudaErrorNoDevice|nvImageCodec failure: '#(7|10|16)'"),
    ("format", r"Decoder hardware does not support|is not supported by NVDEC|Unsupported Codec"),
    ("cuda", r"CUDA (runtime|driver) API error|CUDA error|cudaError|CUDA_ERROR|nvImageCodec failure: '#21'"),
)
_CLOSING = "Current pipeline object is no longer valid"
_ADVICE: dict[Kind, str] = {
    "memory": "no memory is left for decoding: take a smaller --run.batch-size or --data.prefetch, or end what else uses it",
    "driver": "the driver, or its video decoder, is not there: look at nvidia-smi and `bash tools/gpu_check.sh`; "
              "containers need NVIDIA_DRIVER_CAPABILITIES=compute,utility,video; shards of jpeg need no libnvcuvid",
    "format": "this GPU cannot decode the format that the clips are packed in: pack them as jpeg, or use --run.device cpu",
    "cuda": "the GPU failed, and everything it is given next would fail too: start the run again, it continues where it was; "
            "if it fails again, look at the driver's log (`dmesg | grep -i xid`) and `bash tools/gpu_check.sh`",
}


@dataclass(frozen=True)
class MachineFault:
    """Kind of a fault of the machine, and DALI's message about it."""

    kind: Kind
    reason: str

    @property
    def lasting(self) -> bool:
        """Whether everything that is decoded next will fail too."""
        return self.kind in ("driver", "cuda")

    def error(self, what: str) -> UserError:
        """The error to raise if `what` cannot be decoded: UserError for the format, which the user chose, else MachineError."""
        kind = UserError if self.kind == "format" else MachineError
        advice = _ADVICE[self.kind]
        return kind(f"{what} cannot be decoded, which is the machine's fault and not theirs ({self.reason}): {advice}")


def reason(error: BaseException) -> str:
    """The line of DALI's report that names the error: the one after "encountered:", and the next one if it ends in a colon."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip() and not line.strip().startswith(_CLOSING)]
    start = next((number + 1 for number, line in enumerate(lines) if line.endswith("encountered:")), 0)
    told = lines[start : start + 2] or lines[:1] or ["DALI failed without a message"]
    return " ".join(told if told[0].endswith(":") else told[:1])


def machine_fault(words: str) -> MachineFault | None:
    """The fault that a `reason` describes; None if only a clip is to blame."""
    kind = next((kind for kind, pattern in _WORDS if re.search(pattern, words)), None)
    return None if kind is None else MachineFault(kind, words)
