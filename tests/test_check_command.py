"""`autograd-bn check`: course files as they stand, each pair by itself, exit statuses, JSON, one line for errors."""

import json
import os
import subprocess
import sys
from unittest import mock

import pytest

from autograd_bn.__main__ import main
from autograd_bn.verify.referee import discover

RIGHT = """
import numpy as np

print("a line that the file prints")

def forward(x, gamma, beta, eps=1e-5):
    mean, var = x.mean(axis=0), x.var(axis=0)
    xhat = (x - mean) / np.sqrt(var + eps)
    return gamma * xhat + beta, (xhat, gamma, np.sqrt(var + eps))

def backward(dy, cache):
    xhat, gamma, std = cache
    dxhat = dy * gamma
    dx = (dxhat - dxhat.mean(axis=0) - xhat * (dxhat * xhat).mean(axis=0)) / std
    return dx, (dy * xhat).sum(axis=0), dy.sum(axis=0)
"""
WRONG = RIGHT.replace(" - xhat * (dxhat * xhat).mean(axis=0)", "")
LINEAR = """
import numpy as np

def inputs():
    return np.arange(6.0).reshape(2, 3), np.ones((3, 2))

def linear_forward(x, w):
    return x @ w, (x, w)

def linear_backward(dy, cache):
    x, w = cache
    return dy @ w.T, x.T @ dy

def scale_forward(x, w):
    return x * w.sum(), (x, w)

def scale_backward(dy, cache):
    x, w = cache
    return dy * w.sum(), (dy * x).sum() * np.ones(w.shape)
"""
COURSE = """
import numpy as np
from past.builtins import xrange
from .compiled_helpers import *
from .neighbour import pad_images
try:
    import no_such_package as numbers
except ImportError:
    numbers = np

def affine_forward(x, w, b):
    return x.reshape(len(x), -1).dot(w) + b, (x, w, b)

def affine_backward(dout, cache):
    x, w, b = cache
    return dout.dot(w.T).reshape(x.shape), x.reshape(len(x), -1).T.dot(dout), dout.sum(axis=0)

def batchnorm_forward(x, gamma, beta, bn_param):
    eps, out, cache = bn_param.get("eps", 1e-5), None, None
    if bn_param["mode"] == "train":
        mu, var = x.mean(0), x.var(0)
        bn_param["running_mean"] = 0.9 * bn_param.get("running_mean", np.zeros(x.shape[1])) + 0.1 * mu
        xhat = (x - mu) / np.sqrt(var + eps)
        out, cache = gamma * xhat + beta, (xhat, gamma, np.sqrt(var + eps))
    return out, cache

def batchnorm_backward(dout, cache):
    xhat, gamma, std = cache
    d = dout * gamma
    return (d - d.mean(0) - xhat * (d * xhat).mean(0)) / std, (dout * xhat).sum(0), dout.sum(0)

def batchnorm_backward_alt(dout, cache):
    dx, dgamma, dbeta = None, None, None
    return dx, dgamma, dbeta

def layernorm_forward(x, gamma, beta, ln_param):
    out, cache = None, None
    return out, cache

def layernorm_backward(dout, cache):
    return None, None, None

def dropout_forward(x, dropout_param):
    p, mode = dropout_param["p"], dropout_param["mode"]
    mask = (np.random.rand(*x.shape) < p) / p if mode == "train" else None
    return x * mask if mode == "train" else x, (dropout_param, mask)

def dropout_backward(dout, cache):
    dropout_param, mask = cache
    return dout * mask if dropout_param["mode"] == "train" else dout

def conv_forward_naive(x, w, b, conv_param):
    stride, pad = conv_param["stride"], conv_param["pad"]
    N, C, H, W = x.shape
    F, _, R, S = w.shape
    xp = pad_images(x, pad)
    out = np.zeros((N, F, (H + 2 * pad - R) // stride + 1, (W + 2 * pad - S) // stride + 1))
    for i in xrange(out.shape[2]):
        for j in xrange(out.shape[3]):
            window = xp[:, :, i * stride : i * stride + R, j * stride : j * stride + S]
            out[:, :, i, j] = np.tensordot(window, w, ((1, 2, 3), (1, 2, 3))) + b
    return out, (x, w, b, conv_param)

def conv_backward_naive(dout, cache):
    x, w, b, conv_param = cache
    stride, pad = conv_param["stride"], conv_param["pad"]
    xp, dw = pad_images(x, pad), np.zeros_like(w)
    dxp = np.zeros_like(xp)
    for i in range(dout.shape[2]):
        for j in range(dout.shape[3]):
            rows, cols = slice(i * stride, i * stride + w.shape[2]), slice(j * stride, j * stride + w.shape[3])
            dw += np.tensordot(dout[:, :, i, j], xp[:, :, rows, cols], (0, 0))
            dxp[:, :, rows, cols] += np.tensordot(dout[:, :, i, j], w, (1, 0))
    return dxp[:, :, pad:-pad, pad:-pad], dw, dout.sum((0, 2, 3))

def conv_forward_fast(x, w, b, conv_param):
    return im2col(x), None

def conv_backward_fast(dout, cache):
    return dout

def spatial_groupnorm_forward(x, gamma, beta, G, gn_param):
    N, C, H, W = x.shape
    xg = x.reshape(N, G, C // G, H, W)
    std = np.sqrt(xg.var(axis=(2, 3, 4), keepdims=True) + gn_param.get("eps", 1e-5))
    xhat = ((xg - xg.mean(axis=(2, 3, 4), keepdims=True)) / std).reshape(x.shape)
    return gamma * xhat + beta, (xhat, std, gamma, G)

def spatial_groupnorm_backward(dout, cache):
    xhat, std, gamma, G = cache
    d, h = (dout * gamma).reshape(len(dout), G, -1), xhat.reshape(len(dout), G, -1)
    dx = (d - d.mean(2, keepdims=True) - h * (d * h).mean(2, keepdims=True)) / std.reshape(len(dout), G, 1)
    return dx.reshape(dout.shape), (dout * xhat).sum((0, 2, 3), keepdims=True), dout.sum((0, 2, 3), keepdims=True)

def lstm_step_forward(x, prev_h, prev_c, Wx, Wh, b):
    H = prev_h.shape[1]
    a = x.dot(Wx) + prev_h.dot(Wh) + b
    i, f, o = [1 / (1 + np.exp(-a[:, k * H : k * H + H])) for k in range(3)]
    g = np.tanh(a[:, 3 * H :])
    next_c = f * prev_c + i * g
    return o * np.tanh(next_c), next_c, (x, prev_h, prev_c, Wx, Wh, i, f, o, g, next_c)

def lstm_step_backward(dnext_h, dnext_c, cache):
    x, prev_h, prev_c, Wx, Wh, i, f, o, g, next_c = cache
    t = np.tanh(next_c)
    dc = dnext_c + dnext_h * o * (1 - t * t)
    gates = dc * g * i * (1 - i), dc * prev_c * f * (1 - f), dnext_h * t * o * (1 - o), dc * i * (1 - g * g)
    da = np.hstack(gates)
    return da.dot(Wx.T), da.dot(Wh.T), dc * f, x.T.dot(da), prev_h.T.dot(da), da.sum(0)

def word_embedding_forward(x, W):
    return W[x], (x, W)

def word_embedding_backward(dout, cache):
    x, W = cache
    dW = np.zeros_like(W)
    np.add.at(dW, x, dout)
    return dW

def softmax_loss(x, y):
    p = np.exp(x - x.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    n = len(x)
    loss = -np.log(p[np.arange(n), y]).mean()
    dx = p.copy()
    dx[np.arange(n), y] -= 1
    return loss, dx / n

def regularized_loss(W, X, y, reg):
    loss, dlogits = softmax_loss(X.dot(W), y)
    return loss + reg * (W * W).sum(), X.T.dot(dlogits) + 2 * reg * W

def plot_loss(history):
    return len(history)

class Layer:
    def forward(self, x):
        raise NotImplementedError

    def backward(self, dout):
        raise NotImplementedError

class Linear(Layer):
    def __init__(self, in_features, out_features):
        self.params = {"weight": np.ones((out_features, in_features)), "bias": np.zeros(out_features)}
        self.grads = {}

    def forward(self, x):
        self.x = x
        return x @ self.params["weight"].T + self.params["bias"]

    def backward(self, dout):
        self.grads["weight"], self.grads["bias"] = dout.T @ self.x, dout.sum(0)
        return dout @ self.params["weight"]

class CrossEntropy(Layer):
    def forward(self, x, y):
        return softmax_loss(x, y)[0]

    def backward(self, x, y):
        return softmax_loss(x, y)[1]

class Tanh(Layer):
    pass
"""
NEIGHBOUR = """
import numpy as np

def pad_images(x, pad):
    return np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
"""
UNFINISHED = {
    "batchnorm_backward_alt": "unwritten",
    "layernorm_backward": "unwritten",
    "conv_backward_fast": "unjudged",
    "Tanh.backward": "unwritten",
}


