"""Planted damage in tars: skipped, replaced reproducibly, counted, logged; too much of it ends the run."""

import logging
import os
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from pipeline_factory import shard_set
from shards_data import without_sums

from svdata2vec.pipeline.decoders import DecoderName
from svdata2vec.pipeline.fetch import BadClipError
from svdata2vec.pipeline.loader import ClipLoader
from svdata2vec.pipeline.plan import PlanConfig
from svdata2vec.pipeline.producer import most_unusable
from svdata2vec.shards.errors import UserError
from svdata2vec.shards.reading.shardset import ShardSet

PLAN = PlanConfig(num_frames=4, size=32)
HUGE = np.float32([3e38, 3e38, -3e38, -3e38]).tobytes()  # two joints
FAR = np.float32([1e9, 1e9, -1e9, -1e9]).tobytes()
Content = bytes | Callable[[bytes], bytes] | None
ALL = {f"clip{i:05d}" for i in range(12)}


@pytest.fixture
def summed(tmp_path) -> ShardSet:
    return shard_set(tmp_path / "shards", 12)


@pytest.fixture
def shards(summed) -> ShardSet:
    """As packed by 0.2.0, without checksums: damage must be found by reading and decoding."""
    return without_sums(Path(summed.root))


def damage(shards: ShardSet, row: int, component: str, content: Content = None, at: float = 0.0) -> None:
    """Overwrite a clip's component inside its tar, starting at the share `at` of it (None = zeros up to its end)."""
    column = shards.manifest.components.index(component)
    entry = shards.index[row]
    size = int(entry["size"][column])
    skip = int(at * size)
    if callable(content):
        content = content(bytes(shards.read(row, [component])[component]))
    content = bytes(size - skip) if content is None else content[: size - skip]
    with (Path(shards.root) / shards.manifest.shards[int(entry["shard"])].name).open("r+b") as tar:
        tar.seek(int(entry["offset"][column]) + skip)
        tar.write(content)


def run(shards: ShardSet, *, train: bool = True, batch_size: int = 4, **options) -> tuple[list, ClipLoader]:
    with ClipLoader(shards, "all", PLAN, batch_size=batch_size, train=train, **options) as loader:
        return list(loader), loader


def test_a_damaged_clip_is_reported_once(shards: ShardSet, caplog: pytest.LogCaptureFixture) -> None:
    """Not in every epoch, and the line names its tar only once."""
    damage(shards, 5, "pose.npy", None, 0.0)
    with caplog.at_level(logging.WARNING), ClipLoader(shards, "all", PLAN, batch_size=4, train=True) as loader:
        for _ in range(4):
            list(loader)
    assert loader.stats.clips_skipped >= 4
    (line,) = [record.getMessage() for record in caplog.records if "skipping clip" in record.getMessage()]
    assert line.count("shard-000001.tar") == 1


def keys_of(batches: list) -> list[str]:
    return [key for batch in batches for key in batch.keys]


@pytest.mark.parametrize(
    ("component", "content", "at"),
    [
        ("jpegs", None, 0.0),                        # a hole in the file
        ("jpegs", bytes(range(256)) * 400, 0.02),    # found by the decoder only: its pipeline dies
        ("offsets.npy", None, 0.5),
        ("pose.npy", b"\xff" * 100_000, 0.1),        # joints that are not numbers
        ("json", b"}", 0.0),
        ("json", b"\x00" * 10_000, 0.0),
        ("json", lambda old: re.sub(rb'(?<="num_frames":)\d\d', b"[]", old), 0.0),
        ("json", lambda old: re.sub(rb'(?<="fps":)30.0', b"null", old), 0.0),
        ("json", lambda old: re.sub(rb'(?<="label":)\d', b"4", old), 0.0),
        ("pose.npy", lambda old: old.replace(b"}", b"(", 1), 0.0),  # NumPy's parser of headers raises a TokenError
        ("pose.npy", lambda old: old[:128] + HUGE * 10_000, 0.0),  # their box is too large for float32
        ("pose.npy", lambda old: old[:128] + FAR * 10_000, 0.0),  # the crop is gigantic
        ("box.npy", None, 0.0),
    ],
)
@pytest.mark.parametrize("decoder", ["dali", "reference"])
def test_a_damaged_clip_is_replaced_and_nothing_else_changes(shards, caplog, component, content, at, decoder):
    clean, _ = run(shards, decoder=decoder)
    damage(shards, 7, component, content, at)
    with caplog.at_level(logging.WARNING):
        first, loader = run(shards, decoder=decoder)
    second, _ = run(shards, decoder=decoder)
    place = keys_of(clean).index("clip00007")
    assert place == 1  # its frames are not the first of a batch
    assert 1 <= loader.stats.clips_skipped <= 3  # once per epoch; later epochs are prefetched
    assert any(re.search(r"clip00007 of \S*shard-000001\.tar", record.getMessage()) for record in caplog.records)
    for (old, new), again in zip(zip(clean, first, strict=True), second, strict=True):
        assert new.keys == again.keys and torch.equal(new.video_BTHWC, again.video_BTHWC)
        for i, key in enumerate(old.keys):
            if key == "clip00007":
                assert new.keys[i] in ALL - {"clip00007"}
                assert int(new.keys[i][4:]) % 5 == int(new.label_B[i]) and new.video_BTHWC[i].float().std() > 5
            else:
                assert new.keys[i] == key and torch.equal(old.video_BTHWC[i], new.video_BTHWC[i])
    assert keys_of(first)[:place] == keys_of(clean)[:place]


