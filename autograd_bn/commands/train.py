"""`autograd-bn train`: the digits with and without batch norm, as in the paper that introduced it."""

import argparse
import json
import signal
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

import autograd_bn as ag

from .. import nn
from ..distributed import allreduce, end_together, sum_gradients
from ..distributed.collectives import raise_together
from ..verify.table import text_table
from . import UsageError, complain, progress, refused, words
from .data import output_file, writable_folder

HELP = """train on the packaged digits with and without batch norm, and plot both

The experiment of S. Ioffe and C. Szegedy, "Batch Normalization", 2015, section 4.1: three layers of 100 sigmoid units,
batches of 60, plain gradient descent. A fifth of the digits, chosen by the seed, is held out as the test set. With
--conv, a small LeNet with batch norm.

The plot shows the test accuracy over the steps, and how the input of one unit in the last hidden layer moves: its
15th, 50th and 85th percentile over the test set.

Ctrl-C finishes the step and saves the state; --resume goes on from there, to the same bits as without the stop. With
--mpi the ranks of an MPI job divide every batch, with batch norm over all of it.

example: autograd-bn train --seed 1 -o training.png
         mpiexec -n 4 autograd-bn train --mpi"""

BATCH = 60
EVERY = 10  # steps from one look at the test set to the next
GOAL = 0.9
PERCENTILES = (15, 50, 85)
WITH, WITHOUT, LENET = "with batch norm", "without batch norm", "LeNet with batch norm"
DEFAULTS: dict[bool, dict[str, Any]] = {False: {"conv": False, "steps": 5000, "lr": 0.5, "seed": 0}}
DEFAULTS[True] = {"conv": True, "steps": 600, "lr": 0.1, "seed": 0}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-o", "--output", metavar="FILE", default="training.svg", help="the plot: .svg or .png")
    parser.add_argument("--conv", action="store_const", const=True, help="train a small LeNet with batch norm")
    parser.add_argument("--steps", type=int, help="how many steps in all (default 5000; 600 with --conv)")
    parser.add_argument("--lr", type=float, help="the learning rate (default 0.5; 0.1 with --conv)")
    parser.add_argument("--seed", type=int, help="of the split, the initial weights and the batches (default 0)")
    parser.add_argument("--save", metavar="FILE", help="save the state at the end to this .npz file")
    parser.add_argument("--resume", metavar="FILE", help="go on from a saved state, with its settings")
    parser.add_argument("--mpi", action="store_true", help="divide every batch among the ranks that mpiexec started")
    parser.add_argument("--json", action="store_true", help="print one JSON object in place of the table")


def sigmoid_net(batch_norm: bool, seed: int, comm: Any = None, dtype: str = "float32") -> nn.Sequential:
    """Three hidden layers of 100 sigmoids; where batch norm follows, beta takes the place of the bias."""
    rng = np.random.default_rng(seed)
    layers: list[nn.Module] = []
    for features in (64, 100, 100):
        layers.append(nn.Linear(features, 100, bias=not batch_norm, rng=rng, dtype=dtype))
        if batch_norm:
            layers.append(nn.BatchNorm(100, comm=comm, dtype=dtype))
        layers.append(nn.Sigmoid())
    return nn.Sequential(*layers, nn.Linear(100, 10, rng=rng, dtype=dtype))


def lenet(seed: int, comm: Any = None) -> nn.Sequential:
    """Two convolutions with pooling and one hidden layer, each with batch norm."""
    rng = np.random.default_rng(seed)
    layers: list[nn.Module] = []
    for channels, features in ((1, 16), (16, 32)):
        layers.append(nn.Conv2d(channels, features, 3, padding=1, bias=False, rng=rng))
        layers += [nn.BatchNorm(features, comm=comm), nn.ReLU(), nn.MaxPool2d(2)]
    layers += [nn.Flatten(), nn.Linear(128, 64, bias=False, rng=rng), nn.BatchNorm(64, comm=comm), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(64, 10, rng=rng))


