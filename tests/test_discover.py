"""Code as people write it, in every convention: `styles.txt` holds files, each with its verdicts in the first line."""

import itertools
import json
import os
import re
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import autograd_bn as ag
from autograd_bn.verify.referee import discover, earned, entries, guesses, load, trials
from autograd_bn.verify.referee.names import is_label

TEXT = Path(__file__).with_name("styles.txt").read_text("utf-8")
STYLES = dict(part.split("\n", 1) for part in re.split(r"(?m)^=== ", TEXT)[1:])


CUBE = "def cube_forward(x):\n    return x ** 3, x\ndef cube_backward(d, x):\n    return -3 * x ** 2 * d\n"


def judged(path):
    """Every pair of a file, judged, by the name of its backward pass."""
    with load.loaded(path) as file:
        found = [discover.judge(entry, file.space, {}) for entry in entries.entries(file.space)]
        return {entry.backward: entry for entry in found if entry.verdict}


def written(tmp_path, text, name="mine.py"):
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", STYLES)
def test_code_is_judged_in_its_own_convention(name, tmp_path):
    text = STYLES[name]
    for framework in re.findall(r"(?m)^import (torch|jax)\b", text):
        pytest.importorskip(framework)
    expected = dict(re.findall(r"([\w.]+)=(\w+)", text.splitlines()[0]))
    found = judged(written(tmp_path, text))
    assert {name: entry.verdict for name, entry in found.items()} == expected


def test_what_forward_reads_is_named_where_it_is_not_judged(tmp_path):
    found = judged(written(tmp_path, STYLES["globals_read"]))
    assert found["lin_backward"].report.unseen == ("W, which forward reads from outside",)
    text = STYLES["globals_read"].replace("W = ", "HELD = {}\nHELD['W'] = W = ").replace("@ W", "@ HELD['W']")
    assert judged(written(tmp_path, text))["lin_backward"].report.unseen == ("HELD, which forward reads from outside",)
    text = STYLES["lazy"].replace("self.dw =", "unused =")
    assert judged(written(tmp_path, text))["Lazy.backward"].report.unseen[0].startswith("w, of which backward leaves")


def test_a_number_of_the_file_that_hides_a_factor_is_said(tmp_path):
    text = """
SCALE = 1.0
DEVIATION = 2.0
VARIANCE = DEVIATION * DEVIATION
def cube_forward(x):
    return SCALE * x ** 3, x
def cube_backward(dy, x):
    return 3 * x ** 2 * dy
def square_forward(x):
    return SCALE * (x / DEVIATION) ** 2, x
def square_backward(dy, x):
    return SCALE * 2 * x / VARIANCE * dy
"""
    found = judged(path := written(tmp_path, text))
    assert {entry.verdict for entry in found.values()} == {"right"}
    assert found["cube_backward"].reason == "With SCALE = 1.7 in the place of 1.0 it is wrong."
    assert found["square_backward"].reason == ""
    with load.loaded(path) as file:
        (first, *_) = entries.entries(file.space)
        discover.judge(first, file.space, {})
        assert file.space["SCALE"] == 1


def test_words_with_which_a_pair_is_not_judged_are_named(tmp_path):
    text = """
import numpy as np
class Bend:
    def __init__(self, kind="soft"):
        self.slope = self.soft if kind == "soft" else self.hard
        if kind == "hard":
            self.name = kind
    def soft(self, x):
        return 1 / (1 + np.exp(-x))
    def hard(self, x):
        return 1.0 * (x > 0)
    def forward(self, x):
        self.x = x
        return np.log1p(np.exp(x)) if self.slope == self.soft else np.maximum(x, 0)
    def backward(self, dy):
        return dy * self.slope(self.x)
"""
    entry = judged(written(tmp_path, text))["Bend.backward"]
    assert (entry.verdict, entry.reason) == ("right", 'With kind="hard" it is not judged.')


