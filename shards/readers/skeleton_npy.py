"""Reads the skeletons of NTU RGB+D as the data set's own `txt2npy.py` rewrites them: S001C001P001R001A001.skeleton.npy.

A file is a 0-d object array with a dictionary. Its `rgb_body0` to `rgb_body3` are read: (T, 25, 2), x and y in the colour
picture, zeros where the body is not seen. `rgb_body0` has the first body of every frame, which may be another person in each
frame, so bodies are linked again.
"""

import io

import numpy as np

from svdata2vec.shards.annotations import Pose
from svdata2vec.shards.errors import UserError, require_memory
from svdata2vec.shards.npy import read_npy
from svdata2vec.shards.readers.plain_pickle import load_plain
from svdata2vec.shards.tracks import link_slots
from svdata2vec.shards.video import open_bytes

NUM_JOINTS = 25


def read_npy_skeleton(path: str, width: int, height: int) -> Pose:
    """Pose (M,T,25,2), one slot per person; UserError describes a fault of the file. No code in it is run."""
    with open_bytes(path) as file:
        content = io.BytesIO(file.read())
    try:
        shape, dtype = read_npy(lambda: _header(content))
    except Exception as error:  # a damaged header fails in many ways
        require_memory(error, path)
        raise UserError(f"{path}: not a .npy file ({' '.join(str(error).split())})") from error
    if shape != () or dtype.kind != "O":
        raise UserError(f"{path}: an array of shape {shape} and type {dtype}, expected a dictionary as txt2npy.py writes it")
    value = load_plain(io.BytesIO(content.read()), path)
    bodies = value.tolist() if isinstance(value, np.ndarray) else None
    if not isinstance(bodies, dict):
        raise UserError(f"{path}: holds no dictionary; expected one as txt2npy.py writes it")
    found = [np.asarray(bodies[name], np.float32) for name in sorted(map(str, bodies)) if name.startswith("rgb_body")]
    shapes = {body_TVC.shape for body_TVC in found}
    if len(shapes) != 1 or next(iter(shapes))[1:] != (NUM_JOINTS, 2):
        raise UserError(f"{path}: rgb_body0 and so on have shapes {sorted(shapes) or 'none'}, expected (frames, 25, 2)")
    pose_MTVC, joined = link_slots(np.stack(found))
    return Pose(pose_MTVC, width=width, height=height, joined=joined)


def _header(content: io.BytesIO) -> tuple[tuple[int, ...], np.dtype]:
    """Shape and type of an .npy file, which is read up to its data."""
    content.seek(0)
    version = np.lib.format.read_magic(content)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(content)
    return shape, dtype
