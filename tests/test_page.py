"""The page: as data, equal to what the engine computes; and in a real Chromium, where nothing leaves the file."""

import base64
import contextlib
import hashlib
import html
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import time
from fractions import Fraction
from functools import cache
from pathlib import Path

import numpy as np
import pytest

import autograd_bn as ag
from autograd_bn.batch_norm.fusion import norms
from autograd_bn.drawing import scene
from autograd_bn.drawing.dot import digraph
from autograd_bn.drawing.page import formulas
from autograd_bn.drawing.picture import Picture
from autograd_bn.drawing.run_graphviz import draw
from autograd_bn.drawing.scene import Scene
from autograd_bn.engine import primitive
from autograd_bn.engine.node import topological_order

CHROMIUM = os.environ.get("AUTOGRAD_BN_CHROMIUM") or shutil.which("chromium")
HOSTILE = [
    "</script><script>window.pwned=1</script>",
    "<img src=x onerror=window.pwned=2>",
    '"><svg onload=window.pwned=3>',
    "]]><!--<script>",
    "&lt;b&gt;&amp;#60;",
    "{{js}}",
    '\\N \\G \\l \\"',
    "é漢 \u2028\u202e",
    "<TABLE><TR><TD HREF='javascript:window.pwned=4'>x</TD></TR></TABLE>",
    "' autofocus onfocus=window.pwned=5 x='",
]
GOLDEN = Path(__file__).parent / "golden" / "page.json"


def norm(form="fused", dtype=np.float32, **options):
    """A weighted batch norm of four rows, and its inputs."""
    rng = np.random.default_rng(0)
    x, w = (rng.normal(size=(4, 3)).astype(dtype) for _ in range(2))
    gamma, beta = np.array([[1.5, 2, 0.5], [0.1, 0, 0.2]], dtype)
    inputs = [ag.tensor(a, requires_grad=True, name=n) for a, n in ((x + 3, "x"), (gamma, "gamma"), (beta, "beta"))]
    loss = (ag.batch_norm(*inputs, form=form, **options) * ag.tensor(w, name="w")).sum()
    loss.name = "loss"
    return loss, inputs


@cache
def page_of(form="fused", **options):
    """The page of that loss, made once."""
    return ag.page(norm(form)[0], **options)


def data_of(page):
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', str(page), re.S)[1])


def array(data, index):
    entry = data["arrays"][index]
    numbers = entry["data"]
    if entry["dtype"] == "object":
        numbers = [Fraction(n) for n in numbers]
    return np.array(numbers, entry["dtype"]).reshape(entry["shape"])


def same(a, b):
    a, b = np.asarray(a), np.asarray(b)
    return a.dtype == b.dtype and a.shape == b.shape and (a.tobytes() == b.tobytes() or bool((a == b).all()))


@pytest.mark.parametrize("form", ["fused", "composed"])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.longdouble])
def test_every_gradient_is_the_engines_to_the_bit_and_the_sum_of_its_shares(form, dtype):
    loss, inputs = norm(form, dtype)
    data = data_of(ag.page(loss))
    view = data["views"][0]
    leaves = {node["symbol"]: node for node in view["nodes"]}
    for given, want in zip(inputs, ag.grad(loss, inputs), strict=True):
        assert same(array(data, leaves[given.name]["grad"]), want)
        assert same(array(data, leaves[given.name]["value"]), given.data)
    for view in data["views"]:
        sums = {}
        for part in [part for step in view["steps"] for part in step["parts"]]:
            share = array(data, part["part"])
            sums[part["to"]] = sums[part["to"]] + share if part["to"] in sums else share
            assert same(sums[part["to"]], array(data, part["total"]))
        grads = {node["id"]: array(data, node["grad"]) for node in view["nodes"] if node["grad"] is not None}
        assert grads.keys() == sums.keys()
        assert all(same(sums[i], grads[i]) for i in grads)


def test_steps_run_through_every_operation_forward_and_in_the_engines_order_back():
    loss, _ = norm("composed")
    view = data_of(ag.page(loss))["views"][0]
    steps = view["steps"]
    assert [step["pass"] for step in steps[:2]] == ["start", "forward"]
    ops = [node["id"] for node in view["nodes"] if node["op"]]
    assert [step["node"] for step in steps if step["pass"] == "forward"] == ops
    known = set()
    for step in steps:
        if step["pass"] == "backward":
            assert step["node"] in known  # its gradient is complete
        known |= {part["to"] for part in step["parts"] if part["n"] == part["of"]}
    shares = [(p["n"], p["of"]) for step in steps for p in step["parts"] if view["nodes"][p["to"]]["symbol"] == "x"]
    assert shares == [(1, 2), (2, 2)]


def test_formulas_are_read_off_what_the_rules_record():
    loss, _ = norm("fused")
    closed, opened = data_of(ag.page(loss))["views"]
    rules = {
        closed["nodes"][p["to"]]["symbol"]: p["rule"]
        for step in closed["steps"]
        for p in step["parts"]
        if closed["nodes"][step["node"]]["op"] == "batch_norm"
    }
    assert rules["x"] == "(g − Σ(g) / 4 − x̂ · Σ(g · x̂) / 4) · 1/σ · gamma"
    assert (rules["gamma"], rules["beta"]) == ("Σ(g · x̂)", "Σ(g)")
    said = [step["say"] for step in opened["steps"]]
    assert "Forward: centred = x − mean" in said
    assert "Backward through centred: x gets g, share 1 of 2; mean gets Σ(−g)" in said
    assert "Backward through square: centred gets g · 2 · centred, share 2 of 2" in said


def test_a_wrong_rule_shows_its_wrong_formula_and_one_that_has_none_says_so():
    @primitive(lambda g, x: g * 3 * x)
    def cube_page(x, /):
        return x * x * x

    @primitive(lambda g, x: np.asarray(g).astype(float) * 1)
    def stubborn_page(x, /):
        return x * 1

    @primitive(lambda g, x: np.frombuffer(g.tobytes(), g.dtype))
    def bytes_page(x, /):
        return x * 1

    x = ag.tensor([1.0, 2.0], requires_grad=True, name="x")
    (view,) = data_of(ag.page(bytes_page(stubborn_page(cube_page(x))).sum()))["views"]
    said = [step["say"] for step in view["steps"]]
    assert "Backward through cube_page: x gets g · 3 · x" in said
    assert "Backward through stubborn_page: cube_page gets a constant" in said
    assert "Backward through bytes_page: stubborn_page gets its own rule" in said


def test_brackets_stand_where_they_change_the_meaning():
    @primitive(lambda g, x: (g - (x - (g + x))) / (x * (g / (x / g))) ** (x ** -(g * 2)) - (g - 1) * (-x + 1))
    def bracketed_page(x, /):
        return x * 1

    x = ag.tensor([1.0, 2.0], requires_grad=True, name="x")
    (view,) = data_of(ag.page(bracketed_page(x).sum()))["views"]
    rule = view["steps"][-1]["parts"][0]["rule"]
    assert rule == "(g − (x − (g + x))) / (x · g / (x / g)) ^ (x ^ (−g · 2)) − (g − 1) · (−x + 1)"


def test_local_derivatives_times_g_are_the_products():
    loss, _ = norm("composed", np.float64)
    data = data_of(ag.page(loss))
    view = data["views"][0]
    checked = 0
    for step in view["steps"]:
        for part in step["parts"]:
            if part["local"] is not None:
                g = array(data, view["nodes"][step["node"]]["grad"])
                product = array(data, part["part"] if part["raw"] is None else part["raw"])
                np.testing.assert_allclose(g * array(data, part["local"]), product, rtol=1e-14)
                checked += 1
    assert checked >= 8


def test_paths_are_named_and_add_up_and_the_means_own_path_is_exactly_zero_on_fractions():
    x, gamma, beta, eps = ag.rational_batch((4, 2), seed=0)
    inputs = [ag.tensor(a, requires_grad=True, name=n) for a, n in ((x, "x"), (gamma, "gamma"), (beta, "beta"))]
    loss = (ag.batch_norm(*inputs, eps=eps) * ag.tensor(x[::-1].copy(), name="w")).sum()
    data = data_of(ag.page(loss))
    (paths,) = data["views"][1]["paths"]
    parts = {path["label"]: array(data, path["part"]) for path in paths["paths"]}
    labels = ["direct", "through the mean", "through the variance", "through the variance's own mean"]
    assert list(parts) == labels
    assert not parts[labels[3]].any()
    assert all(parts[name].any() for name in labels[:3])
    (dx,) = ag.grad(loss, inputs[0])
    assert (sum(parts.values()) == dx).all()
    assert (array(data, paths["sum"]) == dx).all()


def test_two_paths_without_a_batch_norm_are_told_apart_by_what_they_lead_through():
    x = ag.tensor([1.0, 2.0], requires_grad=True, name="x")
    square = data_of(ag.page((ag.exp(x) + x * x).sum()))
    (paths,) = square["views"][0]["paths"]
    assert len(paths["paths"]) == 2  # both edges of x * x are one
    assert same(array(square, paths["sum"]), np.add(np.exp([1.0, 2.0]), [2.0, 4.0]))
    (view,) = data_of(ag.page((ag.exp(x) + ag.tanh(x) * x).sum()))["views"]
    assert [len(p["paths"]) for p in view["paths"]] == [3]
    assert len({path["label"] for path in view["paths"][0]["paths"]}) == 3


