"""The loader: order, ranks, resume, bad clips, shutdown. Small clips, both decoders."""

import pickle
import shutil
import threading
from dataclasses import replace

import numpy as np
import pytest
import torch
from loader_child import keys_in_child
from pipeline_factory import shard_set
from shards_data import edit_manifest
from waiting import wait_for

from svdata2vec.pipeline.augment import AugmentConfig
from svdata2vec.pipeline.batch import ClipBatch
from svdata2vec.pipeline.loader import ClipLoader
from svdata2vec.pipeline.plan import PlanConfig
from svdata2vec.pipeline.reference import psnr
from svdata2vec.shards.errors import UserError
from svdata2vec.shards.reading.shardset import ShardSet

PLAN = PlanConfig(num_frames=6, size=32)


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> ShardSet:
    return shard_set(tmp_path_factory.mktemp("shards"), 23)


def make(shards: ShardSet, *, train: bool = True, batch_size: int = 4, plan: PlanConfig = PLAN, **more) -> ClipLoader:
    return ClipLoader(shards, "all", plan, batch_size=batch_size, train=train, **more)


def flat(batches: list[ClipBatch]) -> dict[tuple[str, int], tuple[torch.Tensor, torch.Tensor, int]]:
    """Every clip of some batches under (key, how often it came before)."""
    clips: dict = {}
    for batch in batches:
        for i, key in enumerate(batch.keys):
            nth = sum(seen == key for seen, _ in clips)
            clips[key, nth] = batch.video_BTHWC[i], batch.joints_BMTVC[i], int(batch.label_B[i])
    return clips


def assert_same(first: list[ClipBatch], second: list[ClipBatch]) -> None:
    one, two = flat(first), flat(second)
    assert list(one) == list(two)
    for name in one:
        assert torch.equal(one[name][0], two[name][0]) and torch.equal(one[name][1], two[name][1])
        assert one[name][2] == two[name][2]


def test_a_batch_has_the_promised_shapes(shards):
    with make(shards) as loader:
        batches = list(loader)
    assert len(batches) == loader.batches_per_epoch == 5 and loader.num_clips == 23
    for batch in batches:
        assert batch.video_BTHWC.shape == (4, 6, 32, 32, 3) and batch.video_BTHWC.dtype == torch.uint8
        assert batch.joints_BMTVC.shape == (4, 2, 6, 17, 2) and batch.label_B.dtype == torch.int64
        assert batch.video_BTHWC.float().std() > 10
        assert [int(key[4:]) % 5 for key in batch.keys] == batch.label_B.tolist()
    assert loader.stats.clips_decoded >= 20 and loader.stats.batches == 5 and loader.stats.wait_seconds > 0


def test_dali_agrees_with_the_reference_decoder(shards):
    plans = (PLAN, replace(PLAN, crop="boxes"), replace(PLAN, num_frames=50, size=40))
    for plan, train in [(plan, train) for plan in plans for train in (True, False)]:
        options = {"plan": plan, "train": train}
        with make(shards, **options) as fast, make(shards, decoder="reference", **options) as slow:
            one, two = flat(list(fast)), flat(list(slow))
        assert list(one) == list(two)
        for name in one:
            assert psnr(one[name][0], two[name][0]) >= 45
            assert torch.equal(one[name][1], two[name][1])


def test_batch_size_threads_and_prefetch_change_nothing(shards):
    with make(shards, batch_size=1, last_batch="partial", num_threads=1, prefetch=1) as loader:
        reference = list(loader)
    for options in ({"batch_size": 4, "num_threads": 2}, {"batch_size": 7, "prefetch": 4}, {"batch_size": 23}):
        with make(shards, last_batch="partial", **options) as loader:
            assert_same(list(loader), reference)


def test_augmentation_options_are_keyed_too(shards):
    augment = AugmentConfig(temporal_crop=(0.5, 0.9), brightness=0.4, hue=0.1, erase_probability=1.0)
    plan = replace(PLAN, augment=augment)
    batches = []
    for batch_size in (1, 7):
        with make(shards, plan=plan, batch_size=batch_size, last_batch="partial") as loader:
            batches.append(list(loader))
    assert_same(batches[1], batches[0])
    erased = [(video == 0).all(dim=(0, 3)).sum() for video, _, _ in flat(batches[0]).values()]
    assert min(erased) > 0.01 * 32 * 32
    with make(shards, plan=plan, train=False) as loader, make(shards, train=False) as plain:
        assert_same(list(loader), list(plain))  # evaluation knows no augmentation


