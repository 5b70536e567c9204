"""Several shard sets read as one: order and weights, names, draws, joint layouts, classes, and refused combinations."""

import pickle
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import fsspec
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pipeline_factory import kinect_set, shard_set
from shards_data import edit_manifest

from svdata2vec.config.schema import MaskConfig
from svdata2vec.model.masking import draw_masks
from svdata2vec.pipeline.loader import ClipLoader
from svdata2vec.pipeline.order import OrderConfig, entries_per_epoch, taken
from svdata2vec.pipeline.plan import PlanConfig
from svdata2vec.runs.data import taken_per_epoch
from svdata2vec.shards.errors import UserError
from svdata2vec.shards.layouts import COCO17, KINECT25, to_layout
from svdata2vec.shards.reading.joined import JoinedShards, set_names
from svdata2vec.shards.reading.remote import RemoteShardSet
from svdata2vec.shards.reading.shardset import ShardSet

PLAN = PlanConfig(num_frames=4, size=32)


@pytest.fixture(scope="module")
def coco(tmp_path_factory) -> ShardSet:
    return shard_set(tmp_path_factory.mktemp("one") / "coco", 7)


@pytest.fixture(scope="module")
def kinect(tmp_path_factory) -> ShardSet:
    """Clips with the same names as those of `coco`."""
    return kinect_set(tmp_path_factory.mktemp("two") / "kinect", 5)


def clips_of(shards: ShardSet, *, epoch: int = 0, train: bool = True, **more) -> dict[str, tuple]:
    """The clips of an epoch: name -> (frames, joints, label)."""
    options = {"train": train, "last_batch": "partial", "decoder": "reference", **more}
    with ClipLoader(shards, "all", PLAN, batch_size=4, **options) as loader:
        loader.set_epoch(epoch)
        batches = list(loader)
    return {key: (batch.video_BTHWC[i], batch.joints_BMTVC[i], int(batch.label_B[i]))
            for batch in batches for i, key in enumerate(batch.keys)}


# ---- which clips an epoch takes ----------------------------------------------------------------------------------------


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 40), st.floats(0.05, 4), st.integers(0, 3), st.integers(1, 12))
def test_a_weighted_set_gives_every_clip_as_often_as_any_other(clips: int, weight: float, seed: int, epochs: int) -> None:
    seen: Counter = Counter(dict.fromkeys(range(clips), 0))
    for epoch in range(epochs):
        places, times = taken(clips, weight, seed, epoch, 1)
        assert len(places) == entries_per_epoch(clips, weight)
        assert sorted(zip(places.tolist(), times.tolist(), strict=True)) == [
            (clip, time) for clip, count in sorted(Counter(places.tolist()).items()) for time in range(count)
        ], "each clip's times from 0 on"
        seen.update(places.tolist())
        assert max(seen.values()) - min(seen.values()) <= 1
    assert entries_per_epoch(clips, 1) == clips


def test_a_weighted_set_without_a_clip_gives_none(coco: ShardSet, kinect: ShardSet) -> None:
    """Few labels may all be of one set."""
    joined = JoinedShards([coco, kinect], "coco17", (0.5, 2.0))
    with ClipLoader(joined, "all", PLAN, batch_size=2, train=True, limit=np.arange(4)) as loader:
        assert [key.partition("/")[0] for batch in loader for key in batch.keys] == ["coco", "coco"]


def test_an_epoch_of_weighted_sets_takes_what_they_say() -> None:
    shares = [(np.arange(6), 2.0), (np.arange(6, 16), 0.5), (np.arange(16, 19), 1.0)]
    rows = np.arange(100, 119)
    orders = [OrderConfig(rows, 1, 2, 3, True, True, rank, 2, shares=shares) for rank in range(2)]
    assert orders[0].num_entries == 12 + 5 + 3
    halves = []
    for epoch in range(2):
        found, times = orders[0].clips(epoch).between(0, 20)
        counts = Counter(found.tolist())
        assert [counts[row] for row in range(100, 106)] == [2] * 6 and [counts[row] for row in range(116, 119)] == [1] * 3
        assert {time for row, time in zip(found.tolist(), times.tolist(), strict=True) if row < 106} == {0, 1}
        halves.append({row for row in counts if 106 <= row < 116})
        again, _ = orders[1].clips(epoch).between(0, 20)
        assert again.tolist() == found.tolist(), "every rank has the same order"
    assert halves[0] | halves[1] == set(range(106, 116)) and not halves[0] & halves[1]
    plain = OrderConfig(rows, 1, 2, 3, True, True, 0, 2)
    assert sorted(plain.clips(0).between(0, 19)[0].tolist()) == rows.tolist()


