"""The suite of wrong derivatives through this library's checker, PyTorch's and JAX's, each at its defaults.

    python -m tests.bench.checkers

Prints a Markdown table. JAX's checker has two rows, since its defaults depend on whether 64-bit numbers are enabled.
Reverse mode at order 1 is what all of them check here.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from jax.test_util import check_grads

import autograd_bn as ag
from autograd_bn.engine.primitive import primitive
from tests.mutants import correct, mutants, wrong_rules
from tests.test_primitive import SAMPLES, drawn


@dataclass(frozen=True)
class Case:
    """A function and its derivative, on arrays and, as `f`, on tensors. `wrong` says whether a gradient is wrong."""

    name: str
    kind: str
    forward: Callable[..., np.ndarray]
    backward: Callable[..., tuple[np.ndarray, ...]]
    inputs: tuple[np.ndarray, ...]
    wrong: bool
    f: Callable[..., Any]


def handwritten() -> Iterator[Case]:
    """Batch norm by hand: the wrong ones, then the right ones."""
    for pair in (*mutants(), *correct()):

        def forward(*arrays: Any, pair: Any = pair) -> Any:
            return pair.forward(*arrays)[0]

        def backward(dy: Any, *arrays: Any, pair: Any = pair) -> Any:
            return pair.backward(dy, pair.forward(*arrays)[1])

        @primitive(lambda g, wanted, kept, pair: pair.backward(g, kept), joint=True)
        def by_hand(x: Any, gamma: Any, beta: Any, /, pair: Any) -> Any:
            return pair.forward(x, gamma, beta)

        def f(*tensors: Any, by_hand: Any = by_hand, pair: Any = pair) -> Any:
            return by_hand(*tensors, pair=pair)[0]

        yield Case(pair.name, pair.kind, forward, backward, pair.inputs(1), bool(pair.changes), f)


def rules() -> Iterator[Case]:
    """The primitives' rules: the wrong ones, then the right ones."""
    found = [(r.name, r.name.split(": ")[1], r.f, r.inputs, r.changes) for r in wrong_rules()]
    for name, samples in SAMPLES.items():
        if name not in ("stop_gradient", "allreduce"):
            found += [(name, "right", sample.f, tuple(drawn(sample, 1)), False) for sample in samples]
    for name, kind, f, inputs, wrong in found:

        def forward(*arrays: Any, f: Any = f) -> Any:
            return f(*[ag.tensor(a) for a in arrays]).data

        def backward(dy: Any, *arrays: Any, f: Any = f) -> Any:
            leaves = [ag.tensor(a, requires_grad=True) for a in arrays]
            return ag.grad(f(*leaves), leaves, [np.asarray(dy)])

        yield Case(name, kind, forward, backward, inputs, wrong, f)


def ours(case: Case) -> None:
    """`ag.gradcheck`."""
    ag.gradcheck(case.f, case.inputs)


def pytorch(case: Case) -> None:
    """`torch.autograd.gradcheck`."""

    class ByHand(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *tensors: Any) -> Any:
            ctx.save_for_backward(*tensors)
            return torch.as_tensor(np.array(case.forward(*[t.detach().numpy() for t in tensors])))

        @staticmethod
        def backward(ctx: Any, dy: Any) -> Any:
            found = case.backward(dy.numpy(), *[t.detach().numpy() for t in ctx.saved_tensors])
            return tuple([torch.as_tensor(np.array(d, dtype=np.float64)) for d in found])

    torch.autograd.gradcheck(ByHand.apply, [torch.tensor(a, requires_grad=True) for a in case.inputs])


def google(case: Case) -> None:
    """`jax.test_util.check_grads`."""
    dtype = jnp.result_type(float)

    def like(shape: Any) -> Any:
        return jax.ShapeDtypeStruct(shape, dtype)

    out = like(np.shape(case.forward(*case.inputs)))

    @jax.custom_vjp
    def by_hand(*arrays: Any) -> Any:
        run = lambda *a: np.asarray(case.forward(*map(np.asarray, a)), dtype)
        return jax.pure_callback(run, out, *arrays)

    def backward(arrays: Any, dy: Any) -> Any:
        def run(dy: Any, *a: Any) -> Any:
            found = case.backward(np.asarray(dy), *map(np.asarray, a))
            return tuple([np.asarray(d, dtype).reshape(np.shape(b)) for d, b in zip(found, a, strict=True)])

        return jax.pure_callback(run, tuple([like(a.shape) for a in arrays]), dy, *arrays)

    by_hand.defvjp(lambda *arrays: (by_hand(*arrays), arrays), backward)
    check_grads(by_hand, tuple([jnp.asarray(a, dtype) for a in case.inputs]), order=1, modes=["rev"])


def passes(check: Callable[[Case], None], case: Case) -> bool:
    """Whether a checker lets a derivative pass."""
    with np.errstate(all="ignore"):
        try:
            check(case)
        except (AssertionError, RuntimeError):  # PyTorch's error is a RuntimeError
            return False
        return True


def row(name: str, check: Callable[[Case], None], suites: list[list[Case]]) -> Counter[str]:
    """Print a line of the table; the result counts what was missed, by kind."""
    cells, missed = [name], Counter[str]()
    start = time.perf_counter()
    for suite in suites:
        wrong, right = [c for c in suite if c.wrong], [c for c in suite if not c.wrong]
        through = [case for case in wrong if passes(check, case)]
        missed.update(case.kind for case in through)
        alarms = sum(not passes(check, case) for case in right)
        caught = len(wrong) - len(through)
        cells += [f"{caught} of {len(wrong)} ({100 * caught / len(wrong):.1f} %)", f"{alarms} of {len(right)}"]
    cells.append(f"{time.perf_counter() - start:.1f} s")
    print("| " + " | ".join(cells) + " |", flush=True)
    return missed


def main() -> None:
    """Print the table, and what was missed."""
    # A gradient that is left unsummed is summed by every engine.
    suites = [[case for case in handwritten() if "for every row" not in case.name], list(rules())]
    print("| checker | wrong batch norms caught | false alarms | wrong rules caught | false alarms | time |")
    print("|---|---|---|---|---|---|")
    missed = {"`ag.gradcheck`": row("`ag.gradcheck`", ours, suites)}
    version = torch.__version__.split("+")[0]
    missed["PyTorch"] = row(f"`torch.autograd.gradcheck` {version}", pytorch, suites)
    for wide, bits in ((False, 32), (True, 64)):
        with jax.enable_x64(wide):
            name = f"`jax.test_util.check_grads` {jax.__version__}, float{bits}"
            missed[f"JAX, float{bits}"] = row(name, google, suites)
    print()
    for name, kinds in missed.items():
        listed = ", ".join(f"{kind} ({n})" for kind, n in kinds.most_common())
        print(f"- {name} missed: {listed or 'nothing'}")


if __name__ == "__main__":
    main()