@pytest.mark.parametrize("rest", ["", "\nprint 'done'\n"], ids=["Python", "not all of it"])
def test_lines_are_counted_as_an_editor_counts_them(rest, tmp_path):
    text = "import numpy as np\n\x0c\nGAP = '\u2028'\n" + CUBE + rest
    with load.loaded(written(tmp_path, text)) as file:
        (entry,) = entries.entries(file.space)
        report = discover.judge(entry, file.space, {}).report
        assert len(file.space["GAP"]) == 1
    assert [repair.line for repair in report.repair[:1]] == [text.split("\n").index("    return -3 * x ** 2 * d") + 1]


def test_whole_numbers_of_which_backward_leaves_a_gradient_are_named(tmp_path):
    text = """
import numpy as np
class Counted:
    def __init__(self, size):
        self.w = np.arange(1, size + 1)
    def forward(self, x):
        self.x = x
        return x * self.w
    def backward(self, dy):
        self.dw = (self.x * dy).mean(0)
        return dy * self.w
"""
    found = judged(written(tmp_path, text))["Counted.backward"]
    assert found.report.unseen == ("w, in whole numbers, of which backward leaves a gradient",)


def test_a_gain_of_ones_is_moved_before_it_is_judged(tmp_path):
    scale = judged(written(tmp_path, STYLES["dict_params"]))["Scale.backward"]
    assert [row.name for row in scale.report.rows if not row.ok] == ["dx"]


def test_other_lengths_that_forward_takes_are_tried_where_only_the_inputs_were_guessed(tmp_path):
    text = """
import numpy as np
class Halved:
    def forward(self, x):
        self.n = x.shape[-1]
        return x[..., 0 : 2 * (self.n // 2) : 2]
    def backward(self, dy):
        dx = np.zeros((*dy.shape[:-1], self.n))
        dx[..., 0 : 2 * (self.n // 2) : 2] = dy
        return dx
"""
    assert judged(written(tmp_path, text))["Halved.backward"].reason == ""
    slip = text.replace("dx[..., 0 : 2 * (self.n // 2) : 2]", "dx[..., 0 : 2 * (self.n // 3) : 2]")
    entry = judged(written(tmp_path, slip))["Halved.backward"]
    assert "which forward takes, it is wrong" in entry.reason


def test_three_axes_that_forward_takes_part_by_part_are_tried_where_inputs_of_two_were_guessed(tmp_path):
    text = """
import numpy as np
class Softmax:
    def forward(self, x):
        e = np.exp(x - x.max(-1, keepdims=True))
        self.y = e / e.sum(-1, keepdims=True)
        return self.y
    def backward(self, dy):
        return self.y * (dy - (dy * self.y).sum(-1, keepdims=True))
"""
    assert judged(written(tmp_path, text))["Softmax.backward"].reason == ""
    made = "class Softmax:\n    def __init__(self):\n        self.scale = np.array([0.5, 1.5, 2.0, 3.0])\n"
    scaled = text.replace("class Softmax:\n", made).replace("(self, x):\n", "(self, x):\n        x = x * self.scale\n")
    scaled = scaled.replace("keepdims=True))\n", "keepdims=True)) * self.scale\n")
    entry = judged(written(tmp_path, scaled))["Softmax.backward"]  # of the scale, no gradient
    assert (entry.verdict, entry.reason, len(entry.report.unseen)) == ("right", "", 1)
    slip = text.replace("self.y).sum(-1", "self.y).sum(1")
    reason = judged(written(tmp_path, slip))["Softmax.backward"].reason
    assert reason == "At x of shape (2, 5, 4), of which forward takes each part, it is wrong."


@pytest.mark.parametrize(
    ("default", "place"),
    [
        ('flag="plain"', 'if self.flag == "log":'),
        ("flag=0", "if self.flag:"),
        ("flag=0", "for _ in range(self.flag):"),
        ("flag=0", "with_ = self.flag and"),
    ],
)
@pytest.mark.parametrize("made", ["in the constructor", "in the one above", "in forward"])
def test_no_other_default_runs_what_could_do_more_than_compute(default, place, made, tmp_path, capsys):
    line = f"        {place} sys.stderr.write('touched')\n"
    text = f"""
import sys
import time
import numpy as np
class Above:
    def __init__(self, flag):
        self.flag = flag
{line if made == "in the one above" else ""}
class Scale(Above):
    def __init__(self, gain=2.5, {default}):
        super().__init__(flag)
        self.gain = gain
{line if made == "in the constructor" else ""}
    def forward(self, x):
        self.x = x
{line if made == "in forward" else ""}
        return self.gain * x + len(str(self.flag))
    def backward(self, dy):
        return self.gain * dy
"""
    assert judged(written(tmp_path, text))["Scale.backward"].verdict == "right"
    assert "touched" not in capsys.readouterr().err