@pytest.mark.parametrize(("rows", "weights", "expected"), [
    (range(12), (0.5, 2.5), 4 + 12), (range(3), (0.5, 2.5), 2), ([3], (0.4, 1.0), 1), ([7, 11], (0.5, 2.5), 5),
    (range(12), (0.3, 0.3), 2 + 2), ([0, 9], (1.0, 0.1), 1 + 1), (range(12), (), 12), ([2, 8, 9], (1.0, 1.0), 3),
])
def test_the_clips_counted_for_an_epoch_are_those_of_the_loader(
    rows: Sequence[int], weights: tuple[float, ...], expected: int, coco: ShardSet, kinect: ShardSet
) -> None:
    """From all rows, or from few labels, which may all be of one set; at least one clip of each set that has any."""
    joined, chosen = JoinedShards([coco, kinect], "coco17", weights), np.array(rows)
    assert taken_per_epoch(joined, chosen) == expected
    with ClipLoader(joined, "all", PLAN, batch_size=1, train=True, video=False, limit=chosen) as loader:
        assert (loader.clips_per_epoch, loader.batches_per_epoch, len([*loader])) == (expected,) * 3


# ---- what a clip is ------------------------------------------------------------------------------------------------------


def test_sets_of_equal_names_and_other_joints_are_one_set(coco: ShardSet, kinect: ShardSet) -> None:
    """Every clip once, under a name of its own, with the frames, joints and masks that it has when its set is read alone."""
    joined = JoinedShards([coco, kinect], "coco17")
    found = clips_of(joined, epoch=2)
    assert sorted(found) == [f"coco/clip{i:05d}" for i in range(7)] + [f"kinect/clip{i:05d}" for i in range(5)]
    for alone, layout in ((coco, COCO17), (kinect, KINECT25)):
        for key, (video, joints, label) in clips_of(alone, epoch=2).items():
            name = f"{alone.root.name}/{key}"
            assert torch.equal(found[name][0], video) and found[name][2] == label
            expected = to_layout(joints.numpy(), layout, COCO17, -2)
            assert np.array_equal(found[name][1].numpy(), expected) and expected.any()
            masks = [draw_masks([each], 8, MaskConfig(0.5, 0.5), 0, 1) for each in (key, name)]
            assert torch.equal(masks[0].keep_NK, masks[1].keep_NK)


def test_kinect_gives_coco_twelve_joints_and_no_head(kinect: ShardSet) -> None:
    """The crop is still that of all 25 joints."""
    alone, mapped = clips_of(kinect, train=False), clips_of(JoinedShards([kinect], "coco17"), train=False)
    names = ["shoulder", "elbow", "wrist", "hip", "knee", "ankle"]
    sides = [f"{side}_{name}" for name in names for side in "lr"]
    here, there = ([joints.index(side) for side in sides] for joints in (COCO17.joints, KINECT25.joints))
    for key, (video, joints_MTVC, _) in mapped.items():  # one set: its clips keep their keys
        assert torch.equal(video, alone[key][0])
        assert torch.equal(joints_MTVC[:, :, here], alone[key][1][:, :, there]) and joints_MTVC[:, :, here].any()
        assert not joints_MTVC[:, :, :5].any()
    assert JoinedShards([kinect], "coco17").manifest.layout == COCO17


def test_a_clip_that_comes_twice_is_drawn_twice(coco: ShardSet, kinect: ShardSet) -> None:
    found = clips_of(JoinedShards([coco, kinect], "coco17", (2, 1)))
    assert len(found) == 14 + 5
    once, twice = found["coco/clip00003"], found["coco/clip00003#1"]
    assert not torch.equal(once[0], twice[0]) and once[2] == twice[2]
    assert torch.equal(once[0], clips_of(coco)["clip00003"][0])
    masks = draw_masks(["coco/clip00003", "coco/clip00003#1"], 40, MaskConfig(0.66, 0.75), 0, 0)
    assert not torch.equal(masks.keep_NK[0], masks.keep_NK[1])
    tested = clips_of(JoinedShards([coco, kinect], "coco17", (2, 1)), train=False)
    assert len(tested) == 7 + 5, "an evaluation takes every clip once"