def test_the_replacement_does_not_depend_on_batches_or_ranks(shards):
    damage(shards, 3, "jpegs")
    damage(shards, 8, "json")
    reference = keys_of(run(shards, batch_size=1)[0])
    assert keys_of(run(shards, batch_size=6)[0]) == reference
    parts = [run(shards, batch_size=2, rank=rank, world_size=2)[0] for rank in range(2)]
    assert keys_of([batch for pair in zip(*parts, strict=True) for batch in pair]) == reference


def test_only_damaged_clips_fail_among_those_read_together(summed):
    """Each with its own reason; the other clips are bit for bit what they are without the damaged ones."""
    with ClipLoader(summed, "all", PLAN, batch_size=4, train=True) as loader:
        producer = loader.make_producer()
        fetcher, rows = producer.fetcher, list(range(12))
        clean = [fetcher.fetch(row, 1, 0) for row in rows]
        damage(summed, 2, "json", b"}")
        damage(summed, 5, "jpegs")
        damage(summed, 9, "pose.npy", lambda old: old[:128] + FAR * 10_000)
        found = fetcher.fetch_step(rows, 1, [0] * 12)
        producer.close()
    for row, (clip, alone) in enumerate(zip(found, clean, strict=True)):
        if row in (2, 5, 9):
            assert isinstance(clip, BadClipError) and f"clip{row:05d}" in str(clip)
            continue
        assert clip.key == alone.key and clip.encoded.frames_T.tolist() == alone.encoded.frames_T.tolist()
        assert clip.encoded.output_to_packed.tobytes() == alone.encoded.output_to_packed.tobytes()
        assert clip.joints_MTVC.tobytes() == alone.joints_MTVC.tobytes()
        assert bytes(clip.encoded.video) == bytes(alone.encoded.video)


def test_evaluation_leaves_damaged_clips_out(shards):
    damage(shards, 3, "jpegs")
    damage(shards, 8, "json")
    with pytest.raises(UserError, match=r"2 of 12 clips are unusable, more than the allowed 1.00%.*clip0000[38].*max_bad_rate"):
        run(shards, train=False)  # a share of them all, however few
    batches, loader = run(shards, train=False, max_bad_rate=0.2)
    assert keys_of(batches) == sorted(ALL - {"clip00003", "clip00008"}) and loader.stats.clips_skipped == 2
    assert [len(batch) for batch in batches] == [3, 4, 3]
    assert (loader.stats.clips_read, loader.stats.clips_decoded, loader.stats.skipped_in_batches) == (12, 10, 2)


@pytest.mark.parametrize(("rate", "views", "passes"), [(0.01, 1, True), (0.01, 3, True), (0.0, 1, False)])
@pytest.mark.parametrize("component", ["jpegs", "json"])
def test_one_clip_of_few_may_be_lost_in_each_pass(shards, rate, views, passes, component):
    """Whether the decoder's thread finds it or the reader's."""
    damage(shards, 3, component)
    plan = PlanConfig(num_frames=4, size=32, views=views)
    with ClipLoader(shards, "all", plan, batch_size=4, max_bad_rate=rate) as loader:
        if passes:
            assert [len(keys_of(list(loader))) for _ in range(3)] == 3 * [11 * views]
            assert loader.stats.clips_skipped == 3 * views and len(loader.stats.unusable) == 1
        else:
            with pytest.raises(UserError, match=r"1 of 12 clips are unusable, more than the allowed 0.00%"):
                list(loader)