@pytest.fixture
def check(tmp_path, capsys):
    def call(text, *options, name="mine.py"):
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        status = main(["check", str(path), *options])
        return status, *capsys.readouterr()

    return call


@pytest.fixture
def course(check, tmp_path):
    (tmp_path / "neighbour.py").write_text(NEIGHBOUR, encoding="utf-8")

    def call(*edits):
        text = COURSE
        for old, new in edits:
            assert text.count(old) == 1
            text = text.replace(old, new)
        status, out, _ = check(text, "--json")
        return status, {line["backward"]: line for line in map(json.loads, out.splitlines())}

    return call


def test_a_right_pair_exits_0(check):
    status, out, _ = check(RIGHT)
    assert status == 0
    assert out.startswith("RIGHT: all 3 gradients are right.")
    assert "a line that the file prints" not in out


def test_a_number_by_its_name_may_be_an_array(check):
    text = """import numpy as np
def bce_forward(p, y):
    return -np.sum(y * np.log(p) + (1 - y) * np.log(1 - p)) / len(y), (p, y)
def bce_backward(dy, cache):
    p, y = cache
    return dy * (p - y) / (p * (1 - p)) / len(y)
"""
    status, out, _ = check(text)
    assert status == 0
    assert "dp " in out


def test_keys_of_attention_are_an_array(check):
    text = """def scores_forward(q, k):
    return q @ k.swapaxes(-1, -2), (q, k)
def scores_backward(dy, cache):
    q, k = cache
    return dy @ k, dy.swapaxes(-1, -2) @ q
"""
    status, out, _ = check(text)
    assert status == 0
    assert "all 2 gradients" in out


