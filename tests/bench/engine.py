"""The engine's overhead beside PyTorch, MyGrad and autograd, as a Markdown table.

    python tests/bench/engine.py [--repeats 60] [-o FILE.md]

All sides run in one process, in turns, and the medians are compared: above 1 this project is faster.
Every library has one thread, so that no side pays for another's idle workers.
"""

import argparse
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import autograd
import mygrad
import numpy as np
import torch

import autograd_bn as ag

LENGTH = 1000
Run = Callable[[], Any]
rng = np.random.default_rng(0)


def chain(x: Any, factor: Any) -> Any:
    for _ in range(LENGTH):
        x = x * factor
    return x


def chains(shape: tuple[int, ...], constant: bool) -> dict[str, Run]:
    """Forward and backward through a chain of multiplies, by a Python number or by an array of the chain's shape."""
    start = np.asarray(rng.uniform(0.9, 1.1, shape), np.float32)
    other = np.asarray(rng.uniform(0.999, 1.001, shape), np.float32)
    seed = np.ones(shape, np.float32)
    mine, peer, third = (
        ag.tensor(start, requires_grad=True),
        torch.tensor(start, requires_grad=True),
        mygrad.tensor(start),
    )
    peer_other: Any = 1.0001 if constant else torch.tensor(other)
    factor: Any = 1.0001 if constant else other
    peer_seed = torch.tensor(seed)
    gradient = autograd.grad(lambda x: autograd.numpy.sum(chain(x, factor)))
    return {
        "autograd_bn": lambda: chain(mine, factor).backward(seed),
        "PyTorch": lambda: chain(peer, peer_other).backward(peer_seed),
        "MyGrad": lambda: chain(third, factor).backward(seed),
        "autograd": lambda: gradient(start),
    }


def medians(runs: dict[str, Run], repeats: int) -> dict[str, float]:
    """The median time of each side in seconds, all sides in turns."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for repeat in range(repeats + 2):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            if repeat > 1:  # after warming up
                times[name].append(time.perf_counter() - start)
    return {name: median(found) for name, found in times.items()}


def import_cost(repeats: int) -> float:
    """The seconds that `import autograd_bn` takes once NumPy is there and bytecode compiled, in fresh processes."""
    code = "import numpy, time; t = time.perf_counter(); import autograd_bn; print(time.perf_counter() - t)"
    with TemporaryDirectory() as compiled:
        space = {**os.environ, "PYTHONPYCACHEPREFIX": compiled, "PYTHONDONTWRITEBYTECODE": ""}
        runs = [
            subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=space)
            for _ in range(repeats + 1)
        ]
    return median(float(run.stdout) for run in runs[1:])


def growth() -> float:
    """What a node costs, forward and backward, in a chain of a million, by what it costs in one of a thousand."""

    def cost(length: int) -> float:
        y = ag.tensor(1.0, requires_grad=True)
        start = time.perf_counter()
        for _ in range(length):
            y = y * 1.0000001
        y.backward()
        return (time.perf_counter() - start) / length

    return median(cost(10**6) for _ in range(3)) / median(cost(1000) for _ in range(300))


def table(repeats: int) -> str:
    """The whole comparison as Markdown."""
    works = {
        "multiply a scalar by a number": chains((), True),
        "multiply 64x64 by a number": chains((64, 64), True),
        "multiply a scalar by a scalar array": chains((), False),
        "multiply 64x64 by 64x64": chains((64, 64), False),
    }
    peers = ["PyTorch", "MyGrad", "autograd"]
    lines = [
        f"{date.today()}, {platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, "
        f"NumPy {np.__version__}, PyTorch {torch.__version__}, float32, medians of {repeats}, forward plus backward.",
        "",
        f"| work | autograd_bn, us per node | {' | '.join(f'ratio to {peer}' for peer in peers)} |",
        f"|---|---|{'---|' * len(peers)}",
    ]
    for work, runs in works.items():
        found = medians(runs, repeats)
        mine = found["autograd_bn"]
        ratios = [f"{found[peer] / mine:.2f}" for peer in peers]
        lines.append(f"| {work} | {mine / LENGTH * 1e6:.2f} | {' | '.join(ratios)} |")
    lines += ["", f"In a chain of a million a node costs {growth():.1f} times what it costs in one of a thousand."]
    lines += ["", f"`import autograd_bn` over `import numpy`: {import_cost(9) * 1e3:.1f} ms."]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=60)
    parser.add_argument("-o", "--output", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    found = table(args.repeats)
    print(found)
    if args.output:
        args.output.write_text(found + "\n", "utf-8")


if __name__ == "__main__":
    main()
