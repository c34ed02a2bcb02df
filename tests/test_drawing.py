"""Pictures: their text against golden files, what they say, and the files that Graphviz makes of them.

`python tests/test_drawing.py` writes the golden files anew; look at the difference before you keep it.
"""

import base64
import itertools
import json
import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from fractions import Fraction
from inspect import signature
from pathlib import Path

import graphviz
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

import autograd_bn as ag
from autograd_bn import nn
from autograd_bn.drawing import run_graphviz, wheel
from autograd_bn.drawing.dot import PAGE
from autograd_bn.drawing.labels import value_text
from autograd_bn.drawing.place_labels import placed
from autograd_bn.drawing.run_graphviz import draw
from autograd_bn.drawing.scene import SEARCHED
from autograd_bn.drawing.wheel import FONT, Font
from autograd_bn.nn.functions import linear

GOLDEN = Path(__file__).with_name("golden")
X = [[1.0, 10.0], [2.0, 40.0], [4.0, 20.0], [9.0, -10.0]]
WEIGHTS = np.array([[1.0, 2.0], [-3.0, 0.5], [2.0, 1.0], [0.25, -2.0]])


def leaf(data, name=None, requires_grad=True):
    return ag.tensor(data, requires_grad=requires_grad, name=name)


def normed(form="fused", **options):
    x = leaf(X, "x", requires_grad=False)
    gamma, beta = leaf([1.0, 2.0], "gamma"), leaf([0.0, 0.5], "beta")
    y = ag.batch_norm(x, gamma, beta, form=form, **options)
    y.name = "y"
    return y


def spelled_out():
    x, gamma, beta = leaf(X, "x"), leaf([1.0, 2.0], "gamma"), leaf([0.0, 0.5], "beta")
    return gamma * (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5) + beta


def expression():
    a, b, c = leaf(2.0, "a"), leaf(-3.0, "b"), leaf(10.0, "c", requires_grad=False)
    loss = (a * b + c) ** 2 / 8
    loss.name = "loss"
    return loss


def cut():
    x = leaf([1.0, 2.0, 3.0], "x")
    return (x * ag.stop_gradient(ag.square(x))).sum()


def images(form):
    x = ag.tensor(np.arange(48.0).reshape(2, 3, 2, 4), name="images")
    return ag.batch_norm(x, leaf(np.ones(3), "gamma"), leaf(np.zeros(3), "beta"), axes=(0, 2, 3), form=form)


def options():
    x = leaf(np.arange(6.0).reshape(2, 3), "x")
    mask = np.array([[True, False, True]])
    parts = [1 - x, x / 2, x**1.5, 2**x, ag.where(mask, x, 0.0), ag.transpose(x, (0, 1)), x[:, ::2], x[1], x[[0, 1]]]
    sums = [part.sum() for part in parts]
    sums += [ag.matmul(x, np.ones((3, 1))).sum(), x.astype("float32").max(), ag.softmax(x, axis=1).mean(axis=(0, 1))]
    return ag.stack(sums, axis=0)


def recurrent(steps=12):
    weight, h = leaf([[0.5, 0.25], [0.0, 0.5]], "weight"), leaf([[1.0, 2.0]], "h0", requires_grad=False)
    for _ in range(steps):
        h = ag.tanh(h @ weight)
    return h.sum()


class Block(nn.Module):
    def __init__(self):
        self.body = nn.Sequential(nn.Conv2d(2, 2, 3, padding=1, rng=0), nn.BatchNorm(2), nn.ReLU())

    def forward(self, x):
        return x + self.body(x)


