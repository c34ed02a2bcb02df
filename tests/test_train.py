"""`autograd-bn train`: stopping and going on, what it prints and draws, and what it refuses."""

import json
import os
import signal
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest

import autograd_bn as ag
from autograd_bn.__main__ import main
from autograd_bn.commands import train


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """Every test runs in a folder of its own."""
    monkeypatch.chdir(tmp_path)


def same(one, two):
    one, two = ag.load(one), ag.load(two)
    assert list(one) == list(two)
    for name, array in one.items():
        assert array.tobytes() == two[name].tobytes(), name


@pytest.mark.parametrize("kind", [[], ["--conv"]], ids=["sigmoid", "conv"])
def test_going_on_gives_the_same_bits_as_not_stopping(kind):
    assert main(["train", *kind, "--steps", "30", "--save", "straight.npz", "--seed", "3"]) == 0
    assert main(["train", *kind, "--steps", "13", "--save", "part.npz", "--seed", "3"]) == 0
    assert main(["train", "--resume", "part.npz", "--steps", "30", "--save", "whole.npz"]) == 0
    same("straight.npz", "whole.npz")
    assert main(["train", *kind, "--steps", "30", "--save", "other.npz", "--seed", "4"]) == 0
    with pytest.raises(AssertionError):
        same("straight.npz", "other.npz")


def test_going_on_crosses_the_end_of_an_epoch_at_the_right_batch():
    x = np.arange(150)
    straight = train.batches(x, x, 7, 0)
    for step in range(9):
        resumed = train.batches(x, x, 7, step)
        np.testing.assert_array_equal(next(resumed)[0], next(straight)[0])


def test_ctrl_c_finishes_the_step_saves_and_says_where(capsys, monkeypatch):
    record = train.Run.record

    def interrupted(self, step, x, labels):
        record(self, step, x, labels)
        if step == 20 and self.name == train.WITHOUT:
            os.kill(os.getpid(), signal.SIGINT)

    handler = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(train.Run, "record", interrupted)
    assert main(["train", "-o", "plots/plot.png"]) == 130
    monkeypatch.undo()
    assert signal.getsignal(signal.SIGINT) is handler
    out, err = capsys.readouterr()
    assert out == ""
    assert err == (
        f"stopped after step 20; go on with: autograd-bn train --resume {os.path.join('plots', 'plot.npz')}\n"
    )


def test_ctrl_c_does_not_save_over_a_file_that_nobody_named(capsys, monkeypatch):
    Path("plot.npz").write_text("the user's")
    step = train.Run.step

    def interrupted(self, *batch):
        step(self, *batch)
        if self.name == train.WITH:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(train.Run, "step", interrupted)
    assert main(["train", "-o", "plot.png"]) == 130
    assert Path("plot.npz").read_text() == "the user's"
    assert capsys.readouterr().err.endswith("--resume plot-new.npz\n")


def test_what_ctrl_c_saved_goes_on_to_the_same_bits(monkeypatch, tmp_path):
    step = train.Run.step

    def interrupted(self, x, labels):
        step(self, x, labels)
        self.taken = getattr(self, "taken", 0) + 1
        if self.taken == 15 and self.name == train.WITHOUT:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(train.Run, "step", interrupted)
    assert main(["train", "--save", "stopped.npz"]) == 130
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    assert ag.load("stopped.npz")["step"] == 15
    assert main(["train", "--resume", "stopped.npz", "--steps", "25", "--save", "whole.npz"]) == 0
    assert main(["train", "--steps", "25", "--save", "straight.npz"]) == 0
    same("straight.npz", "whole.npz")


def test_table_json_and_plot_tell_the_same(capsys):
    assert main(["train", "--steps", "60"]) == 0
    table = capsys.readouterr().out
    assert main(["train", "--steps", "60", "--json", "-o", "again.svg"]) == 0
    told = json.loads(capsys.readouterr().out)
    without, with_norm = told["nets"]
    assert (told["steps"], told["lr"], told["seed"], told["plot"]) == (60, 0.5, 0, "again.svg")
    assert without["steps_to_90_percent"] is None
    assert with_norm["steps_to_90_percent"] <= 60
    assert with_norm["test_accuracy"] > 0.8 > without["test_accuracy"]
    for row in told["nets"]:
        line = next(line for line in table.splitlines() if line.startswith(row["net"]))
        assert line.endswith(f"{100 * row['test_accuracy']:.1f} %")
        assert f"{row['loss']:.4f}" in line
    assert "plot: training.svg" in table
    assert Path("training.svg").read_bytes() == Path("again.svg").read_bytes()
    ElementTree.parse("training.svg")


