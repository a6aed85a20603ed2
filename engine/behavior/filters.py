"""Filters over usage events (B1): the part that hashes can answer for the kernel, and the rest on the whole event."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from engine.behavior import kernel
from engine.definitions import FieldTest, UsageTrigger

_FIELDS = {"app": kernel.FIELD_APP, "category": kernel.FIELD_CATEGORY, "action": kernel.FIELD_ACTION}


def is_hashed(test: FieldTest) -> bool:
    """Say whether the kernel answers this test by comparing hashes."""
    return test.field in _FIELDS and test.op in ("==", "in")


def compile_filters(triggers: Sequence[UsageTrigger], hash_text: Callable[[str], int]) -> kernel.TriggerTable:
    """Build the lookup of `kernel.TriggerTable`; each filter is filed under its most telling field."""
    filed: dict[int, list[int]] = {}
    test_start, test_field, value_start, values = [0], [], [0], []
    for index, trigger in enumerate(triggers):
        hashed = {}
        for test in trigger.tests:
            if is_hashed(test):
                wanted = [test.value] if test.op == "==" else list(test.value)
                hashed[_FIELDS[test.field]] = [hash_text(str(value)) for value in wanted]
        if not hashed:
            raise AssertionError("content refuses a usage trigger without an app, category or action")
        filing = min(hashed)
        for value in hashed[filing]:
            filed.setdefault(int(kernel.mix(np.uint64((value + filing) & (2**64 - 1)))), []).append(index)
        for field, wanted_hashes in hashed.items():
            test_field.append(field)
            values.extend(wanted_hashes)
            value_start.append(len(values))
        test_start.append(len(test_field))
    capacity = 8
    while capacity < 2 * len(filed):
        capacity *= 2
    slot_key, slot_list = np.zeros(capacity, np.uint64), np.zeros(capacity, np.int32)
    list_start: list[int] = [0]
    list_trigger: list[int] = []
    for row, (key, members) in enumerate(filed.items()):
        slot = key & (capacity - 1)
        while slot_key[slot]:
            slot = (slot + 1) & (capacity - 1)
        slot_key[slot], slot_list[slot] = key, row
        list_trigger.extend(dict.fromkeys(members))
        list_start.append(len(list_trigger))
    return kernel.TriggerTable(
        slot_key,
        slot_list,
        np.array(list_start, np.int32),
        np.array(list_trigger, np.int32),
        np.array(test_start, np.int32),
        np.array(test_field, np.int32),
        np.array(value_start, np.int32),
        np.array(values, np.uint64),
    )


def holds(test: FieldTest, event: Any) -> bool:
    """Answer a test on the whole event."""
    actual = field_of(event, test.field)
    if actual is None:
        return False
    if test.op == "==":
        return _is_equal(actual, test.value)
    if test.op == "in":
        return any(_is_equal(actual, value) for value in test.value)
    if test.op == "prefix":
        return isinstance(actual, str) and actual.startswith(test.value)
    low, high = test.value
    return is_number(actual) and (low is None or actual >= low) and (high is None or actual < high)


def field_of(event: Any, field: str) -> Any:
    """The value of a field, props.<name> included; None where it is absent."""
    if field.startswith("props."):
        return (event.props or {}).get(field[6:])
    return getattr(event, field, None) or None


def is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_equal(actual: Any, wanted: Any) -> bool:
    # true is not 1: a filter that asks for a number is not answered by a yes.
    return isinstance(actual, bool) == isinstance(wanted, bool) and bool(actual == wanted)


def summand_of(event: Any, field: str) -> float | None:
    """What an event adds to a sum: a number >= 0; anything else adds nothing (B2)."""
    value = field_of(event, field)
    if not is_number(value):
        return None
    try:
        real = float(value)
    except OverflowError:
        return None
    return real if 0.0 <= real < math.inf else None


def value_hash(value: Any, hash_text: Callable[[str], int]) -> int:
    """Hash a value so that equal ones are equal, 1 and 1.0 too, and text is no number; 0 where there is none."""
    if value is None:
        return 0
    if isinstance(value, str):
        return hash_text(value)
    if isinstance(value, bool):
        return hash_text(f"\0{value}")
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return hash_text(f"\0{value!r}")