def test_the_open_form_is_computed_by_itself_and_its_nodes_have_twins():
    loss, _ = norm("fused")
    data = data_of(ag.page(loss))
    closed, opened = data["views"]
    assert [view["name"] for view in data["views"]] == ["closed", "open"]
    names = [[node["symbol"] for node in view["nodes"]] for view in (closed, opened)]
    fused = names[0].index("batch_norm")
    twin = data["twin"]["open"]
    assert {names[1][int(i)] for i, j in twin.items() if j == fused} == {
        *("mean", "centred", "square", "var", "add₁", "1/σ", "x̂", "multiply₁", "add₂")
    }
    assert names[1][data["twin"]["closed"][str(fused)]] == "add₂"  # the last has its value
    for name in ("x", "gamma", "beta", "w", "loss"):
        assert twin[str(names[1].index(name))] == names[0].index(name)
        assert data["twin"]["closed"][str(names[0].index(name))] == names[1].index(name)


def test_each_fused_node_opens_alone(monkeypatch):
    monkeypatch.setattr("autograd_bn.drawing.page.ALONE", 2)
    x = ag.tensor(np.arange(6.0).reshape(3, 2) ** 2, requires_grad=True, name="x")
    y = x
    for _ in range(3):
        y = ag.batch_norm(y)
    data = data_of(ag.page((y * y).sum(), values=False))
    assert [view["name"] for view in data["views"]] == ["closed", "open", "open 1", "open 2"]
    assert [sum(node["op"] == "batch_norm" for node in view["nodes"]) for view in data["views"]] == [3, 0, 2, 2]
    monkeypatch.setattr("autograd_bn.drawing.page.MOST", 10)  # which the closed form fits, and the open one does not
    names = [view["name"] for view in data_of(ag.page((y * y).sum(), values=False))["views"]]
    assert names == ["closed", "open 1", "open 2"]


def test_batch_norms_are_looked_for_once_a_view_and_never_in_what_a_rule_makes_of_g(monkeypatch):
    searched = []

    def counted(outputs):
        searched.append(len(topological_order(outputs)))
        return norms(outputs)

    for module in (scene, formulas):
        monkeypatch.setattr(module, "norms", counted)
    rng = np.random.default_rng(0)
    h = ag.tensor(rng.normal(size=(8, 4)), requires_grad=True, name="x")
    for _ in range(4):
        h = ag.tanh(ag.batch_norm(h) + h * 0.5)
    y = (h * rng.normal(size=h.shape)).sum()
    views = data_of(ag.page(y))["views"]
    assert [view["name"] for view in views] == ["closed", "open", *[f"open {k}" for k in range(1, 5)]]
    assert all(view["repeats"] for view in views[:2])
    whole = [count for count in searched if count >= len(ag.Graph(y))]
    assert len(whole) == len(views)
    assert max(set(searched) - set(whole)) <= 10  # the statistics that a rule computes anew


@pytest.mark.parametrize("form", ["fused", "composed"])
def test_nodes_stand_in_topological_order_in_the_document(form):
    for svg in re.findall(r"<svg.*?</svg>", str(page_of(form)), re.S):
        ids = list(map(int, re.findall(r'data-node="(\d+)"', svg)))
        assert ids == sorted(ids)


def test_a_wide_output_steps_forward_only_and_says_why():
    loss, inputs = norm()
    y = ag.batch_norm(*inputs)
    data = data_of(ag.page(y))
    assert {step["pass"] for step in data["views"][0]["steps"]} == {"start", "forward"}
    assert "shape (4, 3)" in data["views"][0]["steps"][0]["say"]
    weights = np.arange(12.0, dtype=np.float32).reshape(4, 3)
    data = data_of(ag.page(y, grads=weights))
    leaves = {node["symbol"]: node for node in data["views"][0]["nodes"]}
    assert same(array(data, leaves["x"]["grad"]), ag.grad(y, inputs[0], weights)[0])
    assert {s["pass"] for s in data_of(ag.page(loss, grads=False))["views"][0]["steps"]} == {"start", "forward"}
    assert all(node["value"] is None for node in data_of(ag.page(loss, values=False))["views"][0]["nodes"])
    with pytest.raises(ValueError, match=r"grads .* shape \(2,\)"):
        ag.page(y, grads=np.ones(2))
    with pytest.raises(ValueError, match="direction"):
        ag.page(y, direction="BT")
    with pytest.raises(TypeError, match="outputs"):
        ag.page(3)


def test_an_output_that_another_output_reads_counts_its_seed_as_a_share():
    x = ag.tensor(2.0, requires_grad=True, name="x")
    a = x * x
    b = ag.exp(a)
    (view,) = data_of(data := ag.page([a, b]))["views"]
    shares = [(p["n"], p["of"]) for step in view["steps"] for p in step["parts"] if p["to"] == 1]
    assert shares == [(1, 2), (2, 2)]
    assert same(array(data_of(data), view["nodes"][0]["grad"]), ag.grad([a, b], x)[0])


def test_a_page_leaves_the_graph_alone_and_refuses_what_was_overwritten():
    loss, inputs = norm()
    nodes = ag.Graph(loss).nodes
    before = [[getattr(n, slot) for slot in ("primitive", "args", "saved", "wanted")] for n in nodes]
    ag.page(loss, expand=True)
    for node, (op, *rest) in zip(nodes, before, strict=True):
        assert node.primitive is op
        assert all(a is b for a, b in zip((node.args, node.saved, node.wanted), rest, strict=True))
    assert all(given.grad is None for given in inputs)
    inputs[0].assign(inputs[0].data * 2)
    with pytest.raises(RuntimeError, match="overwritten"):
        ag.page(loss)


def test_long_arrays_are_summaries():
    values = np.linspace(-1, 3, 20 * 30).reshape(20, 30)
    values[3, 4] = np.nan
    values[0, 0] = 1e308
    values[0, 1] = 0
    data = data_of(ag.page(ag.tensor(values, name="x") * 1))
    entry = data["arrays"][data["views"][0]["nodes"][0]["value"]]
    assert entry.keys() == {"shape", "dtype", "stats", "hist", "tile", "first", "last"}
    known = values[np.isfinite(values)]
    stats = entry["stats"]
    assert (stats["zeros"], stats["nonfinite"]) == (1, 1)
    assert np.isclose(stats["min"], known.min(), rtol=1e-3)
    assert np.isclose(stats["max"], 1e308, rtol=1e-3)
    assert sum(entry["hist"]) == known.size
    assert entry["first"][:2] == [1e308, 0]
    shades = entry["tile"]["shades"]
    assert len(shades) == 8 * entry["tile"]["columns"]
    assert shades[0] == "y"  # of the largest, which is positive
    assert set(shades[1:]) == {"Z"}  # 0


def test_numbers_keep_their_bits_and_what_json_lacks_is_text():
    given = np.array([0.1, -0.0, np.nan, np.inf, -np.inf, 5e-324, 1.7976931348623157e308, 1e22])
    for dtype in (np.float32, np.float64, np.longdouble):
        with np.errstate(over="ignore"):
            x = given.astype(dtype)
        data = data_of(ag.page(ag.tensor(x, name="x") * 1))
        entry = data["arrays"][data["views"][0]["nodes"][0]["value"]]
        back = np.array(entry["data"]).astype(dtype)
        assert np.array_equal(back, x, equal_nan=True)
        assert np.signbit(back[1])
        assert entry["data"][2:5] == ["NaN", "Infinity", "-Infinity"]
    data = data_of(ag.page(ag.tensor(np.array([Fraction(1, 3), 2], dtype=object), name="x") * 1))
    assert data["arrays"][data["views"][0]["nodes"][0]["value"]]["data"] == ["1/3", "2"]


def chain(length):
    x = ag.tensor(np.linspace(0.1, 1, 12).reshape(4, 3), requires_grad=True, name="x")
    w = ag.tensor(np.ones(3), requires_grad=True, name="w")
    y = x
    for k in range(length):
        y = ag.tanh(y) if k % 2 else y * w
    return y.sum()


def test_pages_stay_small_and_each_array_stands_once():
    page = ag.page(ag.tanh(norm()[0] + norm()[0]) * chain(4))
    data = data_of(page)
    assert max(len(view["nodes"]) for view in data["views"]) == 40
    assert len(str(page).encode()) <= 250_000
    listed = [json.dumps(entry) for entry in data["arrays"]]
    assert len(set(listed)) == len(listed)
    large = ag.page(chain(597))
    assert "stroke-dasharray=" not in str(large)
    data = data_of(large)
    assert len(data["views"][0]["nodes"]) == 600
    assert len(str(large).encode()) <= 1_500_000
    assert not any("hist" in entry or len(entry.get("data", ())) > 8 for entry in data["arrays"])
    with pytest.raises(ValueError, match=r"1503 .*around=.*hops="):
        ag.page(chain(1500))