def net():
    return nn.Sequential(Block(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(8, 3, rng=0))


class Residual(nn.Module):
    def __init__(self):
        self.body = nn.Sequential(nn.Linear(4, 4, rng=0), nn.BatchNorm(4), nn.ReLU())

    def forward(self, x):
        return x + self.body(x)


def residual(blocks=20):
    return nn.Sequential(nn.Linear(3, 4, rng=0), *[Residual() for _ in range(blocks)], nn.Linear(4, 2, rng=0))


def time_steps(steps=30):
    x, h = ag.tensor(np.ones((5, steps, 3)), name="x"), ag.tensor(np.zeros((5, 4)), name="h0")
    w, u = leaf(np.ones((3, 4)), "w"), leaf(np.ones((4, 4)), "u")
    for t in range(steps):
        h = ag.tanh(x[:, t] @ w + h @ u)
    return h.sum()


IMAGES = np.arange(64.0, dtype="float32").reshape(2, 4, 4, 2) ** 2
PICTURES = {
    "composed": lambda: ag.to_dot(normed("composed")),
    "fused": lambda: ag.to_dot(normed()),
    "expanded": lambda: ag.to_dot(normed(), expand=True),
    "expanded_values_grads": lambda: ag.to_dot(normed(), values=True, grads=WEIGHTS, expand=True),
    "composed_values_grads": lambda: ag.to_dot((normed("composed") * WEIGHTS).sum(), values=True, grads=True),
    "composed_stop": lambda: ag.to_dot(normed("composed", stop=("mean",))),
    "fused_stop": lambda: ag.to_dot(normed(stop=("var", "mean"))),
    "inference": lambda: ag.to_dot(normed(mean=[1.0, 2.0], var=[1.0, 4.0])),
    "inference_composed": lambda: ag.to_dot(normed("composed", mean=[1.0, 2.0], var=[1.0, 4.0])),
    "spelled_out_grads": lambda: ag.to_dot(spelled_out(), values=True, grads=WEIGHTS),
    "images_expanded": lambda: ag.to_dot(images("fused"), expand=True, direction="TB"),
    "expression_values_grads": lambda: ag.to_dot(expression(), values=True, grads=True),
    "cut_values_grads": lambda: ag.to_dot(cut(), values=True, grads=True),
    "net": lambda: ag.to_dot(net(), inputs=IMAGES),
    "net_opened": lambda: ag.to_dot(net(), inputs=IMAGES, expand=True),
    "recurrent_grads": lambda: ag.to_dot(recurrent(), grads=True, expand=True),
    "time_steps_values_grads": lambda: ag.to_dot(time_steps(), values=True, grads=True),
    "residual_blocks": lambda: ag.to_dot(residual(), inputs=np.ones((5, 3), "float32")),
    "time_steps": lambda: ag.to_dot(time_steps()),
    "around": lambda: ag.to_dot(y := recurrent(), around=ag.Tensor(np.zeros((1, 2)), ag.Graph(y).nodes[8]), hops=2),
    "options": lambda: ag.to_dot(options()),
}


def as_golden(svg):
    """An svg without Graphviz's version, and a line for each element."""
    return re.sub(r"<!--.*?-->\n", "", svg.decode(), flags=re.DOTALL)


@pytest.mark.parametrize("name", PICTURES)
def test_the_picture_is_the_same_on_every_machine(name, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert as_golden(draw(PICTURES[name]().source, "svg")) == (GOLDEN / f"{name}.svg").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", PICTURES)
def test_golden(name):
    assert PICTURES[name]().source == (GOLDEN / f"{name}.gv").read_text(encoding="utf-8")


def labels(source):
    """The label of every node, by id."""
    return {int(i): text for i, text in re.findall(r'^\t+(\d+) \[label="((?:[^"\\]|\\.)*)"', source, re.MULTILINE)}


def arrows(source):
    """The edges as (tail, head, whether it is a gradient's), one that a gradient flows back along being two."""
    found = []
    for tail, head, about in re.findall(r"^\t+(\d+) -> (\d+) \[(.*)\]$", source, re.MULTILINE):
        found += [(int(tail), int(head), False), *([(int(head), int(tail), True)] if "dir=both" in about else [])]
    return found


# --- What a picture says -----------------------------------------------------------------------------------


def test_two_arrows_between_the_same_nodes_have_one_label():
    c = leaf([[1.0, 2.0]]) - 1
    assert re.findall(r"1 -> 2 \[(.*)\]", ag.to_dot(c * c).source) == ["weight=100", 'label="  (1, 2) " weight=100']


@pytest.mark.parametrize("name", PICTURES)
def test_ids_count_up_and_arrows_run_from_lower_to_higher(name):
    source = PICTURES[name]().source
    assert sorted(labels(source)) == list(range(len(labels(source))))
    assert all((tail > head) if gradient else (tail < head) for tail, head, gradient in arrows(source))


def test_the_same_graph_gives_the_same_text_in_another_process():
    code = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import test_drawing as t; "
    code += "print(t.PICTURES['expanded_values_grads']().source, end='')"
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONHASHSEED": "7"}, capture_output=True, check=True
    )
    assert done.stdout.decode() == PICTURES["expanded_values_grads"]().source


def test_kinds_differ_in_outline_and_in_fill():
    lines = ag.to_dot(ag.multiply(normed(), np.arange(8.0).reshape(4, 2))).source.splitlines()
    found = {}
    for title in ("x", "gamma", "constant", "output", "multiply"):
        (line,) = [line for line in lines if f'[label="{title}' in line]
        outline = tuple(re.findall(r"(?:shape|peripheries|penwidth)=\S+(?=[ \]])", line))
        found[title] = (outline, tuple(re.findall(r'fillcolor="[^"]*"', line)))
    outlines, fills = zip(*found.values(), strict=True)
    assert len(set(outlines)) == len(set(fills)) == 5


def test_an_expanded_picture_has_the_composed_operations():
    fused, composed = (labels(ag.to_dot(normed(form), expand=True).source) for form in ("fused", "composed"))
    assert sorted(fused.values()) == sorted(composed.values())


def test_gradients_of_an_expanded_node_are_those_of_the_composed_form():
    sources = [
        ag.to_dot(normed(form), expand=True, values=True, grads=WEIGHTS).source for form in ("fused", "composed")
    ]
    fused, composed = (sorted(labels(source).values()) for source in sources)
    assert fused == composed
    counts = [sum(gradient for *_, gradient in arrows(source)) for source in sources]
    assert counts == [4, 4]  # none to x, nor inside the statistics


def test_drawing_changes_nothing():
    y = normed()
    before = [(node, node.op, node.args, node.wanted) for node in ag.Graph(y).nodes]
    ag.to_dot(y, values=True, grads=WEIGHTS, expand=True)
    assert [(node, node.op, node.args, node.wanted) for node in ag.Graph(y).nodes] == before
    assert all(node.grad is None for node, op, *_ in before if op is None)


def test_gradients_agree_with_backward():
    loss = expression()
    found = labels(ag.to_dot(loss, grads=True).source)
    loss.backward()
    leaves = {node.name: node for node in ag.Graph(loss).nodes if node.op is None}
    for name in ("a", "b"):
        assert f"{name}\\n∂ {leaves[name].grad:g}" in found.values()
    assert "c" in found.values()
    assert "loss\\n∂ 1" in found.values()


def test_stored_gradients_of_a_non_scalar_output_claim_nothing_more():
    y = normed()
    before = ag.to_dot(y, grads=True).source
    assert before.count("no .grad") == 2  # gamma and beta, not x, which requires none
    y.backward(WEIGHTS)
    source = ag.to_dot(y, grads=True).source
    assert "beta\\n.grad [0.25, 1.5]" in labels(source).values()
    assert source.count("grad") == 2
    assert not any(gradient for *_, gradient in arrows(source + before))


def test_a_stored_gradient_of_an_output_that_is_a_leaf_flows_nowhere():
    w = leaf([1.0, 2.0], "w")
    w.grad = [3.0, 4.0]
    source = ag.to_dot(w, grads=True).source
    assert labels(source)[0] == "w\\n.grad [3, 4]"
    assert arrows(source) == [(0, 1, False)]


def test_a_leaf_that_no_gradient_reaches_says_so():
    x, w = leaf(2.0, "x"), leaf(3.0, "w")
    found = labels(ag.to_dot(x * ag.stop_gradient(w), grads=True).source)
    assert list(found.values()) == ["x\\n∂ 3", "w\\nno gradient", "stop_gradient", "multiply", "output\\n∂ 1"]


def test_noise_is_not_shown_as_digits():
    noisy = np.array([1.0, -2.9e-17, 1e-3])
    assert labels(ag.to_dot(leaf(noisy, "t"), values=True).source)[0] == "t\\n[1, ≈ 0, 0.001]"
    assert labels(ag.to_dot(leaf([-2.9e-17], "t"), values=True).source)[0] == "t\\n[-2.9e-17]"
    assert "mean ≈ 0" in labels(ag.to_dot(leaf([2, -2, 0.1, 0.2, -0.3, 0, 0], "t"), values=True).source)[0]
    assert labels(ag.to_dot(leaf([1.0, 1e-9], "t"), values=True).source)[0] == "t\\n[1, 1e-09]"


def test_the_legend_has_every_kind_that_occurs():
    x = leaf([1.0, 2.0], "x")
    y = leaf(2.0, "weight") * ag.stop_gradient(x) + np.arange(2.0) + leaf(1.0, "c", requires_grad=False)
    legend = re.search('label="(.*?)"', ag.to_dot(y, grads=np.ones(2)).source)[1]
    found = [entry for line in legend.split("\\n") for entry in line.split("     ") if entry]
    assert found == [
        "○ input", "◎ input that requires a gradient", "◎ parameter", "◳ constant", "□ operation",
        "⊣ cut for gradients", "● output", "↔ ∂ gradient flows back",
    ]  # fmt: skip


def test_long_names_are_wrapped():
    name = "encoder.layers.11.attention.self.query.projection.weight.of.the.teacher"
    (text, *_) = labels(ag.to_dot(leaf(1.0, name)).source).values()
    lines = text.split("\\n")
    assert "".join(lines) == name
    assert max(map(len, lines)) <= 44
    assert lines[0].endswith(".")


def test_no_gradient_passes_a_cut():
    x = leaf([1.0, 2.0], "x")
    y = x + ag.stop_gradient(ag.exp(x))
    y.backward(np.ones(2))
    for source in (ag.to_dot(y, grads=True).source, ag.to_dot(y, grads=np.ones(2)).source):
        assert not [edge for edge in arrows(source) if edge[2] and edge[0] in (1, 2)]
        assert "arrowhead=normaltee" in source


def test_the_cuts_of_an_opened_node_are_drawn_as_cuts():
    source = ag.to_dot(normed(stop=("mean", "var")), expand=True, direction="TB").source
    assert re.findall(r"(\d+) \[.*normaltee", source) == re.findall(r'(\d+) \[label="stop_gradient', source)


def test_a_reused_operand_has_two_arrows():
    x = leaf(3.0, "x")
    assert arrows(ag.to_dot(x * x, grads=True).source) == [
        (0, 1, False),
        (1, 0, True),
        (0, 1, False),
        (1, 0, True),
        (1, 2, False),
        (2, 1, True),
    ]


def test_several_outputs_each_have_an_oval_and_an_inner_one_passes_its_value_on():
    x = leaf(2.0, "x")
    h = x * 3
    source = ag.to_dot([h, h + 1, h], values=True).source
    assert labels(source) == {
        0: "x\\n2", 1: "multiply 3", 2: "add 1", 3: "output\\n6", 4: "output\\n7"
    }  # fmt: skip
    assert arrows(source) == [(0, 1, False), (1, 2, False), (1, 3, False), (2, 4, False)]


def test_a_leaf_can_be_an_output():
    assert labels(ag.to_dot(leaf([1.0], "w"), values=True, grads=True).source) == {
        0: "w\\n[1]\\n∂ [1]",
        1: "output\\n[1]\\n∂ [1]",
    }


def test_an_operand_that_was_left_out_is_left_out():
    source = ag.to_dot(linear(leaf(X, "x"), leaf([[1.0, 2.0]], "weight"), None)).source
    assert "linear" in labels(source).values()


def test_dtypes_are_shown_where_they_are_not_the_outputs():
    x = ag.tensor([1.0, 2.0], dtype="float32", name="x")
    source = ag.to_dot(ag.where(np.array([True, False]), x, np.zeros(2))).source
    assert re.findall(r'label="  (.*) "', source) == ["(2,) bool", "a (2,) float32", "b (2,)", "(2,)"]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (np.float32(0.1), "0.1"),
        (-0.0, "0"),
        (np.longdouble(1) / 3, "0.3333"),
        ([Fraction(1, 3), 2], "[1/3, 2]"),
        ([Fraction(10**30, 7)], "[1.429e+29]"),
        ([1, np.nan, -np.inf], "[1, nan, -inf]"),
        ([[1.5, 2], [3, 4]], "[[1.5, 2],\\n[3, 4]]"),
        ([True, False], "[True, False]"),
        (np.zeros((0, 3)), "(0, 3)"),
        (np.arange(7), "mean 3\\nrange 0 to 6"),
        (np.full(9, 60000, "float16"), "all 6e+04"),
        ([Fraction(1, 2)] * 8, "all 0.5"),
        ([1, np.inf, -np.inf] * 3, "6 of 9 not finite\\nall 1"),
        ([np.nan, *range(7)], "1 of 8 not finite\\nmean 3\\nrange 0 to 6"),
        ([np.nan] * 7, "7 of 7 not finite"),
        (1 + 1e-6 * np.arange(7), "all ≈ 1"),
        (1e-20 * np.arange(7) + [1, 1, 1, 1, 1, 1, 1], "all 1"),
    ],
)
def test_values_in_short(value, text):
    t = ag.tensor(value, name="t")
    assert labels(ag.to_dot(t, values=True).source)[0] == f"t\\n{text}"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (np.arange(3.0), "[0, 1, 2]"),
        (np.eye(2), "0 … 1"),
        ([np.nan, np.inf, 2, 3], "2 of 4 not finite\\n2 … 3"),
        ([np.nan, 1, 1, 1], "1 of 4 not finite\\nall 1"),
        (1 + 1e-6 * np.arange(4), "all ≈ 1"),
        ([Fraction(1, 3)] * 4, "all 1/3"),
    ],
)
def test_values_in_brief(value, text):
    assert value_text(value, brief=True) == text.split("\\n")


