"""Checkpoints: what goes in comes out, nothing is unpickled, and no kill or damage loses or garbles one."""

import os
import random
import stat
import subprocess
import sys
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, strategies as st
from hypothesis.extra import numpy as arrays

import autograd_bn as ag
from autograd_bn import nn


@given(
    st.dictionaries(
        st.text(st.characters(codec="utf-8", exclude_characters="\0\\"), max_size=12).filter(lambda name: name),
        arrays.arrays(
            st.sampled_from(["f2", "f4", "f8", "i8", "u1", "?", "U3", ">f4"]),
            arrays.array_shapes(min_dims=0, min_side=0, max_side=4),
        ),
        max_size=4,
    )
)
def test_what_goes_in_comes_out(tmp_path_factory, state):
    path = tmp_path_factory.mktemp("checkpoint") / "state.npz"
    ag.save(path, state)
    found = ag.load(path)
    assert list(found) == list(state)
    for name, array in state.items():
        np.testing.assert_array_equal(found[name], array)
        assert found[name].dtype == array.dtype
    with np.load(path) as theirs:
        assert set(theirs.files) == set(state)


def test_a_net_comes_back_to_the_bit_through_a_file(tmp_path):
    def net(seed):
        return nn.Sequential(nn.Linear(4, 3, rng=seed), nn.BatchNorm(3))

    mine, other = net(0), net(1)
    mine(np.random.default_rng(0).normal(size=(5, 4)))
    ag.save(tmp_path / "net.npz", mine.state_dict())
    other.load_state_dict(ag.load(tmp_path / "net.npz"))
    for name, array in other.state_dict().items():
        np.testing.assert_array_equal(array, mine.state_dict()[name])


def test_tensors_and_numbers_and_text_are_saved_as_arrays(tmp_path):
    ag.save(tmp_path / "a.npz", {"t": ag.tensor([1.5]), "n": 3, "s": "text"})
    found = ag.load(tmp_path / "a.npz")
    assert (found["t"].tolist(), found["n"].item(), found["s"].item()) == ([1.5], 3, "text")


class Bomb:
    """Unpickling makes a file named by `armed`."""

    armed: Path

    def __reduce__(self):
        return Path.touch, (self.armed,)


def test_objects_are_refused_before_anything_runs(tmp_path):
    Bomb.armed = tmp_path / "went-off"
    np.savez(tmp_path / "bomb.npz", weight=np.ones(3), x=np.array([Bomb()], dtype=object))
    with pytest.raises(ValueError, match=r"bomb\.npz is not an intact checkpoint: Object arrays"):
        ag.load(tmp_path / "bomb.npz")
    assert not Bomb.armed.exists()
    ag.save(tmp_path / "net.npz", {"x": [1.0]})
    with pytest.raises(TypeError, match=r"state\['x'\] is an array of Python objects"):
        ag.save(tmp_path / "net.npz", {"x": np.array([None])})
    with pytest.raises(TypeError, match="MaskedArray"):  # whose mask would be lost
        ag.save(tmp_path / "net.npz", {"x": np.ma.array([1.0, 2.0], mask=[0, 1])})
    assert ag.load(tmp_path / "net.npz")["x"] == [1.0]


def test_an_array_that_is_there_twice_is_refused(tmp_path):
    path = tmp_path / "twice.npz"
    ag.save(path, {"x": [1.0]})
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("x.npy", archive.read("x.npy"))
    with pytest.raises(ValueError, match=r"unexpected member 'x\.npy'"):
        ag.load(path)


STATE = {"weight": np.arange(40.0).reshape(8, 5), "running_mean": np.ones(5, "float32"), "n": np.array(3)}


def damaged(path, content):
    """Load a damaged file: an error that names it, or, where the damage touched nothing, the whole state."""
    path.write_bytes(content)
    try:
        found = ag.load(path)
    except ValueError as error:
        message = str(error)
    else:
        message = ""
    if message:
        assert message.startswith(f"{path} is not an intact checkpoint: ")
        assert "\n" not in message
        return True
    assert list(found) == list(STATE)
    for name, array in STATE.items():
        np.testing.assert_array_equal(found[name], array)
    return False


def test_every_truncation_is_refused(tmp_path):
    path = tmp_path / "net.npz"
    ag.save(path, STATE)
    content = path.read_bytes()
    assert all(damaged(path, content[:length]) for length in range(0, len(content), 7))


def test_every_flipped_byte_is_refused_or_harmless(tmp_path):
    path = tmp_path / "net.npz"
    ag.save(path, STATE)
    content = path.read_bytes()
    flip = random.Random(0)
    refused = 0
    for i in range(len(content)):
        wrong = bytearray(content)
        wrong[i] ^= 1 << flip.randrange(8)
        refused += damaged(path, bytes(wrong))
    assert refused > 0.8 * len(content)


@pytest.mark.parametrize("foreign", [b"", b"text", b"\x89PNG\r\n\x1a\n", b"PK\x03\x04"])
def test_a_foreign_file_is_refused(tmp_path, foreign):
    assert damaged(tmp_path / "foreign.npz", foreign)


def test_an_array_file_and_another_archive_are_refused(tmp_path):
    np.save(tmp_path / "a.npy", np.ones(3))
    with pytest.raises(ValueError, match=r"a\.npy is not an intact checkpoint"):
        ag.load(tmp_path / "a.npy")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("notes.txt", "hello")
    with pytest.raises(ValueError, match=r"unexpected member 'notes\.txt'"):
        ag.load(tmp_path / "a.zip")