def test_the_same_graph_gives_the_same_bytes_in_every_process(tmp_path):
    code = (
        "import sys, numpy as np, autograd_bn as ag\n"
        "x = ag.tensor(np.arange(6.0).reshape(3, 2) ** 2, requires_grad=True, name='x')\n"
        "ag.render((ag.batch_norm(x, np.ones(2)) * x).sum(), sys.argv[1])"
    )
    pages = []
    for seed in ("1", "2"):
        path = tmp_path / f"{seed}.html"
        env = {**os.environ, "PYTHONHASHSEED": seed}
        subprocess.run([sys.executable, "-c", code, str(path)], check=True, env=env)
        pages.append(path.read_bytes())
    assert pages[0] == pages[1]


def test_the_title_says_what_the_graph_is():
    title = lambda page: re.search("<title>(.*)</title>", str(page))[1]
    assert title(page_of("fused")) == "loss: fused batch norm, step by step"
    assert title(page_of("composed")) == "loss: composed batch norm, step by step"
    x = ag.tensor([1.0, 2.0], requires_grad=True)
    assert title(ag.page((x * x).sum())) == "A graph of 3 nodes, step by step"


def test_script_and_style_are_admitted_by_their_hashes_alone():
    html = str(page_of())
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', html)[1]
    for tag in ("style", "script"):
        (text,) = re.findall(rf"<{tag}>(.*?)</{tag}>", html, re.S)
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy
        assert "\n" not in text
        assert "//" not in text.replace("http://www.w3.org", "")
    assert policy.startswith("default-src 'none'")
    assert not re.search(r"\sstyle=|\son\w+=|innerHTML|eval\(|fetch\(|localStorage", html)


def test_of_graphvizs_svg_only_what_is_listed_gets_through(monkeypatch):
    start = r'<ellipse fill="[^"]*" stroke="[^"]*"'

    def drawing(extra):
        drawn = draw(digraph(Picture(Scene(ag.Graph(ag.tensor(1.0, name="x")))), "TB").source, "svg").decode()
        monkeypatch.setattr(
            "autograd_bn.drawing.page.svg.draw", lambda *_: re.sub(start, extra, drawn, count=1).encode()
        )
        return str(ag.page(ag.tensor(1.0, name="x")))

    html = drawing('<ellipse onclick="go()" style="color:red" fill="url(http://x)" stroke="red" href="x"')
    assert '<ellipse stroke="red"' in html
    assert not re.search("onclick|url\\(|href", html)
    with pytest.raises(RuntimeError, match="<image>"):
        drawing("<image/><ellipse")


def test_a_page_is_saved_whole_and_shows_itself_in_a_notebook(tmp_path):
    loss, _ = norm()
    page = ag.page(loss)
    path = page.save(tmp_path / "a.html")
    assert path.read_text("utf-8") == str(page)
    assert ag.render(loss, tmp_path / "b.html").read_text("utf-8") == str(page)
    assert [p.name for p in sorted(tmp_path.iterdir())] == ["a.html", "b.html"]
    shown = page._repr_html_()
    assert shown.index("<img ") < shown.index('<iframe sandbox="allow-scripts"')
    assert "characters" in repr(page)


def test_the_data_are_those_of_the_golden_file():
    """`python tests/test_page.py` writes the file anew."""
    assert golden() == json.loads(GOLDEN.read_text("utf-8"))


def golden():
    """A page's data on exact numbers, so that no machine's rounding shows in them."""
    x = np.array([[Fraction(n) for n in row] for row in ([1, 3], [2, 6], [3, 9])], dtype=object)
    t = ag.tensor(x, requires_grad=True, name="x")
    c = ag.tensor(np.array([Fraction(1, 2), Fraction(2)], dtype=object), requires_grad=True, name="c")
    centred = t - ag.mean(t, axis=0, keepdims=True)
    return data_of(ag.page((centred * centred * c).sum()))


def test_a_neighbourhood_of_a_large_graph_is_a_page():
    x = ag.tensor(np.linspace(0.1, 1, 3), requires_grad=True, name="x")
    y, middle = x, None
    for k in range(2000):
        y = ag.tanh(y) + x * 0.1
        middle = y if k == 1000 else middle
    page = ag.page(y.sum(), around=middle, hops=2)
    data = data_of(page)
    (view,) = data["views"]
    assert 6 <= len(view["nodes"]) <= 20
    centre = next(n for n in view["nodes"] if same(array(data, n["value"]), middle.data))
    (dx,) = ag.grad(y.sum(), x)
    leaf = next(n for n in view["nodes"] if n["symbol"] == "x")
    assert same(array(data, leaf["grad"]), dx)
    assert centre["grad"] is not None
    ids = {n["id"] for n in view["nodes"]}
    assert all({a, b} <= ids for a, b, _ in view["edges"])
    assert all(s["node"] in ids for s in view["steps"] if s["pass"] == "forward")
    finished = {p["to"] for s in view["steps"] for p in s["parts"] if p["n"] == p["of"]}
    assert centre["id"] in finished
    assert all({*way["nodes"]} <= ids for leaf in view["paths"] for way in leaf["paths"])
    with pytest.raises(ValueError, match="around"):
        ag.page(y.sum(), around=ag.tensor(1.0))


def test_a_model_has_its_modules_as_frames_and_full_names():
    rng = np.random.default_rng(0)
    model = ag.nn.Sequential(ag.nn.Linear(4, 3, rng=rng), ag.nn.BatchNorm(3), ag.nn.ReLU())
    x = rng.normal(size=(5, 4)).astype(np.float32)
    before = model.state_dict()
    page = ag.page(model, inputs=x, grads=np.ones((5, 3), np.float32))
    closed, opened = data_of(page)["views"]
    for view in (closed, opened):
        symbols = {node["symbol"] for node in view["nodes"]}
        assert {"0.weight", "0.bias", "1.gamma", "1.beta"} <= symbols
    assert "0: Linear(4, 3)" in str(page)
    assert "1: BatchNorm(3)" in str(page)
    assert all(np.array_equal(before[k], v) for k, v in model.state_dict().items())
    assert next(model.parameters()).name == "weight"
    with pytest.raises(TypeError, match="inputs"):
        ag.page(model)


def forms():
    """Both forms of batch norm compared on float32 rows."""

    def composed(x, gamma, beta):
        return ag.batch_norm(x, gamma, beta, form="composed")

    def fused(x, gamma, beta):
        return ag.batch_norm(x, gamma, beta)

    rng = np.random.default_rng(3)
    inputs = [(rng.normal(size=(6, 3)) * 2 + 5), rng.normal(size=3), rng.normal(size=3)]
    return ag.compare(composed, fused, [a.astype(np.float32) for a in inputs])


def test_a_comparison_shows_each_nodes_errors_as_the_table_does():
    comparison = forms()
    data = data_of(ag.page(comparison))
    assert data["beside"]
    first, second = data["views"]
    assert [first["name"], second["name"]] == list(comparison.names)
    rows = {row.name: row for row in comparison.rows}
    for k, view in enumerate(data["views"]):
        ids = {node["symbol"]: str(node["id"]) for node in view["nodes"]}
        for name in ("x", "gamma", "beta"):
            ulp = view["notes"][ids[name]]["ulp"]
            assert ulp["value"] == {"own": 0, "other": 0, "apart": 0}
            assert ulp["grad"]["own"] == pytest.approx(rows[f"d{name}"].ulp[k], abs=0.01)
            assert ulp["grad"]["other"] == pytest.approx(rows[f"d{name}"].ulp[1 - k], abs=0.01)
        last = view["notes"][str(len(view["nodes"]) - 1)]["ulp"]
        assert last["value"]["own"] == pytest.approx(rows["output"].ulp[k], abs=0.01)
    mean = next(n for n in first["nodes"] if n["symbol"] == "mean")
    assert "other" not in first["notes"][str(mean["id"])]["ulp"]["value"]
    assert first["notes"][str(mean["id"])]["ulp"]["value"]["own"] <= 2


def test_a_comparison_locks_the_steps_of_matching_nodes():
    data = data_of(ag.page(forms()))
    first, second = data["views"]
    names = [[node["symbol"] for node in view["nodes"]] for view in data["views"]]
    there = {names[0][int(i)]: names[1][j] for i, j in data["twin"][first["name"]].items()}
    assert {there[name] for name in ("x", "gamma", "beta")} == {"x", "gamma", "beta"}
    assert {there[name] for name in ("mean", "var", "x̂")} == {"batch_norm"}
    back = {names[1][int(i)]: j for i, j in data["twin"][second["name"]].items()}
    assert back["batch_norm"] == len(names[0]) - 1


