"""Derivatives of functions: `jacobian`, `jvp` and `hessian`, each made of backward passes."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .backward import grad
from .node import Array, recording
from .operations import copy, reshape
from .tensor import Tensor, as_tensor, check_differentiable


def _leaves(inputs: Sequence[Any]) -> list[Tensor]:
    leaves = []
    for i, value in enumerate(inputs):
        array = np.asarray(value)
        check_differentiable(array, f"inputs[{i}]: ")
        leaves.append(as_tensor(array, requires_grad=True))
    return leaves


def _output(f: Callable[..., Any], leaves: Sequence[Tensor]) -> Tensor:
    with recording(True):
        output = f(*map(copy, leaves))  # computed tensors, which NumPy can't take out of the graph unseen
    if not isinstance(output, Tensor):
        raise TypeError(f"f returned a {type(output).__name__}, expected one tensor")
    return output


def _rows(output: Tensor, leaves: Sequence[Tensor], create_graph: bool) -> list[list[Any]]:
    """The gradient of every element of `output` with respect to each leaf, zeros where there is none."""
    rows = []
    for i in range(output.size):
        seed = np.zeros(output.shape, output.dtype)
        seed.flat[i] = 1
        row = grad(output, leaves, [seed], create_graph=create_graph, allow_unused=True)
        rows.append([np.zeros_like(x.data) if r is None else r for r, x in zip(row, leaves, strict=True)])
    return rows


def jacobian(f: Callable[..., Any], *inputs: Any) -> Any:
    """The Jacobian of `f(*inputs)`: for each input an array of shape output.shape + input.shape.

    One array where there is one input, else a tuple. `f` takes and returns tensors. `TypeError` for inputs
    that aren't floats or exact rationals.

    >>> import autograd_bn as ag
    >>> ag.jacobian(lambda x: x * x, [1.0, 3.0])
    array([[2., 0.],
           [0., 6.]])
    """
    leaves = _leaves(inputs)
    output = _output(f, leaves)
    rows = _rows(output, leaves, create_graph=False)
    blocks = [
        np.array([row[i].ravel() for row in rows], leaf.dtype).reshape(output.shape + leaf.shape)
        for i, leaf in enumerate(leaves)
    ]
    return blocks[0] if len(blocks) == 1 else tuple(blocks)


def jvp(f: Callable[..., Any], inputs: Sequence[Any], tangents: Sequence[Any]) -> tuple[Array, Array]:
    """`f(*inputs)` and its derivative in the direction `tangents`, as two arrays of the output's shape.

    Computed as the derivative, with respect to the weights of the output, of a backward pass: the transpose
    of a transpose. `ValueError` where a tangent's shape is not its input's.

    >>> import autograd_bn as ag
    >>> ag.jvp(lambda x: x * x, [[1.0, 3.0]], [[1.0, 1.0]])
    (array([1., 9.]), array([2., 6.]))
    """
    leaves = _leaves(inputs)
    if len(tangents) != len(leaves):
        raise ValueError(f"tangents has {len(tangents)} entries for {len(leaves)} inputs")
    directions = [np.asarray(tangent) for tangent in tangents]
    for i, (direction, leaf) in enumerate(zip(directions, leaves, strict=True)):
        if direction.shape != leaf.shape:
            raise ValueError(f"tangents[{i}] has shape {direction.shape}, expected its input's shape {leaf.shape}")
    output = _output(f, leaves)
    value, nothing = np.array(output.data), np.zeros(output.shape, dtype=output.dtype)
    if not output.requires_grad:  # and may hold integers
        return value, nothing
    weights = as_tensor(np.ones(output.shape, dtype=output.dtype), requires_grad=True)
    rows = grad(output, leaves, [weights], create_graph=True, allow_unused=True)
    used = [(row, d) for row, d in zip(rows, directions, strict=True) if row is not None]
    (tangent,) = grad([row for row, _ in used], weights, [d for _, d in used], allow_unused=True)
    if tangent is None:
        return value, nothing
    if tangent.dtype.kind == "f":  # 0 times an infinite slope is no number, but a gradient may have passed it by
        for place in map(tuple, np.argwhere(~np.isfinite(tangent))):
            seed = np.zeros(output.shape, output.dtype)
            seed[place] = 1
            row = grad(output, leaves, [seed], allow_unused=True)
            terms = [np.sum(g * d, where=d != 0) for g, d in zip(row, directions, strict=True) if g is not None]
            tangent[place] = sum(terms)
    return value, tangent


def hessian(f: Callable[..., Any], *inputs: Any) -> Any:
    """The second derivatives of a scalar `f(*inputs)`: blocks of shape input_i.shape + input_j.shape.

    One array where there is one input, else a tuple of tuples of them. `ValueError` unless `f` returns a
    single element.

    >>> import autograd_bn as ag
    >>> ag.hessian(lambda x: (x * x * x).sum(), [1.0, 2.0])
    array([[ 6.,  0.],
           [ 0., 12.]])
    """

    def gradient(i: int) -> Callable[..., Tensor]:
        def row(*leaves: Tensor) -> Tensor:
            output = _output(f, leaves)
            if output.size != 1:
                raise ValueError(f"f returned shape {output.shape}: a Hessian needs a single element")
            (g,) = _rows(reshape(output, ()), leaves, create_graph=True)
            return as_tensor(g[i])

        return row

    blocks = [jacobian(gradient(i), *inputs) for i in range(len(inputs))]
    return blocks[0] if len(blocks) == 1 else tuple(blocks)