def test_what_is_right_for_vectors_alone_is_said_to_be(check):
    text = """import numpy as np
def hinge_loss(scores, y): return np.mean(np.maximum(0, 1 - y * scores))
def hinge_loss_backward(scores, y): return np.where(y * scores < 1, -y, 0.0) / LENGTH
"""
    assert "for matrices" in check(text.replace("LENGTH", "len(scores)"))[1]
    assert "for matrices" not in check(text.replace("LENGTH", "scores.size"))[1]


def test_a_number_on_an_object_is_judged_by_the_gradient_left_for_it(check):
    text = """import numpy as np
class PReLU:
    def __init__(self):
        self.a, self.da = 0.25, 0
    def forward(self, x):
        self.x = x
        return np.where(x > 0, x, self.a * x)
    def backward(self, dy):
        self.da = -(dy * self.x * (self.x <= 0)).sum()
        return dy * np.where(self.x > 0, 1, self.a)
"""
    assert "WRONG: da (1 of 2 gradients)" in check(text)[1]


def test_a_wrong_pair_exits_1_and_names_the_mistake(check):
    status, out, _ = check(WRONG)
    assert status == 1
    assert "path through the variance" in out


def test_a_page_shows_each_wrong_pair(check, tmp_path):
    page = tmp_path / "page.html"
    status, _, err = check(WRONG, "-o", str(page))
    assert status == 1
    assert f"open {page} in a browser" in err
    assert "variance" in page.read_text("utf-8")
    text = LINEAR.replace("x.T @ dy", "-x.T @ dy")
    assert check(text, "-o", str(page.with_name("two.html")))[0] == 1
    assert sorted(path.name for path in tmp_path.glob("two*")) == ["two-linear_backward.html", "two.html"]


def test_a_page_of_an_earlier_check_does_not_stay_where_none_can_be_drawn(check, tmp_path, monkeypatch):
    page = tmp_path / "page.html"
    page.write_text("of an earlier check")
    monkeypatch.setattr("autograd_bn.commands.check.render", mock.Mock(side_effect=ValueError("no graph")))
    assert check(WRONG, "-o", str(page))[0] == 1
    assert "path through the variance" in page.read_text("utf-8")