def test_a_batch_that_is_too_large_to_search_is_drawn_without_names():
    y = ag.batch_norm(ag.tensor(np.ones((SEARCHED, 2))), form="composed")
    assert "statistics" not in ag.to_dot(y).source
    assert "subtract" in labels(ag.to_dot(y).source).values()


def test_exact_rationals_are_drawn_and_opened():
    x, gamma, beta = (np.array(data, dtype=object) for data in ([[Fraction(1)], [Fraction(3)]], [2], [Fraction(1, 3)]))
    y = ag.batch_norm(*(leaf(data) for data in (x, gamma, beta)), eps=Fraction(5, 4))
    source = ag.to_dot(y, expand=True).source
    assert "add 5/4" in labels(source).values()
    assert "[2/3]" in ag.to_dot(y, expand=True, values=True).source


def test_structure_is_drawn_after_an_assignment_and_values_are_not():
    y = normed()
    x = next(node for node in ag.Graph(y).nodes if node.name == "x")
    gamma = next(node for node in ag.Graph(y).nodes if node.name == "gamma")
    ag.Tensor(x.data, x).assign(np.zeros((4, 2)))
    ag.Tensor(gamma.data, gamma).assign([5.0, 5.0])
    ag.to_dot(y, expand=True)
    with pytest.raises(RuntimeError, match="overwritten"):
        ag.to_dot(y, values=True)


def test_recording_may_be_off():
    y, expected = normed(), PICTURES["expanded"]().source
    with ag.no_grad():
        assert ag.to_dot(y, expand=True).source == expected
        assert not ag.exp(leaf(1.0)).requires_grad


def test_allreduce_has_a_shape_of_its_own_and_structure_needs_no_messages(monkeypatch):
    class Comm:
        size, closed = 2, False

        def Allgather(self, part, everyone):
            assert not self.closed
            everyone[:] = np.frombuffer(part, everyone.dtype)

    monkeypatch.setattr("autograd_bn.distributed.collectives.end_together", lambda comm: None)
    comm = Comm()
    x = leaf(X[:1], "x")
    composed, fused = (ag.batch_norm(x, form=form, comm=comm) for form in ("composed", "fused"))
    comm.closed = True
    for y in (composed, fused):
        lines = [line for line in ag.to_dot(y, expand=True).source.splitlines() if '[label="allreduce' in line]
        assert len(lines) == 3
        assert all('[label="allreduce" shape=hexagon fillcolor="#E3D5EE"' in line for line in lines)


def test_the_direction_suits_the_shape_and_the_page():
    def chain(n):
        t = leaf(1.0)
        for i in range(n):
            t = -t if i % 3 else t * float(i)
        return t

    def width(y):
        return float(ET.fromstring(draw(ag.to_dot(y).source, "svg")).get("viewBox").split()[2])

    assert "rankdir=LR" in ag.to_dot(chain(2)).source
    assert "rankdir=TB" in ag.to_dot(chain(20)).source
    assert "rankdir=TB" in ag.to_dot(chain(2), direction="TB").source
    assert "rankdir=LR" in ag.to_dot(chain(20), direction="LR").source
    wide = ag.stack([leaf(float(i), f"x{i}") for i in range(40)])
    assert "rankdir=LR" in ag.to_dot(wide).source
    assert all(width(y) < PAGE for y in (chain(2), chain(20), wide, normed(), normed("composed"), images("composed")))


def places(source):
    """The centre of every node as it is drawn, by id."""
    found = {}
    for group in ET.fromstring(draw(source, "svg")).iter("{http://www.w3.org/2000/svg}g"):
        if group.get("class") == "node":
            numbers = re.findall(r'(?:points|cx|cy)="([^"]*)"', ET.tostring(group, "unicode"))
            points = np.array([float(n) for text in numbers for n in re.split("[, ]", text) if n]).reshape(-1, 2)
            found[int(group.findtext("{http://www.w3.org/2000/svg}title"))] = points.min(0) / 2 + points.max(0) / 2
    return found


@pytest.mark.parametrize("name", PICTURES)
def test_all_arrows_point_one_way_and_the_way_forward_is_straight(name):
    source = PICTURES[name]().source
    found, along = places(source), 1 if "rankdir=TB" in source else 0
    for tail, head, gradient in arrows(source):
        assert gradient or found[tail][along] < found[head][along]
    main = re.findall(r"(\d+) -> (\d+) .*penwidth=", source)
    assert bool(main) == (name not in ("around", "expression_values_grads", "cut_values_grads", "options"))
    if main and name not in ("net_opened", "inference", "fused", "fused_stop"):
        assert np.ptp([found[int(i)][1 - along] for edge in main for i in edge]) < 2


@pytest.mark.parametrize("name", PICTURES)
def test_pictures_keep_to_the_width_of_a_page(name):
    width = float(ET.fromstring(draw(PICTURES[name]().source, "svg")).get("viewBox").split()[2])
    assert width <= 1.2 * PAGE


