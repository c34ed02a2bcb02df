"""`autograd-bn bench`."""

import json

import pytest

from autograd_bn.__main__ import main
from autograd_bn.commands import bench, compare


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    monkeypatch.setattr(bench, "SHAPES", ((64, 10), (32, 4)))
    monkeypatch.setattr(bench, "measure", lambda leaves, repeats: compare.measure(leaves, 1))


def test_json_has_a_row_a_shape(capsys):
    assert main(["bench", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [(row["rows"], row["features"]) for row in rows] == [(64, 10), (32, 4)]
    assert all(row["fused_ms"] > 0 and row["fused_bytes"] < row["composed_bytes"] for row in rows)
    assert all(row["bytes_ratio"] == row["fused_bytes"] / row["composed_bytes"] for row in rows)
    assert all(row["speedup"] == row["composed_ms"] / row["fused_ms"] for row in rows)


def test_the_table_has_a_row_a_shape(capsys):
    assert main(["bench"]) == 0
    assert [line[:7].strip() for line in capsys.readouterr().out.splitlines()[-2:]] == ["64 x 10", "32 x 4"]