def test_another_epoch_and_seed_are_other_pictures(shards):
    with make(shards, batch_size=23) as loader, make(shards, batch_size=23, seed=1) as other:
        first, second = list(loader), list(loader)
        third = list(other)
    assert first[0].keys != second[0].keys != third[0].keys
    one, two = flat(first), flat(second)
    assert all(not torch.equal(one[key, 0][0], two[key, 0][0]) for key in first[0].keys)


def test_ranks_together_see_what_one_rank_sees(shards):
    with make(shards, batch_size=8) as loader:
        whole = list(loader)
    parts = []
    for rank in range(2):
        with make(shards, batch_size=4, rank=rank, world_size=2) as loader:
            parts.append(list(loader))
            assert loader.batches_per_epoch == 2
    joined = [batch for pair in zip(*parts, strict=True) for batch in pair]
    assert_same(joined, whole)


@pytest.mark.parametrize("world_size", [1, 2, 3, 5])
def test_evaluation_sees_every_clip_exactly_once(shards, world_size):
    keys: list[str] = []
    for rank in range(world_size):
        with make(shards, train=False, rank=rank, world_size=world_size) as loader:
            keys += [key for batch in loader for key in batch.keys]
    assert sorted(keys) == [f"clip{i:05d}" for i in range(23)]


@pytest.mark.parametrize(("stop", "decoder"), [(1, "dali"), (3, "dali"), (5, "dali"), (7, "dali"), (3, "reference")])
def test_resume_is_exact_at_every_place(shards, stop, decoder):
    with make(shards, decoder=decoder) as loader:
        whole = [*loader, *loader]
    with make(shards, decoder=decoder) as loader:
        stream = (batch for _ in range(2) for batch in loader)
        head = [next(stream) for _ in range(stop)]
        state = pickle.loads(pickle.dumps(loader.state_dict()))
    with make(shards, decoder=decoder) as loader:
        loader.load_state_dict(state)
        tail = list(loader)
        while len(head) + len(tail) < 10:
            tail += list(loader)
    assert_same(head + tail, whole)


def test_world_size_may_change_at_a_resume(shards):
    with make(shards, batch_size=2, last_batch="partial") as loader:
        whole = list(loader)
    heads = []
    for rank in range(2):
        with make(shards, batch_size=2, rank=rank, world_size=2) as loader:
            batches = iter(loader)
            heads.append([next(batches) for _ in range(2)])
            state = loader.state_dict()
    tails = []
    for rank in range(3):
        with make(shards, batch_size=1, rank=rank, world_size=3) as loader:
            loader.load_state_dict(state)
            tails.append(list(loader))
    order = [b for parts in (heads, tails) for step in zip(*parts, strict=True) for b in step]
    seen = flat(order)
    expected = flat(whole)
    assert list(seen) == list(expected)[: len(seen)] and len(seen) == 8 + 15
    assert all(torch.equal(seen[name][0], expected[name][0]) for name in seen)


def test_state_of_other_data_is_refused(shards):
    with make(shards) as loader:
        state = loader.state_dict()
    with pytest.raises(UserError, match=r"fingerprint.*another shards, split or subset"):
        make(shards, limit=10).load_state_dict(state)
    with pytest.raises(UserError, match="seed 0, this loader 5"):
        make(shards, seed=5).load_state_dict(state)
    with pytest.raises(UserError, match="position 99"):
        make(shards).load_state_dict({**state, "position": 99})


def test_a_loop_left_early_continues_and_set_epoch_goes_back(shards):
    with make(shards) as loader:
        whole = list(loader)
    with make(shards) as loader:
        head = [next(iter(loader)) for _ in range(2)]
        rest = list(loader)
        assert_same(head + rest, whole)
        loader.set_epoch(0)
        assert_same(list(loader), whole)


