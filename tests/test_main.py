"""The command line: what it prints, its exit statuses, and its one-line errors."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from autograd_bn.__main__ import COMMANDS, main


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def error_of(capsys, *argv):
    """The only line on standard error of a command that must end in status 2."""
    status = main(argv)
    captured = capsys.readouterr()
    assert status == 2, captured
    return captured.err.strip().splitlines()[-1]


def test_no_argument_compares_the_packaged_digits_and_draws_both_graphs(capsys, tmp_path):
    assert main([]) == 0
    out = capsys.readouterr().out
    for text in ("packaged digits", "1797 x 64", "output", "dx", "dgamma", "dbeta", "ulp", "bytes kept", "ms"):
        assert text in out
    assert "composed and fused agree in every row" in out
    folder = tmp_path / "batch_norm_graphs"
    assert f"Pictures in {folder.name}" in out
    assert sorted(path.name for path in folder.iterdir()) == ["composed.png", "composed.svg", "fused.png", "fused.svg"]
    for path in folder.iterdir():
        assert path.read_bytes().startswith(b"\x89PNG" if path.suffix == ".png" else b"<?xml")


def test_json_is_one_object(capsys):
    assert main(["compare", "--json", "--order", "2"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["ok"] is True
    assert [row["name"] for row in report["rows"]] == "output dx dgamma dbeta d2x d2gamma d2beta".split()
    assert report["forms"]["composed"]["operations"] == 9
    assert report["forms"]["fused"]["operations"] == 1


@pytest.mark.parametrize("suffix", ["npy", "npz", "csv"])
def test_the_users_own_data(capsys, suffix):
    data = np.random.default_rng(0).normal(size=(20, 3))
    path = f"mine.{suffix}"
    if suffix == "npy":
        np.save(path, data)
    elif suffix == "npz":
        np.savez(path, x=data, labels=np.arange(20))
    else:
        np.savetxt(path, data, delimiter=",")
    assert main(["compare", path, "-o", "out"]) == 0
    assert f"Batch norm of {path}: x of shape 20 x 3, float64" in capsys.readouterr().out


def test_render_writes_the_file_it_names(capsys):
    assert main(["render", "-o", "graph.dot"]) == 0
    assert capsys.readouterr().out.strip() == "graph.dot"
    with open("graph.dot") as file:
        assert "digraph" in file.read()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("text.csv", b"1,2\n3,four\n", "text.csv, line 2, column 2: 'four' is not a number"),
        ("ragged.csv", b"1,2\n3\n", "ragged.csv, line 2 has 1 columns, expected 2"),
        ("empty.csv", b"", "empty.csv is empty"),
        ("broken.npy", b"\x93NUMPY\x01\x00", "can't read broken.npy: it is damaged or not such a file"),
        ("broken.npz", b"PK\x03\x04", "can't read broken.npz: it is damaged or not such a file"),
        ("data.txt", b"1 2", "data.txt ends in '.txt', expected .npy, .npz or .csv"),
        ("one_row.csv", b"1,2\n", "one value per feature"),
    ],
)
def test_a_bad_file_gives_one_clear_line(capsys, name, content, message):
    with open(name, "wb") as file:
        file.write(content)
    assert message in error_of(capsys, "compare", name)


class Bomb:
    """Unpickling this would leave a trace."""

    def __reduce__(self):
        return open, ("exploded", "w")


@pytest.mark.parametrize("suffix", ["npy", "npz"])
def test_pickled_objects_are_refused_unopened(capsys, tmp_path, suffix):
    data = np.array([Bomb()], dtype=object)
    (np.save if suffix == "npy" else np.savez)(f"bomb.{suffix}", data)
    assert "it holds pickled objects" in error_of(capsys, "compare", f"bomb.{suffix}")
    assert not (tmp_path / "exploded").exists()


def test_other_bad_input(capsys):
    np.save("complex.npy", np.ones((3, 2), complex))
    np.save("vector.npy", np.ones(3))
    np.savez("two.npz", a=np.ones(2), b=np.ones(2))
    open("file", "w").close()
    assert "can't read missing.npy: no such file" in error_of(capsys, "compare", "missing.npy")
    assert "dtype complex128, expected real numbers" in error_of(capsys, "compare", "complex.npy")
    assert "shape (3,), expected rows of features" in error_of(capsys, "compare", "vector.npy")
    assert "holds a, b: expected one array, or one named x" in error_of(capsys, "compare", "two.npz")
    assert "can't write to the folder file/graphs" in error_of(capsys, "compare", "-o", "file/graphs")
    assert "order is 0, expected 1 or more" in error_of(capsys, "compare", "--order", "0")
    assert "unrecognized arguments" in error_of(capsys, "compare", "--colour")
    assert "invalid choice: 'paint'" in error_of(capsys, "paint")
    assert "'.jpg'" in error_of(capsys, "render", "-o", "graph.jpg")


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_an_example(capsys, command):
    assert main([command, "--help"]) == 0
    out = capsys.readouterr().out
    assert f"example: autograd-bn {command}" in out


def test_the_module_runs_as_a_program_and_shows_no_traceback():
    root = Path(__file__).parent.parent
    command = [sys.executable, "-m", "autograd_bn", "compare", "no.npy"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "autograd-bn compare: can't read no.npy: no such file or directory\n"