def test_json_is_an_object_a_pair_on_a_line(check):
    status, out, _ = check(WRONG, "--json")
    found = json.loads(out)
    assert status == 1
    assert list(found) == ["forward", "backward", "verdict", "diagnosis", "repair"]
    assert (found["forward"], found["backward"], found["verdict"]) == ("forward", "backward", "wrong")
    assert "variance" in found["diagnosis"]
    assert [list(edit) for edit in found["repair"]] == [["file", "line", "old", "new"]] * len(found["repair"])


def test_pairs_are_judged_on_the_inputs_that_the_file_gives(check):
    status, out, _ = check(LINEAR)
    assert status == 0, out
    assert out.splitlines() == [
        "linear_backward: RIGHT: all 2 gradients are right.",
        "",
        "scale_backward: RIGHT: all 2 gradients are right.",
        "",
        "2 right",
    ]


def test_a_course_file_is_judged_as_it_stands(course):
    modules, paths = set(sys.modules), list(sys.path)
    status, found = course()
    assert status == 0
    assert {name: line["verdict"] for name, line in found.items()} == {
        name: UNFINISHED.get(name, "right") for name in found
    }
    assert len(found) == 15
    assert found["batchnorm_backward_alt"]["forward"] == "batchnorm_forward"
    assert found["layernorm_backward"]["diagnosis"] == "forward returned None"
    assert "im2col" in found["conv_backward_fast"]["diagnosis"]
    assert sys.path == paths
    assert not {name for name in set(sys.modules) - modules if "past" in name or "neighbour" in name}


def test_mistakes_in_a_course_file_are_found_each_by_itself(course):
    status, found = course(
        ("return dout.dot(w.T).reshape(x.shape), x", "dout *= 1.5\n    return dout.dot(w.T).reshape(x.shape), x"),
        ('if dropout_param["mode"] == "train" else dout', "if mask is not None else 2 * dout"),
        ("(dout * xhat).sum((0, 2, 3), keepdims=True)", "(dout * xhat).sum((0, 2, 3))"),
        ("dnext_c + dnext_h * o", "dnext_h * o"),
        ("return loss, dx / n", "return loss, dx"),
        ("np.add.at(dW, x, dout)", "dW[x] += dout"),
    )
    assert status == 1
    wrong = {name for name, line in found.items() if line["verdict"] == "wrong"}
    assert wrong == {
        "affine_backward",
        "dropout_backward",
        "spatial_groupnorm_backward",
        "lstm_step_backward",
        "softmax_loss",
        "regularized_loss",
        "word_embedding_backward",
        "CrossEntropy.backward",
    }
    assert found["batchnorm_backward"]["verdict"] == "right"


BOTH_MODES = """
import numpy as np

def batchnorm_forward(x, gamma, beta, bn_param):
    test, eps = bn_param["mode"] == "test", bn_param.get("eps", 1e-5)
    mean = bn_param["running_mean"] if test else x.mean(0)
    var = bn_param["running_var"] if test else x.var(0)
    if not test:
        bn_param["running_mean"], bn_param["running_var"] = 0.1 * mean, 0.9 + 0.1 * var
    std = np.sqrt(var + eps)
    xhat = (x - mean) / std
    return gamma * xhat + beta, (xhat, gamma, std, test)

def batchnorm_backward(dout, cache):
    xhat, gamma, std, test = cache
    dxhat = dout * gamma
    dx = dxhat / std if test else (dxhat - dxhat.mean(0) - xhat * (dxhat * xhat).mean(0)) / std
    return dx, (dout * xhat).sum(0), dout.sum(0)
"""


@pytest.mark.parametrize(
    ("old", "new", "verdict", "text"),
    [
        ("", "", "right", ""),
        ("dxhat / std if test else ", "", "wrong", "This is in test mode."),
        ("dxhat / std if test else", "dxhat if test else", "wrong", "This is in test mode."),
        ("std, test)", "std, test) if not test else None", "right", "In test mode forward returns no cache"),
        (
            "return gamma * xhat + beta, ",
            "return None if test else gamma * xhat + beta, ",
            "right",
            "returns no output",
        ),
    ],
)
def test_batch_norm_is_judged_in_test_mode_too(check, old, new, verdict, text):
    assert BOTH_MODES.count(old) == 1 or not old
    status, out, _ = check(BOTH_MODES.replace(old, new), "--json")
    found = json.loads(out)
    assert (status, found["verdict"]) == (int(verdict == "wrong"), verdict)
    assert text in found["diagnosis"]
    assert found["diagnosis"] or not text
    assert text in check(BOTH_MODES.replace(old, new))[1]


