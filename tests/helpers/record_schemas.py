"""What records of `bench batch`, `host` and `scale` hold, as schemas for `config.checked_json.faults`."""

from typing import Any

from svdata2vec.bench.record import SETTING
from svdata2vec.config.checked_json import NUMBER
from svdata2vec.runs.provenance import HEAD

BATCH: dict[str, Any] = {
    **HEAD, "setting": {**SETTING, "seconds": NUMBER, "memory_share?": NUMBER},
    "limit_bytes": int, "trials": list, "bytes_per_clip": (int, float, type(None)),
    "recommended": int, "fastest": int, "largest": int, "preset_batch_size": int, "loader_bytes_per_clip": int,
    "lr": NUMBER, "lr_batch": int,
}
HOST: dict[str, Any] = {
    **HEAD, "setting": {**SETTING, "codec": str, "batches": [int]},
    "rows": [{"batch_size": int, "readers": int, "parts": {"*": float}, "bytes_per_clip": float,
              **dict.fromkeys(("ms_per_clip", "q20", "q80", "reader_ms_per_clip"), float)}],
    "host_ms_per_clip": float, "training_process_ms_per_clip": float,
}
SCALE: dict[str, Any] = {
    **HEAD, "setting": {**SETTING, "codec": str, "batch_size": int, "threads": int, "steps": int, "warm_up": int},
    "worlds": list, "notes": list, "wrong": list,
}
WORLD: dict[str, Any] = {
    "processes": int, "backend": str, "timed_steps": int, "clips_per_s": float, "efficiency": float,
    "step_ms": {"median": float, "q20": float, "q80": float}, "data_wait_share": float,
    "gradient_bytes": int, "allreduce_bytes_per_step": int, "allreduces_per_step": int, "broadcast_bytes_per_step": int,
    "exchange_ms": {"synced": float, "alone": float, "added": NUMBER},
    "exchange_cpu_ms": {"synced": float, "alone": float, "added": NUMBER},
    "checks": {"steps": list, "student_equal": bool, "teacher_equal": bool, "epochs": int, "clips": int, "twice": int,
               "lost": int, "foreign": int, "skipped": int},
}
