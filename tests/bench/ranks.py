"""What the exchanges of batch norm over MPI ranks cost, and from how many ranks on they outweigh the computing.

mpiexec -n 2 python tests/bench/ranks.py: measures 1, 2, 4, ... ranks, and forecasts larger jobs by the model

    step(p) = N * row / p + 2 * (software + ceil(log2 p) * latency + (p - 1) * bytes / bandwidth),

a training step of `batch_norm` on N rows over p ranks: two allgathers of `bytes` from each rank. It assumes rows that
lie evenly, a core for each rank, no waiting, no congestion, and that nothing is computed while a message travels.

R. Thakur, R. Rabenseifner and W. Gropp, "Optimization of collective communication operations in MPICH",
2005, section 4.
"""

import math
import time
from statistics import median

import numpy as np
from mpi4py import MPI

import autograd_bn as ag
from autograd_bn.distributed.collectives import FRAME, allreduce, exchange as exchanged

SHAPES = ((64, 64), (1024, 64), (16384, 64), (1024, 1024), (16384, 256))
REPEATS = 25
MOST_RANKS = 4096
# Seconds for a message without content, and bytes a second, between two nodes: round figures, assumed and not measured.
NETWORKS = {"InfiniBand HDR": (1.5e-6, 20e9), "10 Gbit Ethernet, TCP": (30e-6, 1.1e9)}


def seconds(comm, works):
    """Of the slowest rank, the median and the least time of each work; the works are taken in turns."""
    taken = {name: [] for name in works}
    for _ in range(REPEATS):
        for name, work in works.items():
            comm.Barrier()
            start = time.perf_counter()
            work()
            taken[name].append(time.perf_counter() - start)
    ranks = comm.allgather(taken)
    slowest = {name: [max(times) for times in zip(*(rank[name] for rank in ranks), strict=True)] for name in works}
    return {name: (median(times), min(times)) for name, times in slowest.items()}


def measure(comm, rows, features):
    """A step, its computing alone and its two exchanges alone; on one rank also a step on a sixteenth of the rows."""
    rng = np.random.default_rng(comm.rank)
    gamma, beta = (ag.tensor(rng.normal(size=features), dtype="float32", requires_grad=True) for _ in range(2))

    def step(rows, comm):
        x, g = rng.normal(size=(2, rows, features)).astype("float32")
        x = ag.tensor(x, requires_grad=True)
        return lambda: ag.grad(ag.batch_norm(x, gamma, beta, comm=comm), [x, gamma, beta], [g])

    own = len(range(comm.rank, rows, comm.size))
    statistics, sums = np.zeros((3, 1, features)), np.zeros((2, 1, features))

    def exchange():
        exchanged(comm, "the benchmark", (own, statistics))
        allreduce(sums, comm)

    works = {"compute": step(own, None), "exchange": exchange, "step": step(own, comm)}
    if comm.size == 1:
        works["few rows"] = step(rows // 16, None)
    return seconds(comm, works)


def forecast(rows, features, times):
    """For each network the fastest number of ranks, and that from which the exchanges outweigh the computing."""
    # Statistics forward, sums backward, in float64; the least times, as what disturbs a measurement only adds to it.
    message = sum(max(FRAME, size) for size in (3 * features * 8, 2 * features * 8)) / 2
    row = max(times["compute"][1] - times["few rows"][1], 0) / (rows - rows // 16)
    for name, (latency, bandwidth) in NETWORKS.items():

        def exchanges(p, latency=latency, bandwidth=bandwidth):
            travel = math.ceil(math.log2(p)) * latency + (p - 1) * message / bandwidth
            return times["exchange"][1] + 2 * travel if p > 1 else 0

        fastest = min(range(1, MOST_RANKS + 1), key=lambda p, cost=exchanges: rows * row / p + cost(p))
        overtaken = next((p for p in range(2, MOST_RANKS + 1) if exchanges(p) >= rows * row / p), f"> {MOST_RANKS}")
        print(f"| {rows}x{features} | {name} | {fastest} | {overtaken} |")


def main():
    """Measure and print, from rank 0."""
    world = MPI.COMM_WORLD
    alone = {}
    if world.rank == 0:
        print("| ranks | shape | computing | exchanges | step |\n| ---: | --- | ---: | ---: | ---: |")
    for ranks in sorted({*(1 << i for i in range(world.size.bit_length())), world.size}):
        part = world.Split(world.rank < ranks, world.rank)
        for shape in SHAPES if world.rank < ranks else ():
            times = measure(part, *shape)
            alone.setdefault(shape, times)  # of one rank, which comes first
            if world.rank == 0:
                shown = " | ".join(f"{times[name][0] * 1e6:,.0f} µs" for name in ("compute", "exchange", "step"))
                print(f"| {ranks} | {shape[0]}x{shape[1]} | {shown} |", flush=True)
        part.Free()
        waiting = world.Ibarrier()  # MPI's own barrier keeps a core busy
        while not waiting.Test():
            time.sleep(1e-3)
    if world.rank == 0:
        print("\n| shape | network | fastest on ranks | exchanges outweigh from |\n| --- | --- | ---: | ---: |")
        for shape, times in alone.items():
            forecast(*shape, times)


if __name__ == "__main__":
    main()
