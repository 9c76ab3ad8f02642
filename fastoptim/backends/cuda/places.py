"""Keeps, for each stream, the memory that its kernels share: stream order alone says who uses it when.

Memory that has been given back on a stream may be written again by later work on that stream, and by nothing else. So
nothing is freed while kernels that use it are in flight, whatever memory manager numba.cuda has.
"""

from __future__ import annotations

import itertools
import threading
from collections import OrderedDict
from typing import Any

import numpy as np

from .driver import Buffer, NumbaDriver
from .streams import LEGACY, PER_THREAD

PLACES = 16  # streams whose memory is kept
SLOTS = 8  # uploads of one table that may be in flight
FREE = 1 << 28  # bytes that lie idle on a stream before they go back to the memory manager


class Place:
    """One stream of one device."""

    def __init__(self, driver: NumbaDriver, handle: int, device: int):
        self.driver, self.handle, self.device = driver, handle, device
        self.stream, self.raw = driver.stream(handle), driver.raw_stream(handle)
        self.id = driver.stream_id(self)
        self.answer: Any = None  # pinned memory for what the host reads
        self.answer_address = 0
        # All that was lent, too: what is garbage together with its lease would be freed before the lease gives it back.
        self._all: set[Memory] = set()
        self._free: dict[int, list[Memory]] = {}
        self._idle = 0
        self._scratch: dict[str, Lease] = {}

    def lease(self, words: int) -> Lease:
        """At least so many 8-byte words, until the `Lease` is dropped."""
        capacity = max(32, 1 << (words - 1).bit_length())
        free = self._free.get(capacity)
        if free:
            self._idle -= 8 * capacity
            memory = free.pop()
            memory.version = None
            return Lease(self, memory)
        self._trim()
        memory = Memory(self, capacity)
        self._all.add(memory)
        return Lease(self, memory)

    def take_back(self, memory: Memory) -> None:
        self._free.setdefault(memory.buffer.size, []).append(memory)
        self._idle += 8 * memory.buffer.size

    def _trim(self) -> None:
        """Give memory that has long been idle back to the memory manager."""
        if self._idle > FREE:
            self.driver.cuda.synchronize()
            self._all -= {memory for free in self._free.values() for memory in free}
            self._free.clear()
            self._idle = 0

    def scratch(self, use: str, words: int) -> Buffer:
        """Memory for float64 sums, kept from step to step."""
        lease = self._scratch.get(use)
        if lease is None or lease.memory.buffer.size < words:
            lease = self._scratch[use] = self.lease(words)
        return lease.memory.floats


class Memory:
    """Device memory of a place, and the pinned memory from which it is written."""

    def __init__(self, place: Place, capacity: int):
        array = place.driver.cuda.device_array(capacity, np.int64)
        address = array.__cuda_array_interface__["data"][0]
        self.buffer = Buffer.of(array, address)
        self.floats = Buffer.of(array.view(np.float64), address)
        self.version: Any = None  # of the words that it holds
        self._slots: list[tuple[Any, Any]] = []  # pinned memory, each with the event after its upload

    def write(self, words: np.ndarray, version: Any, place: Place) -> None:
        """Upload words in stream order."""
        cuda = place.driver.cuda
        slot = next((slot for slot in self._slots if slot[1].query()), None)
        if slot is None and len(self._slots) >= SLOTS:
            slot = self._slots[0]
            slot[1].synchronize()
        if slot is None:
            slot = cuda.pinned_array(self.buffer.size, np.int64), cuda.event(timing=False)
            self._slots.append(slot)
        pinned, event = slot
        pinned[: words.size] = words
        self.version = None  # an interrupted upload leaves nothing known
        place.driver.upload(self.buffer, pinned, words.size, place)
        event.record(place.stream)
        self.version = version


class Lease:
    """Memory that is its place's again when this object goes."""

    __slots__ = ("memory", "place")

    def __init__(self, place: Place, memory: Memory):
        self.place, self.memory = place, memory

    def __del__(self) -> None:
        self.place.take_back(self.memory)


class Places:
    """The places of all streams that were used lately."""

    def __init__(self, driver: NumbaDriver):
        self._driver = driver
        self._known: OrderedDict[tuple[int, int, int], Place] = OrderedDict()
        self._thread = threading.local()

    def __len__(self) -> int:
        return len(self._known)

    def find(self, handle: int, device: int) -> Place:
        """The place of a stream. The per-thread default stream has one handle, and is another stream in each thread.

        The default streams are there for ever; at another stream's handle there may be a new one.
        """
        thread = 0
        if handle == PER_THREAD:
            thread = self._thread.__dict__.setdefault("number", next(_numbers))
        key = (device, handle, thread)
        place = self._known.get(key)
        if place is not None and (handle in (LEGACY, PER_THREAD) or place.id == self._driver.stream_id(place)):
            self._known.move_to_end(key)
            return place
        # A new stream; perhaps at the handle of one that is gone, whose work may still use what its place lent.
        if place is not None or len(self._known) >= PLACES:
            self._driver.cuda.synchronize()
            self._known.pop(key, None)
            while len(self._known) >= PLACES:
                self._known.popitem(last=False)
        place = self._known[key] = Place(self._driver, handle, device)
        return place


_numbers = itertools.count(1)
