"""User slots: exact, in order of first sight, given back under a new generation (DESIGN, Hot path)."""

from __future__ import annotations

import random

import numpy as np
import pytest

from engine.decode.users import UserTable


def test_ids_get_slots_in_order_of_first_sight_and_keep_them_while_the_table_grows() -> None:
    table, slots = UserTable(8), {}
    chance = random.Random(1)
    for _ in range(20_000):
        user = f"user-{chance.randrange(9_000)}" + "x" * chance.randrange(3)
        slot = table.slot_of(user)
        assert slots.setdefault(user, slot) == slot
    assert list(slots.values()) == list(range(len(slots)))
    assert table.count == table.live == len(slots)
    assert all(table.id_of(slot) == user for user, slot in slots.items())


def test_many_ids_are_read_at_once_whatever_their_script() -> None:
    table = UserTable(2)
    users = ["a", "北京用户", "x" * 128, "b", "ü"]
    for kept in (users, [one for one in users if one.isascii()]):
        slots = np.array([table.slot_of(user) for user in kept + kept[::-1]])
        assert table.ids_of(slots) == kept + kept[::-1]
    assert table.ids_of(np.zeros(0, np.int32)) == []
    table.evict([1])
    for slots in ([1], [99], [-1]):
        with pytest.raises(KeyError):
            table.ids_of(np.array(slots))


def test_an_unknown_id_is_not_added_unless_asked() -> None:
    table = UserTable()
    assert table.slot_of("nobody", intern=False) == -1
    assert table.count == 0


def test_ids_are_compared_to_the_last_byte() -> None:
    table = UserTable()
    near = ["a" * 20 + tail for tail in ("", "a", "b", "ba", "bb")] + ["用户一", "用户二"]
    assert [table.slot_of(one) for one in near] == list(range(len(near)))
    assert [table.slot_of(one) for one in near] == list(range(len(near)))


@pytest.mark.parametrize("text", ["", "x" * 256])
def test_an_id_that_cannot_be_stored_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="cannot be interned"):
        UserTable().slot_of(text)
    assert UserTable().slot_of(text, intern=False) == -1


def test_an_evicted_slot_is_used_again_under_the_next_generation() -> None:
    table = UserTable()
    for one in ("a", "b", "c"):
        table.slot_of(one)
    table.evict([1])
    assert table.slot_of("b", intern=False) == -1
    assert (table.slot_of("a"), table.slot_of("c")) == (0, 2)
    with pytest.raises(KeyError):
        table.id_of(1)
    with pytest.raises(KeyError):
        table.evict([1])
    assert table.slot_of("d") == 1
    assert table.generation[:3].tolist() == [0, 1, 0]
    assert (table.count, table.live) == (3, 3)


def test_a_forgotten_id_leaves_no_bytes_behind() -> None:
    """I2: what is evicted is gone from memory and from checkpoints."""
    table = UserTable()
    table.slot_of("secret-user")
    table.evict([0])
    assert b"secret-user" not in table.arrays()["arena"].tobytes()


def test_churn_of_users_does_not_make_the_table_grow_for_ever() -> None:
    table = UserTable(64)
    for number in range(30_000):
        slot = table.slot_of(f"user-{number:012d}")
        if number >= 100:
            table.evict([table.slot_of(f"user-{number - 100:012d}", intern=False)])
        assert slot <= 101
    assert len(table.texts.arena) < 30_000
    assert len(table.texts.entries) <= 1024


def test_a_table_restored_from_arrays_goes_on_as_the_first_would() -> None:
    table = UserTable()
    for number in range(5_000):
        table.slot_of(f"u{number}")
    table.evict(range(0, 5_000, 3))
    arrays = {name: np.frombuffer(one.tobytes(), one.dtype) for name, one in table.arrays().items()}
    again = UserTable.from_arrays(arrays)
    for number in range(4_000, 9_000):
        assert again.slot_of(f"u{number}") == table.slot_of(f"u{number}")
    assert {name: one.tolist() for name, one in again.arrays().items() if name in ("free", "generation")} == {
        name: one.tolist() for name, one in table.arrays().items() if name in ("free", "generation")
    }
    assert [again.id_of(slot) for slot in range(again.count)] == [table.id_of(slot) for slot in range(table.count)]


def test_memory_beside_the_ids_is_about_32_bytes_a_user() -> None:
    table = UserTable()
    count = 200_000
    for number in range(count):
        table.slot_of(f"{number:08d}")
    texts = table.texts
    used = texts.entries.nbytes + count * (texts.offset.itemsize + table.generation.itemsize) + int(texts.state[1])
    assert used / count - 8 <= 36
