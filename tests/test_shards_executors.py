"""Worker processes that die, or that cannot begin."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from svdata2vec.shards.errors import UserError
from svdata2vec.shards.executors import run_tasks


def test_dead_worker_process_is_named() -> None:
    with pytest.raises(UserError, match=r"a worker process died .*; finished shards are kept: run again"):
        list(run_tasks(os._exit, [1], workers=2))


@pytest.mark.parametrize("from_file", [True, False])
def test_a_script_that_its_workers_cannot_import_is_told_what_to_do(tmp_path: Path, from_file: bool) -> None:
    """Without a guard, or read from standard input: no worker begins, and neither memory nor a clip is to blame."""
    script = tmp_path / "script.py"
    guard = "" if from_file else "if __name__ == '__main__': "
    script.write_text("from svdata2vec.shards.executors import run_tasks\n"
                      f"{guard}print(list(run_tasks(abs, [-1], workers=2)))\n")
    with script.open() as text:
        done = subprocess.run([sys.executable, script if from_file else "-"], stdin=text, capture_output=True, text=True)
    said = done.stderr.splitlines()[-1]
    assert said.startswith("svdata2vec.shards.errors.UserError: worker processes ended as they began") and not done.stdout
    assert "a file, not standard input" in said and 'under `if __name__ == "__main__":`' in said