class Run:
    """A net on its way, with what the plot needs of its history."""

    def __init__(self, name: str, net: nn.Sequential, lr: float, momentum: float, comm: Any = None) -> None:
        self.name, self.net, self.comm = name, net, comm
        self.optimiser = ag.optim.SGD(net.parameters(), lr, momentum)
        self.loss = float("nan")
        self.history = np.empty((0, 2 + len(PERCENTILES)))  # step, accuracy, percentiles

    def step(self, x: Any, labels: Any) -> None:
        """One batch, of which every rank of a job computes a part."""
        self.optimiser.zero_grad()
        size, rank = (1, 0) if self.comm is None else (self.comm.size, self.comm.rank)
        x, own = (np.array_split(rows, size)[rank] for rows in (x, labels))
        logits = self.net(x)
        # A rank without rows takes part too: its sum of no logits is a loss of 0.
        loss = nn.cross_entropy(logits, own) * (len(own) / len(labels)) if len(own) else logits.sum()
        loss.backward()
        if self.comm is not None:
            sum_gradients(self.optimiser.params, self.comm)
            loss = allreduce(loss.data, self.comm)
        self.optimiser.step()
        self.loss = loss.item()

    def evaluate(self, x: Any, labels: Any) -> tuple[float, Any]:
        """The accuracy on a test set, and the percentiles of what the first unit of the last activation gets."""
        *below, activation, last = self.net.eval()
        with ag.no_grad():
            for layer in below:
                x = layer(x)
            correct = np.argmax(last(activation(x)).data, axis=1) == labels
        self.net.train()
        return float(correct.mean()), np.percentile(x.data[:, 0], PERCENTILES)

    def record(self, step: int, x: Any, labels: Any) -> None:
        """Add a line to the history."""
        accuracy, percentiles = self.evaluate(x, labels)
        self.history = np.vstack([self.history, [step, accuracy, *percentiles]])

    def row(self, x: Any, labels: Any) -> dict[str, Any]:
        """What the table says of the net."""
        reached = next((int(step) for step, right, *_ in self.history if right >= GOAL), None)
        accuracy, _ = self.evaluate(x, labels)
        return {"net": self.name, "loss": self.loss, "steps_to_90_percent": reached, "test_accuracy": accuracy}

    def state(self) -> dict[str, Any]:
        """All that the next steps, the table and the plot depend on."""
        run: dict[str, Any] = {"history": self.history, "loss": self.loss}
        parts = {"net": self.net.state_dict(), "optimiser": self.optimiser.state_dict(), "run": run}
        return {f"{self.name}/{part}/{name}": array for part, names in parts.items() for name, array in names.items()}

    def load(self, state: dict[str, Any]) -> None:
        """Take over what `state` gave."""
        net, optimiser, run = (
            {key.removeprefix(start): array for key, array in state.items() if key.startswith(start)}
            for start in (f"{self.name}/{part}/" for part in ("net", "optimiser", "run"))
        )
        self.net.load_state_dict(net)
        self.optimiser.load_state_dict(optimiser)
        self.history, self.loss = run["history"].reshape(-1, 2 + len(PERCENTILES)), run["loss"].item()


def run(args: argparse.Namespace) -> int:
    """Train, print, plot; the exit status."""
    comm = _all_ranks() if args.mpi else None
    first = comm is None or comm.rank == 0  # the rank that looks at the test set, prints and writes
    try:
        plot = output_file(args.output, (".svg", ".png"))
        target = output_file(args.save, (".npz",)) if args.save else Path(args.resume or plot.with_suffix(".npz"))
        while not (args.save or args.resume) and target.exists():  # nobody has named it, and it may be the user's
            target = target.with_stem(f"{target.stem}-new")
        settings, done, state = _settings(args)
        writable_folder(target.parent)
        learn, test = _digits(settings)
        runs = make_runs(settings, comm)
        if state:
            try:
                for each in runs:
                    each.load(state)
            except (KeyError, ValueError) as error:
                raise UsageError(f"{args.resume} does not fit its own settings: {error}") from None
    except Exception as error:
        raise_together(comm, error)
    drawn = find_spec("matplotlib") is not None
    if first and not drawn:
        complain('matplotlib is not installed, so there will be no plot: pip install "autograd_bn[plot]"')
    elif first and settings["steps"] < 2 * EVERY:
        complain(
            f"--steps is {settings['steps']}, so there will be no plot: the nets are looked at every {EVERY} steps"
        )
    drawn = drawn and settings["steps"] >= 2 * EVERY  # two points make a line
    with progress(settings["steps"], "", done, quiet=args.json or not first) as show:
        stopped, asked = _train(runs, learn, test if first else None, settings, done, show)
    if not first:
        return 130 if asked else 0
    if asked or args.save:
        state = {"settings": json.dumps(settings), "step": stopped}
        for each in runs:
            state |= each.state()
        ag.save(target, state)
    if asked:
        complain(f"stopped after step {stopped}; go on with: autograd-bn train --resume {target}")
        return 130
    if drawn:
        draw(runs, plot)
    paths = {"plot": str(plot) if drawn else None, "saved": str(target) if args.save else None}
    told = {**settings, "nets": [each.row(*test) for each in runs], **paths}
    print(json.dumps(told) if args.json else _report(told, len(learn[0]), len(test[0])))
    return 0


