"""Which commit the code is of: said by runs and records."""

import subprocess
from pathlib import Path

UNKNOWN = "unknown"  # in place of a commit that nobody wrote down


def commit() -> str | None:
    """The commit that this package's files are of, with -dirty if files were changed; None outside a checkout."""
    here = Path(__file__).resolve()

    def git(*words: str) -> str:
        command = ["git", "--no-optional-locks", *words]
        return subprocess.run(command, cwd=here.parent, check=True, capture_output=True, text=True).stdout.strip()

    try:
        if not git("ls-files", here.name):  # installed somewhere inside another checkout
            return None
        return git("rev-parse", "HEAD")[:12] + ("-dirty" if git("status", "-s", "-uno") else "")
    except (OSError, subprocess.CalledProcessError):
        return None