def test_a_joined_set_resumes_and_checks_its_weights(coco: ShardSet, kinect: ShardSet) -> None:
    def loader(*weights: float, batch: int = 3) -> ClipLoader:
        return ClipLoader(JoinedShards([coco, kinect], "coco17", weights), "all", PLAN, batch_size=batch, train=True,
                          decoder="reference")

    with loader(1.5, 0.4) as whole, loader(1.5, 0.4) as again:
        batches = [batch for _ in range(3) for batch in whole]
        again.load_state_dict({**whole.state_dict(), "epoch": 1, "position": 3})
        rest = [batch for _ in range(2) for batch in again]
    assert [batch.keys for batch in rest] == [batch.keys for batch in batches[5:]]
    assert all(torch.equal(a.joints_BMTVC, b.joints_BMTVC) for a, b in zip(rest, batches[5:], strict=True))
    with pytest.raises(UserError, match=r"split 'all': 2 of 12 clips by data\.weights, fewer than one step with batch_size=3 "):
        loader(0.1, 0.1)
    with pytest.raises(UserError, match="another shards, split or subset"):
        loader(2, 0.4).load_state_dict(whole.state_dict())


def test_reader_processes_and_remote_sets_give_the_same(coco: ShardSet, kinect: ShardSet, tmp_path: Path) -> None:
    store = fsspec.filesystem("memory")
    for path in Path(coco.root).iterdir():
        store.pipe_file(f"/joined/coco/{path.name}", path.read_bytes())
    here = JoinedShards([coco, kinect], "coco17", (1, 2))
    remote = JoinedShards([RemoteShardSet("memory://joined/coco", cache=tmp_path), kinect], "coco17", (1, 2))
    expected = clips_of(here)
    for other in (clips_of(here, num_readers=2), clips_of(remote), clips_of(pickle.loads(pickle.dumps(here)))):
        assert list(other) == list(expected)
        assert all(torch.equal(other[name][0], expected[name][0]) for name in expected)
    assert here.tars and not remote.tars
    store.rm("/joined", recursive=True)


def test_columns_and_rows_of_the_index_agree_with_the_sets(coco: ShardSet, kinect: ShardSet) -> None:
    joined = JoinedShards([coco, kinect], "coco17")
    for name in ("key", "label", "frames", "size"):
        assert np.array_equal(joined.index[name], np.concatenate([coco.index[name], kinect.index[name]]))
    shards = [int(joined.index[row]["shard"]) for row in range(12)]
    assert shards == joined.index["shard"].tolist() == [0] * 4 + [1] * 3 + [2] * 4 + [3]
    assert joined.tar_name(3) == kinect.tar_name(1) and len(joined) == 12
    assert len({tar.name for tar in joined.manifest.shards}) == 4 == len(joined.tars)


def test_a_damaged_clip_is_named_with_its_set(coco: ShardSet, kinect: ShardSet, tmp_path: Path, caplog) -> None:
    shutil.copytree(kinect.root, tmp_path / "kinect")
    tar = tmp_path / "kinect" / "shard-000001.tar"
    content = bytearray(tar.read_bytes())
    entry = kinect.index[4]
    content[int(entry["offset"][2]) + 200] ^= 255  # in pose.npy
    tar.write_bytes(content)
    joined = JoinedShards([coco, ShardSet.open(tmp_path / "kinect")], "coco17")
    assert len(clips_of(joined, train=False)) == 11
    assert f"skipping clip kinect/clip00004 of {tar}" in caplog.text


# ---- splits, classes, refusals ------------------------------------------------------------------------------------------


def test_splits_are_named_once_for_all_or_one_for_each(coco: ShardSet, kinect: ShardSet, tmp_path: Path) -> None:
    shutil.copytree(coco.root, tmp_path / "coco")
    edit_manifest(tmp_path / "coco", splits={"all": [f"clip{i:05d}" for i in range(7)], "train": ["clip00002", "clip00001"]})
    joined = JoinedShards([ShardSet.open(tmp_path / "coco"), kinect], "coco17")
    assert joined.rows("train,all").tolist() == [2, 1, 7, 8, 9, 10, 11]
    assert joined.rows("all[:50%]").tolist() == [*coco.rows("all[:50%]"), *(7 + kinect.rows("all[:50%]"))]
    assert list(joined.manifest.splits) == ["all"] and len(joined.manifest.splits["all"]) == 12
    with pytest.raises(UserError, match=r"kinect: no split 'train'; it has all"):
        joined.rows("train")
    with pytest.raises(UserError, match=r"3 names for 2 sets; give one, or one for each set"):
        joined.rows("all,all,all")