def test_a_wrong_form_parts_where_it_is_wrong():
    @primitive(lambda g, x: g * 2.1 * x)
    def crooked_square(x, /):
        return x * x

    def f(x):
        return ag.exp(ag.square(x) * 0.5)

    def g(x):
        return ag.exp(crooked_square(x) * 0.5)

    data = data_of(ag.page(ag.compare(f, g, [np.linspace(0.5, 1, 6)])))
    ids = {node["symbol"]: str(node["id"]) for node in data["views"][1]["nodes"]}
    notes = {name: data["views"][1]["notes"][i]["ulp"] for name, i in ids.items()}
    assert notes["multiply"]["grad"]["own"] < 10
    assert notes["crooked_square"]["grad"]["own"] < 10
    assert notes["x"]["grad"]["own"] > 1e12
    assert notes["x"]["grad"]["apart"] > 1e12
    assert notes["x"]["grad"]["other"] < 10


def one_pass(x):
    mean = x.mean(axis=0)
    var = (x * x).mean(axis=0) - mean * mean
    return (x - mean) / np.sqrt(var + 1e-5)


def two_passes(x):
    mean = x.mean(axis=0)
    centred = x - mean
    var = (centred * centred).mean(axis=0)
    return centred / np.sqrt(var + 1e-5)


def test_a_comparison_has_the_lines_of_both_functions():
    page = ag.page(ag.compare(one_pass, two_passes, [np.random.default_rng(0).normal(size=(6, 3))]))
    first, second = (view["steps"] for view in data_of(page)["views"])
    # mean, and the variance of each; the other function's lines follow the first one's five.
    assert {(s["line"], s.get("also")) for s in first if s["pass"] == "forward"} >= {(1, 5), (3, 8)}
    assert {(s["line"], s.get("also")) for s in second if s["pass"] == "forward"} >= {(5, 1), (8, 3)}
    assert "var = (centred * centred).mean(axis=0)" in str(page.html)


def test_exact_comparisons_have_no_errors_to_show():
    x, gamma, beta, eps = ag.rational_batch((3, 2), seed=1)
    comparison = ag.compare(
        lambda x: ag.batch_norm(x, gamma, beta, eps=eps), lambda x: ag.batch_norm(x, gamma, beta, eps=eps), [x]
    )
    assert [view["notes"] for view in data_of(ag.page(comparison))["views"]] == [{}, {}]
    with pytest.raises(ValueError, match="outputs is a Comparison"):
        ag.page(comparison, values=True)


def failed_check():
    @primitive(lambda g, x: g * 2.1 * x)
    def bent_square(x, /):
        return x * x

    def f(x, gamma):
        centred = x - ag.mean(x, axis=0)
        return centred * (ag.mean(bent_square(centred), axis=0) + 1e-5) ** -0.5 * gamma

    rng = np.random.default_rng(0)
    with pytest.raises(ag.GradientError) as caught:
        ag.gradcheck(f, [rng.normal(size=(4, 3)), np.array([1.5, 0.5, 2])])
    return caught.value


def test_a_failed_gradcheck_shows_analytic_measured_and_bound_where_it_is_worst():
    error = failed_check()
    data = data_of(ag.page(error))
    (view,) = data["views"]
    ids = {node["symbol"]: node["id"] for node in view["nodes"]}
    notes = {name: view["notes"][str(ids[name])]["verdict"] for name in ("x", "gamma")}
    assert (notes["x"]["ok"], notes["gamma"]["ok"]) == (False, True)
    tables = {name: array(data, a) for name, a in notes["x"]["tables"]}
    assert np.max(np.abs(tables["analytic"] - tables["measured"]) / tables["bound"]) > 100
    off = [np.abs(b.analytic - b.measured) / b.bound * b.wrong for b in error.rows]
    np.testing.assert_array_equal(tables["analytic"].ravel(), error.rows[0].analytic[np.argmax(off[0].max(axis=1))])
    np.testing.assert_allclose(tables["analytic"], array(data, view["nodes"][ids["x"]]["grad"]), rtol=1e-12, atol=1e-15)
    assert str(error) in notes["x"]["say"]
    assert "centred gets g · 2.1 · " in str([s["say"] for s in view["steps"]]) or "2.1" in str(view["steps"])
    with pytest.raises(ValueError, match="no graph to show"):
        ag.page(ag.GradientError("of another kind"))


def verdict():
    """A backward pass without the path through the variance."""

    def forward(x, gamma, beta):
        mean = np.mean(x, axis=0)
        centred = x - mean
        var = np.mean(centred * centred, axis=0)
        xhat = centred / np.sqrt(var + 1e-5)
        return gamma * xhat + beta, (xhat, gamma, var)

    def backward(dy, cache):
        xhat, gamma, var = cache
        dxhat = dy * gamma
        dcentred = dxhat / np.sqrt(var + 1e-5)
        return dcentred - dcentred.mean(axis=0), (dy * xhat).sum(axis=0), dy.sum(axis=0)

    rng = np.random.default_rng(1)
    return ag.check_backward(forward, backward, [rng.normal(size=(4, 3)), rng.normal(size=3), rng.normal(size=3)])


def test_a_verdict_shows_what_was_returned_and_the_coefficient_of_each_path():
    found = verdict()
    data = data_of(ag.page(found))
    (view,) = data["views"]
    ids = {node["symbol"]: node["id"] for node in view["nodes"]}
    notes = {name: view["notes"][str(ids[name])]["verdict"] for name in ("x", "gamma", "beta")}
    assert [notes[name]["ok"] for name in ("x", "gamma", "beta")] == [False, True, True]
    tables = {name: array(data, a) for name, a in notes["x"]["tables"]}
    np.testing.assert_allclose(tables["true"], array(data, view["nodes"][ids["x"]]["grad"]), rtol=1e-8)
    np.testing.assert_array_equal(tables["returned"] - tables["true"], tables["returned − true"])
    assert "path through the variance" in notes["x"]["say"][0]
    (paths,) = [p for p in view["paths"] if p["leaf"] == ids["x"]]
    coefficients = {way["label"]: way["coef"] for way in paths["paths"]}
    assert coefficients["direct"] == pytest.approx(1)
    assert coefficients["through the mean"] == pytest.approx(1)
    assert coefficients["through the variance"] == pytest.approx(0, abs=1e-9)
    assert coefficients["through the variance's own mean"] is None
    right = view["notes"][str(ids["xhat"])]["verdict"]
    assert right["ok"]


def test_an_input_that_has_no_gradient_has_none_on_a_verdicts_page():
    found = ag.check_backward(
        lambda x, k: (x * k, k), lambda dy, k: (2.0 * dy * k,), [np.linspace(-1, 1, 6).reshape(2, 3), np.arange(3)]
    )
    (view,) = data_of(ag.page(found))["views"]
    assert {node["symbol"]: node["kind"] for node in view["nodes"] if not node["op"]} == {"x": "variable", "k": "input"}


# --- In a browser


@pytest.fixture(scope="session")
def chromium():
    if not CHROMIUM:
        pytest.skip("there is no chromium, and AUTOGRAD_BN_CHROMIUM names none")
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        root = hasattr(os, "geteuid") and os.geteuid() == 0
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"] if root else [])
        yield browser
        browser.close()


@pytest.fixture
def visit(chromium, tmp_path):
    """Opens a page from a file, without a network; at the end nothing was said, and nothing asked for."""
    noise, contexts = [], []

    def opened(page, width=1300, height=900, **options):
        path = page.save(tmp_path / "page.html")
        context = chromium.new_context(viewport={"width": width, "height": height}, offline=True, **options)
        contexts.append(context)
        tab = context.new_page()
        tab.on("console", lambda message: noise.append(message.text))
        tab.on("pageerror", lambda error: noise.append(str(error)))
        tab.on("request", lambda request: noise.append(request.url) if request.url != path.as_uri() else None)
        tab.goto(path.as_uri())
        return tab

    yield opened
    for context in contexts:
        context.close()
    assert noise == []


def step(tab):
    return int(tab.get_attribute("#app", "data-step"))


def say(tab):
    return tab.inner_text("#say")


def press(tab, keys):
    for key in keys.split():
        tab.keyboard.press(key)


def node(symbol, view):
    """A selector of a node in a view."""
    found = next(n["id"] for n in view["nodes"] if n["symbol"] == symbol)
    return f'[data-view="{view["name"]}"][data-node="{found}"]'


def classes(tab, selector):
    return set(tab.locator(selector).first.get_attribute("class").split())


def test_n_alone_leads_to_the_end_and_p_back(visit):
    page = page_of(expand=True)
    tab, view = visit(page), data_of(page)["views"][1]
    assert step(tab) == 0
    for i, expected in enumerate(view["steps"]):
        assert (step(tab), say(tab)) == (i, expected["say"])
        current = tab.locator(f'.now[data-view="{view["name"]}"]')
        assert {current.nth(k).get_attribute("data-node") for k in range(current.count())} == {
            *([] if expected["node"] is None else [str(expected["node"])])
        }
        assert tab.locator("#steps [aria-current]").text_content() == expected["say"]
        press(tab, "n")
    assert step(tab) == len(view["steps"]) - 1
    press(tab, "p")
    assert say(tab) == view["steps"][-2]["say"]


