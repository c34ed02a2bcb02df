"""Peak memory of batch norm, forward plus backward: python -m tests.bench.memory [CASE ...]

Each contender runs in a process of its own. The table has what the largest of two passes takes beyond the leaves and
the incoming gradient, in arrays of the size of x: the output and the input's gradient are 2 of them. Linux only.
"""

import multiprocessing
import sys
from pathlib import Path

import numpy as np

from tests.bench.batch_norm import SHAPES, contenders

NAMES = ["numpy", "numba", "composed", "PyTorch"]


def resident(field):
    """A line of this process's status, in bytes: VmRSS is the memory in use, VmHWM the most there was."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(field))


def peak(case, dtype, name):
    """The memory that two passes take, beyond what was there before."""
    contenders(*SHAPES["256x128"], dtype)[name]()  # loads and compiles
    run = contenders(*SHAPES[case], dtype)[name]
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM begins anew
    run()
    run()
    return resident("VmHWM") - before


def main():
    print(f"| x | {' | '.join(NAMES)} | size of x |\n|---{'|---' * (len(NAMES) + 1)}|")
    for case in sys.argv[1:] or ["1024x1024", "8192x1024", "64x256x28x28 NCHW"]:
        for dtype in (np.float32, np.float64):
            size = np.prod(SHAPES[case][0]) * np.dtype(dtype).itemsize
            found = []
            for name in NAMES:
                with multiprocessing.get_context("spawn").Pool(1) as pool:
                    found.append(pool.apply(peak, (case, dtype, name)) / size)
            cells = " | ".join([f"{taken:.2f}" for taken in found])
            print(f"| {case} {np.dtype(dtype)} | {cells} | {size / 2**20:.0f} MB |", flush=True)


if __name__ == "__main__":
    main()
