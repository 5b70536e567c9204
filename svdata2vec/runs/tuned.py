"""How this machine decodes fastest, as `svdata2vec bench data --tune` measured it: one small file per user.

It is `decoding.json` in the `cache_folder`, or what SVDATA2VEC_DECODING names; that variable empty: none. It may be deleted.
Homes are shared: every device that was measured has its entry, by its name.
"""

import json
import logging
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from svdata2vec.config.checked_json import check_record
from svdata2vec.config.files import read_json
from svdata2vec.shards.atomic import make_folder, write_atomically
from svdata2vec.shards.cache_folder import cache_folder
from svdata2vec.shards.errors import UserError
from svdata2vec.shards.ranges import Range, check_number

FORMAT, VERSION = "svdata2vec-decoding", 1
ENVIRONMENT = "SVDATA2VEC_DECODING"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Tuned:
    """Settings of a decoder, named as in `DataConfig`.

    threads: 0 = as many as a loader has cores, of which another job on such a device may have more. run_pictures: None = the
    decoder's own.
    """

    threads: int
    engine_share: float = 1.0
    run_pictures: int | None = None

    def __str__(self) -> str:
        pictures = "" if self.run_pictures is None else f", {self.run_pictures} pictures at once"
        return f"{self.threads} threads, engine share {self.engine_share:g}{pictures}"


_ENTRY = {"threads": Range(0, 256), "engine_share": (int, float), "run_pictures?": Range(1, 100_000)}
_SCHEMA = {"format": {FORMAT}, "version": Range(VERSION, VERSION), "devices": {"*": {"*": _ENTRY}}}


def tuned_file() -> Path | None:
    """The file, whether it is there or not; None where the user wants none or has no home."""
    named = os.environ.get(ENVIRONMENT)
    if named is not None:
        return Path(named) if named else None
    folder = cache_folder()
    return None if folder is None else folder / "decoding.json"


def load_tuned(device: str, codec: str) -> Tuned | None:
    """What was measured on a device (a GPU's or CPU's name) for a codec; a file that cannot be read is reported in one line."""
    entry = _devices(tuned_file()).get(device, {}).get(codec)
    return None if entry is None else Tuned(**{name: entry.get(name) for name in Tuned.__annotations__})


def store_tuned(device: str, codec: str, tuned: Tuned) -> Path | None:
    """Write it beside what the file holds of other devices and codecs; returns the file, None where there is to be none."""
    path = tuned_file()
    if path is None:
        return None
    devices = _devices(path)
    devices[device] = {**devices.get(device, {}), codec: asdict(tuned)}
    make_folder(path.parent)
    content = {"format": FORMAT, "version": VERSION, "devices": devices}
    write_atomically(path, (json.dumps(content, indent=1) + "\n").encode())
    return path


def _devices(path: Path | None) -> dict[str, dict[str, Any]]:
    """Entries of the file by device and codec; none where it does not exist or, which is logged, cannot be read."""
    try:
        if path is None or not path.exists():  # raises, too: the home may be somebody else's
            return {}
        devices = check_record(read_json(path), _SCHEMA, path)["devices"]
        for entry in (entry for codecs in devices.values() for entry in codecs.values()):
            check_number(f"{path}: engine_share", entry["engine_share"], 0, 1)
    except (UserError, OSError) as error:
        log.warning("%s; decoding with defaults until `svdata2vec bench data --tune` writes a new one", error)
        return {}
    return devices