def test_resume_after_a_damaged_clip_is_exact(shards):
    damage(shards, 5, "jpegs", bytes(range(256)) * 400, 0.02)
    whole, _ = run(shards, batch_size=2)
    with ClipLoader(shards, "all", PLAN, batch_size=2, train=True) as loader:
        batches = iter(loader)
        head = [next(batches) for _ in range(3)]
        state = loader.state_dict()
    with ClipLoader(shards, "all", PLAN, batch_size=2, train=True) as loader:
        loader.load_state_dict(state)
        tail = list(loader)
    for one, two in zip(whole, head + tail, strict=True):
        assert one.keys == two.keys and torch.equal(one.video_BTHWC, two.video_BTHWC)


def test_early_in_training_the_rate_is_taken_of_a_thousand_clips(shards):
    order = ClipLoader(shards, "all", PLAN, batch_size=4, train=True).order
    assert [most_unusable(order, read, 0.01) for read in (4, 1000, 3000)] == [10, 10, 30]


def test_too_many_damaged_clips_end_the_run(shards):
    damage(shards, 3, "jpegs")
    with pytest.raises(UserError, match=r"1 of \d+ clips are unusable, more than the allowed 0.00%.*clip00003.*verify"):
        run(shards, max_bad_rate=0.0)
    with pytest.raises(ValueError, match=r"max_bad_rate is 1\.5"):
        run(shards, max_bad_rate=1.5)
    for row in range(12):
        damage(shards, row, "json")
    with pytest.raises(UserError, match=r"(\d+) of \1 clips are unusable"):
        run(shards)
    with pytest.raises(UserError, match="replacements are unusable too"):
        run(shards, max_bad_rate=1.0)


@pytest.mark.parametrize("gone", [True, False])
def test_a_vanished_or_truncated_tar_is_named(shards, gone):
    tar = Path(shards.root) / "shard-000001.tar"
    if gone:
        tar.unlink()
    else:
        tar.write_bytes(tar.read_bytes()[:5000])
    with pytest.raises(UserError, match=r"shard-000001.tar: (missing|5000 bytes), expected \d+ bytes"):
        run(shards)
    with pytest.raises(UserError, match=r"shard-000001.tar: (missing|5000 bytes), expected \d+ bytes"):
        ShardSet.open(shards.root)


def test_hashes_are_checked_on_demand(shards, monkeypatch):
    hashed, check_hash = [], shards.check_hash
    with monkeypatch.context() as patched:
        patched.setattr(shards, "check_hash", lambda shard: hashed.append(shard) or check_hash(shard))
        run(shards, check_hashes=True)
    assert sorted(hashed) == list(range(len(shards.tars)))  # each once
    damage(shards, 5, "pose.npy", np.ones(4, np.float32).tobytes(), 0.5)
    assert run(shards)[1].stats.clips_skipped == 0  # plausible numbers: nothing but a hash can tell
    with pytest.raises(UserError, match=r"shard-000001.tar: sha256 [0-9a-f]{12}..., expected .*verify"):
        run(shards, check_hashes=True)


@pytest.mark.parametrize("train", [True, False])
def test_checksums_find_what_nothing_else_can_tell(summed, caplog, train):
    plausible = np.ones(4, np.float32).tobytes()
    damage(summed, 5, "pose.npy", plausible, 0.5)
    damage(summed, 2, "box.npy", plausible, 0.5)
    damage(summed, 8, "json", lambda old: old.replace(b'"fps":30.0', b'"fps":31.0'))
    changed = {"clip00005": "pose.npy", "clip00002": "box.npy", "clip00008": "json"}
    with caplog.at_level(logging.WARNING):
        batches, _ = run(summed, train=train, max_bad_rate=0.25)
    assert not set(changed) & set(keys_of(batches)) and (train or set(keys_of(batches)) == ALL - set(changed))
    for key, component in changed.items():
        assert f"clip {key}, {component}: its bytes are not those that were packed (CRC-32)" in caplog.text


def test_a_frame_is_compared_before_it_is_decoded_and_others_do_not_matter(summed, monkeypatch):
    """One bit in one frame: a clip is lost if that frame is sampled, and has the same pixels if not."""
    row, frame = 4, 3
    offsets = summed.sample(row).offsets
    before, _ = run(summed, train=False, batch_size=1)
    taken = dict(frames_taken(summed, monkeypatch))
    place = (int(offsets[frame]) + int(offsets[frame + 1])) // 2
    damage(summed, row, "jpegs", lambda old: old[:place] + bytes([old[place] ^ 1]) + old[place + 1 :])
    after, loader = run(summed, train=False, batch_size=1)
    assert loader.stats.clips_skipped == (frame in taken["clip00004"])
    for numbers in ([frame], [0, frame, 5]):
        with pytest.raises(UserError, match=rf"shard-000001\.tar: clip clip00004, frame {frame}: its bytes are not those"):
            summed.frames(row, offsets, numbers)
    summed.frames(row, offsets, [0, 1, 2, 4, 5])
    with pytest.raises(UserError, match="clip clip00004, jpegs: its bytes are not those"):
        summed.sample(row)
    kept = {batch.keys[0]: batch for batch in after}
    assert all(torch.equal(batch.video_BTHWC, kept[batch.keys[0]].video_BTHWC) for batch in before if batch.keys[0] in kept)


