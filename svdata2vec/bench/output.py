"""What every benchmark does with its result: the table goes to standard output, the record into a file if one is named."""

import sys
from pathlib import Path
from typing import Any

from svdata2vec.runs.provenance import save
from svdata2vec.shards.shown import shown_lines


def deliver(record: dict[str, Any], table: str, out: Path | None) -> None:
    """Print the table; write the record as JSON to `out`, unless that is None."""
    sys.stdout.write(shown_lines(table))
    if out is not None:
        save(record, out)