@pytest.mark.parametrize("epoch", [-1, 1.0, "2", True])
def test_an_epoch_is_a_whole_number(shards, epoch):
    loader = make(shards)
    with pytest.raises(UserError, match=rf"^epoch is {epoch!r}: expected 0 or more, a whole number$"):
        loader.set_epoch(epoch)
    loader.set_epoch(np.int64(2))
    assert type(loader.state_dict()["epoch"]) is int and loader.epoch == 2


@pytest.mark.parametrize("train", [True, False])
def test_one_loop_continues_after_two_at_once(shards, train):
    with make(shards, train=train) as loader:
        whole = list(loader)
    with make(shards, train=train) as loader:
        one, other = iter(loader), iter(loader)
        head = [next(one), next(other)]
        with pytest.raises(RuntimeError, match="two iterations of one loader ran at the same time"):
            list(one)
        assert_same(head + list(loader), whole)


@pytest.mark.parametrize("train", [True, False])
def test_an_epoch_that_is_left_at_its_last_batch_is_over(shards, train):
    with make(shards, train=train) as loader:
        whole = [[batch.keys for batch in loader] for _ in range(3)]
    with make(shards, train=train) as loader:
        for expected in whole:
            found = [batch.keys for _, batch in zip(range(loader.batches_per_epoch), loader, strict=False)]
            assert found == expected


def test_skeleton_only_decodes_nothing_and_rgb_only_has_no_joints(shards):
    with make(shards, video=False) as loader, make(shards) as both:
        skeletons, full = list(loader), list(both)
        assert loader.stats.clips_decoded == 0
    for one, two in zip(skeletons, full, strict=True):
        assert one.video_BTHWC is None and torch.equal(one.joints_BMTVC, two.joints_BMTVC)
    with make(shards, joints=False, plan=replace(PLAN, crop="boxes")) as loader:
        assert next(iter(loader)).joints_BMTVC is None


def test_views_give_every_clip_several_times_with_other_frames(shards):
    with make(shards, train=False, plan=replace(PLAN, views=2), limit=4, batch_size=3) as loader:
        batches = list(loader)
    keys = [key for batch in batches for key in batch.keys]
    views = [view for batch in batches for view in batch.view_B.tolist()]
    assert keys == [f"clip{i:05d}" for i in range(4) for _ in range(2)] and views == [0, 1] * 4
    clips = flat(batches)
    assert all(not torch.equal(clips[f"clip{i:05d}", 0][0], clips[f"clip{i:05d}", 1][0]) for i in range(4))


def test_limit_takes_a_number_or_rows(shards):
    assert make(shards, limit=5).num_clips == 5
    loader = make(shards, limit=np.array([3, 9, 4, 1]), train=False)
    with loader:
        assert next(iter(loader)).keys == ("clip00003", "clip00009", "clip00004", "clip00001")
    with pytest.raises(UserError, match="limit names row 99, not in split 'all'"):
        make(shards, limit=np.array([1, 99]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 24}, "^split 'all': 23 clips, fewer than one step with batch_size=24 and world_size=1; use a smaller"),
        ({"limit": 3, "last_batch": "partial", "world_size": 4}, "3 clips, fewer.*world_size=4.*needs one clip per rank"),
        ({"batch_size": 0}, "^batch_size is 0: expected 1 or more, a whole number$"),
        ({"batch_size": 2.0}, r"^batch_size is 2\.0: expected 1 or more, a whole number$"),
        ({"prefetch": 0}, "^prefetch is 0: expected 1 or more"),
        ({"num_threads": "2"}, "^num_threads is '2': expected 1 or more"),
        ({"world_size": 0}, "^world_size is 0: expected 1 or more"),
        ({"seed": "x"}, "^seed is 'x': expected a whole number from"),
        ({"max_bad_rate": 1.5}, r"^max_bad_rate is 1\.5: expected a number from 0 to 1$"),
        ({"last_batch": "x"}, "^last_batch is 'x': expected 'drop' or 'partial'$"),
        ({"decoder": "x"}, "^decoder is 'x': expected 'dali' or 'reference'$"),
        ({"device": "gpu"}, "^device is 'gpu': expected 'cpu', 'cuda' or 'cuda:n'$"),
        ({"device": "cuda0"}, "^device is 'cuda0': expected 'cpu', 'cuda' or 'cuda:n'$"),
        ({"device": "cuda:99"}, r"^device is 'cuda:99', but PyTorch finds \d GPUs here: use (a lower number or )?'cpu'$"),
        ({"video": False, "joints": False}, "a batch would be empty"),
        ({"train": False, "last_batch": "drop"}, "would leave clips out"),
        ({"rank": 3, "world_size": 2}, "^rank is 3: expected a whole number from 0 to 1$"),
        ({"limit": 0}, "limit is 0: expected a number of clips, 1 or more"),
        ({"limit": np.arange(23) > 19}, r"^limit is bool of shape \(23,\): expected a number.*for a mask use np\.flatnonzero$"),
        ({"limit": True}, r"^limit is bool of shape \(\): expected a number of clips, or a list"),
        ({"limit": [0.5, 2.9]}, r"^limit is float64 of shape \(2,\): expected .* of shards\.rows\('all'\), whole numbers"),
        ({"limit": [[1, 2]]}, r"^limit is int64 of shape \(1, 2\)"),
        ({"limit": []}, r"^limit is float64 of shape \(0,\)"),
        ({"smallest_batch": 0}, "^smallest_batch is 0: expected 1 or more"),
    ],
)
def test_arguments_are_checked(shards, options, message):
    with pytest.raises(UserError, match=message), make(shards, **options) as loader:
        next(iter(loader))


