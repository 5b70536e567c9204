"""A hundred damaged and crafted inputs end as the fuzzer's rule demands, and the fuzzer notices a broken program."""

from pathlib import Path

import fuzz
import pytest
from fuzz_case import command


@pytest.mark.slow
def test_a_hundred_cases() -> None:
    record = fuzz.fuzz(fuzz.shares(100, list(fuzz.AREAS)))
    assert record["failures"] == []
    assert sum(sum(found.values()) for found in record["areas"].values()) >= 90
    noticed = sum(found["error"] + found["skipped"] + found["other"] for found in record["areas"].values())
    assert noticed > 50, "most damage matters"


@pytest.mark.parametrize(("kind", "outcome", "cases"), [
    ("Area", "error", 2), ("Skipped", "skipped", 2), ("Crafted", "other", 2), ("Traceback", "traceback", 2),
    ("Signal", "signal 11", 2), ("Exit", "status 0", 2), ("Hang", "hang", 1), ("Changed", "changed in silence: b", 2),
    ("Lost", "lost in silence: b", 2),
])
def test_a_broken_program_is_noticed(tmp_path: Path, kind: str, outcome: str, cases: int) -> None:
    """Case by case; what comes after a case that ends its process is run all the same."""
    found = list(fuzz.run_area(f"fuzz_broken.{kind}", range(cases), tmp_path, limit_seconds=4))
    assert [(case["seed"], case["outcome"]) for case in found] == [(number, outcome) for number in range(cases)]
    assert (outcome in fuzz.GOOD) == (kind in ("Area", "Skipped", "Crafted"))


def test_messages_must_be_one_line_that_a_terminal_may_show() -> None:
    with pytest.raises(Exception, match=r"svdata2vec verify: nowhere: no such folder"):
        command("verify", "nowhere")
    assert command("--help").startswith("usage: svdata2vec COMMAND ...\n")
