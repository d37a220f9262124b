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


@given(st.lists(st.lists(addresses, max_size=12, unique=True), max_size=6), st.data())
def test_an_entry_says_what_was_stored_last_or_nothing(
    rounds: list[list[Address]], data: st.DataObject
) -> None:
    """What the table says of an address does not change until the cache is cleared."""
    seen = AddressCache()
    told: dict[Address, tuple[int, bool]] = {}
    for number, drawn in enumerate(rounds):
        everything = [*told, *drawn, (WORD - 1, WORD - 1, (1 << 32) - 1, (1 << 32) - 1, 65535)]
        found = seen.find(records(everything))
        for address, entry in zip(everything, found.tolist(), strict=True):
            if entry != EMPTY:
                said = np.array([entry])
                assert told[address] == (int(cache.home(said)[0]), bool(cache.low(said)[0]))
        fresh = [address for address in drawn if address not in told and address[4] != 65535]
        if fresh:
            homes = np.arange(len(fresh)) + 1000 * number
            low = np.array([data.draw(st.booleans()) for _ in fresh])
            entries = seen.store(records(fresh), homes, low)
            assert cache.home(entries).tolist() == homes.tolist()
            assert cache.low(entries).tolist() == low.tolist()
            told |= dict(zip(fresh, zip(homes.tolist(), low.tolist(), strict=True), strict=True))
        if data.draw(st.booleans()):
            seen.clear()
            assert (seen.find(records(list(told))) == EMPTY).all()


def test_nearly_all_that_was_stored_is_found_again() -> None:
    seen, headers = AddressCache(), records(counted(20_000))
    numbers = np.arange(20_000)
    # Growing forgets what was there; who comes again is stored again.
    for part in np.array_split(np.tile(numbers, 5), 50):
        missing = part[seen.find(headers[part]) == EMPTY]
        if missing.size:
            seen.store(headers[missing], missing, missing % 2 == 0)
    found = seen.find(headers)
    there = found != EMPTY
    assert there.mean() > 0.98
    assert (cache.home(found[there]) == numbers[there]).all()


def test_a_flood_of_addresses_costs_bounded_memory() -> None:
    seen, sizes = AddressCache(), set()
    for start in range(0, 200_000, 20_000):
        headers = records([(3, 2, port, 1, 1) for port in range(start, start + 20_000)])
        seen.store(headers, np.arange(20_000), np.zeros(20_000, np.bool_))
        sizes.add(seen._entries.nbytes)
    assert max(sizes) == cache._LARGEST * cache._ENTRY.itemsize