def test_unknown_split_lists_the_splits(shards):
    with pytest.raises(UserError, match="no split 'xsub'; it has all"):
        ClipLoader(shards, "xsub", PLAN, batch_size=2, train=True)


def test_a_label_outside_the_split_is_named(shards, tmp_path):
    shutil.copytree(shards.root, tmp_path / "copy")
    edit_manifest(tmp_path / "copy", split_classes={"all": ["a", "b", "d", "e"]})
    with pytest.raises(UserError, match="clip clip00002 has label 2, but split 'all' has the classes a, b, d, e"):
        make(ShardSet.open(tmp_path / "copy"))


def our_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("svdata2vec")]


def test_a_shard_set_is_told_what_a_rank_reads_in_this_step_and_the_next_seven(shards, monkeypatch):
    told = []
    monkeypatch.setattr(ShardSet, "will_need", lambda _, rows: told.append(rows.tolist()))
    with make(shards, train=False, batch_size=1, rank=1, world_size=2, video=False) as loader:
        list(loader)
    mine = [*range(1, 23, 2), 22]
    assert told == [mine[step : step + 8] for step in range(12)]


def test_threads_end_with_the_loader(shards):
    loader = make(shards)
    next(iter(loader))
    assert len(our_threads()) >= 2
    loader.close()
    assert not our_threads()
    loader = make(shards)
    next(iter(loader))
    del loader  # collected without close
    wait_for(lambda: not our_threads(), 5)


def test_an_exception_in_training_leaves_nothing_behind(shards):
    with pytest.raises(RuntimeError, match="loss is nan"), make(shards) as loader:
        for _ in loader:
            raise RuntimeError("loss is nan")
    assert not our_threads()


@pytest.mark.parametrize("method", ["fork", "spawn"])
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_loader_works_in_a_child_process(shards, method):
    with make(shards) as loader:
        expected = [batch.keys for batch in loader]  # the parent's threads and pipeline are alive
        loader.set_epoch(0)
        assert keys_in_child(loader, method) == expected
        assert [batch.keys for batch in loader] == expected


@pytest.mark.parametrize("codec", ["jpeg", "blocks"])
def test_cuda_is_the_current_gpu_of_whoever_iterates(codec, tmp_path, monkeypatch):
    """Decoders, streams and memory of a loader are on one GPU, whichever is current in the threads that use them."""
    shards, streams, second = shard_set(tmp_path, 2, codec=codec), [], torch.device("cuda", 1)
    for name, fake in {"device_count": lambda: 2, "current_device": lambda: 1, "Stream": streams.append}.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    producer = ClipLoader(shards, "all", PlanConfig(num_frames=4, size=32), batch_size=1, device="cuda").make_producer()
    places = [producer.device, *streams, *(lane.decoder.device for lane in producer.turns.lanes)]
    producer.close()
    assert places == [second] * 5
