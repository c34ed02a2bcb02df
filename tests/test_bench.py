"""`autograd-bn bench`."""

import json

import pytest

from autograd_bn.__main__ import main
from autograd_bn.commands import bench


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    monkeypatch.setattr(bench, "SHAPES", ((64, 10), (32, 4)))
    monkeypatch.setattr(bench, "REPEATS", 1)


def test_json_has_a_row_a_shape(capsys):
    assert main(["bench", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [(row["rows"], row["features"]) for row in rows] == [(64, 10), (32, 4)]
    assert all(row["fused_ms"] > 0 and row["fused_bytes"] < row["composed_bytes"] for row in rows)


def test_table_and_plot(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    path = tmp_path / "new" / "plot.svg"
    assert main(["bench", "-o", str(path)]) == 0
    out = capsys.readouterr().out
    assert "64 x 10" in out
    assert f"plot: {path}" in out
    assert path.stat().st_size > 1000


def test_a_plot_of_another_kind_is_refused_in_one_line(capsys):
    assert main(["bench", "-o", "plot.txt"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