def test_what_is_not_known_yet_is_dashed_and_shares_are_counted(visit):
    page = page_of("composed")
    tab, (view,) = visit(page), data_of(page)["views"]
    mean, x, gamma = (node(name, view) for name in ("mean", "x", "gamma"))
    assert "nov" in classes(tab, mean)
    assert "nov" not in classes(tab, x)
    assert tab.locator(f"{mean} .v").first.evaluate("e => getComputedStyle(e).visibility") == "hidden"
    assert "not computed yet" in tab.get_attribute(mean, "aria-label")
    press(tab, "n")
    assert "nov" not in classes(tab, mean)
    assert tab.locator(f"{mean} .v").first.evaluate("e => getComputedStyle(e).visibility") == "visible"
    press(tab, "End p")
    assert tab.locator(f"{x} .badge").text_content() == "∂ 1 of 2"
    assert "gradient 1 of 2 shares" in tab.get_attribute(x, "aria-label")
    assert tab.locator(f"{gamma} .g").first.evaluate("e => getComputedStyle(e).visibility") == "visible"
    press(tab, "n")
    assert tab.locator(f"{x} .badge").count() == 0
    assert "gradient complete" in tab.get_attribute(x, "aria-label")


def test_the_panel_multiplies_out_a_visit(visit):
    page = page_of("composed")
    tab, (view,) = visit(page), data_of(page)["views"]
    index = next(i for i, s in enumerate(view["steps"]) if s["say"].startswith("Backward through multiply₁"))
    tab.locator("#steps").evaluate("e => { document.getElementById('all').open = true }")
    tab.locator("#steps li").nth(index).click()
    assert step(tab) == index
    text = tab.inner_text("#panel")
    order = ["incoming gradient g", "to gamma: Σ(g · x̂)", "local derivative", "product", "→ Σ →", "gradient"]
    places = [text.index(words, text.index("to gamma") if i else 0) for i, words in enumerate(order)]
    assert places == sorted(places)
    cell = tab.locator("#panel td").first
    assert float(cell.get_attribute("title")) == pytest.approx(float(cell.inner_text().replace("−", "-")), rel=1e-3)


def test_paths_light_up_and_add_up(visit):
    page = page_of("composed")
    tab, (view,) = visit(page), data_of(page)["views"]
    press(tab, "End")
    buttons = tab.locator("#panel .path")
    assert buttons.all_inner_texts() == [path["label"] for path in view["paths"][0]["paths"]]
    assert "4 paths to x" in tab.inner_text("#panel")
    buttons.nth(2).click()
    assert tab.locator(".way").count() == len(view["paths"][0]["paths"][2]["nodes"]) - 1
    assert tab.locator("#panel .path").nth(2).get_attribute("aria-pressed") == "true"
    press(tab, "Escape")
    assert tab.locator(".way").count() == 0


def test_o_opens_at_every_step_and_comes_back(visit):
    page = page_of()
    closed, opened = data_of(page)["views"]
    tab = visit(page)
    for i, at in enumerate(closed["steps"]):
        assert step(tab) == i
        press(tab, "o")
        there = opened["steps"][step(tab)]
        assert there["pass"] == at["pass"]
        assert tab.locator('[data-view="open"]').first.is_visible()
        press(tab, "o")
        assert step(tab) == i
        press(tab, "n")
    press(tab, "Home o")
    for i, at in enumerate(opened["steps"]):
        assert step(tab) == i
        press(tab, "o")
        assert closed["steps"][step(tab)]["pass"] == at["pass"]
        press(tab, "o n")


def test_keys(visit):
    page = page_of(expand=True)
    tab, view = visit(page), data_of(page)["views"][1]
    last = len(view["steps"]) - 1
    passes = [s["pass"] for s in view["steps"]]
    for key, expected in (
        ("End", last),
        ("Home", 0),
        ("[", passes.index("seed") - 1),
        ("]", passes.index("seed")),
    ):
        press(tab, key)
        assert step(tab) == expected
    press(tab, "?")
    assert tab.locator("#keys").is_visible()
    press(tab, "Escape")
    assert not tab.locator("#keys").is_visible()
    size = "() => document.querySelector('.stage:not([hidden]) svg').getBoundingClientRect().width"
    before = tab.evaluate(size)
    press(tab, "+")
    assert tab.evaluate(size) > before
    press(tab, "- -")
    assert tab.evaluate(size) < before
    press(tab, "0")
    fits = "() => { const s = document.querySelector('.stage'); return s.scrollHeight <= s.clientHeight }"
    assert tab.evaluate(fits)
    press(tab, "Home Space")
    assert tab.get_attribute("[data-do=play]", "aria-pressed") == "true"
    tab.wait_for_function("() => document.getElementById('app').dataset.step === '1'")
    press(tab, "Space")
    assert tab.get_attribute("[data-do=play]", "aria-pressed") == "false"
    tab.click("[data-do=keys]")
    tab.evaluate("() => document.activeElement.blur()")
    press(tab, "n [ f")
    assert step(tab) == 1
    press(tab, "End PageUp Home PageDown")  # what is no letter steps all the same
    assert step(tab) == 1
    tab.click("[data-do=next]")
    assert step(tab) == 2


KEYS = {"ArrowRight": 1, "ArrowDown": 1, "PageDown": 1, "ArrowLeft": -1, "ArrowUp": -1, "PageUp": -1}


@pytest.mark.parametrize(
    "focus", ["[data-do=next]", "#views", "#slider", "#find", ".node >> nth=2", "#panel", ".stage"]
)
def test_presenters_keys_step_wherever_the_focus_is(visit, focus):
    x = ag.tensor(np.arange(6.0).reshape(3, 2) ** 2, requires_grad=True, name="x")
    tab = visit(ag.page((ag.batch_norm(ag.batch_norm(x)) * x).sum()))  # two fused nodes: there is a list of views
    press(tab, "Home n n n n")
    tab.locator(focus).first.focus()
    for key, move in KEYS.items():
        if focus == "#find" and not key.startswith("Page"):
            continue  # there they move the caret
        at = step(tab)
        press(tab, key)
        assert step(tab) == at + move


@pytest.mark.parametrize("button", ["next", "play", "fit", "open"])
def test_keys_go_on_after_a_click_on_a_button(visit, button):
    tab = visit(page_of())
    tab.click(f"[data-do={button}]")
    press(tab, "End Home")
    assert step(tab) == 0
    pressed = tab.get_attribute("[data-do=play]", "aria-pressed")
    press(tab, "Space")
    assert tab.get_attribute("[data-do=play]", "aria-pressed") != pressed


def test_lecture_mode_scales_the_text_to_the_window(visit):
    tab = visit(page_of(expand=True), width=1920, height=1080)
    height = "e => e.getBoundingClientRect().height"
    small = tab.locator(".stage:not([hidden]) .node text").first.evaluate(height)
    press(tab, "f ]")
    assert tab.locator(".stage:not([hidden]) .node text").first.evaluate(height) > 1.25 * small
    assert tab.locator("#say").evaluate("e => parseFloat(getComputedStyle(e).fontSize)") > 30
    assert tab.locator("#panel h2").evaluate("e => parseFloat(getComputedStyle(e).fontSize)") > 45
    assert tab.evaluate("() => document.documentElement.scrollHeight <= innerHeight")
    press(tab, "Escape")
    assert tab.locator("h1").is_visible()


def test_lecture_mode_keeps_both_sides_of_a_comparison_and_the_formula_in_the_window(visit):
    tab = visit(ag.page(forms()), width=1920, height=1080)
    press(tab, "f ] n")
    assert tab.evaluate("() => document.documentElement.scrollHeight <= innerHeight")
    assert tab.locator("#panel h2").bounding_box()["y"] < 1000
    assert tab.locator(".stage").first.bounding_box()["height"] > 450


def test_what_arrives_is_hidden_until_the_next_key(visit):
    page = page_of("composed")
    tab, (view,) = visit(page), data_of(page)["views"]
    press(tab, "Home h n")
    mean = f"{node('mean', view)} .v"
    assert step(tab) == 1
    assert "what do you expect?" in tab.inner_text("#panel")
    assert not tab.locator(mean).first.is_visible()
    press(tab, "n")
    assert step(tab) == 1
    assert tab.locator(mean).first.is_visible()
    assert "what do you expect?" not in tab.inner_text("#panel")
    press(tab, "End p p n")
    assert say(tab).endswith("what arrives at its inputs?")
    assert "share" not in tab.inner_text("#panel")
    press(tab, "PageDown")
    assert say(tab) == view["steps"][step(tab)]["say"]
    press(tab, "h n")
    assert say(tab) == view["steps"][-1]["say"]


def test_search_goes_to_the_nodes_step(visit):
    page = page_of("composed")
    tab = visit(page)
    press(tab, "Home /")
    tab.keyboard.type("square")
    press(tab, "Enter")
    assert say(tab).startswith("Forward: square")
    tab.fill("#find", "nothing of the kind")
    press(tab, "Enter")
    assert say(tab).startswith("Forward: square")
    assert "w" in tab.evaluate("() => [...document.querySelectorAll('#names option')].map(e => e.value)")