def test_a_missing_file_and_folder_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nothing\.npz"):
        ag.load(tmp_path / "nothing.npz")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        ag.save(tmp_path / "nowhere" / "net.npz", STATE)


def test_a_failed_save_keeps_the_old_file_and_leaves_no_other(tmp_path, monkeypatch):
    path = tmp_path / "net.npz"
    ag.save(path, STATE)

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np.lib.format, "write_array", full)
    with pytest.raises(OSError, match="No space left"):
        ag.save(path, {"weight": np.zeros(3)})
    assert os.listdir(tmp_path) == ["net.npz"]
    np.testing.assert_array_equal(ag.load(path)["weight"], STATE["weight"])


def test_a_link_is_followed(tmp_path):
    ag.save(tmp_path / "first.npz", STATE)
    (tmp_path / "latest.npz").symlink_to("first.npz")
    ag.save(tmp_path / "latest.npz", {"n": 4})
    assert (tmp_path / "latest.npz").is_symlink()
    assert ag.load(tmp_path / "first.npz")["n"] == 4


def test_threads_that_save_to_one_path_leave_one_whole_file(tmp_path):
    path = tmp_path / "net.npz"

    def saves(thread):
        for i in range(25):
            ag.save(path, {"thread": thread, "weight": np.full(3000, float(thread * 100 + i))})
            assert len(set(ag.load(path)["weight"].tolist())) == 1

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(saves, range(4)))
    assert os.listdir(tmp_path) == ["net.npz"]
    found = ag.load(path)
    assert found["weight"][0] // 100 == found["thread"]


def test_a_file_keeps_its_mode_and_a_new_one_follows_the_umask(tmp_path):
    path = tmp_path / "net.npz"
    before = os.umask(0o027)
    try:
        ag.save(path, STATE)
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o640
    path.chmod(0o600)
    ag.save(path, STATE)
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_device_is_written_to_and_stays_one(tmp_path):
    pipe, link = tmp_path / "pipe", tmp_path / "link.npz"
    os.mkfifo(pipe)
    link.symlink_to(pipe)
    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(pipe.read_bytes)
        ag.save(link, STATE)
        (tmp_path / "copy.npz").write_bytes(reading.result())
    assert ag.load(tmp_path / "copy.npz")["n"] == 3
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    assert link.is_symlink()
    ag.save(os.devnull, STATE)
    with pytest.raises(IsADirectoryError):
        ag.save(tmp_path, STATE)


@pytest.mark.parametrize(
    ("state", "error", "message"),
    [
        ({1: [1.0], "1": [2.0]}, TypeError, "state has the name 1, expected strings"),
        ({"a\0b": [1.0]}, ValueError, r"state has the name 'a\\x00b'"),
        ({"é" * 33_000: [1.0]}, ValueError, "which a checkpoint can't hold"),
        (dict.fromkeys(map(str, range(65_536)), 0), ValueError, "65536 arrays, a checkpoint holds at most 65535"),
    ],
)
def test_what_could_not_be_read_again_is_refused(tmp_path, state, error, message):
    with pytest.raises(error, match=message):
        ag.save(tmp_path / "net.npz", state)
    assert os.listdir(tmp_path) == []


def test_the_longest_name_comes_back(tmp_path):
    ag.save(tmp_path / "net.npz", {"x" * 65_531: 1})
    assert list(ag.load(tmp_path / "net.npz")) == ["x" * 65_531]


def test_arguments_in_the_other_order_are_named(tmp_path):
    with pytest.raises(TypeError, match=r"state is a \w+, expected save\(path, state\)"):
        ag.save(STATE, tmp_path / "net.npz")


KILLS = """
import os, random, signal, sys, time
import numpy as np
from autograd_bn.nn.checkpoint import load, save

path, moments, interrupted = sys.argv[1], random.Random(1), 0
state = lambda i: {"count": i, "weight": np.full((500, 500), float(i)), "last": i}
save(path, state(0))
for _ in range(40):
    ready, write = os.pipe()
    child = os.fork()
    if not child:
        os.write(write, b"!")
        for i in range(1, 10**9):
            save(path, state(i))
    os.read(ready, 1)
    time.sleep(moments.uniform(0, 0.03))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    interrupted += len(os.listdir(os.path.dirname(path))) > 1
    for left in set(os.listdir(os.path.dirname(path))) - {"net.npz"}:
        os.unlink(f"{os.path.dirname(path)}/{left}")
    found = load(path)
    assert found["count"] == found["last"] and (found["weight"] == found["count"]).all()
print(interrupted)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills forked processes")
def test_forty_kills_of_a_saving_process_lose_no_checkpoint(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", KILLS, str(tmp_path / "net.npz")],
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert not done.returncode, done.stderr
    assert int(done.stdout) > 0  # so many kills did hit a save in progress


def test_a_small_file_that_unpacks_to_much_is_refused_unless_it_is_allowed(tmp_path):
    path = tmp_path / "zeros.npz"
    np.savez_compressed(path, x=np.zeros(2_000_000))
    with pytest.raises(RuntimeError, match=r"zeros\.npz unpacks to 16,000,128 bytes; load\(path, limit=16000128\)"):
        ag.load(path, limit=1_000_000)
    assert len(ag.load(path, limit=16_000_128)["x"]) == 2_000_000
    ag.save(path, {"x": np.zeros(2_000_000)})
    assert len(ag.load(path, limit=1_000_000)["x"]) == 2_000_000  # no larger than its file
