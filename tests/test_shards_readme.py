"""shards/README.md: its reader can read packed shards, and its tables list every field."""

import re
from dataclasses import fields
from io import BytesIO
from typing import Any

import cv2
import numpy as np
import pytest
from repository import ROOT
from shards_data import write_motion_set

from svdata2vec.shards.packing.pack import PackOptions, pack
from svdata2vec.shards.readers.pyskl import read_pyskl
from svdata2vec.shards.reading.manifest import FORMAT, VERSION, Manifest, ShardEntry
from svdata2vec.shards.reading.sample import SIDE_COMPONENTS, VIDEO_COMPONENTS, ClipMeta
from svdata2vec.shards.reading.shardset import ShardSet

README = (ROOT / "shards" / "README.md").read_text(encoding="utf-8")
SNIPPETS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    """Four clips in two tars."""
    root = tmp_path_factory.mktemp("readme")
    pack(read_pyskl(*write_motion_set(root, 4)), root / "packed", PackOptions(workers=1, size=96, clips_per_shard=2))
    return ShardSet.open(root / "packed")


def test_the_reader_of_ten_lines(shards: ShardSet) -> None:
    names: dict[str, Any] = {}
    exec(SNIPPETS[0], names)
    assert "svdata2vec" not in SNIPPETS[0] and len(SNIPPETS[0].split('"""\n')[1].splitlines()) <= 10
    found = [clip for path in shards.tars for clip in names["clips"](path)]
    assert len(found) == len(shards) == 4
    for row, (key, description, frames, joints, boxes) in enumerate(found):
        ours = shards.sample(row)
        assert key == ours.key == description["key"] and description["label"] == ours.label
        assert np.array_equal(joints, ours.pose_MTVC) and np.array_equal(boxes, ours.box_T4)
        assert np.array_equal(description["packed_to_source"], ours.meta.packed_to_source)
        assert ours.video is not None and ours.offsets is not None
        last = np.frombuffer(ours.video[ours.offsets[-2] :], np.uint8)
        assert np.array_equal(frames[-1], cv2.imdecode(last, cv2.IMREAD_COLOR)[..., ::-1])
        assert frames.shape == (ours.meta.num_frames, 96, 96, 3)


def test_the_index_as_described(shards: ShardSet) -> None:
    index = np.load(shards.root / "index.npy", mmap_mode="r")
    columns = len(shards.manifest.components)
    assert index.dtype == np.dtype([("key", "S20"), ("shard", "<u4"), ("label", "<i4"), ("frames", "<i4"),
                                    ("offset", "<u8", (columns,)), ("size", "<u4", (columns,))])
    assert index.dtype.itemsize == 20 + 12 + 12 * columns, "without gaps"
    column = shards.manifest.components.index("pose.npy")
    content = shards.tars[index[3]["shard"]].read_bytes()[index[3]["offset"][column] :][: index[3]["size"][column]]
    assert np.array_equal(np.load(BytesIO(content)), shards.sample(3).pose_MTVC)


def test_webdataset_as_described(shards: ShardSet, capsys: pytest.CaptureFixture[str]) -> None:
    exec(SNIPPETS[1].replace("data/ntu60/shard-{000000..000441}.tar", f"{shards.root}/shard-{{000000..000001}}.tar"), {})
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == [key.decode() for key in shards.index["key"]]


def test_every_field_is_described() -> None:
    first_columns = " ".join(line.split(" | ")[0] for line in README.splitlines() if line.startswith("|"))
    described = set(re.findall(r"`([\w.]+)`", first_columns))
    assert described >= {field.name for field in (*fields(ClipMeta), *fields(Manifest))}
    assert described >= {*VIDEO_COMPONENTS, *SIDE_COMPONENTS, "offsets.npy"}
    assert f'`"{FORMAT}"`, {VERSION}' in README
    assert all(f"`{field.name}`" in README for field in fields(ShardEntry))


def test_every_file_is_listed_and_every_listed_file_exists() -> None:
    modules = {path.name for path in (ROOT / "shards").rglob("*.py")}
    rows = "".join(line for line in README.splitlines() if line.startswith("| `"))
    assert set(re.findall(r"`(\w+\.py)`", rows)) == modules
    named = set(re.findall(r"`(?:\w+/)?(\w+\.py)`", README))
    assert named - modules <= {"NAME.py", "test_shards_readers.py"}
