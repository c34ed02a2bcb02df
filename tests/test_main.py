"""The command line: what it prints, its exit statuses, and its one-line errors."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import autograd_bn as ag
from autograd_bn.__main__ import COMMANDS, main
from autograd_bn.commands import compare, fill
from autograd_bn.commands.data import load_data


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.save("small.npy", np.random.default_rng(0).normal(size=(12, 3)))


@pytest.fixture
def undrawn(monkeypatch):
    """`compare` without its pictures."""
    monkeypatch.setattr(ag, "render", lambda _, path: path)


def error_of(capsys, *argv):
    """The only line on standard error of a command that must end in status 2."""
    status = main(argv)
    captured = capsys.readouterr()
    assert status == 2, captured
    return captured.err.strip().splitlines()[-1]


@pytest.mark.timeout(400)
def test_no_argument_compares_the_packaged_digits_and_draws_both_graphs(capsys, tmp_path):
    assert main([]) == 0
    out = capsys.readouterr().out
    for text in ("packaged digits", "1797 x 64", "output", "dx", "dgamma", "dbeta", "ulp", "bytes kept", "ms"):
        assert text in out
    assert "composed and fused agree in every row" in out
    folder = tmp_path / "batch_norm_graphs"
    assert f"Pictures in {folder.name}" in out
    assert sorted(path.name for path in folder.iterdir()) == [
        *("compare.html", "composed.png", "composed.svg", "fused.png", "fused.svg")
    ]
    for path in folder.iterdir():
        start = {".png": b"\x89PNG", ".svg": b"<?xml", ".html": b"<!doctype html>"}[path.suffix]
        assert path.read_bytes().startswith(start)


def told(err):
    """The lines on stderr, but for the one that comes where Graphviz takes long, as on a busy machine."""
    return [line for line in err.splitlines() if not line.startswith("Graphviz is drawing")]


@pytest.mark.parametrize(("missing", "drawn"), [("pygraphviz", 0), ("resvg_py", 3)])
def test_what_can_not_be_drawn_stops_nothing(capsys, monkeypatch, tmp_path, missing, drawn):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setitem(sys.modules, missing, None)
    assert main(["compare", "small.npy"]) == 0
    out, err = capsys.readouterr()
    assert "composed and fused agree in every row" in out
    assert ("Pictures in" in out) == bool(drawn)
    assert len(list((tmp_path / "batch_norm_graphs").iterdir())) == drawn
    lines = told(err)
    assert len(lines) == 5 - drawn
    assert all(
        re.match(r"\w+\.(svg|png|html) is not drawn: drawing \w+ needs Graphviz: pip install", line) for line in lines
    )
    assert main(["compare", "small.npy", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["pictures"]) == drawn


def test_json_is_one_object(capsys, undrawn):
    assert main(["compare", "small.npy", "--json", "--order", "2"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["ok"] is True
    assert [row["name"] for row in report["rows"]] == "output dx dgamma dbeta d2x d2gamma d2beta".split()
    assert report["forms"]["composed"]["operations"] == 9
    assert report["forms"]["fused"]["operations"] == 1


@pytest.mark.parametrize("suffix", ["npy", "npz", "csv"])
def test_the_users_own_data(capsys, suffix, undrawn):
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
        ("ragged.csv", b"1,2\n3\n", "ragged.csv, line 2: the number of columns is 1, expected 2"),
        ("empty.csv", b"", "empty.csv is empty"),
        ("broken.npy", b"\x93NUMPY\x01\x00", "can't read broken.npy: it is damaged or not such a file"),
        ("broken.npz", b"PK\x03\x04", "can't read broken.npz: it is damaged or not such a file"),
        ("text.npy", b"1 2", "can't read text.npy: it is damaged or not such a file"),
        ("text.npz", b"1 2", "can't read text.npz: it is damaged or not such a file"),
        ("typo.csv", b"1,four\n3,4\n", "typo.csv, line 1, column 2: 'four' is not a number"),
        ("header.csv", b"a,b\n", "header.csv is empty"),
        ("hole.csv", b"a;b\n1;\n2;3\n", "hole.csv, line 2, column 2: '' is not a number"),
        ("words.csv", b"a,b\nc,d\n", "words.csv, line 2, column 1: 'c' is not a number"),
        ("data.dat", b"1 2", "data.dat ends in '.dat', expected .npy, .npz, .csv, .tsv or .txt"),
        ("one_row.csv", b"1,2\n", "one value per feature"),
    ],
)
def test_a_bad_file_gives_one_clear_line(capsys, name, content, message):
    with open(name, "wb") as file:
        file.write(content)
    assert message in error_of(capsys, "compare", name)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("header", b"height,weight\n1,2\n3,5\n4,9\n"),
        ("bom", b"\xef\xbb\xbfheight,weight\r\n1,2\r\n3,5\r\n4,9\r\n"),
        ("bom_without_header", b"\xef\xbb\xbf1,2\n3,5\n4,9"),
        ("semicolons", b"height;weight\n1,0;2\n3;5,0\n4;9\n"),
        ("tabs", b"height\tweight\n1\t2\n\n3\t5\n4\t9\n"),
        ("quoted", b'"height, in m","weight"\n"1","2"\n3,5\n4,9\n'),
        ("semicolon_in_quotes", b'"height; in m","weight"\n1,2\n3,5\n4,9\n'),
        ("semicolon_in_a_name", b"height; in m,weight\n1,2\n3,5\n4,9\n"),
        ("tab_in_quotes", b'"height\tin m","weight"\n1,2\n3,5\n4,9\n'),
        ("spaces", b"height weight\n1.0e+00   2\n 3 5.0 \n4 9\n"),
        ("savetxt", b"# height weight\n1.0e+00 2\n3 5\n4 9\n"),
        ("spaces_after_commas", b"height, weight\n1, 2\n3, 5\n4, 9\n"),
        ("text_beside", b"height,weight,name\n1,2,a b\n3,5,\n4,9,c\n"),
        ("months_beside", b"height,weight,month\n1,2,2024_01\n3,5,2024_02\n4,9,2024_03\n"),
        ("separators_at_the_ends", b"height,weight,\n1,2,\n3,5,\n4,9,\n"),
    ],
)
def test_csv_as_people_have_it(name, content):
    Path("data.CSV").write_bytes(content)
    data = load_data("data.CSV")
    np.testing.assert_array_equal(data.x, [[1, 2], [3, 5], [4, 9]])
    assert len(data.columns) == (0 if name == "bom_without_header" else 2)
    if data.columns:
        assert data.columns[1] == "weight"


@pytest.mark.parametrize("header", ["2019,2020", "nan,inf"])
def test_what_line_1_was_taken_for_is_said(capsys, monkeypatch, header):
    Path("data.csv").write_text(f"{header}\n1,2\n3,5\n")
    assert len(load_data("data.csv").x) == 3
    with monkeypatch.context() as patch:
        patch.setattr(ag, "render", lambda _, path: path)
        main(["compare", "data.csv"])
    assert f"No names of columns: line 1 is taken for numbers ({header.replace(',', ', ')})." in capsys.readouterr().out
    Path("data.csv").write_text("in m,in kg\n1,2\n3,5\n")
    main(["render", "data.csv", "-o", "graph.dot"])
    assert capsys.readouterr().err == "Line 1 is taken for the names of the columns: in m, in kg.\n"


def test_columns_of_text_are_left_out_aloud_and_columns_can_be_picked(capsys):
    Path("data.tsv").write_text("name\theight\tweight\nx\t1\t2\ny\t3\t5\n")
    data = load_data("data.tsv")
    np.testing.assert_array_equal(data.x, [[1, 2], [3, 5]])
    assert data.notes[-1] == "Without what holds no number: name."
    for asked, x in ("weight,height", [[2, 1], [5, 3]]), ("3", [[2], [5]]), ('"height"', [[1], [3]]):
        np.testing.assert_array_equal(load_data("data.tsv", asked).x, x)
    assert load_data("data.tsv", "3, height").columns == ("weight", "height")
    assert "line 2, column 1: 'x' is not a number" in error_of(capsys, "compare", "data.tsv", "--columns", "name")
    for asked in ("age", "0", "4", ""):
        message = error_of(capsys, "compare", "data.tsv", "--columns", asked)
        assert f"--columns has {asked!r}, expected name, height, weight, or a number from 1 to 3" in message
    assert "--columns picks columns of a" in error_of(capsys, "compare", "small.npy", "--columns", "1")
    assert "--columns picks columns of a" in error_of(capsys, "compare", "--columns", "1")


def test_an_archive_that_unpacks_to_too_much_is_refused_with_a_way_out(capsys, monkeypatch):
    np.savez_compressed("zeros.npz", np.zeros((1000, 20)))
    monkeypatch.setitem(ag.load.__kwdefaults__, "limit", 10_000)
    assert "zeros.npz unpacks to 160,128 bytes" in error_of(capsys, "compare", "zeros.npz")


def test_the_last_line_says_what_to_open(capsys):
    assert main(["compare", "small.npy", "-o", "out"]) == 0
    page = os.path.join("out", "compare.html")
    out = capsys.readouterr().out.splitlines()
    assert out[-1] == f"Both graphs side by side, step by step: open {page} in a browser"
    assert not [line for line in out if "last bits" in line]


def test_columns_that_are_not_finite_are_named_before_anything_is_compared(capsys, undrawn):
    Path("data.csv").write_text("height,weight,age\n1,2,3\nnan,3,4\ninf,5,7\n2,-inf,1\n")
    main(["compare", "data.csv"])
    out = capsys.readouterr().out
    assert "NaN or infinite values, by column: 2 in height, 1 in weight\n" in out
    assert out.index("NaN or infinite") < out.index("nodes in the graph")
    main(["compare", "data.csv", "--json"])
    assert json.loads(capsys.readouterr().out)["not_finite"] == {"height": 2, "weight": 1}
    np.save("data.npy", np.where(np.arange(20) % 2, np.nan, 1.0) * np.ones((4, 20)))
    main(["compare", "data.npy"])
    out = " ".join(capsys.readouterr().out.split())
    assert ", ".join([f"4 in x[..., {i}]" for i in range(1, 13, 2)]) + " and 4 more" in out


def test_gamma_and_beta_of_an_archive_are_used(monkeypatch):
    seen = []
    monkeypatch.setattr(compare, "fused", lambda *inputs: seen.append(inputs) or compare.composed(*inputs))
    x, gamma = np.random.default_rng(0).normal(size=(20, 3)), np.array([1.0, 2.0, 3.0])
    np.savez("data.npz", rows=x, gamma=gamma, beta=np.array([4, 5, 6]))
    assert main(["compare", "data.npz"]) == 0
    for inputs in seen:
        np.testing.assert_array_equal(np.asarray(inputs[1], float), gamma)
        np.testing.assert_array_equal(np.asarray(inputs[2], float), [4, 5, 6])
    assert seen
    assert main(["render", "data.npz", "--values", "-o", "new/folder/graph.dot"]) == 0
    assert "gamma" in Path("new/folder/graph.dot").read_text()


def test_gamma_of_another_shape_is_named(capsys):
    np.savez("data.npz", x=np.random.default_rng(0).normal(size=(20, 3)), gamma=np.ones(2))
    assert "gamma has shape (2,), expected (3,)" in error_of(capsys, "compare", "data.npz")


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
    np.savez("text.npz", x=np.ones((3, 2)), gamma=["a", "b"])
    np.savez("two.npz", a=np.ones(2), b=np.ones(2))
    open("file", "w").close()
    assert "can't read missing.npy: no such file" in error_of(capsys, "compare", "missing.npy")
    assert "dtype complex128, expected real numbers" in error_of(capsys, "compare", "complex.npy")
    assert "dtype <U1, expected real numbers" in error_of(capsys, "compare", "text.npz")
    assert "shape (3,), expected rows of features" in error_of(capsys, "compare", "vector.npy")
    np.save("no_rows.npy", np.ones((0, 3)))
    assert "shape (0, 3), expected rows of features" in error_of(capsys, "compare", "no_rows.npy")
    assert "holds a, b: expected one array, or one named x" in error_of(capsys, "compare", "two.npz")
    assert "can't write to the folder file/graphs" in error_of(capsys, "compare", "-o", "file/graphs")
    assert "order is 0, expected an integer of at least 1" in error_of(capsys, "compare", "--order", "0")
    assert "unrecognized arguments" in error_of(capsys, "compare", "--colour")
    assert "invalid choice: 'paint'" in error_of(capsys, "paint")
    assert "'.jpg'" in error_of(capsys, "render", "-o", "graph.jpg")
    assert "--expand opens the fused node" in error_of(capsys, "render", "--expand", "-o", "graph.svg")
    os.mkdir("folder.svg")
    assert "can't write folder.svg: it is a folder" in error_of(capsys, "train", "-o", "folder.svg")
    os.mkdir("graphs")
    os.mkdir("graphs/composed.svg")
    assert "can't write graphs/composed.svg: is a directory" in error_of(capsys, "compare", "-o", "graphs")


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_an_example(capsys, command):
    assert main([command, "--help"]) == 0
    out = capsys.readouterr().out
    assert re.search(f"^examples?: autograd-bn {command} ?", out, re.M)


def test_the_module_runs_as_a_program_and_shows_no_traceback():
    root = Path(__file__).parent.parent
    command = [sys.executable, "-m", "autograd_bn", "compare", "no.npy"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "autograd-bn compare: can't read no.npy: no such file or directory\n"


def shell(line, **environment):
    """A command line as a shell runs it; the command is `$cli`."""
    root = str(Path(__file__).parent.parent)
    environment = {**os.environ, "PYTHONPATH": root, "cli": f"{sys.executable} -m autograd_bn", **environment}
    environment.pop("PYTHONUNBUFFERED", None)
    return subprocess.run(["bash", "-c", line], capture_output=True, text=True, env=environment)


@pytest.mark.parametrize("command", ["compare small.npy", "--help"])
def test_a_full_disk_ends_with_status_2_and_a_line(command):
    done = shell(f"$cli {command} > /dev/full")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"autograd-bn {command.split()[0]}: can't write to standard output: no space left on device\n"


def test_a_pipe_whose_reader_has_gone_ends_with_status_2_and_in_silence():
    done = shell("set -o pipefail; $cli compare small.npy --json | true")
    assert (done.returncode, told(done.stderr)) == (2, [])


def test_too_many_arguments_are_answered_with_the_commands_own_usage(capsys):
    assert main(["compare", "small.npy", "b"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("usage: autograd-bn compare [")
    assert "unrecognized arguments: b" in error


def test_a_pipe_for_output_and_errors_whose_reader_has_gone_ends_with_status_2():
    assert shell("set -o pipefail; $cli compare small.npy --json 2>&1 | true").returncode == 2


def test_a_closed_output_ends_with_status_2_and_a_line():
    done = shell("$cli compare >&-")
    assert done.returncode == 2
    # Before it a line may say that kernels are being compiled, where there are none on disk yet.
    assert done.stderr.splitlines()[-1] == "autograd-bn compare: standard output is closed"


def test_letters_that_a_terminal_lacks_are_escaped_and_closed_errors_are_done_without():
    Path("units.csv").write_text("größe,b\n1,2\n3,5\n4,9\n", "utf-8")
    done = shell("$cli compare units.csv 2>&-", PYTHONIOENCODING="ascii")
    assert done.returncode == 0
    assert "names of the columns: gr\\xf6\\xdfe, b." in done.stdout


def test_a_mismatch_ends_with_status_1(monkeypatch, capsys, undrawn):
    def wrong(x, gamma, beta):
        return compare.composed(x, gamma, beta) * 1.01

    monkeypatch.setitem(compare.FORMS, "fused", wrong)
    monkeypatch.setattr(compare, "fused", wrong)
    assert main(["compare", "small.npy"]) == 1
    assert "differ in output" in capsys.readouterr().out
    monkeypatch.setattr(compare, "fused", lambda x, gamma, beta: compare.composed(x, gamma, beta) * np.inf)
    assert main(["compare", "small.npy", "--json"]) == 1
    out = capsys.readouterr().out
    assert json.loads(out)["ok"] is False
    assert json.loads(out)["rows"][0]["max_abs"] is None  # JSON has no infinity


def test_the_first_table_explains_itself_and_ends_in_one_sentence(capsys, undrawn):
    assert main(["compare", "small.npy"]) == 0
    table = capsys.readouterr().out.split("\n\n")
    assert table[1].splitlines()[3].split() == ["of", "them", "operations", "9", "1"]
    assert "units in the last place" in table[2]
    sentence = " ".join(table[2].split()).split("costs 0.5. ")[1]
    assert sentence.startswith("One fused node in place of 9 operations took ")
    assert sentence.count(". ") == 0


@pytest.mark.parametrize("columns", ["60", "80"])
def test_a_narrow_terminal_gets_narrow_text(monkeypatch, capsys, columns, undrawn):
    monkeypatch.setenv("COLUMNS", columns)
    np.save("data.npy", np.where(np.arange(20) % 2, np.nan, 1.0) * np.ones((4, 20)))
    for command in COMMANDS:
        assert main([command, "--help"]) == 0
        text = capsys.readouterr().out.split("\nexample")[0]
        assert max(map(len, text.splitlines())) <= int(columns)
    main(["compare", "data.npy"])
    for paragraph in capsys.readouterr().out.split("\n\n")[:5:2]:
        assert max(map(len, paragraph.splitlines())) <= int(columns)


def test_no_colour_is_ever_printed():
    try:
        for end in os.openpty():
            os.close(end)
    except (AttributeError, OSError) as error:
        pytest.skip(f"there is no terminal to be had here: {error}")
    done = shell('script -qec "$cli compare small.npy" /dev/null', NO_COLOR="1")
    assert "batch norm" in done.stdout.lower()
    assert "\x1b[3" not in done.stdout


@pytest.mark.parametrize(("columns", "width"), [("40", 39), ("300", 99)])
def test_a_paragraph_is_as_wide_as_the_terminal_up_to_100(monkeypatch, columns, width):
    monkeypatch.setenv("COLUMNS", columns)
    assert {len(line) for line in fill("a " * 600).splitlines()[:-1]} == {width}