def test_no_guess_gets_the_axes_of_a_gradient_that_was_broadcast(tmp_path):
    text = STYLES["inputs_by_the_name_of_forward"].partition("ln_forward_inputs")[0]
    assert judged(written(tmp_path, text))["ln_backward"].verdict == "wrong"


def test_no_input_that_is_guessed_is_empty(tmp_path):
    cell = STYLES["names_that_are_made_and_read"].replace(":-g.shape[1]]", ":99]").replace("-g.shape[1]:]", "99:]")
    assert judged(written(tmp_path, cell))["Cell.backward"].verdict != "right"


def test_what_is_overwritten_is_a_warning_that_names_it(tmp_path):
    pytest.importorskip("torch")
    found = judged(written(tmp_path, STYLES["inplace"]))
    assert "backward overwrites dy in place" in found["r_backward"].report.warnings[0]
    for name in ("s_backward", "F.backward"):
        assert any("overwrites an array" in w or "something else" in w for w in found[name].report.warnings)


def test_jax_computes_in_double_precision_without_a_rule_too(tmp_path):
    pytest.importorskip("jax")
    softplus = judged(written(tmp_path, STYLES["jaxes"]))["softplus_backward"]
    assert (softplus.verdict, softplus.reason) == ("right", "")  # in single it was wrong at other lengths


