from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from vsockdump import wire
from vsockdump.tracking import cache
from vsockdump.tracking.cache import AddressCache
from vsockdump.tracking.table import EMPTY

Address = tuple[int, int, int, int, int]
FIELDS = ("src_cid", "dst_cid", "src_port", "dst_port", "type")
WORD = 1 << 64
edges = st.sampled_from([0, 1, 2, 42, (1 << 32) - 1])
FULL = (WORD - 1, WORD - 1, (1 << 32) - 1, (1 << 32) - 1, 65535)
"""All bits set, as in an empty entry."""
cids = edges | st.integers(0, WORD - 1)
addresses = st.tuples(cids, cids, edges, edges, st.sampled_from([0, 1, 2, 3, 65535]))


def records(drawn: list[Address]) -> NDArray[np.void]:
    headers = np.zeros(len(drawn), wire.HEADERS)
    for name, values in zip(FIELDS, zip(*drawn, strict=True), strict=False):
        headers[name] = values
    # What stands behind the addresses is nothing to the cache.
    headers["virtio_src_cid"] = np.arange(len(drawn))
    return headers


def counted(count: int) -> list[Address]:
    return [(3, 2, number, 1024, 1) for number in range(count)]


def turned(address: Address) -> Address:
    src_cid, dst_cid, src_port, dst_port, type_ = address
    return dst_cid, src_cid, dst_port, src_port, type_


@given(st.lists(st.lists(addresses, max_size=12), max_size=6), st.data())
def test_an_entry_says_what_was_stored_or_nothing(
    rounds: list[list[Address]], data: st.DataObject
) -> None:
    """What is stored depends on nothing but the address, as with a table, until it is cleared."""
    seen = AddressCache()
    numbers: dict[Address, int] = {}
    stored: list[Address] = []
    for drawn in rounds:
        everything = [*stored, *map(turned, stored), *drawn, FULL]
        found = seen.find(records(everything))
        for address, entry in zip(everything, found.tolist(), strict=True):
            if entry != EMPTY:
                key = min(address, turned(address))
                said = np.array([entry])
                assert key in numbers
                assert int(cache.key(said)[0]) == numbers[key]
                assert bool(cache.low(said)[0]) == (address == key)
        # The tracker follows nothing of these kinds.
        fresh = [a for a in drawn if a != turned(a) and a[4] != FULL[4]]
        if fresh:
            keys = [min(a, turned(a)) for a in fresh]
            mine = np.array([numbers.setdefault(key, len(numbers)) for key in keys])
            low = np.array([a == key for a, key in zip(fresh, keys, strict=True)])
            entries = seen.store(records(fresh), mine, low)
            assert cache.key(entries).tolist() == mine.tolist()
            assert cache.low(entries).tolist() == low.tolist()
            stored += fresh
        if data.draw(st.booleans()):
            seen.clear()
            assert (seen.find(records([*stored, FULL])) == EMPTY).all()


def test_an_answer_is_known_before_it_comes() -> None:
    seen = AddressCache()
    there = records([(3, 2, 1024, 5, 1)])
    seen.store(there, np.array([7]), np.array([True]))
    back = seen.find(records([(2, 3, 5, 1024, 1)]))
    assert (cache.key(back).tolist(), cache.low(back).tolist()) == ([7], [False])


def test_nearly_all_that_was_stored_is_found_again() -> None:
    seen, headers = AddressCache(), records(counted(20_000))
    numbers = np.arange(20_000)
    # Who is driven out and comes again is stored again.
    for part in np.array_split(np.tile(numbers, 5), 50):
        missing = part[seen.find(headers[part]) == EMPTY]
        if missing.size:
            seen.store(headers[missing], missing, missing % 2 == 0)
    found = seen.find(headers)
    there = found != EMPTY
    assert there.mean() > 0.98
    assert (cache.key(found[there]) == numbers[there]).all()


def test_a_flood_of_addresses_costs_bounded_memory() -> None:
    seen, sizes = AddressCache(), set()
    for start in range(0, 200_000, 20_000):
        headers = records([(3, 2, port, 1, 1) for port in range(start, start + 20_000)])
        seen.store(headers, np.arange(20_000), np.zeros(20_000, np.bool_))
        sizes.add(seen._entries.nbytes)
    assert max(sizes) == cache._LARGEST * cache._ENTRY.itemsize