def test_a_large_graph_is_dragged_and_has_a_map(visit):
    tab = visit(ag.page(chain(90), expand=True))
    scrolled = "() => document.querySelector('.stage').scrollTop"
    assert tab.locator("#map").is_visible()
    before = step(tab)
    box = tab.locator(".stage").bounding_box()
    tab.mouse.move(box["x"] + 100, box["y"] + 300)
    tab.mouse.down()
    tab.mouse.move(box["x"] + 100, box["y"] + 100, steps=5)
    tab.mouse.up()
    assert tab.evaluate(scrolled) >= 150
    assert step(tab) == before
    seen = "() => Number(document.querySelector('#map rect').getAttribute('y'))"
    tab.wait_for_function(f"() => ({seen})() > 100")
    box = tab.locator("#map").bounding_box()
    tab.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] - 8)
    tab.wait_for_function("() => document.querySelector('.stage').scrollTop > 3000")
    assert not visit(page_of()).locator("#map").is_visible()


def test_what_is_added_shares_one_colour_scale_and_noise_is_grey(visit):
    page = page_of("composed")
    tab = visit(page)
    press(tab, "End")
    colour = "e => getComputedStyle(e).backgroundColor"
    parts = tab.locator(".path + .array")
    cells = [c for k in range(4) for c in parts.nth(k).locator("td").all()]
    sums = tab.locator('table[aria-label="their sum"] td').all()
    largest = max(cells, key=lambda c: abs(float(c.get_attribute("title"))))
    assert any("noise" in (c.get_attribute("class") or "") for c in parts.nth(3).locator("td").all())
    assert "noise" not in (largest.get_attribute("class") or "")
    size = abs(float(largest.get_attribute("title")))
    smaller = [c for c in sums if abs(float(c.get_attribute("title"))) < 0.5 * size]
    assert smaller
    assert all(c.evaluate(colour) != largest.evaluate(colour) for c in smaller)
    assert "one colour scale" in tab.inner_text("#panel")


def loop(steps=8):
    """A loop over time, with a step of its own at the start."""
    rng = np.random.default_rng(2)
    x, h = ag.tensor(rng.normal(size=(2, steps, 3)), name="x"), ag.tensor(np.zeros((2, 3)), name="h0")
    w, u = (ag.tensor(rng.normal(size=(3, 3)), requires_grad=True, name=name) for name in "wu")
    for t in range(steps):
        h = ag.tanh(x[:, t] @ w + h @ u)
    return (h * h).sum()


def test_repeats_are_listed_block_by_block_in_the_order_of_time():
    page = ag.page(loop())
    (view,) = data_of(page)["views"]
    (blocks,) = view["repeats"]
    assert [len(ids) for ids in blocks] == [5] * 7
    ops = [[view["nodes"][i]["op"] for i in ids] for ids in blocks]
    assert all(names == ops[0] for names in ops)
    assert blocks == sorted(blocks)
    forward = [s["node"] for s in view["steps"] if s["pass"] == "forward"]
    assert forward == [node["id"] for node in view["nodes"] if node["op"]]
    assert all(max(a) < min(b) for a, b in itertools.pairwise(blocks))
    full, folded = re.findall(r"<svg.*?</svg>", str(page), re.S)[:2]
    drawn = [{*map(int, re.findall(r'data-node="(\d+)"', svg))} for svg in (full, folded)]
    assert drawn[0] == {node["id"] for node in view["nodes"]}
    assert drawn[1] == drawn[0] - {i for ids in blocks[1:] for i in ids}
    assert folded.startswith("<svg hidden")
    assert data_of(ag.page(loop(2)))["views"][0]["repeats"] == []


def test_steps_go_on_inside_a_folded_repeat_and_its_node_stands_for_the_block_at_work(visit):
    page = ag.page(loop())
    tab, (view,) = visit(page), data_of(page)["views"]
    (blocks,) = view["repeats"]
    place = {i: (k, j) for k, ids in enumerate(blocks) for j, i in enumerate(ids)}
    shown = ".stage svg:not([hidden])"
    for at, expected in enumerate(view["steps"]):
        assert (step(tab), say(tab)) == (at, expected["say"])
        now = tab.locator(f"{shown} .node.now")
        frame = classes(tab, f"{shown} .repeat")
        if expected["node"] in place:
            k, j = place[expected["node"]]
            assert now.first.get_attribute("data-node") == str(blocks[0][j])
            assert f"{k + 1} of 7" in now.first.get_attribute("aria-label")
            assert tab.locator(f"{shown} .repeat .badge").text_content() == f"{k + 1} of 7"
            assert tab.inner_text("#count").endswith(f", {k + 1} of 7")
            assert "now" in frame
            undone = [view["nodes"][i]["op"] for i in blocks[k][j + 1 :]] if expected["pass"] == "forward" else []
            dashed = tab.locator(f"{shown} .nov[data-node]")
            ids = {int(dashed.nth(i).get_attribute("data-node")) for i in range(dashed.count())}
            assert len(ids & {*blocks[0]}) == len(undone)
            if expected["pass"] == "backward":
                assert tab.locator(f"{shown} .flow").count() == len(expected["parts"])
        else:
            assert "now" not in frame
            assert " of 7" not in tab.inner_text("#count")
        press(tab, "n")


def test_a_repeat_opens_on_click_and_by_key_where_it_is(visit):
    page = ag.page(loop())
    tab, (view,) = visit(page), data_of(page)["views"]
    (blocks,) = view["repeats"]
    tanh = next(i for i in blocks[4] if view["nodes"][i]["op"] == "tanh")
    at = next(i for i, s in enumerate(view["steps"]) if s["node"] == tanh)
    press(tab, "Home " + "n " * at)
    shown = lambda: tab.locator(".stage svg:not([hidden]) .node").count()
    few = shown()
    assert few < 20
    for way in ("key", "title", "enter", "button"):
        if way == "title":
            tab.locator(".repeat text", has_text="× 7").first.click()
        elif way == "enter":
            tab.locator(".repeat").first.focus()
            press(tab, "Enter")
        elif way == "button":
            tab.get_by_role("button", name="Open repeats").click()
        else:
            press(tab, "r")
        assert shown() > 40
        now = tab.locator(".stage svg:not([hidden]) .node.now")
        assert now.get_attribute("data-node") == str(tanh)
        assert now.is_visible()
        assert step(tab) == at
        press(tab, "r")
        assert shown() == few
    press(tab, "Shift+ArrowDown")  # on into the next block
    assert "6 of 7" in tab.evaluate("() => document.activeElement.getAttribute('aria-label')")
    press(tab, "Escape")
    body = blocks[0][blocks[4].index(tanh)]
    tab.locator(f'.stage svg:not([hidden]) [data-node="{body}"]').first.click()
    assert "5 of 7" in tab.evaluate("() => document.activeElement.getAttribute('aria-label')")
    assert tab.inner_text("#panel h2").startswith(view["nodes"][tanh]["symbol"])
    assert visit(ag.page(loop(), expand=True)).locator(".stage svg:not([hidden]) .node").count() > 40
    assert not visit(page_of()).get_by_role("button", name="Open repeats").is_visible()


def test_arrows_walk_the_graph_and_enter_goes_to_the_nodes_step(visit):
    page = page_of("composed")
    tab, (view,) = visit(page), data_of(page)["views"]
    press(tab, "[")
    tab.locator(node("centred", view)).click()
    at = lambda: tab.evaluate("() => document.activeElement.getAttribute('aria-label')").split(",")[0]
    assert at() == "centred"
    press(tab, "Shift+ArrowUp")
    assert at() == "x"
    press(tab, "Shift+ArrowDown Shift+ArrowDown")
    assert at() == "centred"
    press(tab, "Shift+ArrowDown")
    assert at() == "square"
    press(tab, "Shift+ArrowDown Enter")
    assert say(tab).startswith("Forward: var")
    tabbable = tab.locator('[data-node][tabindex="0"]')
    assert tabbable.count() == 1


def test_the_view_follows_the_current_node_at_a_readable_size(visit):
    tab = visit(ag.page(chain(40), expand=True))
    for _ in range(25):
        press(tab, "n")
        inside = tab.evaluate(
            "() => { const a = document.querySelector('.now').getBoundingClientRect(),"
            " b = document.querySelector('.stage').getBoundingClientRect();"
            " return a.top >= b.top && a.bottom <= b.bottom && a.left >= b.left && a.right <= b.right }"
        )
        assert inside
    assert tab.evaluate("() => document.querySelector('.now text').getBoundingClientRect().height") >= 11


@pytest.mark.parametrize("width", [500, 1000, 1300])
def test_a_graph_a_little_wider_than_its_pane_starts_as_wide_as_that(visit, width):
    tab = visit(ag.page(norm("composed")[0]), width=width)
    drawn, natural, pane = tab.evaluate(
        "() => { const stage = document.querySelector('.stage'), svg = stage.querySelector('svg');"
        " return [svg.getBoundingClientRect().width, svg.viewBox.baseVal.width, stage.clientWidth - 14] }"
    )
    assert drawn == pytest.approx(min(natural, max(pane, 0.8 * natural)), rel=1e-4)