def test_other_classes_are_pretrained_on_together_but_not_classified(coco: ShardSet, kinect: ShardSet, tmp_path: Path) -> None:
    shutil.copytree(kinect.root, tmp_path / "other")
    edit_manifest(tmp_path / "other", classes=["e", "x", "a", "y", "z"])
    joined = JoinedShards([coco, ShardSet.open(tmp_path / "other")], "coco17")
    assert joined.manifest.classes == tuple("abcdexyz")
    assert {name: label for name, (_, _, label) in clips_of(joined, train=False).items() if name.startswith("other")} == {
        f"other/clip{i:05d}": label for i, label in enumerate([4, 5, 0, 6, 7])
    }
    with pytest.raises(UserError, match=r"have other classes than each other in split 'all'"):
        joined.one_class_list("all")
    assert JoinedShards([coco, kinect], "coco17").one_class_list("all") == tuple("abcde")


def test_a_joined_set_tells_the_encoding_that_all_have(coco: ShardSet, tmp_path: Path) -> None:
    sets = []
    for chroma in (420, 444):
        root = shard_set(tmp_path / str(chroma), 2 + chroma % 7).root
        edit_manifest(root, codec_options={"quality": 90, "chroma": chroma})
        sets.append(ShardSet.open(root))
    assert JoinedShards(sets[:1]).manifest.codec_options == {"quality": 90, "chroma": 420}
    assert JoinedShards(sets).manifest.codec_options == {"quality": 90}
    assert JoinedShards([sets[0], coco]).manifest.codec_options == {}


def test_sets_that_cannot_be_joined_are_refused_in_one_line(coco: ShardSet, kinect: ShardSet, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"several joint layouts \(.*coco: coco17, .*kinect: kinect25\).*--data.layout coco17"):
        JoinedShards([coco, kinect])
    with pytest.raises(UserError, match=r"unknown joint layout 'coco'"):
        JoinedShards([coco, kinect], "coco")
    with pytest.raises(UserError, match=r"--data\.weights has 1 numbers, --data\.shards 2 sets; give one for each set"):
        JoinedShards([coco, coco], None, (2,))
    with pytest.raises(UserError, match=r"coco is named twice; name it once, --data\.weights takes its clips more often"):
        JoinedShards([coco, kinect, coco], "coco17")
    shutil.copytree(coco.root, tmp_path / "copied")
    with pytest.raises(UserError, match=r"coco and .*copied hold the same clips \(shard-000000\.tar is in both\)"):
        JoinedShards([coco, kinect, ShardSet.open(tmp_path / "copied")], "coco17")
    video = shard_set(tmp_path / "video", 2, codec="mjpeg")
    with pytest.raises(UserError, match=r"coco has codec jpeg, .*video mjpeg; pack them again with one codec"):
        JoinedShards([coco, video])
    shutil.copytree(coco.root, tmp_path / "whole")
    edit_manifest(tmp_path / "whole", view="picture")
    with pytest.raises(UserError, match=r"has view persons, .*whole picture; train on videos with skeletons and on whole"):
        JoinedShards([coco, ShardSet.open(tmp_path / "whole")])
    strange = {"name": "own", "joints": [f"j{i}" for i in range(17)], "edges": [], "left": [], "right": []}
    shutil.copytree(coco.root, tmp_path / "strange")
    edit_manifest(tmp_path / "strange", layout=strange)
    with pytest.raises(UserError, match=r"its layout own has no joint of coco17; take another --data\.layout"):
        JoinedShards([ShardSet.open(tmp_path / "strange")], "coco17")
    with pytest.raises(UserError, match="clips are looked up by name in one set"):
        JoinedShards([coco, kinect], "coco17").find(["clip00000"])


def test_commas_divide_sets_unless_a_folder_has_one(tmp_path: Path) -> None:
    assert set_names("a, s3://b/c") == ["a", "s3://b/c"]
    (tmp_path / "one,folder").mkdir()
    assert set_names(f"{tmp_path}/one,folder") == [f"{tmp_path}/one,folder"]
    with pytest.raises(UserError, match="'a,,b' name an empty set"):
        set_names("a,,b")


def test_clips_of_joined_sets_have_different_names(tmp_path: Path) -> None:
    """The second folder with a name gets a number, and the result may be another folder's name."""
    places = ["a/set", "b/set", "c/set-1"]
    sets = [shard_set(tmp_path / place, 2, size=32, first_seed=10 * i) for i, place in enumerate(places)]
    joined = JoinedShards(sets)
    assert joined.names(joined.rows("all")) == [f"{name}/clip{i:05d}" for name in ("set-1", "set-2", "set-1-3") for i in (0, 1)]
