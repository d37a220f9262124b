"""The key table does what a dict does, a batch at a time, also where every hash collides."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from vsockdump.tracking.table import _FIRST_PLACES, _SPARSE, EMPTY, KEY_WORDS, Keys, KeyTable

Hash = Callable[[KeyTable, Keys], NDArray[np.uint64]]
Key = tuple[int, ...]

HASHES: dict[str, Hash] = {
    "real": KeyTable._hash,
    # A few values, next to each other: long probes over strangers with the same hash.
    "tiny": lambda table, keys: (keys.sum(axis=1) % np.uint64(3)) | np.uint64(1),
    "one": lambda table, keys: np.full(len(keys), 2**64 - 1, np.uint64),
}
WORDS = (0, 1, 2, 2**32 - 1, 2**32, 2**64 - 1)

keys = st.lists(
    st.tuples(*[st.sampled_from(WORDS)] * KEY_WORDS), unique=True, min_size=1, max_size=40
)


def array(some: list[Key]) -> Keys:
    return np.array(some, np.uint64).reshape(-1, KEY_WORDS)


class Model:
    """A table and a dict that are told the same."""

    def __init__(self) -> None:
        self.table = KeyTable()
        self.slots: dict[Key, int] = {}
        self.numbers: dict[Key, int] = {}
        self.taken = 0

    def fresh(self, count: int) -> NDArray[np.int64]:
        """Slots that no key ever had."""
        self.taken += count
        return np.arange(self.taken - count, self.taken)

    def insert(self, some: list[Key]) -> None:
        fresh = [key for key in some if key not in self.slots]
        slots = self.fresh(len(fresh))
        _, hashes = self.table.find(array(fresh))
        numbers = self.table.insert(array(fresh), hashes, slots)
        for key, slot, number in zip(fresh, slots.tolist(), numbers.tolist(), strict=True):
            self.slots[key], self.numbers[key] = slot, number

    def moved(self, slots: NDArray[Any], numbers: NDArray[Any]) -> None:
        where = dict(zip(slots.tolist(), numbers.tolist(), strict=True))
        assert where.keys() == set(self.slots.values())
        self.numbers = {key: where[slot] for key, slot in self.slots.items()}

    def assign(self, some: list[Key]) -> None:
        known = [key for key in some if key in self.slots]
        slots = self.fresh(len(known))
        self.table.assign(np.array([self.numbers[key] for key in known], np.int64), slots)
        self.slots.update(zip(known, slots.tolist(), strict=True))

    def keep(self, some: list[Key]) -> None:
        self.slots = {key: slot for key, slot in self.slots.items() if key in some}
        kept = np.zeros(self.taken, np.bool_)
        kept[list(self.slots.values())] = True
        self.moved(*self.table.rebuild(kept))

    def check(self, some: list[Key]) -> None:
        numbers, _ = self.table.find(array(some))
        assert numbers.tolist() == [self.numbers.get(key, EMPTY) for key in some]
        known = numbers[numbers != EMPTY]
        expected = [self.slots[key] for key in some if key in self.slots]
        assert self.table.slots(known).tolist() == expected


@pytest.mark.parametrize("name", HASHES)
@settings(deadline=None, max_examples=40)
@given(
    steps=st.lists(st.tuples(st.sampled_from(("insert", "assign", "keep")), keys), max_size=8),
    asked=keys,
)
def test_it_maps_keys_like_a_dict(
    name: str, steps: list[tuple[str, list[Key]]], asked: list[Key]
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(KeyTable, "_hash", HASHES[name])
        model = Model()
        for step, some in steps:
            getattr(model, step)(some)
            model.check(some)
        model.check(asked)


@pytest.mark.parametrize("name", HASHES)
def test_it_grows_with_its_keys_and_finds_them_all(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(KeyTable, "_hash", HASHES[name])
    model = Model()
    # Colliding keys take time by their square.
    count = 8000 if name == "real" else 500
    every = [(number, number // 7, 1 << 63, 1) for number in range(count)]
    sizes = set()
    for begin in range(0, count, 100):
        model.insert(every[begin : begin + 100])
        model.check(every[:: count // 100])
        sizes.add(model.table._numbers.size)
    assert len(sizes) > 1
    model.check(every)
    model.keep(every[::3])
    model.check(every)


@pytest.mark.parametrize("many", [1, 1000, 100_000])
def test_it_is_never_crowded_nor_much_larger_than_needed(many: int) -> None:
    table = KeyTable()
    every = np.zeros((many, KEY_WORDS), np.uint64)
    every[:, 1] = np.arange(many)
    _, hashes = table.find(every)
    table.insert(every, hashes, np.arange(many))
    assert _SPARSE * many <= table._numbers.size <= max(2 * _SPARSE * many, _FIRST_PLACES)


def test_a_key_asked_for_twice_in_one_batch_is_found_twice() -> None:
    model = Model()
    model.insert([(1, 2, 3, 4)])
    model.check([(1, 2, 3, 4), (4, 3, 2, 1), (1, 2, 3, 4)])


def test_two_tables_hash_differently() -> None:
    # Otherwise a guest could choose ports that collide.
    some = array([(1, 2, 3, 4)])
    assert len({int(KeyTable().find(some)[1][0]) for _ in range(4)}) > 1
