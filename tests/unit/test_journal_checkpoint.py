"""Checkpoints: whole or not at all (docs/contracts.md Checkpoint; F1, F22)."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest

from engine.errors import StoreUnavailable
from engine.runtime import checkpoint
from engine.runtime.checkpoint import Checkpoint, Pending, WriterStuck

RECORD = np.dtype([("at_ms", "i8"), ("flag", "u1"), ("place", "f4", (2,))], align=True)


def sample(position: int = 7) -> Checkpoint:
    records = np.zeros(3, RECORD)
    records["at_ms"] = [1, 2, 3]
    records["place"] = 0.5
    arrays = {"records": records, "empty": np.zeros((0, 4), np.int32), "wide": np.arange(20_000, dtype=np.uint64)}
    return Checkpoint(position, 99, arrays, {"names": ["a", "b"], "n": {"x": 1}}, "0.1.0", "v1", 3)


def assert_same(one: Checkpoint, other: Checkpoint) -> None:
    assert (one.position, one.now_ms, one.objects) == (other.position, other.now_ms, other.objects)
    assert (one.engine, one.content_version, one.partition) == (other.engine, other.content_version, other.partition)
    assert one.arrays.keys() == other.arrays.keys()
    for name, array in one.arrays.items():
        assert array.dtype == other.arrays[name].dtype
        assert array.shape == other.arrays[name].shape
        assert array.tobytes() == other.arrays[name].tobytes()


def test_what_is_written_is_read_and_may_be_changed(tmp_path):
    checkpoint.write(tmp_path, sample())
    found = checkpoint.read_newest(tmp_path)
    assert found.refused == []
    assert_same(found.checkpoint, sample())
    found.checkpoint.arrays["wide"][0] = 5


def test_the_file_lies_as_the_contract_says(tmp_path):
    path = checkpoint.write(tmp_path, sample())
    data = path.read_bytes()
    header = json.loads(data.split(b"\n", 1)[0])
    assert (header["magic"], header["format"]) == ("opportune-checkpoint", 3)
    body = data.index(b"\n") + 1
    assert body % 4096 == 0
    for entry in header["arrays"]:
        assert entry["offset"] % 64 == 0
    wide = header["arrays"][-1]
    assert np.frombuffer(data[body + wide["offset"] :][: wide["bytes"]], np.uint64).tolist() == list(range(20_000))


def test_the_two_newest_are_kept_and_the_newest_is_read(tmp_path):
    for position in (-1, 5, 70, 800):
        checkpoint.write(tmp_path, sample(position))
    assert len(list(tmp_path.iterdir())) == 2
    assert checkpoint.read_newest(tmp_path).checkpoint.position == 800


def test_a_checkpoint_cut_anywhere_is_passed_over_for_the_older_one(tmp_path):
    checkpoint.write(tmp_path, sample(5))
    path = checkpoint.write(tmp_path, sample(6))
    data = path.read_bytes()
    for size in [*range(0, 1200, 7), 4095, 4096, 4097, *range(4100, len(data), 9001), len(data) - 1]:
        path.write_bytes(data[:size])
        found = checkpoint.read_newest(tmp_path)
        assert found.checkpoint.position == 5, size
        assert found.refused[0].startswith(path.name)


def test_a_flipped_bit_anywhere_that_matters_is_noticed(tmp_path):
    path = checkpoint.write(tmp_path, sample(6))
    data = path.read_bytes()
    header_end = len(data.split(b"\n", 1)[0].rstrip())
    for at in [*range(0, header_end, 11), *range(4096, 4096 + 72, 5), len(data) - 3]:
        broken = bytearray(data)
        broken[at] ^= 4
        path.write_bytes(bytes(broken))
        answer = checkpoint.read(path)
        # Padding between arrays carries no meaning: there the same state is read.
        if isinstance(answer, Checkpoint):
            assert_same(answer, sample(6))
            assert at >= 4096


def test_an_unknown_format_is_refused_with_its_reason(tmp_path):
    path = checkpoint.write(tmp_path, sample(6))
    path.write_bytes(path.read_bytes().replace(b'"format":3', b'"format":1', 1))
    assert checkpoint.read(path) == "format 1 is not 3"
    path.write_bytes(b'{"magic":"something else"}\n')
    assert checkpoint.read(path) == "not a checkpoint"


def test_a_full_disk_keeps_the_older_checkpoint(tmp_path):
    """F22: nothing half-written takes the place of what was good."""
    checkpoint.write(tmp_path, sample(5))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    old = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        with pytest.raises(StoreUnavailable, match="cannot be written"):
            checkpoint.write(tmp_path, sample(6))
        pending = checkpoint.write_in_background(tmp_path, sample(7))
        with pytest.raises(StoreUnavailable, match=r"cannot be written \(File too large\)"):
            pending.done(wait=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, old)
    assert checkpoint.read_newest(tmp_path).checkpoint.position == 5
    checkpoint.write(tmp_path, sample(8))
    assert not list(tmp_path.glob("*.partial"))


def test_what_another_owner_is_writing_stays_and_what_a_killed_one_left_goes(tmp_path):
    """F4: a worker that slept through its session wakes up beside the one that has its partition now."""
    for name, age_s in (("5.aaaa.partial", 1), ("6.bbbb.partial", 3600)):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (time.time() - age_s, time.time() - age_s))
    pending = [checkpoint.write_in_background(tmp_path, sample(8)) for _ in range(2)]
    assert all(one.done(wait=True) for one in pending), "both write the same position"
    assert [one.name for one in tmp_path.glob("*.partial")] == ["5.aaaa.partial"]
    assert checkpoint.read_newest(tmp_path).checkpoint.position == 8


def test_a_background_checkpoint_holds_the_state_of_its_start(tmp_path):
    state = sample(9)
    big = np.zeros(4_000_000, np.int64)
    state.arrays["big"] = big
    pending = checkpoint.write_in_background(tmp_path, state)
    big[:] = 1
    state.arrays["wide"][:] = 0
    assert pending.done(wait=True)
    assert pending.done()
    read = checkpoint.read_newest(tmp_path).checkpoint
    assert read.arrays["big"].max() == 0
    assert read.arrays["wide"].tolist() == list(range(20_000))


def test_a_writer_that_never_begins_is_not_waited_for(tmp_path, monkeypatch):
    """A child may inherit a lock that another thread held at the fork; who waits for it would wait for ever."""
    monkeypatch.setattr(checkpoint, "BEGINS_WITHIN_S", 0.05)
    with subprocess.Popen(["sleep", "60"]) as stuck:
        pending = Pending(stuck.pid, tmp_path / "5.checkpoint", tmp_path / "5.partial", 5)
        with pytest.raises(WriterStuck, match="never began"):
            pending.done(wait=True)
        stuck.returncode = -9  # waited for already
    with subprocess.Popen(["sleep", "0.3"]) as slow:
        pending = Pending(slow.pid, tmp_path / "6.checkpoint", tmp_path / "6.partial", 6)
        (tmp_path / "6.partial").touch()
        assert pending.done(wait=True), "what has begun is waited for"
        slow.returncode = 0


def test_the_child_lets_go_of_what_it_inherited(tmp_path):
    """A lock or a socket must not live on in the child when the parent is killed."""
    reading, writing = os.pipe()
    pending = checkpoint.write_in_background(tmp_path, sample(1))
    assert pending.done(wait=True)
    os.close(writing)
    assert os.read(reading, 1) == b"", "the other end is closed everywhere"
    os.close(reading)


def test_all_checkpoints_can_be_removed(tmp_path):
    checkpoint.write(tmp_path, sample(1))
    checkpoint.remove_all(tmp_path)
    assert checkpoint.read_newest(tmp_path).checkpoint is None


def test_a_layout_declared_aligned_comes_back_aligned(tmp_path: Path) -> None:
    # To Numba it would else be another type, and a restart would compile every kernel anew.
    aligned = np.dtype([("a", "u1"), ("b", "i8"), ("c", "u1")], align=True)
    packed = np.dtype([("a", "u1"), ("b", "i8")])
    arrays = {"aligned": np.ones(3, aligned), "packed": np.ones(2, packed), "plain": np.ones(2)}
    stored = Checkpoint(position=1, now_ms=1, arrays=arrays, objects={}, engine="", content_version="")
    back = checkpoint.read(checkpoint.write(tmp_path, stored))
    assert isinstance(back, Checkpoint)
    assert [back.arrays[name].dtype.isalignedstruct for name in arrays] == [True, False, False]
    assert all((back.arrays[name] == arrays[name]).all() for name in arrays)