def frames_taken(shards: ShardSet, monkeypatch) -> list[tuple[str, list[int]]]:
    """(key, frames) that an evaluation reads."""
    seen: list[tuple[str, list[int]]] = []
    read = ShardSet.cut

    def note(self, row, frames_D, starts, stops):
        seen.append((self.index[row]["key"].decode(), frames_D.tolist()))
        return read(self, row, frames_D, starts, stops)

    with monkeypatch.context() as patched:
        patched.setattr(ShardSet, "cut", note)
        run(shards, train=False, batch_size=1)
    return seen


def test_older_folders_say_once_that_they_have_no_checksums(summed, caplog):
    with caplog.at_level(logging.WARNING):
        older = without_sums(Path(summed.root))
        ShardSet.open(older.root)
    assert caplog.text.count("packed without checksums, so that damage is found only where it cannot be decoded") == 1
    assert f"`svdata2vec verify {older.root} --add-sums` adds them" in caplog.text


def test_an_error_outside_the_clips_reaches_the_training_loop(shards, monkeypatch):
    monkeypatch.setattr("svdata2vec.pipeline.fetch.make_plans", lambda *_, **__: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        run(shards)


def test_a_tar_truncated_while_it_is_read_ends_in_one_clear_error(shards):
    """Not in a bus error of the whole process, as with mapped files."""
    with ClipLoader(shards, "all", PLAN, batch_size=2, train=True, prefetch=1) as loader:
        next(iter(loader))
        assert shards._tars  # open in this very process
        for shard in shards.manifest.shards:
            os.truncate(Path(shards.root) / shard.name, 3000)
        with pytest.raises(UserError, match=r"shard-00000\d.tar: 3000 bytes, expected \d+ bytes; copy it again"):
            for _ in range(3):
                list(loader)
    with pytest.raises(UserError, match=r"shard-000000.tar: ends before byte \d+, where clip clip00002 should end"):
        shards.sample(2)


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("decoder", ["dali", "reference"])
def test_a_tar_truncated_between_reading_and_decoding_is_no_damaged_clip(
    summed: ShardSet, decoder: DecoderName, train: bool
) -> None:
    """Pictures are mapped and were checked when they were read: bytes that are gone since then read as zeros, in every clip."""
    with ClipLoader(summed, "all", PLAN, batch_size=4, train=train, decoder=decoder, max_bad_rate=1.0) as loader:
        producer = loader.make_producer()
        read = next(producer.read(0, 0))
        for shard in summed.manifest.shards:
            os.truncate(Path(summed.root) / shard.name, 3000)
        with pytest.raises(UserError, match=r"shard-00000\d\.tar: 3000 bytes, expected \d+ bytes; copy it again"):
            list(producer.decode(iter([read])))
        producer.close()
    assert read.skipped == loader.stats.clips_skipped == 0


def test_only_the_frames_of_the_plan_are_read(shards, monkeypatch):
    amounts: list[int] = []
    read = os.pread
    monkeypatch.setattr("svdata2vec.shards.reading.shardset.os.pread", lambda *a: amounts.append(a[1]) or read(*a))
    run(shards, last_batch="partial")
    assert sum(amounts) < 0.5 * 2 * shards.index["size"].sum()  # at most two epochs are prefetched; JPEGs are mapped
    whole, table = shards.sample(3), shards.sample(3, video=False, table=True)
    assert table.video is None and table.offsets.tolist() == whole.offsets.tolist()
    assert bytes(shards.frames(3, whole.offsets, [])[0]) == bytes(whole.video)


def test_more_tars_than_are_kept_open(shards, monkeypatch):
    monkeypatch.setattr("svdata2vec.shards.reading.shardset.MAX_OPEN_TARS", 2)
    clean, _ = run(shards)
    assert keys_of(clean) and len(shards._tars) == 2
    before = psutil.Process().num_fds()
    for row in [0, 4, 8] * 50:
        shards.sample(row)
    assert psutil.Process().num_fds() <= before
