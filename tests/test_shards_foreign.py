"""Our tars in other programs: tar, wids, Hugging Face datasets (webdataset: `test_shards_stream.py`)."""

import json
import os
import subprocess
import sys
import tarfile
import venv
from pathlib import Path
from typing import Any

import pytest
from shards_data import annotation, write_pickle, write_video

from svdata2vec.shards.packing.pack import PackOptions, pack
from svdata2vec.shards.readers.pyskl import read_pyskl
from svdata2vec.shards.reading.sample import ClipMeta
from svdata2vec.shards.reading.shardset import ShardSet

FRAMES = 6
CODECS = ("jpeg", "h264", "copy")
KINDS = {"key": str, "label": int, "num_frames": int, "fps": float, "width": int, "height": int, "packed_width": int,
         "packed_height": int, "packed_to_source": list, "source": str, "subject": int, "camera": int, "setup": int,
         "pose_frames": int, "bad_joints": int, "source_sha256": str, "first_frame": int}
WITHOUT_PYTHONPATH = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Five clips per codec in two tars: with and without subject, scores, as many poses as frames; one or two persons."""
    root = tmp_path_factory.mktemp("foreign")
    (root / "videos").mkdir()
    entries = [annotation("a", 0, FRAMES), annotation("b", 1, FRAMES - 1, subject=7), annotation("c", 0, FRAMES, setup=3),
               annotation("d", 1, FRAMES + 2), annotation("e", 0, FRAMES)]
    del entries[2]["keypoint_score"]
    for number, entry in enumerate(entries):
        write_video(root / "videos" / f"{entry['frame_dir']}.mp4", FRAMES, seed=number)
    dataset = read_pyskl(write_pickle(root / "set.pkl", entries), root / "videos")
    for codec in CODECS:
        pack(dataset, root / codec, PackOptions(workers=1, size=320 if codec == "copy" else 96, codec=codec, clips_per_shard=3))
    return {codec: root / codec for codec in CODECS}


@pytest.mark.parametrize("codec", CODECS)
def test_the_json_of_every_clip_has_the_same_keys_and_types(folders: dict[str, Path], codec: str) -> None:
    texts = {}
    for path in sorted(folders[codec].glob("*.tar")):
        with tarfile.open(path) as tar:
            texts |= {member.name: tar.extractfile(member).read() for member in tar if member.name.endswith(".json")}  # type: ignore[union-attr]
    assert len(texts) == 5
    for name, text in texts.items():
        assert {key: type(value) for key, value in json.loads(text).items()} == KINDS, name
        assert ClipMeta.from_bytes(text, name).to_bytes() == text
    found = {name[0]: json.loads(text) for name, text in texts.items()}
    assert [found[key]["pose_frames"] for key in "abd"] == [-1, FRAMES - 1, FRAMES + 2]
    assert (found["a"]["subject"], found["b"]["subject"], found["c"]["setup"]) == (-1, 7, 3)
    assert len({fields["source_sha256"] for fields in found.values()}) == 5


def test_json_of_format_1_is_read() -> None:
    text = (b'{"key":"a","label":1,"num_frames":8,"fps":30.0,"width":192,"height":128,"packed_width":96,"packed_height":96,'
            b'"packed_to_source":[[2.0,0.0,0.0],[0.0,2.0,-32.0]],"source":"a.mp4","subject":null,"camera":2,"setup":null,'
            b'"pose_frames":null,"bad_joints":0}')
    meta = ClipMeta.from_bytes(text, "a")
    assert (meta.subject, meta.camera, meta.setup, meta.pose_frames) == (None, 2, None, None)
    assert (meta.source_sha256, meta.first_frame, meta.pictures) == ("", 0, "")
    assert json.loads(meta.to_bytes())["pose_frames"] == -1


def test_a_folder_of_format_1_is_read(folders: dict[str, Path], tmp_path: Path) -> None:
    import shutil
    shutil.copytree(folders["jpeg"], tmp_path / "old")
    path = tmp_path / "old" / "manifest.json"
    fields = json.loads(path.read_text()) | {"version": 1}
    del fields["manifest_crc32"]
    path.write_text(json.dumps(fields))
    assert len(ShardSet.open(tmp_path / "old")) == 5


def ran(*command: object, **environment: str) -> Any:
    """The JSON that a Python program prints in its last line."""
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, env=WITHOUT_PYTHONPATH | environment)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1]) if done.stdout else None


WIDS = """
import io, json, sys
import numpy as np, wids
shards = [{"url": path, "nsamples": int(count)} for path, count in zip(sys.argv[1::2], sys.argv[2::2])]
dataset = wids.ShardListDataset(shards)
found = {}
for sample in (dataset[number] for number in reversed(range(len(dataset)))):
    meta = sample[".json"]
    found[meta["key"]] = [meta["label"], list(np.load(io.BytesIO(sample[".pose.npy"].read())).shape
                          if hasattr(sample[".pose.npy"], "read") else np.shape(sample[".pose.npy"]))]
print(json.dumps(found))
"""

HUGGING_FACE = """
import json, sys
from datasets import load_dataset
dataset = load_dataset("webdataset", data_files={"train": sys.argv[2:]}, split="train", cache_dir=sys.argv[1])
video = next(name for name in ("jpegs", "mp4") if name in dataset.column_names)
plain = dataset.remove_columns([video])
print(json.dumps({clip["json"]["key"]: [clip["json"]["label"], len(clip["pose.npy"][0]), clip["json"]["pose_frames"],
                                        clip["__key__"]] for clip in plain}))
"""


@pytest.mark.index
def test_wids_reads_every_clip_in_any_order(folders: dict[str, Path], tmp_path: Path) -> None:
    ran(sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", tmp_path / "wids", "wids")
    shards = ShardSet.open(folders["jpeg"])
    words = [word for path, entry in zip(shards.tars, shards.manifest.shards, strict=True) for word in (path, entry.count)]
    found = ran(sys.executable, "-c", WIDS, *words, PYTHONPATH=str(tmp_path / "wids"))
    assert found == {sample.key: [sample.label, list(sample.pose_MTVC.shape)] for sample in map(shards.sample, range(5))}


@pytest.mark.index
def test_hugging_face_datasets_reads_every_clip(folders: dict[str, Path], tmp_path: Path) -> None:
    venv.create(tmp_path / "env", with_pip=True)
    python = tmp_path / "env" / "bin" / "python"
    ran(python, "-m", "pip", "install", "-q", "datasets", "numpy")
    for codec in ("jpeg", "h264"):
        shards = ShardSet.open(folders[codec])
        found = ran(python, "-c", HUGGING_FACE, tmp_path / f"cache-{codec}", *shards.tars)
        poses = {sample.key: sample.meta.pose_frames or -1 for sample in map(shards.sample, range(5))}
        labels = {sample.key: sample.label for sample in map(shards.sample, range(5))}
        assert found == {key: [labels[key], FRAMES, poses[key], key] for key in "abcde"}