@pytest.mark.parametrize("kind", [[], ["--conv"]], ids=["sigmoid", "conv"])
def test_png_and_too_few_steps_for_a_curve(kind, capsys):
    assert main(["train", *kind, "--steps", "19", "-o", "plot.png"]) == 0
    assert "--steps is 19, so there will be no plot" in capsys.readouterr().err
    assert not os.path.exists("plot.png")
    assert main(["train", *kind, "--steps", "20", "-o", "plot.png"]) == 0
    assert Path("plot.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


def test_without_matplotlib_one_line_says_how_to_get_it_before_it_trains(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    step, said = train.Run.step, []

    def listening(*args):
        said.append(capsys.readouterr().err)
        step(*args)

    monkeypatch.setattr(train.Run, "step", listening)
    assert main(["train", "--steps", "2"]) == 0
    assert said[0] == ('matplotlib is not installed, so there will be no plot: pip install "autograd_bn[plot]"\n')
    assert "plot" not in capsys.readouterr().out
    assert not os.path.exists("training.svg")


def test_without_tqdm_it_trains(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "tqdm", None)
    assert main(["train", "--steps", "2"]) == 0
    assert "without batch norm" in capsys.readouterr().out


def test_the_blas_keeps_to_one_thread(monkeypatch):
    threadpoolctl = pytest.importorskip("threadpoolctl")
    seen = []

    def threads():
        return {pool["num_threads"] for pool in threadpoolctl.threadpool_info() if pool["user_api"] == "blas"}

    monkeypatch.setattr(train.Run, "step", lambda self, x, labels: seen.append(threads()))
    with threadpoolctl.threadpool_limits(2, user_api="blas"):
        assert main(["train", "--steps", "2"]) == 0
        assert threads() == {2}
    assert seen == [{1}] * 4


def test_without_threadpoolctl_it_trains(monkeypatch):
    monkeypatch.setitem(sys.modules, "threadpoolctl", None)
    assert main(["train", "--steps", "2"]) == 0


def test_the_bar_shows_loss_and_accuracy(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    assert main(["train", "--steps", "200"]) == 0
    bar = capsys.readouterr().err
    assert "loss " in bar
    assert "accuracy " in bar


def test_the_test_set_is_the_last_fifth_of_an_order_that_the_seed_gives(monkeypatch):
    seen, held_out = set(), set()

    def rows(x):
        return {row.tobytes() for row in x}

    monkeypatch.setattr(train.Run, "step", lambda self, x, labels: seen.update(rows(x)))
    monkeypatch.setattr(train.Run, "evaluate", lambda self, x, y: (held_out.update(rows(x)) or 0.0, [0.0, 0.0, 0.0]))
    assert main(["train", "--steps", "30", "--seed", "5"]) == 0
    images = ag.data.load_digits()[0].reshape(1797, -1)
    order = np.random.default_rng(5).permutation(1797)
    assert seen == rows(images[order[:1437]])
    assert held_out == rows(images[order[1437:]])


def test_the_net_is_the_papers():
    plain, normed = train.sigmoid_net(False, 0), train.sigmoid_net(True, 0)
    assert [type(layer).__name__ for layer in plain] == ["Linear", "Sigmoid"] * 3 + ["Linear"]
    assert [type(layer).__name__ for layer in normed] == ["Linear", "BatchNorm", "Sigmoid"] * 3 + ["Linear"]
    assert {p.size for name, p in plain.named_parameters() if "bias" in name} == {100, 10}
    assert train.DEFAULTS[False]["lr"] == 0.5


SETTINGS = {"conv": False, "steps": 5, "lr": 0.5, "seed": 0}
BAD_SETTINGS = {
    "list.npz": [],
    "before.npz": SETTINGS,
    "lr.npz": SETTINGS | {"lr": "fast"},
    "seed.npz": SETTINGS | {"seed": -1},
}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-o", "plot.jpg"], "plot.jpg ends in '.jpg', expected .svg or .png"),
        (["-o", "file/plot.svg"], "can't write to the folder file"),
        (["--save", "file/a.npz"], "can't write to the folder file"),
        (["--steps", "0"], "--steps is 0, expected a finite number of at least 1"),
        (["--lr", "nan"], "--lr is nan, expected a finite number of at least 0"),
        (["--seed", "-1"], "--seed is -1, expected a finite number of at least 0"),
        (["--resume", "nothing.npz"], "can't read nothing.npz: no such file"),
        (["--resume", "file"], "file is not an intact checkpoint"),
        (["--resume", "other.npz"], "other.npz was not saved by autograd-bn train"),
        (["--resume", "list.npz"], "list.npz was not saved by autograd-bn train"),
        (["--resume", "before.npz"], "before.npz was not saved by autograd-bn train"),
        (["--resume", "lr.npz"], "--lr is fast, expected a finite number of at least 0"),
        (["--resume", "seed.npz"], "--seed is -1, expected a finite number of at least 0"),
        (["--resume", "part.npz", "--seed", "1"], "part.npz was made with --seed 0, not 1"),
        (["--resume", "part.npz", "--conv"], "part.npz was made with --conv False, not True"),
        (["--resume", "part.npz", "--steps", "2"], "part.npz has 3 steps behind it, so --steps 2 is too few"),
        (["--save", "plot.svg", "-o", "plot.svg"], "plot.svg ends in '.svg', expected .npz"),
        (["--save", "part.npz", "-o", "part.npz"], "part.npz ends in '.npz', expected .svg or .png"),
        (["--resume", "broken.npz"], "broken.npz does not fit its own settings"),
        (["--resume", "shorn.npz"], "shorn.npz does not fit its own settings: cannot reshape"),
    ],
)
def test_bad_arguments_end_in_one_line(arguments, message, capsys):
    Path("file").write_text("text")
    ag.save("other.npz", {"weight": 1.0})
    if {"part.npz", "broken.npz", "shorn.npz"}.intersection(arguments):
        assert main(["train", "--steps", "3", "--save", "part.npz"]) == 0
        state = ag.load("part.npz")
        ag.save("shorn.npz", state | {"with batch norm/run/history": np.zeros((2, 2))})
        del state["with batch norm/net/1.gamma"]
        ag.save("broken.npz", state)
    for name, settings in BAD_SETTINGS.items():
        ag.save(name, {"settings": json.dumps(settings), "step": -1 if name == "before.npz" else 0})
    capsys.readouterr()
    assert main(["train", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err
    assert err.count("\n") == 1