@pytest.mark.parametrize("spelling", ["composed", "opened", "spelled out", "stopped", "two"])
def test_statistics_are_named_and_framed(spelling):
    x = leaf(np.arange(8.0).reshape(4, 2) ** 2, "x")
    if spelling == "spelled out":
        y = (x - x.mean(0)) / np.sqrt(((x - x.mean(0)) ** 2).sum(0) / 4 + 1e-5) + 1
    else:
        stop = ("mean", "var") if spelling == "stopped" else ()
        y = ag.batch_norm(x, form="fused" if spelling == "opened" else "composed", stop=stop)
    y = ag.batch_norm(ag.relu(y), form="composed") if spelling == "two" else y
    source = ag.to_dot(y, expand=True, direction="TB").source
    frames = re.findall(r'label="batch statistics"(.*?)\}', source, re.DOTALL)
    assert len(frames) == 1 + (spelling == "two")
    for frame in frames:
        names = {text.split(" = ")[0].split("\\n")[0] for text in labels(frame).values()}
        assert {"mean", "var"} <= names
        assert not names & {"x", "relu", "centred", "x̂", "output"}
        assert spelling != "spelled out" or {"power 2", "sum"} <= names  # all that the variance comes from


def test_a_users_name_stands_where_a_part_of_batch_norm_has_one_too():
    x = leaf(X, "x")
    m = x.mean(0)
    m.name = "m"
    y = (x - m) / np.sqrt(x.var(0) + 1e-5)
    found = [text.split("\\n")[0] for text in labels(ag.to_dot(y).source).values()]
    assert "m = mean" in found
    assert {node["symbol"] for node in json_of(ag.page(y))["views"][0]["nodes"]} >= {"m", "var", "centred"}


def json_of(page):
    return json.loads(re.search(r'id="data">(.*?)</script>', str(page), re.S)[1])


def test_a_long_chain_needs_no_recursion(tmp_path):
    t = leaf(1.0)
    for _ in range(5_000):
        t = t * 1.0
    path = ag.render(t, tmp_path / "chain.dot", values=True, grads=True, expand=True)
    assert path.read_text().count("dir=both") == 5_001


def test_a_leaf_is_drawn_again_only_where_its_readers_are_far_apart():
    x = leaf(2.0, "x")
    y = x
    for _ in range(8):
        y = -y
    found = labels(ag.to_dot(y + x, expand=True).source)
    assert list(found.values()).count("x") == 1
    source = ag.to_dot(-y + x, values=True, expand=True).source
    assert [text for text in labels(source).values() if text.startswith("x")] == ["x\\n2", "x"]
    assert source.count("dashed") == 1
    assert len(arrows(source)) == 12


def test_a_neighbourhood_has_what_is_near_and_dots_where_the_graph_goes_on():
    x, w = leaf(2.0, "x"), leaf(3.0, "w")
    a = x * w
    b = ag.exp(a)
    c = ag.square(b)
    d = c + w
    y = ag.tanh(d)
    near = labels(ag.to_dot(y, around=c, hops=1, values=True).source)
    assert near == {0: "w\\n3", 1: "…", 2: "exp\\n403.4", 3: "square\\n1.628e+05", 4: "add\\n1.628e+05", 5: "…"}
    assert list(labels(ag.to_dot(y, around=(c,), hops=0).source).values()) == ["…", "square", "…"]
    assert len(labels(ag.to_dot(y, around=w, hops=1).source)) == 7
    assert ag.to_dot(y, around=b, hops=9).source == ag.to_dot(y).source
    assert list(labels(ag.to_dot(y, around=y, hops=0).source).values()) == ["…", "tanh", "output"]
    assert list(labels(ag.to_dot(y, around=w, hops=0).source).values()) == ["w"]


def test_a_part_of_a_huge_graph_is_drawn():
    t, middle = leaf(1.0, "x"), None
    for i in range(5_000):
        t = t * 1.0
        middle = t if i == 2_500 else middle
    assert list(labels(ag.to_dot(t, around=middle).source).values()) == ["…", *["multiply 1"] * 7, "…"]


@pytest.mark.parametrize("name", "batch_norm stop_gradient allreduce copy sqrt sum_to mean divide matmul add".split())
def test_a_users_operation_is_drawn_as_his_whatever_its_name(name):
    def forward(x, /):
        return x * 3

    forward.__name__ = name
    op = ag.primitive(lambda g: g * 3)(forward)
    y = ag.exp(op(leaf([1.0, 2.0], "x"))).sum()
    source = ag.to_dot(y, expand=True, values=True, grads=True).source
    (line,) = [line for line in source.splitlines() if f'[label="{name}' in line]
    assert "shape=" not in line
    assert "cluster" not in source
    (view,) = json_of(ag.page(y))["views"]
    assert view["nodes"][1]["formula"] == f"{name}(x)"


def test_the_options_are_checked_and_named_in_every_signature():
    y = normed()
    for function in (ag.render, ag.to_dot, ag.page):
        assert list(signature(function).parameters)[-7:] == "values grads expand direction around hops inputs".split()
        assert signature(function).parameters["hops"].default == 3
    for call in (ag.to_dot, ag.page):
        with pytest.raises(TypeError, match="there is no option 'gradients', expected some of values, grads"):
            call(y, gradients=True)


# --- Repeats -----------------------------------------------------------------------------------------------


def counts(source):
    """What is said of each repeat."""
    return [title for title in frames(source) if title.startswith("×")]


def test_equal_blocks_and_time_steps_are_drawn_once():
    source = PICTURES["residual_blocks"]().source
    assert frames(source) == ["× 20: 1 to 20", "1: Residual", "1.body: Sequential"]
    found = list(labels(source).values())
    assert {"1.body.1.gamma", "21: Linear(4, 2)", "21.weight", "21.bias"} <= {*found}
    assert len(found) == 16
    source = PICTURES["time_steps"]().source
    assert counts(source) == ["× 29"]
    assert r"getitem\n[:, 1]\nto [:, 29]" in labels(source).values()
    assert len(labels(source)) == len(labels(ag.to_dot(time_steps(50)).source))


@pytest.mark.parametrize("tail", [[], [nn.ReLU()], [nn.Conv2d(2, 2, 3, padding=1, rng=0)], [nn.Flatten()]])
@pytest.mark.parametrize("activation", [nn.ReLU, nn.Tanh, lambda: nn.BatchNorm(2)])
def test_a_repeat_cuts_no_module(tail, activation):
    layers = [layer for _ in range(8) for layer in (nn.Conv2d(2, 2, 3, padding=1, rng=0), activation())]
    source = ag.to_dot(nn.Sequential(*layers, *tail), inputs=IMAGES).source
    (said,) = counts(source)
    times, first, last = map(int, re.fullmatch(r"× (\d+): (\d+) to (\d+)", said).groups())
    assert last - first == 2 * times - 1
    found = [text.split("\\n")[0] for text in labels(source).values()]
    assert len({*found}) == len(found)
    assert {"x", "output"} < {*found}
    assert len([text for text in found if "Conv2d" in text]) <= 3


@pytest.mark.parametrize("one_box", [False, True])
def test_blocks_that_begin_inside_a_module_are_no_repeat(one_box):
    class Layer(nn.Module):
        def __init__(self, last):
            self.last, self.one_box = last, one_box

        def forward(self, x):
            return (ag.exp if self.last else ag.tanh)(x * 2.0)

    source = ag.to_dot(nn.Sequential(*[Layer(i == 9) for i in range(10)]), inputs=np.ones(2)).source
    assert counts(source) == []
    assert len(labels(source)) == (12 if one_box else 22)


