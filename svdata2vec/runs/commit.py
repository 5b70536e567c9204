"""Which commit the code is of: said by runs and records."""

import os
import subprocess
from pathlib import Path

UNKNOWN = "unknown"  # in place of a commit that nobody wrote down


def commit() -> str | None:
    """The commit that this package's files are of, with -dirty if files were changed; None outside a checkout."""
    here = Path(__file__).resolve()

    def git(*words: str) -> str:
        unlocked = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}  # a look must not stop somebody's `git commit`
        done = subprocess.run(["git", *words], cwd=here.parent, env=unlocked, check=True, capture_output=True, text=True)
        return done.stdout.strip()

    try:
        if not git("ls-files", here.name):  # installed somewhere inside another checkout
            return None
        return git("rev-parse", "HEAD")[:12] + ("-dirty" if git("status", "-s", "-uno") else "")
    except (OSError, subprocess.CalledProcessError):
        return None