def test_a_wheel_scrolls_and_with_ctrl_zooms(visit):
    tab = visit(ag.page(chain(40), expand=True))
    tab.mouse.move(300, 500)
    size = "() => document.querySelector('.stage:not([hidden]) svg').getBoundingClientRect().width"
    before = tab.evaluate(size)
    tab.mouse.wheel(0, 200)
    tab.wait_for_function("() => document.querySelector('.stage').scrollTop > 0")
    assert tab.evaluate(size) == before
    tab.keyboard.down("Control")
    tab.mouse.wheel(0, -200)
    tab.keyboard.up("Control")
    tab.wait_for_function(f"() => ({size})() > {before}")


def test_hostile_names_are_shown_as_typed_and_harmless(visit):
    y = None
    for k, name in enumerate(HOSTILE):
        t = ag.tensor([float(k + 1)], requires_grad=True, name=name)
        y = t if y is None else y * t
    loss = y.sum()
    loss.name = HOSTILE[0]
    page = ag.page(loss, expand=True)
    tab, (view,) = visit(page), data_of(page)["views"]
    press(tab, "End")
    assert tab.evaluate("() => window.pwned") is None
    shown = tab.evaluate("() => [...document.querySelectorAll('.stage text')].map(e => e.textContent)")
    for name in HOSTILE[:7]:
        assert name in shown
    assert HOSTILE[0] in tab.title()
    assert say(tab) == view["steps"][-1]["say"]
    labels = tab.evaluate("() => [...document.querySelectorAll('svg:not([hidden]) [data-node]')].map(e => e.ariaLabel)")
    assert all(any(label.startswith(name) for label in labels) for name in HOSTILE)


def test_half_a_letter_in_a_name_is_spelled_out(tmp_path):
    x = ag.tensor([1.0], requires_grad=True, name="half\ud800")
    html = ag.page((x * x).sum()).save(tmp_path / "a.html").read_text("utf-8")
    assert "half\\ud800 gets" in html
    assert data_of(html)["views"][0]["nodes"][0]["symbol"] == x.name


@pytest.mark.parametrize(("scheme", "repeats"), [("light", False), ("dark", False), ("light", True)])
def test_axe_finds_nothing(visit, scheme, repeats):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    tab = visit(ag.page(loop()) if repeats else page_of(), color_scheme=scheme, bypass_csp=True)
    for keys in ("n n n n n", "o r End", "?"):
        press(tab, keys)
        found = axe.run(tab).response["violations"]
        assert [(v["id"], [n["html"][:200] for n in v["nodes"]]) for v in found] == []


def test_a_narrow_screen_does_not_scroll_sideways_and_targets_are_large(visit):
    tab = visit(page_of(), width=375, height=740)
    for keys in ("", "o", "End"):
        press(tab, keys)
        assert tab.evaluate("() => document.documentElement.scrollWidth") <= 375
    targets = tab.locator("button:visible, select:visible, input:visible, summary:visible")
    for i in range(targets.count()):
        box = targets.nth(i).bounding_box()
        assert min(box["height"], box["width"]) >= 34


def test_motion_stops_where_it_is_not_wanted(visit):
    for motion, animation in (("reduce", "none"), ("no-preference", "flow")):
        tab = visit(page_of(), reduced_motion=motion)
        press(tab, "End")
        assert tab.locator(".flow").first.evaluate("e => getComputedStyle(e).animationName") == animation


def test_print_shows_the_whole_graph_and_every_step(visit):
    tab = visit(page_of(expand=True))
    tab.evaluate("() => dispatchEvent(new Event('beforeprint'))")
    tab.emulate_media(media="print")
    assert tab.locator("#steps li").last.is_visible()
    assert not tab.locator("#bar").is_visible()
    assert tab.evaluate("() => document.querySelector('.stage:not([hidden]) svg').getBoundingClientRect().height") < 900
    visible = "e => getComputedStyle(e).visibility === 'visible'"
    values = f"() => [...document.querySelectorAll('.stage:not([hidden]) .v')].every({visible})"
    assert tab.evaluate(values)


def test_both_graphs_of_a_comparison_are_printed_within_the_paper(visit):
    tab = visit(ag.page(forms()), width=718)
    tab.emulate_media(media="print")
    assert tab.locator(".stage svg").count() == 2
    for picture in tab.locator(".stage svg").all():
        box = picture.bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= 718


def test_without_scripts_the_picture_and_the_list_are_there(visit):
    page = page_of()
    tab = visit(page, java_script_enabled=False)
    assert tab.locator(".stage").first.is_visible()
    assert tab.locator("#steps li").count() == len(data_of(page)["views"][0]["steps"])
    assert tab.locator("#steps li").last.is_visible()
    assert "Scripts are off" in tab.inner_text("main")


def test_long_arrays_have_bars_and_a_tile(visit):
    x = ag.tensor(np.random.default_rng(0).normal(size=(20, 30)), requires_grad=True, name="x")
    tab = visit(ag.page((x * x).sum()))
    panel = tab.locator("#panel")
    assert re.fullmatch("[▁▂▃▄▅▆▇█]{16}", panel.locator('[aria-label="histogram"]').inner_text())
    assert panel.locator('[aria-label="means of 8 by 8 blocks"] td').count() == 64
    assert "sd 1" in panel.inner_text() or "sd 0.9" in panel.inner_text()


def test_a_large_graph_is_stepped_to_its_end(visit):
    tab = visit(ag.page(chain(597)))
    press(tab, "End")
    assert (
        step(tab)
        == len(tab.evaluate("() => JSON.parse(document.getElementById('data').textContent).views[0].steps")) - 1
    )


def test_each_fused_node_can_be_opened_alone(visit):
    x = ag.tensor(np.arange(6.0).reshape(3, 2) ** 2, requires_grad=True, name="x")
    y = ag.batch_norm(ag.batch_norm(x) * x)
    tab = visit(ag.page((y * y).sum()))
    tab.select_option("#views", "3")
    assert tab.locator('[data-view="open 2"]').first.is_visible()
    press(tab, "End o")
    assert tab.locator('[data-view="closed"]').first.is_visible()


def test_a_frame_that_starts_without_a_size_fits_once_it_has_one(chromium):
    page = ag.page(chain(20), expand=True)
    with contextlib.closing(chromium.new_page()) as tab:
        tab.set_content('<iframe sandbox="allow-scripts" style="display:none"></iframe>')
        tab.evaluate("html => { document.querySelector('iframe').srcdoc = html }", str(page))
        tab.wait_for_function("() => document.querySelector('iframe').contentWindow.length === 0")
        tab.evaluate("() => { document.querySelector('iframe').style = 'width:900px;height:700px' }")
        frame = tab.frames[1]
        frame.wait_for_function("() => document.querySelector('.stage:not([hidden]) svg')?.style.width")
        assert frame.evaluate("() => document.querySelector('.stage text').getBoundingClientRect().height") >= 10


def test_a_verdict_opens_at_the_first_wrong_step(visit):
    page = ag.page(verdict())
    tab, (view,) = visit(page), data_of(page)["views"]
    x = node("x", view)
    assert "bad" in classes(tab, x)
    assert tab.locator(f"{x} .badge").text_content() == "✗ wrong"
    assert tab.locator(f"{node('gamma', view)} .badge").text_content() == "✓ right"
    text = tab.inner_text("#panel")
    assert "the gradient of x: ✗ wrong" in text
    for words in ("returned", "true", "returned − true", "through the variance × 0.00", "any: its term is 0"):
        assert words in text
    lost = next(way for p in view["paths"] for way in p["paths"] if way["coef"] == 0)
    assert tab.locator(".way.lost").count() == len(lost["nodes"]) - 1
    tab.locator("#panel .path", has_text="direct").click()
    assert tab.locator(".way.lost").count() == 0
    assert tab.locator(".way").count() > 3
    press(tab, "p")
    assert "bad" not in classes(tab, x)


def test_a_path_that_lacks_a_factor_for_each_feature_is_said_to(visit):
    def forward(x, gamma):
        xhat = (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5)
        return gamma * xhat, (xhat, gamma, x.var(0))

    def backward(dy, cache):
        xhat, gamma, var = cache
        dxhat = dy * gamma
        return (dxhat - dxhat.mean(0) - xhat * (dy * xhat).mean(0)) / np.sqrt(var + 1e-5), (dy * xhat).sum(0)

    rng = np.random.default_rng(1)
    found = ag.check_backward(forward, backward, [rng.normal(size=(5, 3)), rng.uniform(1, 2, 3)])
    assert found.coefficients["dx"] == pytest.approx({"direct": 1, "mean": 1, "var": np.nan}, nan_ok=True)
    tab = visit(ag.page(found))
    assert "through the variance × a factor for each feature" in tab.inner_text("#panel")


def written():
    def forward(x, gamma, beta):
        mean, var = x.mean(0), x.var(0)
        xhat = (x - mean) / np.sqrt(var + 1e-5)
        return gamma * xhat + beta

    rng = np.random.default_rng(5)
    return ag.write_backward(forward, [rng.normal(size=(5, 3)), rng.normal(size=3), rng.normal(size=3)])