def test_a_pair_that_never_ends_does_not_stop_the_others(check, monkeypatch):
    monkeypatch.setattr(discover, "SECONDS", 2)
    stuck = """
def stuck_forward(x):
    while True:
        try:
            pass
        except Exception:
            pass

def stuck_backward(dout, cache):
    return dout
"""
    status, out, _ = check(stuck + LINEAR.replace("def inputs", "def linear_inputs"), "--json")
    found = [json.loads(line) for line in out.splitlines()]
    assert status == 0
    assert [line["verdict"] for line in found] == ["unjudged", "right", "right"]
    assert found[0]["diagnosis"] == "it took more than 4 s"


def test_functions_of_pytorch_and_jax_are_found(check):
    pytest.importorskip("torch")
    pytest.importorskip("jax")
    status, out, _ = check(
        """
import jax, torch

class Square(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, power=2):
        ctx.save_for_backward(x)
        return x**power

    @staticmethod
    def backward(ctx, dy):
        return 3 * ctx.saved_tensors[0] * dy, None

@jax.custom_vjp
def double(x):
    return 2 * x

double.defvjp(lambda x: (2 * x, None), lambda _, g: (2 * g,))
""",
        "--json",
    )
    found = [json.loads(line) for line in out.splitlines()]
    assert status == 1
    assert [(line["forward"], line["verdict"]) for line in found] == [("Square.forward", "wrong"), ("double", "right")]


@pytest.mark.parametrize(
    ("text", "name", "message"),
    [
        ("x = 1", "mine.py", "defines no pair of functions forward and backward"),
        ("def forward(:", "mine.py", "line 1: SyntaxError"),
        ("\nraise SystemExit(3)", "mine.py", "line 2: SystemExit: 3"),
        ("import absent_package\n\nabsent_package.x.y + 1", "mine.py", "(without absent_package)"),
        (RIGHT, "mine.txt", "expected a Python file"),
    ],
)
def test_what_cannot_be_run_exits_2_with_one_line(check, text, name, message):
    status, out, err = check(text, name=name)
    assert status == 2
    assert out == ""
    lines = [line for line in err.splitlines() if not line.startswith("a line that")]
    assert len(lines) == 1, err
    assert message in lines[0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (RIGHT + "\ninputs = 3", "inputs is a int, expected a tuple"),
        (RIGHT.replace("return gamma * xhat + beta, (xhat", "return (gamma, xhat"), "takes other arguments than (dy"),
        (
            RIGHT.replace("def forward(x", "def forward(path, x").replace("= x.mean", "= open(path).mean"),
            "define inputs in the file",
        ),
        (RIGHT.replace("backward(dy, cache)", "backward(dy, cache, axis)"), "takes other arguments than (dy, cache)"),
    ],
)
def test_what_cannot_be_judged_exits_2_and_says_why(check, text, message):
    status, out, _ = check(text)
    assert status == 2
    assert out.startswith("UNJUDGED: ")
    assert message in out


def test_a_gradient_left_out_is_unwritten(check):
    status, out, _ = check(RIGHT.replace("return dx, (dy * xhat).sum(axis=0)", "return dx, None"))
    assert (status, out) == (2, "UNWRITTEN: backward returned None for gamma\n")


def test_a_missing_file_exits_2(tmp_path, capsys):
    assert main(["check", str(tmp_path / "none.py")]) == 2
    assert "no such file" in capsys.readouterr().err


def test_strict_fails_what_is_overwritten_and_what_is_a_convention(check):
    text = "def sign_forward(x):\n    return (x > 0) * 1.0, x\n\ndef sign_backward(dout, cache):\n    return dout\n"
    status, out, _ = check(text)
    assert status == 0
    assert out.startswith("CONVENTION")
    assert "straight-through" in out
    assert json.loads(check(text, "--json")[1])["verdict"] == "convention"
    assert check(text, "--strict")[0] == 1
    text = "def f_forward(x):\n    return 2 * x, x\n\ndef f_backward(dout, cache):\n    dout *= 2\n    return dout\n"
    status, out, _ = check(text)
    assert status == 0
    assert "Warning: backward overwrites dy in place" in out
    assert check(text, "--strict")[0] == 1


