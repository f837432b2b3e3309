"""The order of batches is a pure function of (seed, global step)."""

from __future__ import annotations

from collections import Counter

import pytest

from syncflow.train.order import Order, Stream


def _epoch(order: Order, steps: range) -> list[tuple[int, int]]:
    return [(pick.shard, pick.place) for step in steps for pick in order.at(step)]


def test_an_epoch_holds_every_clip_once_as_far_as_batches_divide_it() -> None:
    order = Order([Stream((7, 5, 9, 3), 1.0)], batch_size=4, seed=3, window=4)
    seen = Counter(_epoch(order, range(6)))
    assert len(seen) == 24
    assert set(seen.values()) == {1}
    assert all(place < (7, 5, 9, 3)[shard] for shard, place in seen)


def test_epochs_differ_and_seeds_differ() -> None:
    order = Order([Stream((16, 16), 1.0)], batch_size=8, seed=0)
    first, second = _epoch(order, range(4)), _epoch(order, range(4, 8))
    assert sorted(first) == sorted(second)
    assert first != second
    assert first != _epoch(Order([Stream((16, 16), 1.0)], batch_size=8, seed=1), range(4))


def test_any_step_is_found_without_its_predecessors() -> None:
    streams = [Stream((50,) * 20, 2.0), Stream((9, 4), 1.0)]
    walked = Order(streams, batch_size=6, seed=5)
    picks = [walked.at(step) for step in range(2500)]
    for step in (0, 1, 999, 1000, 1001, 2499):
        assert Order(streams, batch_size=6, seed=5).at(step) == picks[step]


def test_ranks_of_any_number_share_out_the_same_step() -> None:
    order = Order([Stream((40,), 1.0)], batch_size=8, seed=0)
    whole = order.at(17)
    for world_size in (1, 2, 4):
        shares = [order.at(17)[rank::world_size] for rank in range(world_size)]
        assert Counter(pick for share in shares for pick in share) == Counter(whole)


def test_streams_get_steps_by_weight_and_a_step_is_of_one_stream() -> None:
    order = Order([Stream((30,), 3.0), Stream((30,), 1.0), Stream((30,), 1e-9)], batch_size=2, seed=0)
    counts = Counter(order.stream_at(step)[0] for step in range(4000))
    assert counts[0] + counts[1] + counts[2] == 4000
    assert counts[2] == 4  # the rarest still has its turn
    assert counts[0] / counts[1] == pytest.approx(3, rel=0.02)
    assert all(len({pick.stream for pick in order.at(step)}) == 1 for step in range(50))


def test_fewer_clips_than_a_batch_are_seen_equally_often() -> None:
    order = Order([Stream((2, 1), 1.0)], batch_size=8, seed=0)
    seen = Counter((pick.shard, pick.place) for step in range(300) for pick in order.at(step))
    assert len(seen) == 3
    assert max(seen.values()) - min(seen.values()) <= 300


def test_lanes_touch_few_shards() -> None:
    """A slot of the batch walks through its own shards: over an epoch it meets about shards / slots of them."""
    order = Order([Stream((100,) * 64, 1.0)], batch_size=8, seed=0)
    mine = {order.at(step)[3].shard for step in range(800)}
    assert len(mine) <= 64 // 8 + 1


def test_a_hundred_thousand_shards_are_planned_in_seconds() -> None:
    import time

    order = Order([Stream((1000,) * 100_000, 1.0)], batch_size=256, seed=0)
    started = time.monotonic()
    order.at(123_456)
    assert time.monotonic() - started < 10
