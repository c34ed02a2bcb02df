"""The notebooks: each runs from top to bottom, shows its pictures, and stays readable."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from notebooks import exercises, grader

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
SCREEN = 40  # lines
FEWER = {"steps=3500": "steps=100", "300, 50, 5, (5, 10, 30, 100)": "300, 1, 2, (30, 100)", "range(500)": "range(20)"}


def cells(path):
    nbformat = pytest.importorskip("nbformat")
    return nbformat.read(path, as_version=4)


def test_there_are_notebooks():
    assert NOTEBOOKS


@pytest.mark.timeout(300)
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs_from_top_to_bottom(path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    NotebookClient = pytest.importorskip("nbclient").NotebookClient
    notebook = cells(path)
    for many, few in FEWER.items() if path.stem == "05_toy_models" else ():
        assert [cell for cell in notebook.cells if many in cell.source]
        for cell in notebook.cells:
            cell.source = cell.source.replace(many, few)
    missing = "" if find_spec("torch") else "torch"  # the tag of the cells that are left out
    folder = {"metadata": {"path": str(path.parent)}}
    NotebookClient(notebook, timeout=300, skip_cells_with_tag=missing, resources=folder).execute()
    if path.stem == "06_course_exercises":  # what a student reads is what the grader says today
        assert printed(notebook) == printed(cells(path))


def printed(notebook):
    """What each cell prints, which comes in as many parts as the kernel was slow."""
    texts = [[out.text for out in cell.get("outputs", ()) if out.get("name") == "stdout"] for cell in notebook.cells]
    return ["".join(parts) for parts in texts]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_is_saved_as_it_was_run_with_its_pictures_and_short_cells(path):
    notebook = cells(path)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error"]
    assert any({"image/png", "image/svg+xml"} & set(output.get("data", ())) for output in outputs)
    assert not [output.text for output in outputs if output.get("name") == "stderr"]
    assert max(len(cell.source.splitlines()) for cell in notebook.cells) <= SCREEN


RNG = np.random.default_rng(0)
INPUTS = RNG.normal(size=(7, 4)) * 3 + 1, RNG.uniform(0.5, 2, 4), RNG.normal(size=4)


def plain_forward(x, gamma, beta, eps=1e-5):
    mean, var = x.mean(axis=0), x.var(axis=0)
    xhat = (x - mean) / np.sqrt(var + eps)
    return gamma * xhat + beta, (xhat, gamma, var, eps)


def solution(dy, cache):
    xhat, gamma, var, eps = cache
    dgamma, dbeta, dxhat = (dy * xhat).sum(axis=0), dy.sum(axis=0), dy * gamma
    dx = (dxhat - dxhat.mean(axis=0) - xhat * (dxhat * xhat).mean(axis=0)) / np.sqrt(var + eps)
    return dx, dgamma, dbeta


def test_each_hole_of_a_forward_pass_is_graded_as_it_is_filled(capsys):
    def forward(x, gamma, beta, eps=1e-5):
        mean = x.mean(axis=1)
        var = x.var(axis=0, ddof=1)
        xhat = (x - x.mean(axis=0)) / np.sqrt(x.var(axis=0))
        y = ...
        return y, (xhat, gamma, var, eps, mean)

    exercises.grade_forward(forward, *INPUTS)
    mean, var, xhat, left = capsys.readouterr().out.splitlines()
    assert "axis 1" in mean
    assert "ddof=1" in var
    assert xhat == "xhat: wrong, eps is missing"
    assert left == "1 hole left: y"


def test_each_hole_of_a_backward_pass_is_graded_as_it_is_filled(capsys):
    def backward(dy, cache):
        xhat, _, var, eps = cache
        dgamma = (dy * xhat).sum(axis=0)
        dbeta = dy.sum(axis=1)
        dxhat = ...
        dx = dxhat / np.sqrt(var + eps)
        return dx, dgamma, dbeta

    exercises.grade(plain_forward, backward, solution, INPUTS)
    dgamma, dbeta, left = capsys.readouterr().out.splitlines()
    assert dgamma == "dgamma: right"
    assert dbeta.startswith("dbeta: wrong.")
    assert "Return an array of beta's shape" in dbeta
    assert left == "1 hole left: dxhat"
    assert exercises.grade(plain_forward, solution, solution, INPUTS).ok


def test_a_function_with_holes_that_stops_says_why(capsys):
    def forward(x, gamma, beta, eps=1e-5):
        mean = x.mean(axis=0)
        var = x.nothing
        y = ...
        return y, mean, var

    exercises.grade_forward(forward, *INPUTS)
    mean, stops, left = capsys.readouterr().out.splitlines()
    assert (mean, left) == ("mean: right", "1 hole left: y")
    assert stops.startswith("it stops with AttributeError")


def test_the_template_for_graders_gives_points_for_what_is_right(tmp_path, monkeypatch):
    source = """def affine_forward(x, w, b):
    return x @ w + b, (x, w)
def affine_backward(dy, cache):
    x, w = cache
    return dy @ w.T, x.T @ dy, dy.sum(0)
def double_forward(x):
    return 2 * x, None
def double_backward(dy, cache):
    return dy
"""
    (tmp_path / "layers.py").write_text(source)
    monkeypatch.setattr(grader, "POINTS", {"affine_backward": 2, "double_backward": 1, "batchnorm_backward": 4})
    judged = grader.verdicts(str(tmp_path / "layers.py"))
    tests = grader.gradescope(judged)["tests"]
    assert [(test["score"], test["max_score"]) for test in tests] == [(2, 2), (0, 1), (0, 4)]
    assert tests[1]["output"].startswith("wrong: ")
    assert tests[2]["output"].startswith("there is no batchnorm_backward")
    command = [sys.executable, "-m", "autograd_bn", "check", "--json", "layers.py"]
    printed = subprocess.run(command, capture_output=True, cwd=tmp_path).stdout
    done = subprocess.run([sys.executable, grader.__file__], input=printed, capture_output=True, check=True)
    assert json.loads(done.stdout)["tests"][0]["score"] == 2