def test_expand_opens_every_repeat():
    source = ag.to_dot(time_steps(), expand=True, values=True).source
    assert counts(source) == []
    assert len(labels(source)) > 100


@pytest.mark.parametrize("summed", [False, True])
def test_a_repeat_has_the_values_and_gradients_of_its_first_and_last_block(summed):
    y, w, kept = leaf([1.0, 2.0], "x"), leaf(2.0, "w"), []
    for i in range(9):
        v = leaf(2.0 + i, f"v{i}")
        h = y * v
        y = h + w
        kept.append((v, h, y))
    outputs, grads = (y.sum(), None) if summed else (y, np.array([1.0, -1.0]))
    source = ag.to_dot(outputs, values=True, grads=True if summed else grads).source
    assert counts(source) == ["× 8"]
    found = {text.split("\\n")[0]: text.split("\\n")[1:] for text in labels(source).values()}
    said = lambda a: "[" + ", ".join([f"{n:.4g}" for n in a]) + "]" if a.ndim else f"{a:.4g}"
    for name, first, last in zip(("v1", "multiply", "add"), kept[1], kept[-1], strict=True):
        gradients = ag.grad(outputs, [first, last], grads)
        values = [f"first {said(first.data)}", f"last {said(last.data)}"]
        assert found[name][-4:] == [
            *values,
            *[f"∂ {a} {said(g)}" for a, g in zip(("first", "last"), gradients, strict=True)],
        ]
    assert (found["v0"][0], found["w"][0]) == ("2", "2")
    assert found["output"][0] == said(outputs.data)


@pytest.mark.parametrize("equal", [True, False])
def test_blocks_repeat_where_their_constants_are_equal(equal):
    y = leaf([1.0, 2.0], "x")
    for i in range(8):
        y = ag.tanh(y + np.array([1.0, 2.0 if equal else i]))
    assert counts(ag.to_dot(y).source) == (["× 7"] if equal else [])  # the first reads a leaf


def test_stored_gradients_of_a_repeat_are_those_of_its_ends():
    y, leaves = leaf([1.0, 2.0], "x"), [leaf(2.0, f"w{i}") for i in range(9)]
    for w in leaves:
        y = ag.tanh(y) * w
    leaves[1].grad = 7.0
    assert r"w1\nto w8\n.grad first 7\nno .grad last" in labels(ag.to_dot(y, grads=True).source).values()


def test_two_repeats_are_two_frames():
    y = leaf([1.0, 2.0], "x")
    for _ in range(9):
        y = ag.tanh(y * 2.0)
    for _ in range(8):
        y = ag.sigmoid(y * 0.5)
    assert counts(ag.to_dot(y).source) == ["× 8", "× 8"]


def test_a_block_that_reads_one_leaf_twice_is_not_one_that_reads_two():
    y = leaf([1.0, 2.0], "x")
    for i in range(10):
        w = leaf(2.0, "w")
        y = ag.tanh(y) + (w * w if i < 5 else w * leaf(3.0, "w"))
    assert counts(ag.to_dot(y).source) == ["× 4", "× 4"]


def test_blocks_that_a_gradient_reaches_are_told_from_those_that_it_does_not():
    y, w = leaf([1.0, 2.0], "x"), leaf(2.0, "w")
    for _ in range(9):
        y = ag.tanh(ag.stop_gradient(y) * w)
    source = ag.to_dot(y.sum(), grads=True).source
    assert counts(source) == ["× 8"]
    names = labels(source)
    assert [names[head][0] for _, head, gradient in arrows(source) if gradient] == ["w", "m", "t", "s"]


def test_a_repeat_is_read_and_left_where_it_begins_and_ends():
    x = leaf([1.0, 2.0], "x")
    y = x
    for i in range(9):
        y = ag.tanh(y) * leaf(2.0, f"w{i}")
    source = ag.to_dot(ag.exp(y)).source
    assert counts(source) == ["× 8"]
    names = labels(source)
    inner = [i for i, text in names.items() if text in (r"w1\nto w8", "w0")]
    assert len(inner) == 2
    ends = {(names[tail].split("\\n")[0], names[head].split("\\n")[0]) for tail, head, _ in arrows(source)}
    assert {("x", "tanh"), ("w1", "multiply"), ("multiply", "tanh"), ("multiply", "exp"), ("exp", "output")} <= ends


@pytest.mark.parametrize("kind", "read output named shape constant shared few".split())
def test_what_is_no_repeat_is_drawn_in_full(kind):
    """Blocks that something outside reads, or that differ in anything that a picture shows."""
    y, kept = leaf(np.ones(4), "x"), []
    w = leaf(np.ones(4), "w")
    for i in range(4 if kind == "few" else 12):
        y = ag.tanh(y + w if kind == "shared" and i % 2 else y * w)
        if kind == "named":
            y.name = f"h{i}"
        if kind == "shape":
            y = ag.concatenate([y, y[:1]])
            w = leaf(np.ones(len(y.data)), "w")
        if kind == "constant":
            y = y + float(i)
        kept.append(y)
    ends = {"read": ag.stack(kept) if kind == "read" else None, "output": kept}.get(kind, y)
    found = counts(ag.to_dot(ends).source)
    assert found == (["× 5"] if kind == "shared" else [])  # blocks of four operations


# --- Models ------------------------------------------------------------------------------------------------


def frames(source):
    """The titles of all frames."""
    return re.findall(r'graph \[label="(.*?)" style="rounded', source)


def test_a_model_shows_its_modules():
    source = PICTURES["net"]().source
    assert frames(source) == ["0: Block", "0.body: Sequential"]
    found = [text.split("\\n")[0] for text in labels(source).values()]
    boxes = "0.body.0: Conv2d(2, 2)", "0.body.1: BatchNorm(2)", "0.body.2: ReLU", "1: MaxPool2d", "2: Flatten"
    assert {*boxes, "add", "3: Linear(8, 3)", "x", "output"} < set(found)
    assert {name for name, _ in net().named_parameters()} < set(found)
    opened = PICTURES["net_opened"]().source
    titles = [
        "0: Block",
        "0.body: Sequential",
        "0.body.0: Conv2d(2, 2)",
        r"0.body.1: BatchNorm(2)\laxes 0, 1, 2, eps 1e-05\l",
    ]
    assert frames(opened) == [*titles, "batch statistics"]
    assert "windows" in opened


def test_drawing_a_model_changes_nothing_in_it():
    model = net()
    norm = model[0].body[1]
    before = {name: array.copy() for name, array in model.state_dict().items()}
    ag.to_dot(model, inputs=(ag.tensor(IMAGES),), values=True, grads=True)
    for name, array in model.state_dict().items():
        np.testing.assert_array_equal(array, before[name])
    assert norm.training
    assert "forward" not in vars(norm)


def test_gradients_of_a_model_with_a_scalar_output_flow_through_its_boxes():
    class Loss(nn.Module):
        def __init__(self):
            self.net = net()

        def forward(self, images, labels):
            return nn.cross_entropy(self.net(images), labels)

    source = ag.to_dot(Loss(), inputs=(IMAGES, np.array([0, 1])), grads=True).source
    names = labels(source)
    assert "labels" in names.values() or any("labels" in text for text in names.values())
    flows = {
        (names[tail].split("\\n")[0], names[head].split("\\n")[0]) for tail, head, dashed in arrows(source) if dashed
    }
    assert ("net.0.body.0: Conv2d(2, 2)", "net.0.body.0.weight") in flows
    assert not any(head == "images" for _, head in flows)


@pytest.mark.parametrize("layer", [nn.BatchNorm(2), nn.Linear(2, 3, rng=0), nn.Dropout(rng=0), nn.ReLU()])
@pytest.mark.parametrize("expand", [False, True])
def test_a_layer_alone_is_a_model(layer, expand):
    source = ag.to_dot(layer, inputs=np.array(X), expand=expand).source
    assert "x" in labels(source).values()
    assert any(text.startswith(type(layer).__name__) for text in labels(source).values()) or expand


