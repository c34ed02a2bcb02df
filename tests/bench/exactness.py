"""The rounding errors of batch norm beside PyTorch's and jax.numpy's: python -m tests.bench.exactness

The torture set of tests/test_kernels.py, with enough rows for the kernels to cut blocks, against extended arithmetic on
the stored inputs: the largest error in units in the last place of the feature's largest true value, the worse one of
the output and the input's gradient, then the worse one of gamma's and beta's; a Markdown table for each dtype.
"""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import torch

import autograd_bn as ag
from tests.test_kernels import EPS, TORTURE, case, computed, reference, score

ROWS = 200_000


def ours(backend):
    """The fused node with one backend's kernels."""

    def run(*arrays):
        ag.set_backend(backend)
        return computed(*arrays)

    return run


def pytorch(x, gamma, beta, g):
    """PyTorch's native batch norm."""
    leaves = [torch.tensor(a, requires_grad=True) for a in (x, gamma, beta)]
    y = torch.nn.functional.batch_norm(leaves[0], None, None, *leaves[1:], training=True, eps=EPS)
    return [a.detach().numpy() for a in (y, *torch.autograd.grad(y, leaves, torch.tensor(g)))]


def jax_numpy(x, gamma, beta, g):
    """The definition in jax.numpy, compiled."""

    def batch_norm(x, gamma, beta):
        return gamma * (x - jnp.mean(x, 0)) / jnp.sqrt(jnp.var(x, 0) + EPS) + beta

    y, pull = jax.vjp(jax.jit(batch_norm), x, gamma, beta)
    return [np.asarray(a) for a in (y, *pull(jnp.asarray(g)))]


CONTENDERS = {
    "autograd_bn, NumPy": ours("numpy"),
    "autograd_bn, numba": ours("numba"),
    "PyTorch": pytorch,
    "jax.numpy": jax_numpy,
}


def shown(error):
    """A score as the table has it."""
    if not np.isfinite(error):
        return "not finite"
    return f"{error:.2f}" if error < 10 else f"{error:,.0f}" if error < 1e7 else f"{error:.0e}"


def main():
    """Run and print."""
    warnings.simplefilter("ignore")  # overflow, of those whom it befalls
    jax.config.update("jax_enable_x64", True)
    for dtype in ("float32", "float64"):
        print(f"\n| {dtype} x | " + " | ".join(CONTENDERS) + " |\n|---" + "|---" * len(CONTENDERS) + "|")
        for name in TORTURE:
            arrays = case(name, dtype, ROWS)
            expected = reference(*arrays)
            cells = []
            for run in CONTENDERS.values():
                y, dx, dgamma, dbeta = score(run(*arrays), expected)
                cells.append(f"{shown(np.maximum(y, dx))}, {shown(np.maximum(dgamma, dbeta))}")
            print(f"| {name} | " + " | ".join(cells) + " |", flush=True)
    ag.set_backend(None)


if __name__ == "__main__":
    main()
