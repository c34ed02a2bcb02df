"""What the ranks run in the tests of `autograd_bn.distributed`: `mpiexec -n N python -m mpi4py ranks.py CHECK`."""

import sys

import numpy as np
from mpi4py import MPI

import autograd_bn as ag

comm = MPI.COMM_WORLD
rng = np.random.default_rng(0)  # the same numbers on every rank


def shards():
    """The rows of every rank, for a list of sizes that covers all the ranks."""
    layouts = {
        1: [(16,)],
        2: [(8, 8), (13, 3), (1, 15), (16, 0)],
        3: [(8, 8, 0), (0, 1, 15), (5, 4, 7)],
        4: [(5, 1, 0, 10), (4, 4, 4, 4), (0, 13, 0, 3)],
    }
    for sizes in layouts[comm.size]:
        ends = np.cumsum(sizes)
        yield slice(ends[comm.rank] - sizes[comm.rank], ends[comm.rank])


def leaves(*arrays):
    return [ag.tensor(array, requires_grad=True) for array in arrays]


def everything(x, gamma, beta, dy, v, w, form, stop, comm):
    """Output, statistics, and gradients of order 1 and 2, of a batch or of this rank's rows."""
    x, gamma, beta, dy = leaves(x, gamma, beta, dy)
    y, mean, var, n = ag.batch_norm(x, gamma, beta, eps=0.1, form=form, stop=stop, comm=comm, return_stats="count")
    first = ag.grad(y, [x, gamma, beta], [dy], create_graph=True)
    plain = ag.grad(y, [x, gamma, beta], [dy.data])
    second = ag.grad(first, [x, gamma, dy], [v, w, w], allow_unused=True)
    second = [np.zeros(t.shape) if found is None else found for t, found in zip([x, gamma, dy], second, strict=True)]
    return {
        "rows": [y.data, plain[0], first[0].data, second[0], second[2]],
        "all": [mean, var, n],
        "sums": [plain[1], plain[2], first[1].data, first[2].data, second[1]],
    }


def batch_norm():
    """Every rank gets what one process gets on the whole batch; without `comm` it doesn't."""
    for shape in [(16, 3), (16, 2, 2, 3)]:
        x, dy, v = rng.normal(size=(3, *shape)) * 3 + 5
        gamma, beta, w = rng.normal(size=(3, 3))
        for rows in shards():
            for form in ("fused", "composed"):
                for stop in [(), ("mean",), ("var",), ("mean", "var")]:
                    whole = everything(x, gamma, beta, dy, v, w, form, stop, None)
                    part = everything(x[rows], gamma, beta, dy[rows], v[rows], w, form, stop, comm)
                    for found, expected in zip(part["rows"], whole["rows"], strict=True):
                        close(found, expected[rows])
                    for found, expected in zip(part["all"], whole["all"], strict=True):
                        close(found, expected)
                    for found, expected in zip(part["sums"], whole["sums"], strict=True):
                        close(ag.distributed.allreduce(found, comm), expected)
            if comm.size > 1 and rows.stop - rows.start > 1:
                alone = ag.batch_norm(x[rows], gamma, beta, eps=0.1)
                assert (
                    np.abs(alone - ag.batch_norm(x, gamma, beta, eps=0.1)[rows]).max() > 1e-3
                    or rows.stop - rows.start == 16
                )


def close(found, expected):
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-10)


if __name__ == "__main__":
    globals()[sys.argv[1]]()
    checked = comm.reduce(1)
    if comm.rank == 0:
        print(checked, "checked")
