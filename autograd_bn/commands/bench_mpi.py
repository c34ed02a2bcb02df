"""`autograd-bn bench --mpi`: what the exchanges between ranks cost beside the computing."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from statistics import median
from typing import Any

from . import world

# Rows and features of the whole batch, which the ranks divide.
SHAPES = ((64, 64), (1024, 64), (16384, 64), (1024, 1024), (16384, 256))
REPEATS = 25
_LONG_MESSAGE = 1 << 22


def run(as_json: bool) -> int:
    """Measure on 1, 2, 4, ... ranks of the job and print the model's forecast, from rank 0; the exit status."""
    comm = world("--mpi")
    measured = []
    for ranks in sorted({*(1 << i for i in range(comm.size.bit_length())), comm.size}):
        part = comm.Split(comm.rank < ranks, comm.rank)
        if comm.rank < ranks:
            measured.append(_measure(part))
        part.Free()
        _wait_for_all(comm)
    if comm.rank == 0:
        report = {"cores": _cores(), "measured": measured, "model": _forecast(measured)}
        print(json.dumps(report, indent=2) if as_json else _text(report))
    return 0


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _wait_for_all(comm: Any) -> None:
    """A barrier that leaves the core to the others: MPI's own keeps asking."""
    request = comm.Ibarrier()
    while not request.Test():
        time.sleep(1e-3)


def _measure(comm: Any) -> dict[str, Any]:
    """On the ranks of `comm`: seconds of a plain message, short and long, and of every shape's step and its parts."""
    import numpy as np

    from ..distributed.collectives import FRAME

    def message(size: int) -> Callable[[], None]:
        sent, received = np.zeros(size, np.uint8), np.zeros((comm.size, size), np.uint8)
        return lambda: comm.Allgather(sent, received)

    return {
        "ranks": comm.size,
        "messages": _seconds(comm, {"frame": message(FRAME), "long": message(_LONG_MESSAGE)}),
        "shapes": [_measure_shape(comm, rows, features) for rows, features in SHAPES],
    }


def _measure_shape(comm: Any, rows: int, features: int) -> dict[str, Any]:
    import numpy as np

    import autograd_bn as ag

    from ..distributed.collectives import allreduce, gather

    own = len(range(comm.rank, rows, comm.size))
    rng = np.random.default_rng(comm.rank)
    gamma, beta = (ag.tensor(rng.normal(size=features), dtype=np.float32, requires_grad=True) for _ in range(2))

    def step(rows: int, comm: Any) -> Callable[[], Any]:
        x, g = rng.normal(size=(2, rows, features)).astype(np.float32)
        x = ag.tensor(x, requires_grad=True)
        return lambda: ag.grad(ag.batch_norm(x, gamma, beta, comm=comm), [x, gamma, beta], [g])

    statistics, sums = np.zeros((3, 1, features)), np.zeros((2, 1, features))

    def exchange() -> None:
        gather(comm, "the benchmark", own, statistics)
        allreduce(sums, comm)

    works = {"step": step(own, comm), "compute": step(own, None), "exchange": exchange}
    if comm.size == 1:
        works["few_rows"] = step(rows // 16, None)
    return {"rows": rows, "features": features, **_seconds(comm, works)}


def _seconds(comm: Any, works: dict[str, Callable[[], Any]]) -> dict[str, dict[str, float]]:
    """Of the slowest rank, each work's median and least time; the works are taken in turns."""
    taken: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(REPEATS):
        for name, work in works.items():
            comm.Barrier()
            start = time.perf_counter()
            work()
            taken[name].append(time.perf_counter() - start)
    everyone = comm.allgather(taken)
    slowest = {name: [max(times) for times in zip(*(rank[name] for rank in everyone), strict=True)] for name in works}
    return {"median": {n: median(t) for n, t in slowest.items()}, "least": {n: min(t) for n, t in slowest.items()}}


def _forecast(measured: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """For every shape and network the number of ranks that is fastest and that from which exchanges rule.

    From the least times: what disturbs a measurement only adds to it.
    """
    from ..distributed.collectives import FRAME, SMALL
    from ..distributed.cost import CLUSTERS, Network, Step

    networks = list(CLUSTERS)
    for job in measured:
        if job["ranks"] == 2 <= _cores():
            times = job["messages"]["least"]
            bandwidth = _LONG_MESSAGE / times["long"]
            latency = max(times["frame"] - FRAME / bandwidth, 0.0)
            networks.insert(0, Network("memory, measured", latency, bandwidth))
    forecast = []
    for shape in measured[0]["shapes"]:
        rows, features, times = shape["rows"], shape["features"], shape["least"]
        arrays = [3 * features * 8, 2 * features * 8]  # statistics forward, sums backward, in float64
        message = sum(FRAME + (size if size > SMALL else 0) for size in arrays) // 2
        row = max(times["compute"] - times["few_rows"], 0.0) / (rows - rows // 16)
        step = Step(rows, row, message, software=times["exchange"] / 2)
        for network in networks:
            found = {"fastest_at": step.fastest_at(network), "overtaken_at": step.overtaken_at(network)}
            forecast.append({"rows": rows, "features": features, "network": vars(network), **found})
    return forecast


def _text(report: dict[str, Any]) -> str:
    from ..distributed import cost

    cores = report["cores"]
    lines = [
        f"Batch norm forward and backward on MPI ranks, float32, fused form, {cores} cores.",
        "Microseconds, median of the slowest rank: computing alone, both exchanges alone, the whole step.",
        "",
        " ranks    rows  features    compute   exchange       step  exchange/compute",
    ]
    for job in report["measured"]:
        crowded = "  more ranks than cores" if job["ranks"] > cores else ""
        for shape in job["shapes"]:
            t = shape["median"]
            times = "  ".join(f"{t[name] * 1e6:9.0f}" for name in ("compute", "exchange", "step"))
            ratio = t["exchange"] / t["compute"]
            lines.append(f"{job['ranks']:6}  {shape['rows']:6}  {shape['features']:8}  {times}  {ratio:16.2f}{crowded}")
    lines += [
        "",
        "The model's forecast: the ranks that are fastest, and the ranks from which exchanges outweigh computing.",
        "",
        "  rows  features  network                latency     GB/s  fastest  overtaken",
    ]
    for f in report["model"]:
        network = f["network"]
        lines.append(
            f"{f['rows']:6}  {f['features']:8}  {network['name']:<20}  {network['latency'] * 1e6:5.1f} us  "
            f"{network['bandwidth'] / 1e9:7.1f}  {f['fastest_at']:7}  {f['overtaken_at'] or f'> {cost.MOST_RANKS}':>9}"
        )
    lines += ["", str(cost.__doc__).strip()]
    if len(report["measured"]) == 1:
        lines += ["", "One rank alone has nobody to exchange with. To measure: mpiexec -n 4 autograd-bn bench --mpi"]
    return "\n".join(lines)