def test_what_a_module_reads_past_its_arguments_stays_where_it_was_recorded():
    class Reads(nn.Module):
        def forward(self, x):
            return x + self.other * 2.0

    class Net(nn.Module):
        def __init__(self):
            self.first, self.second = nn.Sequential(nn.Tanh(), nn.ReLU()), Reads()

        def forward(self, x):
            self.second.other = self.first(x)
            return self.second(x)

    source = ag.to_dot(Net(), inputs=np.ones((1, 2))).source
    assert frames(source) == ["first: Sequential", "second: Reads"]
    assert source.index("second: Reads") > source.index("first.1: ReLU")
    assert "\n\tsubgraph cluster_1" in source.partition("first.1: ReLU")[2].partition("}")[2]


def test_a_module_that_is_called_twice_has_two_boxes():
    class Twice(nn.Module):
        def __init__(self):
            self.layer = nn.Linear(2, 2, rng=0)

        def forward(self, x):
            return self.layer(ag.relu(self.layer(x)))

    source = ag.to_dot(Twice(), inputs=np.ones((1, 2), "float32")).source
    assert list(labels(source).values()).count("layer: Linear(2, 2)") == 2
    assert list(labels(source).values()).count("layer.weight") == 1


# --- Text comes out as typed -------------------------------------------------------------------------------

NASTY = [
    'say "hi"', "<b>bold</b>", "<>", "a\\nb", "back\\", '\\"', "\\N \\G", "&amp; &lt;", "&#65; R&B", "λ 漢字 é 🎉",
    "two\nlines", "{a|b}", "a:b", "%", "digraph", "tab\there", " padded ", "-->", "]]>", "\N{NO-BREAK SPACE}x",
]  # fmt: skip


def drawn_texts(svg):
    """What the svg shows as the lines of each node, by id."""
    found = {}
    for group in ET.fromstring(svg).iter("{http://www.w3.org/2000/svg}g"):
        if group.get("class") == "node":
            title = group.find("{http://www.w3.org/2000/svg}title").text
            found[int(title)] = [text.text or "" for text in group.iter("{http://www.w3.org/2000/svg}text")]
    return found


def check_names(names):
    total = leaf(0.0, "first")
    for name in names:
        total = total + leaf(1.0, name)
    texts = drawn_texts(draw(ag.to_dot(total, expand=True).source, "svg"))
    drawn = ["\n".join(lines) for i, lines in sorted(texts.items())]
    for name in names:
        assert name in drawn


def test_names_come_out_as_typed():
    check_names(NASTY)


