"""Tables, cells and remarks that the sections of the result pages share. A record is what a file of tools/results/ holds."""

from collections.abc import Mapping, Sequence
from typing import Any

Record = dict[str, Any]


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, first column to the left, the others to the right."""
    lines = [header, ["---", *("---:" for _ in header[1:])], *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def percent(share: float | None) -> str:
    """A share as a cell; empty if there is none."""
    return "" if share is None else f"{100 * share:.1f} %"


def sentence(text: str) -> str:
    """A remark of a record as a sentence."""
    return f"{text[0].upper()}{text[1:]}."


def device(record: Record) -> str:
    """What the record was measured on, as far as it says so: the GPU if one was used, else the CPU, both if rows differ."""
    machine = record.get("machine", record)
    if isinstance(machine, str):
        return record.get("gpu") or machine
    if "machine" in machine:  # the whole of it in one place
        return device(machine)
    gpu = machine.get("gpu") or machine.get("device", "cpu")
    cpu = f" ({machine['cpu']})" if "cpu" in machine else ""
    cores = f"{machine['cores']} CPU cores{cpu}" if "cores" in machine else ""
    if gpu == "cpu":
        return cores
    return f"{cores} and {gpu}" if {"cpu", "gpu"} <= machine.keys() else str(gpu)


def measured(record: Record) -> str:
    """Machine, version of torch and date of a record, and whether other work was running, as sentences."""
    machine = record.get("machine")
    inner: Record = machine if isinstance(machine, dict) else record
    versions = record.get("versions") or inner.get("versions") or {}
    software = [f"{name} {versions[name]}" for name in ("torch", "driver") if versions.get(name)]
    date = record.get("date") or inner["date"]
    load = record.get("load_average") or inner.get("load_average") or inner.get("load_1min") or 0
    busy = load > 2 * inner.get("cores", 1)
    return (
        f"{', '.join(part for part in (device(record), *software, date[:10]) if part)}."
        f"{f' Other work was running (load average {load:.1f}): read the ratios.' if busy else ''}"
    )


def not_measured(columns: Mapping[str, Record | None]) -> str:
    """Why some columns are empty; nothing if none is."""
    missing = [name for name, record in columns.items() if record is None]
    return f"\nNot measured yet, hence empty: {', '.join(missing)}.\n" if missing else ""