def _digits(settings: dict[str, Any]) -> list[tuple[Any, Any]]:
    """The images and labels to learn from, and those that are held out."""
    x, labels = ag.data.load_digits()
    x = x[..., None] if settings["conv"] else x.reshape(len(x), -1)
    order = np.random.default_rng(settings["seed"]).permutation(len(x))
    return [(x[rows], labels[rows]) for rows in np.split(order, [len(x) * 4 // 5])]


def _train(
    runs: list[Run], learn: tuple[Any, Any], test: Any, settings: dict[str, Any], done: int, show: Any
) -> tuple[int, bool]:
    """Train from the step after `done` on: the last step, and whether Ctrl-C ended it. One rank has a test set."""
    comm, stopped, text = runs[0].comm, done, ""
    with _one_blas_thread(), _stop_after_step() as asked:
        steps = range(done + 1, settings["steps"] + 1)
        for step, batch in zip(steps, batches(*learn, settings["seed"], done), strict=False):
            if comm is not None and allreduce(np.asarray(len(asked)), comm) and not asked:
                asked.append(signal.SIGINT)  # another rank heard Ctrl-C first
            if asked:
                break
            look = test is not None and step % EVERY == 0
            for each in runs:
                each.step(*batch)
                if look:
                    each.record(step, *test)
            stopped = step
            if look:
                losses = " / ".join([f"{each.loss:.3f}" for each in runs])
                text = f"loss {losses}, accuracy " + " / ".join([f"{100 * each.history[-1, 1]:.1f} %" for each in runs])
            show(text)
    return stopped, bool(asked)


def _all_ranks() -> Any:
    """The communicator of all ranks that mpiexec started."""
    try:
        from mpi4py import MPI
    except ImportError:
        raise UsageError('--mpi needs mpi4py and mpiexec: pip install "autograd_bn[mpi]"') from None
    end_together(MPI.COMM_WORLD)
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # a KeyboardInterrupt would leave the other ranks waiting
    return MPI.COMM_WORLD


def make_runs(settings: dict[str, Any], comm: Any = None) -> list[Run]:
    """The nets to train side by side, new."""
    seed, lr = settings["seed"], settings["lr"]
    if settings["conv"]:
        return [Run(LENET, lenet(seed, comm), lr, momentum=0.9, comm=comm)]
    return [Run(name, sigmoid_net(name == WITH, seed, comm), lr, momentum=0.0, comm=comm) for name in (WITHOUT, WITH)]


def batches(x: Any, labels: Any, seed: int, done: int) -> Iterator[tuple[Any, Any]]:
    """Batches without end, from the one after `done`; each epoch has its own order, which the seed gives."""
    epoch, skip = divmod(done, -(-len(x) // BATCH))
    while True:
        yield from islice(ag.data.batches(x, labels, BATCH, np.random.default_rng([seed, epoch])), skip, None)
        epoch, skip = epoch + 1, 0


def _settings(args: argparse.Namespace) -> tuple[dict[str, Any], int, dict[str, Any]]:
    """What to train, how many steps of it are done, and the state they led to."""
    asked = {name: getattr(args, name) for name in DEFAULTS[False] if getattr(args, name) is not None}
    settings, done, state = DEFAULTS["conv" in asked], 0, dict[str, Any]()
    if args.resume is not None:
        try:
            with refused():
                state = ag.load(args.resume)
                settings = json.loads(state.get("settings", np.array("{}")).item())
                done = int(state.get("step", -1))
        except OSError as error:
            raise UsageError(f"can't read {args.resume}: {words(error)}") from None
        if not isinstance(settings, dict) or settings.keys() != DEFAULTS[False].keys() or done < 0:
            raise UsageError(f"{args.resume} was not saved by autograd-bn train")
        for name, value in asked.items():
            if name != "steps" and settings[name] != value:
                raise UsageError(f"{args.resume} was made with --{name} {settings[name]}, not {value}")
    settings = {**settings, **asked}
    for name, least in (("steps", 1), ("lr", 0), ("seed", 0)):
        value = settings[name]
        if not isinstance(value, int | type(DEFAULTS[False][name])) or not least <= value < float("inf"):
            raise UsageError(f"--{name} is {value}, expected a finite number of at least {least}")
    if settings["steps"] < done:
        raise UsageError(f"{args.resume} has {done} steps behind it, so --steps {settings['steps']} is too few")
    return settings, done, state


def _one_blas_thread() -> AbstractContextManager[Any]:
    """The threads of a BLAS hold each other up on products this small; nothing is done without threadpoolctl."""
    try:
        from threadpoolctl import threadpool_limits
    except ImportError:
        return nullcontext()
    return threadpool_limits(1, user_api="blas")  # type: ignore[no-any-return]


@contextmanager
def _stop_after_step() -> Iterator[list[int]]:
    """Within, Ctrl-C only fills the list, so that the step is finished; a second one stops at once."""
    asked: list[int] = []

    def ask(number: int, frame: Any) -> None:
        asked.append(number)
        signal.signal(signal.SIGINT, before)

    before = signal.signal(signal.SIGINT, ask)
    try:
        yield asked
    finally:
        signal.signal(signal.SIGINT, before)


def _report(told: dict[str, Any], learned: int, held_out: int) -> str:
    """In words what `--json` prints."""
    body = []
    for row in told["nets"]:
        at = "never" if row["steps_to_90_percent"] is None else f"{row['steps_to_90_percent']:,}"
        body.append([row["net"], f"{row['loss']:.4f}", at, f"{100 * row['test_accuracy']:.1f} %"])
    lines = [
        f"packaged digits, seed {told['seed']}: {learned:,} to learn from, {held_out} held out;",
        f"{told['steps']:,} steps of {BATCH}, learning rate {told['lr']:g}\n",
        text_table(["net", "loss", "90 % at step", "test accuracy"], body, right=range(1, 4)) + "\n",
    ]
    named = {"plot": told["plot"], "state": told["saved"]}
    return "\n".join([*lines, *[f"{what}: {path}" for what, path in named.items() if path]])


COLOURS = {WITHOUT: "#b5533c", WITH: "#1f5a87", LENET: "#1f5a87"}
STYLE: dict[Any, Any] = {"font.size": 9, "axes.titlesize": 9, "axes.spines.top": False, "axes.spines.right": False}
STYLE["svg.hashsalt"] = "autograd_bn"  # the same plot gives the same file


def draw(runs: list[Run], path: Path) -> None:
    """Plot the histories to an SVG or PNG file, as in figure 1 of the paper; this needs matplotlib."""
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullFormatter, PercentFormatter

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(3.7 + 2.5 * len(runs), 3.1), layout="constrained")
        left, *others = figure.subplots(1, 1 + len(runs), width_ratios=[1.5] + [1] * len(runs))
        left.axhline(GOAL, color="0.75", linewidth=0.8, linestyle=":")
        for each, axes, line in zip(runs, others, ("--", "-")[-len(runs) :], strict=True):
            colour = COLOURS[each.name]
            steps, accuracy, low, middle, high = each.history.T
            left.plot(steps, accuracy, line, color=colour, linewidth=1.4, label=each.name)
            axes.fill_between(steps, low, high, color=colour, alpha=0.15, linewidth=0)
            for curve, percentile in zip((low, middle, high), PERCENTILES, strict=True):
                axes.plot(steps, curve, color=colour, linewidth=1.4 if percentile == 50 else 0.7)
                place = {"xytext": (3, 0), "textcoords": "offset points", "va": "center"}
                axes.annotate(f"{percentile} %", (steps[-1], curve[-1]), **place)
            axes.set(title=each.name)
        bottoms, tops = zip(*[axes.get_ylim() for axes in others], strict=True)
        for axes in (left, *others):
            axes.set(xlabel="step", xscale="log", xlim=(EVERY, None), ylim=(min(bottoms), max(tops)))
            axes.xaxis.set_major_formatter("{x:,.0f}")
            axes.xaxis.set_minor_formatter(NullFormatter())
        others[0].set_ylabel("input of a unit, last hidden layer")
        left.set(title="held-out digits", ylabel="accuracy", ylim=(0, 1.02))
        left.yaxis.set_major_formatter(PercentFormatter(1, symbol=" %"))
        if len(runs) > 1:
            left.legend(frameon=False, loc="center")
        figure.savefig(path, dpi=200, metadata={"Date": None} if path.suffix == ".svg" else None)