def test_inputs_of_the_command_line_are_taken_by_name(check):
    text = "def f_forward(thing, k):\n    assert thing.shape == (9, 2) and k == 3\n    return k * thing, k\n\n"
    text += "def f_backward(dout, cache):\n    return cache * dout, None\n"
    status, out, _ = check(text)
    assert status == 2
    assert "--inputs" in out
    assert check(text, "--inputs", "thing=(9,2) k=3")[0] == 0
    status, _, err = check(text, "--inputs", "nothing")
    assert status == 2
    assert "--inputs is 'nothing'" in err


def test_watching_prints_what_changed_until_it_is_interrupted(check, tmp_path, monkeypatch, capsys):
    saves = iter([LINEAR.replace("x.T @ dy", "-x.T @ dy"), LINEAR, "x = = 1", LINEAR])

    def saved(_):
        text = next(saves, None)
        if text is None:
            raise KeyboardInterrupt
        path = tmp_path / "mine.py"
        path.write_text(text, encoding="utf-8")
        os.utime(path, ns=(len(text), len(text)))

    monkeypatch.setattr("time.sleep", saved)
    status, out, _ = check(LINEAR, "--watch")
    assert status == 130
    assert out.count("scale_backward") == 2  # what is right again after an error is said again
    assert out.count("linear_backward: ") == 4
    assert out.count("linear_backward: WRONG") == 1


def test_a_reader_who_leaves_is_no_error(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(LINEAR, encoding="utf-8")
    command = [sys.executable, "-m", "autograd_bn", "check", str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 2


def test_the_page_of_several_pairs_lists_them(check, tmp_path):
    page = tmp_path / "hw.html"
    assert check(LINEAR.replace("x.T @ dy", "-x.T @ dy"), "-o", str(page))[0] == 1
    text = page.read_text("utf-8")
    assert '<a href="hw-linear_backward.html">linear_backward</a>: wrong' in text
    assert "scale_backward: right" in text


def test_imports_are_meant_from_above_a_package_whose_init_runs_when_it_is_asked(tmp_path, capsys):
    package = tmp_path / "net" / "parts"
    package.mkdir(parents=True)
    for folder, init in ((package, "from .base import Base\nfrom .absent import nothing\n"), (package.parent, "")):
        (folder / "__init__.py").write_text(init)
    (package / "base.py").write_text(
        "class Base:\n    def forward(self, x):\n        self.x = x\n        return x ** 2\n"
    )
    (package / "net.py").write_text("")  # which stands in the way of the package, seen from its folder
    text = "from . import Base\nfrom net.parts.base import Base as Same\nclass Square(Base):\n"
    (package / "square.py").write_text(f"{text}    def backward(self, dy):\n        return 2 * self.x * dy\n")
    assert main(["check", str(package / "square.py")]) == 0
    assert "RIGHT" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["check", "write"])
@pytest.mark.parametrize("given", ["q=(5,4)", "x=(5,4) q=3", "x=(5,4) y"])
def test_inputs_that_no_forward_pass_takes_are_an_error(tmp_path, capsys, given, command):
    file = tmp_path / "square.py"
    file.write_text("def sq_forward(x):\n    return x * x, x\ndef sq_backward(dy, x):\n    return 2 * x * dy\n")
    assert main([command, str(file), "--inputs", given]) == 2
    assert "--inputs" in capsys.readouterr().err


def test_what_a_right_pair_was_not_judged_for_is_said_among_others_and_to_machines(check):
    """A loss that doesn't read dy is right for dy = 1 alone."""
    text = RIGHT + (
        "\n\nclass Loss:\n    def forward(self, x, t):\n        self.d = x - t\n        return (self.d ** 2).mean()\n\n"
        "    def backward(self, dout=1):\n        return 2 * self.d / self.d.size\n"
    )
    note = "backward doesn't read dy, which is taken to be 1"
    assert f"Loss.backward: RIGHT: the gradient is right. {note}" in check(text)[1]
    (loss,) = [
        row for row in map(json.loads, check(text, "--json")[1].splitlines()) if row["backward"] == "Loss.backward"
    ]
    assert loss["verdict"] == "right"
    assert loss["diagnosis"].startswith(note)