@settings(max_examples=10, deadline=None)
@given(
    st.lists(st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"]), min_size=1, max_size=44), min_size=20)
)
def test_any_name_comes_out_as_typed(names):
    check_names(names)


def test_what_can_not_be_printed_is_spelled_out():
    source = ag.to_dot(leaf(1.0, "bell\x07 nul\0 half\ud800")).source
    assert labels(source)[0] == r"bell\\x07 nul\\x00 half\\ud800"
    ET.fromstring(draw(source, "svg"))


@pytest.mark.parametrize("name", PICTURES)
def test_no_text_is_clipped(name):
    ttfont = pytest.importorskip("fontTools.ttLib")
    font = ttfont.TTFont(FONT)
    advances, glyphs, unit = font["hmtx"], font.getBestCmap(), font["head"].unitsPerEm
    ns = "{http://www.w3.org/2000/svg}"
    source = PICTURES[name]().source
    svg = ET.fromstring(draw(source, "svg"))
    bold = [path.get("d") for path in svg.iter(f"{ns}path") if path.get("stroke-width") == "2.2"]
    ends = [np.array([part.split(",") for part in re.split("[MC ]", d)[1:]], float)[[0, -1]] for d in bold]
    spine = np.concatenate([np.linspace(*pair, 200) for pair in ends] or [np.zeros((0, 2))])
    width, height = (float(size) for size in svg.get("viewBox").split()[2:])
    for group in svg.iter(f"{ns}g"):
        outline = group.find(f"{ns}ellipse")
        for text in group.findall(f"{ns}text"):
            size = float(text.get("font-size"))
            half = sum(advances[glyphs[ord(letter)]][0] for letter in text.text) * size / unit / 2
            centre, baseline = float(text.get("x")), float(text.get("y"))
            centre += half * (text.get("text-anchor") == "start")
            left, right = 0.0, width - 8
            if outline is not None:
                rx, ry = float(outline.get("rx")), float(outline.get("ry"))
                rise = min(1, abs(baseline - size / 3 - float(outline.get("cy"))) / ry)
                reach = rx * np.sqrt(1 - rise**2)
                left, right = float(outline.get("cx")) - reach, float(outline.get("cx")) + reach
            elif group.get("class") == "node":
                points = group.find(f"{ns}polygon").get("points").split()
                xs = [float(point.split(",")[0]) for point in points]
                left, right = min(xs), max(xs)
            slack = 3 if group.get("class") == "edge" else 0
            assert left <= centre - half + slack, text.text
            assert centre + half - slack <= right, text.text
            assert -height <= baseline <= 0
            if group.get("class") == "edge" and "rankdir=TB" in source:
                beside = np.abs(spine[:, 0] - centre) >= half - 4  # but for the blanks around it
                assert np.all(beside | (np.abs(spine[:, 1] - baseline + 3) > 4)), f"{text.text} is crossed"


SVG = "{http://www.w3.org/2000/svg}"


def cover(text):
    """What a text covers: left, top, right, bottom."""
    words, size, x, y = text.text or "", *[float(text.get(name)) for name in ("font-size", "x", "y")]
    width = size * Font(FONT).width(words)
    left = x - width / 2 * (text.get("text-anchor") == "middle")
    blank = size * Font(FONT).width(words[: len(words) - len(words.lstrip(" \xa0"))])
    return left + blank, y - 0.75 * size, left + blank + size * Font(FONT).width(words.strip(" \xa0")), y + 0.2 * size


def along(element):
    """Points on a line, close to each other."""
    t = np.linspace(0, 1, 600)[:, None]
    if element.tag == f"{SVG}ellipse":
        cx, cy, rx, ry = (float(element.get(name)) for name in ("cx", "cy", "rx", "ry"))
        return np.hstack([cx + rx * np.cos(7 * t), cy + ry * np.sin(7 * t)])
    corners = element.get("points", "").split() or re.split("[MC ]", element.get("d"))[1:]
    ends = np.array([corner.split(",") for corner in corners], float)
    if element.tag != f"{SVG}path":
        return np.concatenate([a + t * (b - a) for a, b in itertools.pairwise(ends)])
    weights = np.hstack([(1 - t) ** 3, 3 * (1 - t) ** 2 * t, 3 * (1 - t) * t**2, t**3])
    return np.concatenate([weights @ ends[i : i + 4] for i in range(0, len(ends) - 1, 3)])


def meetings(svg):
    """The labels of edges and frames that meet a line or another label."""
    texts, lines = [], []
    for group in ET.fromstring(svg).iter(f"{SVG}g"):
        for element in group:
            about = group.get("class"), group.findtext(f"{SVG}title")
            if element.tag == f"{SVG}text":
                texts.append((*about, element.text.strip(" \xa0"), cover(element)))
            elif element.tag != f"{SVG}title" and about[0] != "graph":
                lines.append((*about, along(element), float(element.get("stroke-width", 1)) / 2))
    found = []
    for i, (kind, title, words, (left, top, right, bottom)) in enumerate(texts):
        for other, name, line, half in lines if words else ():
            inside = np.abs(line - [(left + right) / 2, (top + bottom) / 2])
            meets = np.any(np.all(inside < [(right - left) / 2 + half, (bottom - top) / 2 + half], axis=1))
            if meets and not (kind == other == "node" and title == name):
                found.append(f"{words} meets {other} {name}")
        for other, name, said, (west, north, east, south) in texts[:i]:
            overlap = west < right and left < east and north < bottom and top < south
            if overlap and words and said and (kind, title) != (other, name):
                found.append(f"{words} lies on {said}")
    return found


@pytest.mark.parametrize("name", PICTURES)
def test_no_label_meets_a_line_or_another_label(name):
    assert meetings(draw(PICTURES[name]().source, "svg")) == []


def test_every_golden_picture_is_looked_at():
    assert {path.stem for path in GOLDEN.glob("*.svg")} == {path.stem for path in GOLDEN.glob("*.gv")} == {*PICTURES}


@pytest.mark.parametrize("name", ["spelled_out_grads", "recurrent_grads", "time_steps_values_grads"])
def test_a_label_that_is_moved_onto_a_gradients_lane_meets_it(name):
    svg = ET.fromstring(draw(PICTURES[name]().source, "svg"))
    lanes = [g for g in svg.iter(f"{SVG}g") if len(g.findall(f"{SVG}path")) == 2 and g.find(f"{SVG}text") is not None]
    assert lanes
    for group in lanes[:2]:
        text, lane = group.find(f"{SVG}text"), group.findall(f"{SVG}path")[1]
        where = text.get("x"), text.get("y")
        middle = along(lane)[len(along(lane)) // 2]
        text.attrib |= {"x": str(middle[0]), "y": str(middle[1] + 3)}
        title = group.findtext(f"{SVG}title")
        assert any(f"meets edge {title}" in words for words in meetings(ET.tostring(svg)))
        text.attrib |= dict(zip("xy", where, strict=True))


def test_labels_move_only_from_lines():
    svg = subprocess.run(
        [sys.executable, "-P", wheel.__file__, "svg"], input=PICTURES["fused"]().source.encode(), capture_output=True
    ).stdout.decode()
    moved = placed(svg)
    assert len(meetings(svg)) == 3
    changed = [(a, b) for a, b in zip(svg.splitlines(), moved.splitlines(), strict=True) if a != b]
    assert 0 < len(changed) < svg.count("<text")
    assert all(re.sub('[xy]="[^"]*"', "", a) == re.sub('[xy]="[^"]*"', "", b) for a, b in changed)
    assert placed(moved) == moved
    large = svg.replace('viewBox="0.00 0.00 ', 'viewBox="0.00 0.00 99999')
    assert large != svg
    assert placed(large) == large


# --- Files -------------------------------------------------------------------------------------------------


def pdf_is_drawn():
    try:
        return bool(draw("digraph {}", "pdf"))
    except RuntimeError as error:
        assert "pdf needs Graphviz on the system" in str(error)  # noqa: PT017
        return False


@pytest.mark.parametrize("suffix", ["svg", "png", "pdf", "dot", "gv", "SVG"])
def test_every_format_is_drawn_to_the_path_that_comes_back_and_nothing_else(tmp_path, monkeypatch, suffix):
    if suffix == "pdf" and not pdf_is_drawn():
        pytest.skip("pdf needs libraries that this system lacks")
    monkeypatch.chdir(tmp_path)
    path = tmp_path / f"picture.{suffix}"
    path.write_text("old")
    assert ag.render(normed(), path) == path
    start = {"svg": b"<?xml", "png": b"\x89PNG", "pdf": b"%PDF", "dot": b"digraph", "gv": b"digraph"}
    assert path.read_bytes().startswith(start[suffix.lower()])
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_the_wheel_draws_without_libraries_of_the_system():
    if not Path("/proc/self/maps").exists():
        pytest.skip("/proc is Linux's")
    code = "import sys; from autograd_bn.drawing import run_graphviz as r, wheel; "
    code += "r.raster(wheel.draw(sys.stdin.buffer.read(), 'svg', r.font()).decode()); "
    code += "print(open('/proc/self/maps').read())"
    source = PICTURES["composed_values_grads"]().source.encode()
    done = subprocess.run([sys.executable, "-c", code], input=source, capture_output=True, check=True)
    loaded = set(re.findall(r"/(lib[a-zA-Z]+)[^/]*\.so", done.stdout.decode()))
    assert "libgvc" in loaded
    assert not loaded & {
        "libX",
        "libXext",
        "libXrender",
        "libglib",
        "libgobject",
        "libpango",
        "libcairo",
        "libfontconfig",
    }


def test_the_picture_is_the_same_whatever_fonts_and_language_a_machine_has(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    source = PICTURES["expanded_values_grads"]().source
    here = [draw(source, format) for format in ("svg", "png")]
    (tmp_path / "fonts.conf").write_text("<fontconfig></fontconfig>")
    for name, value in {"FONTCONFIG_FILE": "fonts.conf", "HOME": ".", "LC_ALL": "C", "GDFONTPATH": "."}.items():
        monkeypatch.setenv(name, str(tmp_path / value) if name != "LC_ALL" else value)
    assert [draw(source, format) for format in ("svg", "png")] == here


def test_letters_are_as_wide_as_in_the_font():
    ttfont = pytest.importorskip("fontTools.ttLib")
    ours, theirs = Font(FONT), ttfont.TTFont(FONT)
    advances, glyphs, unit = theirs["hmtx"], theirs.getBestCmap(), theirs["head"].unitsPerEm
    assert ours.glyphs.keys() == glyphs.keys()
    for code, glyph in glyphs.items():
        assert ours.width(chr(code)) == advances[glyph][0] / unit
    assert ours.width("漢字") == 2
    assert ours.width("e\u0301") == ours.width("e")
    assert ours.width("x̂ = σ²") == pytest.approx(sum(map(ours.width, "x̂ = σ²")))


def test_a_long_name_fits_its_shape_to_the_point():
    name = "Wide Wörter, 漢字 und σ² " * 2
    (group,) = [
        g for g in ET.fromstring(draw(ag.to_dot(leaf(1.0, name)).source, "svg")).iter() if g.findtext("{*}title") == "0"
    ]
    size = 12 * Font(FONT).width(max(group.itertext(), key=len))
    assert size < 2 * float(group.find("{*}ellipse").get("rx")) < 1.5 * size + 40


def test_pdf_names_what_it_needs_where_the_system_lacks_it(monkeypatch):
    def load(name):
        if name == "gvplugin_pango":
            raise OSError("libgobject-2.0.so.0: cannot open shared object file")
        return

    monkeypatch.setattr(wheel, "_load", load)
    with pytest.raises(SystemExit, match=r"libgobject.*: pdf needs Graphviz on the system"):
        wheel.draw(b"digraph {}", "pdf", Font(FONT))


def test_a_path_may_be_a_string(tmp_path):
    assert ag.render([normed()], f"{tmp_path}/a.dot") == tmp_path / "a.dot"
    assert (tmp_path / "a.dot").read_text(encoding="utf-8") == PICTURES["fused"]().source


@pytest.mark.parametrize(
    ("outputs", "path", "options", "error", "match"),
    [
        (None, "a.jpg", {}, ValueError, r"path .*a\.jpg' ends in '\.jpg', expected one of \.svg"),
        (None, "noending", {}, ValueError, "has no suffix, expected one of"),
        (None, "a.svg", {"direction": "RL"}, ValueError, "direction is 'RL'"),
        (None, "a.svg", {"grads": np.ones(3)}, ValueError, r"grads is ndarray of shape \(3,\).*\(4, 2\)"),
        (None, "a.svg", {"grads": "all"}, ValueError, "grads is str"),
        (3, "a.svg", {}, TypeError, "outputs is a int"),
        (np.ones(3), "a.svg", {}, TypeError, "outputs is a ndarray"),
        ([1.5], "a.svg", {}, TypeError, r"outputs\[0\] is a float"),
        ([], "a.svg", {}, ValueError, "at least one output"),
        (None, "a.svg", {"around": ag.tensor(1.0, name="z")}, ValueError, "around has <Node leaf 'z'.*not below"),
        (None, "a.svg", {"inputs": [1.0]}, TypeError, "inputs is for a model, but outputs is a Tensor"),
        (nn.ReLU(), "a.svg", {}, TypeError, "inputs is None, expected what the model is to be called with"),
        (None, "a.svg", {"around": "y"}, TypeError, "around is a str"),
        (None, "a.svg", {"around": normed(), "hops": -1}, ValueError, "hops is -1"),
        (None, "a.html", {"hops": 2}, ValueError, "hops is 2, counted from around, which is None"),
        (None, "a.svg", {"values": "yes"}, TypeError, "values is 'yes', expected True or False"),
        (None, "a.html", {"expand": None}, TypeError, "expand is None, expected True or False"),
        (nn.ReLU, "a.svg", {}, TypeError, "outputs is the class ReLU, expected a tensor or a model"),
        (nn.ReLU(), "a.svg", {"inputs": ["text"]}, TypeError, r"inputs\[0\]: array has dtype <U4"),
        (None, "missing/a.svg", {}, FileNotFoundError, r"path can't be written: No such file.*missing/a\.svg"),
        (None, "file/a.dot", {}, NotADirectoryError, "path can't be written: Not a directory"),
        (None, "folder.dot", {}, IsADirectoryError, "path can't be written: Is a directory"),
    ],
)
def test_errors_name_the_argument_and_leave_nothing_behind(tmp_path, outputs, path, options, error, match):
    (tmp_path / "folder.dot").mkdir()
    (tmp_path / "file").write_text("kept")
    with pytest.raises(error, match=match):
        ag.render(normed() if outputs is None else outputs, tmp_path / path, **options)
    assert sorted(file.name for file in tmp_path.rglob("*")) == ["file", "folder.dot"]


@pytest.mark.skipif(os.name != "posix", reason="links and modes are those of Unix")
def test_a_link_is_followed_and_a_file_keeps_its_mode(tmp_path):
    real, link = tmp_path / "real.dot", tmp_path / "link.dot"
    real.write_text("old")
    real.chmod(0o640)
    link.symlink_to(real)
    ag.render(normed(), link)
    assert link.is_symlink()
    assert real.read_text(encoding="utf-8").startswith("digraph")
    assert real.stat().st_mode & 0o777 == 0o640


def fake_dot(folder, script):
    program = folder / "dot"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)


@pytest.mark.skipif(os.name != "posix", reason="the stand-in is a shell script")
def test_a_dot_on_the_path_comes_first(tmp_path, monkeypatch):
    fake_dot(tmp_path, 'echo "$@"; exec cat')
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert draw("digraph {}", "png") == b"-Tpng -Gdpi=144\ndigraph {}"


@pytest.mark.skipif(os.name != "posix", reason="the stand-in is a shell script")
@pytest.mark.parametrize(
    ("script", "match"),
    [("echo one >&2; echo two >&2; exit 3", r"\(two\)"), ("kill -9 $$", "-9"), ("cat >/dev/null", "0")],
)
def test_a_failing_graphviz_is_reported(tmp_path, monkeypatch, script, match):
    fake_dot(tmp_path, script)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    with pytest.raises(RuntimeError, match=f"failed to draw svg .*{match}"):
        ag.render(normed(), tmp_path / "a.svg")
    assert not (tmp_path / "a.svg").exists()


@pytest.mark.skipif(os.name != "posix", reason="the stand-in is a shell script")
def test_a_slow_graphviz_is_reported_and_stopped(tmp_path, monkeypatch, capsys):
    fake_dot(tmp_path, "exec sleep 60")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr(run_graphviz, "QUIET", 0.1)
    monkeypatch.setattr(run_graphviz, "LIMIT", 0.2)
    with pytest.raises(RuntimeError, match=r"0.2 s: cut a part out with around= and hops=, or write a \.dot"):
        draw("digraph { 0 [label=a] }", "svg")
    assert capsys.readouterr().err == "Graphviz is drawing 1 nodes and edges ...\n"


def test_without_graphviz_only_text_is_written(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setitem(sys.modules, "pygraphviz", None)
    with pytest.raises(
        RuntimeError, match=r"drawing svg needs Graphviz: pip install 'pygraphviz>=2', which carries it"
    ):
        ag.render(normed(), tmp_path / "a.svg")
    ag.render(normed(), tmp_path / "a.dot")
    assert [file.name for file in tmp_path.iterdir()] == ["a.dot"]


def test_png_needs_what_makes_it_of_svg(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setitem(sys.modules, "resvg_py", None)
    with pytest.raises(RuntimeError, match=r"drawing png needs .* 'pygraphviz>=2' 'resvg-py>=0.5', which"):
        ag.render(normed(), tmp_path / "a.png")
    assert ag.render(normed(), tmp_path / "a.svg").exists()


def test_graphviz_is_imported_for_drawing_only():
    code = "import sys, autograd_bn as ag; ag.render, ag.to_dot; sys.exit('graphviz' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_notebook_shows_the_picture_and_says_what_it_is(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    sketch = ag.to_dot(normed())
    assert isinstance(sketch, graphviz.Digraph)
    shown = sketch._repr_mimebundle_()
    assert ET.fromstring(shown["image/svg+xml"])[0][0].get("stroke") == "#8796A5"  # a frame, in dark themes
    assert base64.b64decode(shown["image/png"]).startswith(b"\x89PNG")
    assert shown["text/plain"] == "<picture of a graph of 1 operation from x with gamma, beta to y>" == repr(sketch)
    monkeypatch.setitem(sys.modules, "resvg_py", None)
    assert sketch._repr_mimebundle_().keys() == {"text/plain", "image/svg+xml"}
    monkeypatch.setitem(sys.modules, "pygraphviz", None)
    assert sketch._repr_mimebundle_().keys() == {"text/plain"}


def test_graphs_and_tensors_show_themselves_in_notebooks(monkeypatch, tmp_path):
    y = normed()
    for shown in (y, ag.Graph(y)):
        text = shown._repr_html_()
        pre, image = ET.fromstring(f"<p>{text}</img></p>")
        assert pre.text == repr(shown)
        svg = base64.b64decode(image.get("src").partition("base64,")[2])
        assert "batch_norm" in svg.decode()
        assert "max-width:100%" in image.get("style")
    assert leaf([1.0])._repr_html_() is None
    assert recurrent(100)._repr_html_() is None  # too much to draw without being asked
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setitem(sys.modules, "pygraphviz", None)
    assert y._repr_html_() is None


def test_a_model_shows_its_modules_in_notebooks():
    rows = re.findall(r"<tr>(.*?)</tr>", net()._repr_html_())
    assert re.findall("<td>(.*?)</td>", rows[4])[0] == "0.body.0"
    assert re.findall("<td>(.*?)</td>", rows[4])[2] == "38"
    assert len(rows) == 1 + 9


if __name__ == "__main__":
    for title, picture in PICTURES.items():
        (GOLDEN / f"{title}.gv").write_text(picture().source, encoding="utf-8")
        (GOLDEN / f"{title}.svg").write_text(as_golden(draw(picture().source, "svg")), encoding="utf-8")