def test_a_file_that_needs_a_framework_is_judged_where_there_is_none_as_far_as_it_goes(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", load.StandIn("torch"))
    text = """import numpy as np
import torch
class F(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return torch.exp(x)
    @staticmethod
    def backward(ctx, g):
        return g * torch.exp(ctx.saved_tensors[0])
def s_forward(x):
    return np.sin(x), x
def s_backward(dy, x):
    return np.cos(x) * dy
"""
    found = judged(written(tmp_path, text))
    assert found["s_backward"].verdict == "right"
    assert found["F.backward"].verdict == "unjudged"


def test_where_nothing_agrees_it_says_how_the_pair_was_read(tmp_path):
    text = STYLES["read_as_meant"]
    said = {name: entry.reason for name, entry in judged(written(tmp_path, text)).items()}
    read = "as read here, at guessed inputs (x (5, 4)), nothing agrees: dx is wrong everywhere"
    assert said["Signal.backward"].startswith(read)
    assert "--inputs" in said["Signal.backward"]
    assert "For one example, as of shape (1, 4), it is right." in said["Batch.backward"]
    assert "only the shape is another" in said["Row.backward"]
    assert "holds 2,002,000 numbers" in said["Large.backward"]
    given = judged(written(tmp_path, text + "Signal_inputs = (np.ones((5, 4)),)"))
    assert given["Signal.backward"].verdict == "wrong"


def test_nothing_that_a_file_takes_for_its_end_ends_the_check(tmp_path):
    path = written(tmp_path, STYLES["exits"])
    with load.loaded(path) as file:
        assert len(file.notes) == 1
        assert "line 9: SystemExit" in file.notes[0]
        assert {"sq_backward", "below_backward"} <= set(file.space)


@pytest.mark.parametrize(
    ("call", "note"),
    [
        ("os._exit(0)", "os._exit(0)"),
        ("os.execv('/bin/true', ['true'])", "os.execv('/bin/true', ['true'])"),
        ("os.execlp('true', 'true')", "os.execv(b'/"),
        ("os.execvpe('/bin/true', ['true'], {})", "os.execve('/bin/true', ['true'])"),
    ],
)
def test_a_file_that_leaves_by_the_back_door_does_not(tmp_path, call, note):
    path, door = written(tmp_path, f"import os\n{call}\ndef f_forward(x):\n    return x, x\n"), os.execve
    with load.loaded(path) as file:
        assert note in file.notes[0]
        assert "f_forward" in file.space
    assert os.execve is door


def test_the_cells_of_a_notebook_are_read_without_their_magics(tmp_path):
    cells = ["%matplotlib inline\nimport numpy as np", "%%bash\nls", "%%time\ndef f_forward(x):\n    return x**2, x"]
    cells.append("!ls\ndef f_backward(dout, cache):\n    return cache * dout")
    text = json.dumps({"cells": [{"cell_type": "code", "source": cell} for cell in cells], "nbformat": 4})
    entry = judged(written(tmp_path, text, "mine.ipynb"))["f_backward"]
    assert entry.verdict == "wrong"
    assert entry.report.repair
    with pytest.raises(load.Unreadable, match="no notebook"):
        judged(written(tmp_path, "{}", "other.ipynb"))


def test_what_a_timed_cell_of_an_exported_notebook_defines_is_judged(tmp_path):
    cell = "def f_forward(x):\n    return x**2, x\ndef f_backward(dout, x):\n    return 2 * x * dout\n"
    text = f"get_ipython().run_line_magic('matplotlib', 'inline')\nget_ipython().run_cell_magic('time', '', {cell!r})\n"
    assert judged(written(tmp_path, text))["f_backward"].verdict == "right"


def test_neighbours_are_found_up_to_the_projects_root(tmp_path):
    inner = tmp_path / "project" / "nets" / "layers"
    inner.mkdir(parents=True)
    (tmp_path / "project" / ".git").mkdir()
    (tmp_path / "project" / "helpers.py").write_text("def twice(x):\n    return 2 * x\n", encoding="utf-8")
    (inner.parent / "more.py").write_text("def thrice(x):\n    return 3 * x\n", encoding="utf-8")
    text = "from helpers import twice\nfrom ..more import thrice\n"
    text += "def f_forward(x):\n    return twice(thrice(x)), x\ndef f_backward(d, x):\n    return 6 * d\n"
    assert judged(written(inner, text))["f_backward"].verdict == "right"


@pytest.mark.parametrize("package", [False, True])
def test_what_is_imported_by_the_name_of_a_folder_above_is_found_in_the_nearest(tmp_path, package):
    inner = tmp_path / "top" / "former" / "project" / "former" / "layers"
    inner.mkdir(parents=True)
    if package:
        (inner.parent / "__init__.py").write_text("", encoding="utf-8")
    (inner.parent / "former.py").write_text("raise ImportError\n", encoding="utf-8")
    (inner.parent / "helpers.py").write_text("def twice(x):\n    return 2 * x\n", encoding="utf-8")
    (inner / "__init__.py").write_bytes(b"\xef\xbb\xbfsize = 3\n")
    text = "from former.helpers import twice\nfrom .. import layers\n"
    text += "def f_forward(x):\n    return twice(x), x\ndef f_backward(d, x):\n    return 2 * d\n"
    assert judged(written(inner, text))["f_backward"].verdict == "right"


def test_a_line_of_another_file_is_said_with_its_name(tmp_path):
    (tmp_path / "helpers.py").write_text("\n" * 40 + "def half(x):\n    return x[None]['a']\n", encoding="utf-8")
    text = "from helpers import half\ndef f_forward(x):\n    return half(x), x\ndef f_backward(d, x):\n    return d\n"
    reason = judged(written(tmp_path, text))["f_backward"].reason
    assert "(helpers.py, line 42)" in reason


def test_what_is_absent_is_the_reason_and_not_the_inputs(tmp_path):
    text = "def f_forward(x, w):\n    return Dense(x) @ w, (x, w)\ndef f_backward(d, cache):\n    return d, d\n"
    assert judged(written(tmp_path, text))["f_backward"].reason == (
        "f_forward(x, w) needs what isn't there: NameError: name 'Dense' is not defined (line 2)"
    )


@pytest.mark.parametrize("body", ["raise NotImplemented", "raise NotImplementedError"])
def test_an_abstract_class_is_unwritten(tmp_path, body):
    text = f"import abc\nclass Layer(abc.ABC):\n    def forward(self, x):\n        {body}\n"
    abstract = "    @abc.abstractmethod\n    def backward(self, dy):\n        pass\n"
    assert judged(written(tmp_path, text + abstract))["Layer.backward"].verdict == "unwritten"


STUBS = {
    "pass": ("pass", ""),
    "nones": ("return None, None", ""),
    "raises": ("raise NotImplementedError", ""),
    "asserts": ("assert False, 'TODO'", ""),
    "zeros": ("dx, dw = np.zeros_like(cache[0]), np.zeros_like(cache[1])\n    return dx, dw", ""),
    "forward": ("return dy @ cache[1].T, cache[0].T @ dy", "return None, (x, w)"),
    "wrong": ("return 0 * cache[0], 0 * cache[1]", ""),
    "right": ("return dy @ cache[1].T, cache[0].T @ dy", ""),
}


@pytest.mark.parametrize("name", STUBS)
def test_the_function_says_of_a_stub_what_the_command_does(name, tmp_path):
    backward, forward = STUBS[name]
    text = f"import numpy as np\ndef f_forward(x, w):\n    {forward or 'return x @ w, (x, w)'}\n"
    path = written(tmp_path, f"{text}def f_backward(dy, cache):\n    {backward}\n")
    with load.loaded(path) as file:
        x, w = np.random.default_rng(0).normal(size=(2, 3, 3))
        verdict = ag.check_backward(file.space["f_forward"], file.space["f_backward"], (x, w))
    expected = name if name in ("right", "wrong") else "unwritten"
    assert verdict.status == judged(path)["f_backward"].verdict == expected
    assert str(verdict).startswith(expected.upper())
    assert verdict.ok == (name == "right")


def test_the_function_judges_a_function_that_returns_a_loss_and_its_gradient():
    def hinge(x, w, scale=1.0):
        loss, dx, dw = np.sum(np.tanh(x @ w)), 0, 0
        slope = scale * (1 - np.tanh(x @ w) ** 2)
        dx, dw = slope @ w.T, x.T @ slope
        return loss, dx, dw

    class Model:
        def __init__(self):
            self.W = np.ones((3, 2))

        def loss(self, X, y=None):
            loss, _, dW = hinge(X, self.W)
            return loss, {"W": dW}

    x, w = np.random.default_rng(0).normal(size=(2, 3, 3))
    assert [row.name for row in ag.check_backward(hinge, (x, w)).rows if row.ok] == ["dx", "dw"]
    assert [row.ok for row in ag.check_backward(hinge, (x, w, 2.0)).rows] == [False, False]
    assert [row.name for row in ag.check_backward(Model(), (x, None)).rows if row.ok] == ["dW"]
    with pytest.raises(TypeError, match="or a function that returns a loss and its gradients"):
        ag.check_backward(lambda x: (x, x), (x,))


def test_a_slip_in_a_method_that_returns_a_loss_is_named(tmp_path):
    text = "import numpy as np\nclass Ridge:\n    def __init__(self):\n        self.W = np.full((3, 2), 0.5)\n"
    text += "    def loss(self, X, y=None, reg=0.0):\n        r = X @ self.W - y\n"
    text += "        grads = {'W': 2 * X.T @ r + reg * self.W}\n"
    text += "        return np.sum(r**2) + reg * np.sum(self.W**2), grads\n"
    found = judged(written(tmp_path, text))["Ridge.loss"]
    assert found.verdict == "wrong"
    assert [repair.line for repair in found.report.repair] == [7]
    assert (
        judged(written(tmp_path, text.replace("reg * self.W}", "2 * reg * self.W}")))["Ridge.loss"].verdict == "right"
    )


def test_a_slip_in_a_function_of_one_number_is_mended_in_its_own_file(tmp_path):
    text = "def double(v):\n    return 2 * v\ndef cube(x):\n    return x**3\ndef dcube(v):\n    return double(v) * v\n"
    path = written(tmp_path, text + "def cube_prime(v):\n    return 2 * v**2\n")
    found = judged(path)
    for name, line, new in (("dcube", 2, "return 3 * v"), ("cube_prime", 8, "return 3 * v**2")):
        (repair,) = found[name].report.repair
        assert (repair.file, repair.line, repair.new.strip()) == (str(path), line, new)


def test_a_class_with_a_loss_that_has_no_weights_yet_is_told(tmp_path):
    text = "class Model:\n    def __init__(self):\n        self.W = None\n    def loss(self, X, y):\n"
    text += "        scores = X @ self.W\n        loss, dW = scores.sum(), X.T @ scores\n        return loss, dW\n"
    found = judged(written(tmp_path, text))["Model.loss"]
    assert found.verdict == "unjudged"
    assert "no inputs are known for Model.loss(X, y)" in found.reason


def test_an_error_in_a_file_that_lies_in_a_folder_named_like_this_package_is_told_with_its_line(tmp_path):
    (folder := tmp_path / "autograd_bn").mkdir()
    text = "def inputs():\n    raise ValueError('no data')\ndef f_forward(x):\n    return x, x\n"
    path = written(folder, text + "def f_backward(dy, x):\n    return dy\n")
    assert judged(path)["f_backward"].reason == "ValueError: no data (line 2)"


def test_what_is_absent_ends_the_search_for_inputs(tmp_path):
    text = "calls = []\ndef f_forward(x, w, b, y, gamma, beta):\n    calls.append(x)\n    return fast(x) + w, x\n"
    path = written(tmp_path, text + "def f_backward(d, cache):\n    return d\n")
    with load.loaded(path) as file:
        (entry,) = entries.entries(file.space)
        entry = discover.judge(entry, file.space, {})
        assert "needs what isn't there: NameError: name 'fast' is not defined (line 4)" in entry.reason
        assert len(file.space["calls"]) == trials.ABSENT


def test_inputs_that_belong_together_are_tried_together():
    for names, wanted in [
        (["x", "prev_h", "Wx", "Wh", "b"], ("DN", "MN", "MD", "MM", "M1")),
        (["A_prev", "W", "b", "hparameters"], ("BIJD", "PPDM", "111M", "options")),
    ]:
        choices = guesses.Choices([guesses.meant(name)[0] for name in names])
        assert wanted in itertools.islice(choices, 40)


def test_what_is_said_of_a_choice_leads_to_the_next():
    choices = guesses.Choices([guesses.meant(name)[0] for name in ("x", "w")])
    tried = list[tuple[str, ...]]()
    for chosen in itertools.islice(choices, 12):
        tried.append(chosen)
        try:
            np.concatenate([guesses.drawn(kind, np.random.default_rng(0)) for kind in chosen])
        except ValueError as error:
            choices.refused(chosen, str(error))
    assert tried[tried.index(("(5,8)", "(7,12)")) + 1] == ("(5,8)", "(7,8)")
    assert len(set(tried)) == len(tried)


def test_a_factor_of_the_whole_gradient_is_said_before_one_of_a_part(tmp_path):
    report = judged(written(tmp_path, STYLES["names_that_mislead"]))["MSE.backward"].report
    assert [finding.what for finding in report.diagnosis] == ["dout is 10 times what it should be."]


def test_what_another_method_sets_is_the_reason(tmp_path):
    text = "class F:\n    def start(self, a, b):\n        self.w = a\n"
    text += "    def forward(self, x):\n        return self.w * x\n"
    text += "    def backward(self, dy):\n        return self.w * dy\n"
    assert judged(written(tmp_path, text))["F.backward"].reason.startswith(
        "F.forward(x) reads self.w, which is set else"
    )


def test_nothing_that_writes_is_called_to_make_a_layer_whole(tmp_path):
    text = """import numpy as np
class Layer:
    calls = []
    def save_for(self, shape):
        self.calls.append("save_for")
    def export(self, shapefile):
        self.calls.append("export")
    def prepare(self, in_shape):
        self.calls.append("prepare")
        self.w = np.ones(in_shape[-1])
    def forward(self, x):
        return x * self.w
    def backward(self, dy):
        return dy * self.w
"""
    path = written(tmp_path, text)
    with load.loaded(path) as file:
        (entry,) = entries.entries(file.space)
        assert discover.judge(entry, file.space, {}).verdict == "right"
        assert {*file.space["Layer"].calls} == {"prepare"}


def test_what_is_right_for_one_example_alone_is_wrong_and_says_so(tmp_path):
    text = """import numpy as np
class Dense:
    def __init__(self, n_in, n_out):
        self.w, self.b = np.random.randn(n_in, n_out), np.random.randn(1, n_out)
    def forward(self, x):
        self.x = x
        return x @ self.w + self.b
    def backward(self, dy):
        self.dw, self.db = self.x.T @ dy, dy
        return dy @ self.w.T
"""
    entry = judged(written(tmp_path, text))["Dense.backward"]
    assert (entry.verdict, entry.reason) == ("wrong", "For one example, as of shape (1, 4), it is right.")


def test_a_guard_in_a_logarithm_that_is_not_recorded_widens_what_is_known(tmp_path):
    found = judged(written(tmp_path, STYLES["guards_out_of_sight"]))
    assert "central differences, to 3e-5" in str(found["Entropy.backward"].report)
    assert "`/ 2` has no place" in str(found["Halved.backward"].report)


def test_a_stand_in_decorates_and_is_a_base_and_computes_nothing():
    module = load.StandIn("absent")
    assert module.jit(len) is len
    assert module.register("name")(int) is int

    class Layer(module.nn.Module, module.Mixin):
        pass

    assert Layer(1, size=2)
    assert not isinstance(3, module.Tensor)
    with pytest.raises(ImportError, match=r"absent\.relu is called"):
        module.relu(np.ones(3))
    with pytest.raises(ImportError, match=r"absent\.pi is used"):
        module.pi + 1


@pytest.mark.parametrize(
    ("text", "shape", "check"),
    [
        ("x=(6,4)", (6, 4), lambda v: True),
        ("x=onehot(6,3)", (6, 3), lambda v: np.array_equal(v.sum(1), np.ones(6))),
        ("x=int(6,3)", (6,), lambda v: v.dtype.kind == "i" and v.max() < 3),
        ("x=positive(2,3)", (2, 3), lambda v: (v > 0).all()),
        ("x=prob(2,3)", (2, 3), lambda v: np.allclose(v.sum(1), 1)),
        ("x=0.5", (), lambda v: v == 0.5),
        ('x="relu"', (), lambda v: v == "relu"),
        ("y=3 x=true", (), lambda v: v is True),
    ],
)
def test_inputs_are_read_as_they_are_written(text, shape, check):
    value = guesses.parsed_inputs(text)["x"]
    assert np.shape(value) == shape
    assert check(value)


def test_two_lengths_that_a_message_calls_different_are_made_the_same():
    shapes = guesses.spread(("ND", "DM", "M", "=2"))
    assert shapes == ("(5,8)", "(7,12)", "(28)", "=2")
    for values in (("(5,8)", "(7,12)"), ("(5,8)", "(7,12)", "(5,3)")):
        arrays = [guesses.drawn(kind, np.random.default_rng(0)) for kind in values]
        with pytest.raises(ValueError) as error:
            arrays[0] @ arrays[1]
        assert guesses.agreed(values, str(error.value))[:2] == ("(5,8)", "(8,12)")
    with pytest.raises(ValueError) as error:
        np.concatenate([np.zeros((5, 8)), np.zeros((7, 8))], axis=1)
    assert guesses.agreed(("(5,8)", "(7,8)"), str(error.value)) == ("(5,8)", "(5,8)")
    with pytest.raises(ValueError) as error:
        np.zeros((5, 8)) + np.zeros(28)
    assert guesses.agreed(("(5,8)", "(28)"), str(error.value)) == ("(5,8)", "(8)")
    assert guesses.agreed(("(5,8)", "(7,12)"), "no length is said") == ("(5,8)", "(7,12)")


def test_a_bias_that_gets_one_number_is_wrong_and_a_gain_that_may_be_one_says_so(tmp_path):
    found = judged(written(tmp_path, STYLES["shapes_that_gradients_say"]))
    assert "db has shape (), and b has (3,)." in str(found["linear_backward"].report)
    assert "with gain a number: with an array, which forward takes too, it is wrong" in found["gain_backward"].reason
    found = judged(written(tmp_path, STYLES["turned"]))
    assert "with decoys a number: with an array" in found["untold_backward"].reason
    assert "for a symmetric matrix: for another, which" in found["undirected_backward"].reason


def test_nothing_is_said_of_shapes_where_forward_rounds_to_a_narrower_type_or_cuts_off_what_is_no_share(tmp_path):
    found = judged(written(tmp_path, STYLES["narrow_types"]))
    assert [entry.reason for entry in found.values()] == ["", ""]


def test_with_which_loss_a_model_is_judged_is_said(tmp_path):
    assert [is_label(name) for name in ("y_gt", "y_pred")] == [True, False]
    found = judged(written(tmp_path, STYLES["its_own_loss"]))
    notes = found["Net.backward"].report.notes
    assert "backward takes labels: it is judged as the gradient of compute_loss." in notes
    assert "backward may be of another loss than compute_loss" in found["Unlike.backward"].reason
    assert "a multiple of the gradient of compute_loss" in str(found["Halved.backward"].report)
    assert "the weight decay in loss is left out" in str(found["Decayed.backward"].report)


def test_where_only_another_branch_is_wrong_it_is_said_which(tmp_path):
    found = judged(written(tmp_path, STYLES["three_axes"]))
    assert found["affine_backward"].reason == found["Linear.backward"].reason == "This is for x of shape (2, 5, 4)."
    found = judged(written(tmp_path, STYLES["test_mode_of_objects"]))
    assert found["Norm.backward"].reason == "This is in test mode."


def test_what_a_guessed_dict_holds_may_have_another_shape(tmp_path):
    text = """
import numpy as np
def forward_propagation(X, parameters):
    return parameters["W"] @ X + parameters["b"], X
def backward_propagation(dZ, cache, parameters):
    return {"dW": dZ @ cache.T, "db": dZ.sum(axis=1, keepdims=True)}
"""
    with load.loaded(written(tmp_path, text)) as file:
        (entry,) = entries.entries(file.space)
        held = {"W": np.ones((3, 4)), "b": np.arange(5.0)}  # along the batch
        pair = entry.adapted([np.arange(20.0).reshape(4, 5), held])
        report = ag.check_backward(pair, pair.inputs)
    assert report.status == "wrong"
    assert earned.unearned(report, pair, entry.parameters, True).startswith("only the shape is another than that of")


def test_waiting_ends_and_a_busy_machine_does_not(monkeypatch):
    with pytest.raises(load.TimeUp), load.limited(0.1):
        time.sleep(5)
    work = itertools.count()
    monkeypatch.setattr(load.time, "process_time", lambda: next(work))
    with load.limited(0.1):
        time.sleep(0.6)


@pytest.mark.parametrize("change", ["SEEN.append(size)", "COUNTS[:] += 1", "self.made['bias'] = size"])
def test_what_another_default_changes_outside_is_put_back(change, tmp_path):
    text = f"""
import numpy as np
SEEN = []
COUNTS = np.zeros(2)
class Scale:
    made = {{}}
    def __init__(self, size, bias=False):
        self.w = np.linspace(1, 2, size)
        if bias:
            {change}
    def forward(self, x):
        self.x = x
        return x * self.w
    def backward(self, dy):
        self.dw = (self.x * dy).sum(axis=0)
        return dy * self.w
"""
    with load.loaded(written(tmp_path, text)) as file:
        (entry,) = entries.entries(file.space)
        assert discover.judge(entry, file.space, {}).verdict == "right"
        assert (file.space["SEEN"], file.space["COUNTS"].tolist(), file.space["Scale"].made) == ([], [0, 0], {})
