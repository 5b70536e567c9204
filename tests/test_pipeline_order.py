"""Order, rank parts and steps over a grid, without any input or output."""

import hashlib
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from svdata2vec.pipeline.keyed import keyed_generator
from svdata2vec.pipeline.order import OrderConfig, epoch_order, taken


def test_order_is_a_permutation_keyed_by_seed_and_epoch():
    orders = {(seed, epoch): epoch_order(1000, seed, epoch, True) for seed in (0, 1) for epoch in (0, 1)}
    for order in orders.values():
        np.testing.assert_array_equal(np.sort(order), np.arange(1000))
    for first, second in itertools.combinations(orders.values(), 2):
        assert (first == second).mean() < 0.02
    np.testing.assert_array_equal(epoch_order(1000, 1, 1, True), orders[1, 1])
    np.testing.assert_array_equal(epoch_order(5, 0, 3, False), np.arange(5))


def test_order_is_frozen_for_old_checkpoints():
    """A saved run must continue in the same order with every later version."""
    assert epoch_order(8, 0, 0, True).tolist() == [5, 6, 2, 1, 7, 3, 4, 0]
    assert keyed_generator("train", 0, 0, "key").integers(1000, size=4).tolist() == [486, 905, 566, 397]
    keys = (0, 0, 0), (0, 1, 0), (1, 0, 0), (0, 0, 1)  # seed, epoch, number of the set
    assert [taken(8, 0.5, *key)[0].tolist() for key in keys] == [[3, 2, 7, 4], [5, 0, 6, 1], [4, 1, 2, 6], [5, 2, 6, 0]]


def test_generator_keys_do_not_run_together():
    draws = {
        tuple(keyed_generator(*key).integers(2**32, size=2).tolist())
        for key in [("a", "bc"), ("ab", "c"), ("a", 1), ("a", "1"), ("a", 11), ("a", 1, 1), ("b", 1)]
    }
    assert len(draws) == 7


@pytest.mark.parametrize("kind", [np.int64, np.int32, np.uint8])
def test_a_whole_number_is_one_key_whatever_its_type(kind):
    assert epoch_order(8, kind(0), kind(0), True).tolist() == epoch_order(8, 0, 0, True).tolist()
    first, second = (keyed_generator("train", *numbers, "key") for numbers in ((7, 3), (kind(7), kind(3))))
    assert first.integers(1000, size=4).tolist() == second.integers(1000, size=4).tolist()


@pytest.mark.parametrize("part", [1.0, None, b"key"])
def test_keys_are_numbers_or_text(part):
    with pytest.raises(TypeError):
        keyed_generator("train", part)


def order_of(num_clips, batch, drop, rank, world_size):
    return OrderConfig(np.arange(num_clips), 1, batch, 0, False, drop, rank, world_size)


@pytest.mark.parametrize("num_clips", [1, 7, 64, 101])
@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
@pytest.mark.parametrize("batch", [1, 4])
def test_ranks_share_every_step_without_gap_or_overlap(num_clips, world_size, batch):
    for drop in (True, False):
        seen: list[int] = []
        ranks = [order_of(num_clips, batch, drop, rank, world_size) for rank in range(world_size)]
        for step in ranks[0].steps(0):
            parts = [order.part(step) for order in ranks]
            sizes = [stop - start for start, stop in parts]
            assert max(sizes) - min(sizes) <= 1 and (not drop or set(sizes) == {batch})
            seen += [i for start, stop in parts for i in range(start, stop)]
        whole = num_clips - num_clips % (batch * world_size) if drop else num_clips
        assert seen == list(range(whole))


def test_another_world_size_resumes_where_the_first_stopped():
    first = order_of(100, 4, False, 0, 2).steps(0)[:5]
    rest = order_of(100, 4, False, 0, 3).steps(first[-1][1])
    assert [i for start, stop in first + rest for i in range(start, stop)] == list(range(100))


@pytest.mark.parametrize(("position", "bounds"), [
    (0, [0, 8, 16, 24]), (8, [8, 16, 24]),  # no other batches: six are left out
    (2, [2, 10, 18, 26, 30]), (26, [26, 30]), (22, [22, 30]),  # one more step
    (3, [3, 11, 19, 30]), (27, []),  # too few for one: part of the last one, if there is one
])
def test_an_epoch_that_was_started_with_other_batches_leaves_out_what_is_too_little_for_a_step(position, bounds):
    """30 clips, in steps of four for each of two ranks, each of which needs at least two."""
    order = OrderConfig(np.arange(30), 1, 4, 0, True, True, 0, 2, smallest_batch=2)
    assert order.steps(position) == list(itertools.pairwise(bounds))


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_steps_are_counted_as_they_are_listed(data: st.DataObject) -> None:
    clips, batch, smallest = (data.draw(st.integers(1, most)) for most in (60, 7, 7))
    world_size = data.draw(st.integers(1, 5))
    train, drop = data.draw(st.sampled_from([(True, True), (True, False), (False, False)]))
    rank, position = data.draw(st.integers(0, world_size - 1)), data.draw(st.integers(0, clips))
    order = OrderConfig(np.arange(clips), 1, batch, 0, train, drop, rank, world_size, smallest)
    parts = [order.part(step) for step in order.steps(position)]
    assert order.parts_left(position) == sum(start < stop for start, stop in parts)


def test_steps_of_ten_million_clips_are_counted_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """In every training step: a list of them took 0.4 seconds."""
    order, listed, steps = order_of(10**7, 32, True, 0, 1), [], OrderConfig.steps
    monkeypatch.setattr(OrderConfig, "steps", lambda self, position: listed.append(steps(self, position)) or listed[-1])
    assert order.parts_left(0) == 312_500 and len(listed[0]) == 2


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match="rank 2 of world size 2"):
        order_of(4, 2, True, 2, 2).part((0, 4))
    with pytest.raises(ValueError, match="position 9 of 5 clips"):
        order_of(5, 2, True, 0, 1).steps(9)


def test_the_generator_is_numpys_philox_with_the_hash_as_its_key():
    parts = (b"s", b"order"), (b"i", b"3"), (b"s", b"clip")
    text = b"".join(kind + len(part).to_bytes(4, "little") + part for kind, part in parts)
    key = int.from_bytes(hashlib.blake2b(text, digest_size=16).digest(), "little")
    expected = np.random.Generator(np.random.Philox(key=key))
    found = keyed_generator("order", 3, "clip")
    for draw in (lambda g: g.random(5), lambda g: g.integers(7, size=3), lambda g: g.permutation(9), lambda g: g.normal()):
        np.testing.assert_array_equal(draw(found), draw(expected))
