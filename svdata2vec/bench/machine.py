"""What a record says about the machine that it was measured on."""

import datetime
import os
import platform
from typing import Any

import torch

from svdata2vec import __version__


def machine() -> dict[str, Any]:
    return {
        "machine": f"{os.cpu_count()} CPU cores ({platform.machine()})",
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "versions": {"svdata2vec": __version__, "torch": torch.__version__, "python": platform.python_version()},
        "date": datetime.date.today().isoformat(),
    }