def test_each_step_of_written_code_is_at_its_line():
    code = written()
    data = data_of(ag.page(code))
    lines, steps = code.source.splitlines(), data["views"][0]["steps"]
    said = {step["say"]: lines[step["line"]].strip() for step in steps if step["pass"] in ("forward", "backward")}
    assert said["Forward: mean = mean(x)"] == "mean = x.mean(axis=0)"
    assert next(line for say, line in said.items() if say.startswith("Forward: xhat")).startswith("xhat = ")
    assert next(line for say, line in said.items() if say.startswith("Forward: add₂")).startswith("return ")
    assert next(line for say, line in said.items() if "beta gets" in say) == "dbeta = dy.sum(axis=0)"
    assert [line for say, line in said.items() if say.startswith("Backward")][-1].startswith("dx = ")
    assert all("line" not in step for step in steps if step["pass"] in ("start", "seed"))


def test_the_line_of_a_step_is_lit_and_a_click_goes_to_its_step(visit, tmp_path):
    code = written()
    assert ag.render(code, tmp_path / "a.html").stat().st_size > 10_000
    page = ag.page(code)
    tab, (view,) = visit(page), data_of(page)["views"]
    lit = lambda: tab.locator("[data-line][aria-current]").all_inner_texts()
    press(tab, "Home n")
    assert [text.strip() for text in lit()] == ["mean = x.mean(axis=0)"]
    tab.locator("[data-line]", has_text="dbeta = ").click()
    assert "beta gets" in say(tab)
    assert [text.strip() for text in lit()] == ["dbeta = dy.sum(axis=0)"]
    assert view["steps"][step(tab)]["line"] == int(tab.locator("[data-line][aria-current]").get_attribute("data-line"))


def test_a_verdict_has_the_authors_lines_beside_what_would_be_right(visit):
    page = ag.page(verdict())
    tab = visit(page)
    assert tab.locator("#code h3").all_inner_texts() == ["as it was judged", "what would be right"]
    press(tab, "End")
    lit = tab.locator("[data-line][aria-current]").all_text_contents()
    assert [text.split()[0] for text in lit] == ["return", "dx"]
    answer = tab.locator("#code pre").last
    assert not answer.is_visible()
    tab.evaluate("() => dispatchEvent(new Event('beforeprint'))")
    assert answer.is_visible()


class Scaled:
    def __init__(self):
        self.w = np.array([2.0, 3.0, 5.0])

    def forward(self, x):
        t = np.tanh(x)
        self.x, self.t = x, t
        return t * self.w

    def backward(self, dy):
        self.dw = (dy * self.t).sum(axis=0)
        return dy * self.w


def test_a_verdict_on_an_object_has_its_lines_and_what_would_be_right():
    verdict = ag.check_backward(Scaled(), [np.random.default_rng(0).normal(size=(4, 3))])
    page, source = str(ag.page(verdict)), verdict.solution.source
    assert "class Scaled:\n    def backward(self, dy):\n" in source
    assert "<details><summary><h3>what would be right</h3></summary>" in page
    text = html.unescape("".join(re.findall(r"<span data-line=.*?>(.*?\n)</span>", page)))
    lines, steps = text.splitlines(), data_of(ag.page(verdict))["views"][0]["steps"]
    said = {step["say"]: [lines[step[key]].strip() for key in ("line", "also") if key in step] for step in steps}
    assert next(found for say, found in said.items() if say.startswith("Forward: t ")) == ["t = np.tanh(x)"]
    last = [found for say, found in said.items() if say.startswith("Backward")][-1]
    assert last == ["return dy * self.w", "return dt * (1 - self.t**2)"]


def test_a_failed_gradcheck_opens_at_the_wrong_gradient(visit):
    tab = visit(ag.page(failed_check()))
    text = tab.inner_text("#panel")
    assert all(words in text for words in ("the gradient of x: ✗ wrong", "analytic", "measured", "bound"))


@pytest.mark.parametrize("width", [1300, 375])
def test_two_columns_step_together(visit, width):
    page = ag.page(forms())
    tab, (first, second) = visit(page, width=width), data_of(page)["views"]
    boxes = [tab.locator(".stage").nth(k).bounding_box() for k in (0, 1)]
    assert (boxes[0]["y"] == boxes[1]["y"]) == (width == 1300)
    assert tab.evaluate("() => document.documentElement.scrollWidth") <= width
    press(tab, "[")
    mean = node("mean", first)
    press(tab, "Home n")
    assert "now" in classes(tab, mean)
    assert "now" in classes(tab, node("batch_norm", second))
    badge = tab.locator(f"{mean} .badge")
    assert re.fullmatch(r"[\d.]+", badge.text_content())
    assert re.search(r"\bb[0-4]\b", badge.get_attribute("class"))
    press(tab, "End")
    assert "Δ" in tab.locator(f"{node('x', first)} .badge").text_content()
    assert "Δ how far both are apart" in tab.inner_text("#badges")
    press(tab, "c")
    assert tab.locator(".badge").count() == 0
    press(tab, "c o")
    assert tab.locator(".stage").nth(1).get_attribute("class") == "stage main"
    assert tab.locator("#steps li").count() == len(second["steps"])
    press(tab, "Home n n n n")
    assert "now" in classes(tab, node("batch_norm", second))


def notebook(path, page):
    """A notebook file with a page among its results, as it stands before any kernel has run."""
    nbformat = pytest.importorskip("nbformat")
    shown = {"text/html": page._repr_html_(), "text/plain": repr(page)}
    output = nbformat.v4.new_output("execute_result", shown, execution_count=1)
    cell = nbformat.v4.new_code_cell("page", outputs=[output], execution_count=1)
    book = nbformat.v4.new_notebook(cells=[cell], metadata={"kernelspec": {"name": "none", "display_name": "none"}})
    nbformat.write(book, path)
    return book


def step_inside(tab, selector):
    """Step a page inside a frame by a click; where it then is."""
    tab.locator(selector).scroll_into_view_if_needed()
    inside = tab.locator(selector).element_handle().content_frame()
    inside.wait_for_selector("#app[data-step]")
    inside.evaluate("() => document.querySelector('[data-do=next]').click()")
    return inside.get_attribute("#app", "data-step")


def test_an_exported_notebook_steps(chromium, tmp_path):
    exporters = pytest.importorskip("nbconvert.exporters")
    html, _ = exporters.HTMLExporter(embed_images=True).from_notebook_node(notebook(tmp_path / "a.ipynb", page_of()))
    (tmp_path / "a.html").write_text(html, "utf-8")
    with contextlib.closing(chromium.new_page()) as tab:
        tab.route("http**", lambda route: route.abort())
        tab.goto((tmp_path / "a.html").as_uri())
        assert tab.locator("img[alt='the graph']").evaluate("e => e.naturalWidth") > 100
        assert step_inside(tab, "iframe") == "1"


def test_jupyterlab_shows_the_page_where_it_trusts_the_notebook_and_its_picture_where_not(chromium, tmp_path):
    pytest.importorskip("jupyterlab")
    for name in ("trusted", "untrusted"):
        notebook(tmp_path / f"{name}.ipynb", page_of())
    folders = {name: str(tmp_path / name) for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR")}
    log = (tmp_path / "log").open("w+")
    options = {"cwd": tmp_path, "env": {**os.environ, **folders, "HOME": str(tmp_path)}, "stderr": log, "stdout": log}
    subprocess.run([sys.executable, "-m", "jupyter", "trust", "trusted.ipynb"], check=True, **options)
    arguments = ["--no-browser", "--allow-root", "--ServerApp.port=0", "--IdentityProvider.token="]
    with log, subprocess.Popen([sys.executable, "-m", "jupyterlab", *arguments], **options) as server:
        try:
            jupyterlab_shows(chromium, tmp_path / "log")
        finally:
            server.kill()


def jupyterlab_shows(chromium, log):
    address = None
    for _ in range(600):
        if address := re.search(r"http://(?:localhost|127[.0-9]*):(\d+)/lab", log.read_text("utf-8")):
            break
        time.sleep(0.1)
    for name, frames in (("trusted", 1), ("untrusted", 0)):
        with contextlib.closing(chromium.new_page()) as tab:
            tab.goto(f"http://127.0.0.1:{address[1]}/lab/tree/{name}.ipynb?reset")
            picture = tab.wait_for_selector(".jp-OutputArea img[alt='the graph']", timeout=60_000, state="attached")
            width = picture.evaluate("async e => { await e.decode(); return e.naturalWidth }")
            assert 100 < width == round(float(re.search('viewBox="0.00 0.00 ([0-9.]+)', page_of().still)[1]))
            assert tab.locator(".jp-OutputArea iframe").count() == frames
            assert picture.is_visible() == (frames == 0)
            if frames:
                assert step_inside(tab, ".jp-OutputArea iframe") == "1"


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps(golden(), indent=1, sort_keys=True) + "\n", "utf-8")
