"""Pictures: their text against golden files, and the files that Graphviz makes of it."""

import graphviz
import numpy as np
import pytest

import autograd_bn as ag


def example(form="fused", **options):
    x = ag.tensor([[1.0, 10.0], [3.0, 30.0]], name="x")
    gamma = ag.tensor([1.0, 2.0], requires_grad=True, name="gamma")
    beta = ag.tensor([0.0, 0.5], requires_grad=True, name="beta")
    return ag.batch_norm(x, gamma, beta, form=form, **options)


@pytest.mark.parametrize("suffix", ["svg", "png", "pdf", "dot", "gv", "SVG"])
def test_every_format_is_drawn_to_the_path_that_comes_back(tmp_path, suffix):
    path = tmp_path / f"picture.{suffix}"
    assert ag.render(example(), path) == path
    start = {"svg": b"<?xml", "png": b"\x89PNG", "pdf": b"%PDF", "dot": b"digraph", "gv": b"digraph"}
    assert path.read_bytes().startswith(start[suffix.lower()])
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_to_dot_is_a_digraph():
    assert isinstance(ag.to_dot(example()), graphviz.Digraph)


def test_drawing_changes_nothing():
    y = example()
    before = [(node, node.op, node.args, node.edges) for node in ag.Graph(y).nodes]
    ag.to_dot(y, values=True, grads=np.ones((2, 2)), expand=True)
    assert [(node, node.op, node.args, node.edges) for node in ag.Graph(y).nodes] == before
    assert all(node.grad is None for node, op, _, _ in before if op is None)
