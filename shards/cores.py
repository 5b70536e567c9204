"""Cores that this process may use: by its affinity, and by the quotas of its control groups."""

import os
from collections.abc import Iterator
from pathlib import Path

CONTROL_GROUPS = Path("/sys/fs/cgroup")
MEMBERSHIP = Path("/proc/self/cgroup")


def granted_cores() -> float:
    """Cores that this process and its children may use together; of a quota perhaps a fraction."""
    quotas = [quota for folder in control_groups() for quota in _quota(folder)]
    return min([len(os.sched_getaffinity(0)), *quotas])


def job_cores() -> int:
    """The same in whole cores, at least one: how many processes or threads have work at a time."""
    return max(1, int(granted_cores()))


def control_groups() -> Iterator[Path]:
    """Folders of this process's control groups (a container's, a job's) and of those around them (versions 2 and 1)."""
    for line in MEMBERSHIP.read_text().splitlines() if MEMBERSHIP.is_file() else []:
        _, controllers, path = line.split(":", 2)
        root = CONTROL_GROUPS / controllers if controllers else CONTROL_GROUPS
        inside = root / path.lstrip("/")
        for folder in (inside, *inside.parents):
            yield folder
            if folder == root:
                break


def _quota(folder: Path) -> list[float]:
    """Cores that a control group grants; empty where it sets no limit."""
    try:
        if (folder / "cpu.max").is_file():
            quota, period = (folder / "cpu.max").read_text().split()
        else:
            quota, period = ((folder / f"cpu.cfs_{name}_us").read_text().strip() for name in ("quota", "period"))
    except OSError:
        return []
    return [] if quota in ("max", "-1") else [int(quota) / int(period)]
