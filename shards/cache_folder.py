"""Where this project keeps what can be made or fetched again, on this machine and for this user."""

import os
from pathlib import Path


def cache_folder() -> Path | None:
    """`$XDG_CACHE_HOME/svdata2vec`, `~/.cache/svdata2vec` without that variable; None for a user without a home."""
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "svdata2vec"
    except RuntimeError:
        return None
