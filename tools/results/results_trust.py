"""Sections of the result pages about damage: what the fuzzer and the kill loop counted."""

from result_cells import Record, measured, table

OUTCOMES = {"same": "same result", "error": "one line", "skipped": "counted skip", "other": "other result, allowed",
            "failed": "failed"}


def fuzz(record: Record) -> str:
    """Outcomes per kind of input."""
    areas = record["areas"]
    rows = [[name, str(sum(found.values())), *(str(found[outcome]) for outcome in OUTCOMES)] for name, found in areas.items()]
    sums = {outcome: sum(found[outcome] for found in areas.values()) for outcome in OUTCOMES}
    rows.append(["all", str(sum(sums.values())), *map(str, sums.values())])
    return table(["input", "cases", *OUTCOMES.values()], rows) + (
        "\nDamaged bytes, crafted files and odd values, each read in a child process with a time limit. Failed: a traceback, a "
        "signal, a hang, or a silently different result. Another result is allowed where a file is crafted so that its "
        f"checksums fit, or has none (pickles, tables, videos, texts of a run). {measured(record)}\n"
    )


def kill_loop(record: Record) -> str:
    """Kills and results per kind of work."""
    rows = [[name, *(str(row[name]) for name in ("rounds", "kills", "different"))] for name, row in record["works"].items()]
    return table(["work", "rounds", "kills", "ended with other bytes"], rows) + (
        "\nSIGKILL, every third time SIGTERM, at random moments, until an attempt finishes; then all files of packing "
        f"and all tensors of training are compared with an undisturbed run. {measured(record)}\n"
    )
