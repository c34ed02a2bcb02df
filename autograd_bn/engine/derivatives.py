"""The backward pass, and the derivatives that are made of it."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from .memory import Memory
from .node import Array, Leaf, Node, recording
from .operations import reshape, sum_to
from .primitive import OUT
from .tensor import Tensor, as_tensor, check_differentiable, exact

_accumulating = threading.Lock()


def backward(self: Tensor, gradient: Any = None) -> None:
    """Add the derivative of this tensor into `.grad` of every leaf that requires it.

    `gradient` weighs the elements of the tensor and has its shape; a tensor of one element may leave it out.
    The graph stays as it was, so that a second call adds the same again. If anything raises, no `.grad` has
    changed. `ValueError` for a missing gradient or a wrong shape, `RuntimeError` if nothing requires a
    gradient or a value was overwritten by `assign`.

    >>> import autograd_bn as ag
    >>> x = ag.tensor([1.0, 2.0], requires_grad=True)
    >>> (x * x).backward([1.0, 10.0])
    >>> x.grad
    array([ 2., 40.])
    """
    seed = _seed(self, gradient, "gradient")
    found = propagate([(self.node, seed)], None, create_graph=False)
    leaves = [(node, value) for node, value in found.items() if isinstance(node, Leaf)]
    with _accumulating:
        # Sums first: where one of them fails, no gradient has changed.
        sums = [value if leaf.grad is None else leaf.grad + value for leaf, value in leaves]
        for (leaf, _), total in zip(leaves, sums, strict=True):
            leaf.grad = np.asarray(total)


def grad(
    outputs: Any,
    inputs: Any,
    grad_outputs: Any = None,
    *,
    create_graph: bool = False,
    allow_unused: bool = False,
) -> tuple[Any, ...]:
    """The derivative of `outputs` with respect to each of `inputs`, without touching any `.grad`.

    `outputs` and `inputs` are a tensor or a sequence of tensors; `grad_outputs` has one array (or tensor) an
    output, of its shape, or `None` for 1 where the output has one element. The results have the inputs'
    shapes and dtypes. They are arrays, or with `create_graph=True` recorded tensors that can be
    differentiated again, to any order. An input that no output depends on raises `RuntimeError`; with
    `allow_unused=True` its result is `None`.

    >>> import autograd_bn as ag
    >>> x = ag.tensor(2.0, requires_grad=True)
    >>> (slope,) = ag.grad(x * x * x, x, create_graph=True)
    >>> ag.grad(slope, x)
    (array(12.),)
    """
    outputs = _tensors(outputs, "outputs")
    inputs = _tensors(inputs, "inputs")
    if grad_outputs is None:
        grad_outputs = [None] * len(outputs)
    elif not isinstance(grad_outputs, list | tuple) or (len(outputs) == 1 and len(grad_outputs) != 1):
        grad_outputs = [grad_outputs]
    if len(grad_outputs) != len(outputs):
        raise ValueError(f"grad_outputs has {len(grad_outputs)} entries for {len(outputs)} outputs")
    for i, given in enumerate(inputs):
        if not given.requires_grad:
            raise RuntimeError(f"inputs[{i}] does not require a gradient: make it with requires_grad=True")
    seeds = []
    for i, (output, given) in enumerate(zip(outputs, grad_outputs, strict=True)):
        if output.requires_grad or not allow_unused:
            seed = _seed(output, given, f"grad_outputs[{i}]")
            if create_graph:
                seed = given if isinstance(given, Tensor) else as_tensor(seed)
            seeds.append((output.node, seed))
    with recording(create_graph):
        found = propagate(seeds, {given.node for given in inputs}, create_graph)
    results = []
    for i, given in enumerate(inputs):
        result = found.get(given.node)
        if result is None and not allow_unused:
            raise RuntimeError(
                f"no output depends on inputs[{i}]{f' ({given.name})' if given.name else ''}: "
                "pass allow_unused=True to get None for it"
            )
        results.append(result)
    return tuple(results)


def propagate(seeds: Sequence[tuple[Node, Any]], targets: set[Node] | None, create_graph: bool) -> dict[Node, Any]:
    """The gradients that reach `targets` (`None`: all leaves) from the seeds, each in a buffer of its own.

    Every node is visited once, after all its consumers, by counting them; there is no recursion. With
    `create_graph` seeds and results are tensors and the rules run on tensors. The order of the visits
    follows from the structure of the graph alone: processes that hold the same graph run in step.
    """
    useful = None if targets is None else _leading_to(targets, [node for node, _ in seeds])
    once: set[Node] = set()  # the nodes that one edge, or one seed, leads to
    often: dict[Node, list[Any]] = {}  # several: how many are still to be followed, and the sum over the others
    stack: list[Iterable[tuple[Any, ...]]] = [seeds]
    while stack:
        for edge in stack.pop():
            node = edge[0]
            if node in often:
                often[node][0] += 1
            elif node in once:
                once.remove(node)
                often[node] = [2, None]
            elif type(node) is tuple:
                stack.append(zip(node))
            elif node is not None and (useful is None or node in useful):
                once.add(node)
                stack.append(node.edges)

    found: dict[Node, Any] = {}
    ready: list[tuple[Node, Any]] = []

    def arrive(node: Node, part: Any) -> None:
        """Take what came over one edge; after the last of them the node is ready."""
        if node in often:
            entry = often[node]
            total, part = entry[1], _fitted(part, node)
            if total is None:
                entry[1] = part
            elif _is_ours(total, 2):
                np.add(total, part, out=total)
            else:
                entry[1] = total + part
            entry[0] -= 1
            if entry[0]:
                return
            part = often.pop(node)[1]
        elif node not in once:
            return
        ready.append((node, part))

    for node, seed in seeds:
        arrive(node, seed)
    while ready:
        node, g = ready.pop()
        try:
            fits = g.dtype is node.dtype and g.shape == node.shape
        except AttributeError:
            fits = False
        if not fits:
            g = _fitted(g, node)
        if not node.edges if targets is None else node in targets:
            found[node] = g if create_graph or _is_ours(g, 1) else np.array(g)
        if node.guards:
            node.check_guards()
        for parent, position, rule, read in node.edges:
            if create_graph:
                read = _lifted(node, position, read)
            if parent in once:
                ready.append((parent, rule(g, *read)))
            elif parent in often:
                arrive(parent, rule(g, *read))
            elif type(parent) is tuple:
                wanted = tuple([p in once or p in often for p in parent])
                if any(wanted):
                    for p, part in zip(parent, rule(g, wanted, *read), strict=True):
                        arrive(p, part)
    return found


def _is_ours(array: Any, names: int) -> bool:
    """Whether this pass alone, by so many names, holds an array and its memory, and so may write into it.

    What a rule returned may also be its argument, a value that was saved, or an array that another input got.
    """
    return (
        type(array) is np.ndarray
        and (array.base is None or type(array.base) is Memory)
        and array.flags.writeable
        and sys.getrefcount(array) <= names + 2  # the parameter here and the argument there
    )


def _fitted(g: Any, node: Node) -> Any:
    """A rule's result as a gradient of `node`: summed over broadcast axes, in the node's dtype."""
    if g is None:
        raise TypeError(f"a rule gave None for the gradient of {node!r}")
    if not isinstance(g, (np.ndarray, np.generic, Tensor)):
        g = exact(g, "a derivative")
    if g.shape != node.shape:
        g = sum_to(g, node.shape)
    if g.dtype != node.dtype:
        if g.dtype.kind == "c":
            raise TypeError(f"a complex gradient reached {node!r}: complex numbers have no derivative here")
        g = g.astype(node.dtype)
    return g


def _lifted(node: Node, position: int, read: tuple[Any, ...]) -> tuple[Any, ...]:
    """What a rule reads, as tensors at their place in the graph, so that the rule itself is recorded."""
    lifted = []
    for place, value in zip(node.primitive.position_reads(position), read, strict=True):  # type: ignore[union-attr]
        source = node if place == OUT else node.args[place] if place >= 0 else None
        lifted.append(Tensor(value, source) if isinstance(source, Node) else value)
    return tuple(lifted)


def _leading_to(targets: set[Node], outputs: list[Node]) -> set[Node]:
    """The nodes below `outputs` from which a gradient reaches one of `targets`."""
    consumers: dict[Node, list[Node]] = {node: [] for node in outputs}
    stack = list(consumers)
    while stack:
        node = stack.pop()
        for parent, _, _, _ in node.edges:
            for p in parent if type(parent) is tuple else (parent,):
                if p in consumers:
                    consumers[p].append(node)
                elif p is not None:
                    consumers[p] = [node]
                    stack.append(p)
    useful: set[Node] = set()
    stack = [node for node in targets if node in consumers]
    while stack:
        node = stack.pop()
        if node not in useful:
            useful.add(node)
            stack += consumers[node]
    return useful


def _seed(output: Tensor, gradient: Any, what: str) -> Any:
    if not output.requires_grad:
        raise RuntimeError(f"{output.node!r} does not require a gradient: nothing below it has requires_grad=True")
    if gradient is None:
        if output.size != 1:
            raise ValueError(
                f"{what} is needed for an output of shape {output.shape}: only a single element has a default of 1"
            )
        gradient = np.ones(output.shape, dtype=output.dtype)
    array = np.asarray(gradient)
    if array.shape != output.shape:
        raise ValueError(f"{what} has shape {array.shape}, expected the output's shape {output.shape}")
    if array.dtype.kind not in "fiubO" and array.dtype != output.dtype:
        raise TypeError(f"{what} has dtype {array.dtype}, expected real numbers")
    return exact(array, what) if output.dtype == object else array.astype(output.dtype, copy=False)


def _tensors(given: Any, what: str) -> list[Tensor]:
    if not isinstance(given, (Tensor, list, tuple)):
        raise TypeError(f"{what} is a {type(given).__name__}, expected a tensor or a list of tensors")
    tensors = [given] if isinstance(given, Tensor) else list(given)
    for i, item in enumerate(tensors):
        if not isinstance(item, Tensor):
            raise TypeError(f"{what}[{i}] is a {type(item).__name__}, expected a tensor")
    return tensors


# --- Derivatives of functions ------------------------------------------------------------------------------


def _leaves(inputs: Sequence[Any]) -> list[Tensor]:
    leaves = []
    for i, given in enumerate(inputs):
        array = np.asarray(given)
        try:
            check_differentiable(array)
        except TypeError as error:
            raise TypeError(f"inputs[{i}]: {error}") from None
        leaves.append(as_tensor(array, requires_grad=True))
    return leaves


def _output(f: Callable[..., Any], leaves: list[Tensor]) -> Tensor:
    with recording(True):
        output = f(*leaves)
    if not isinstance(output, Tensor):
        raise TypeError(f"f returned a {type(output).__name__}, expected one tensor")
    return output


def _rows(output: Tensor, leaves: list[Tensor], create_graph: bool) -> list[tuple[Any, ...]]:
    """The gradient of every element of `output` with respect to each leaf, zeros where there is none."""
    rows = []
    for i in range(output.size):
        if output.requires_grad:
            seed = np.zeros(output.size, dtype=output.dtype)
            seed[i] = 1
            row = grad(output, leaves, [seed.reshape(output.shape)], create_graph=create_graph, allow_unused=True)
        else:
            row = (None,) * len(leaves)
        rows.append(
            tuple(
                [
                    np.zeros(leaf.shape, dtype=leaf.dtype) if r is None else r
                    for r, leaf in zip(row, leaves, strict=True)
                ]
            )
        )
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
    result = []
    for i, leaf in enumerate(leaves):
        block = np.empty((output.size, *leaf.shape), dtype=leaf.dtype)
        for k, row in enumerate(rows):
            block[k] = row[i]
        result.append(block.reshape(output.shape + leaf.shape))
    return result[0] if len(result) == 1 else tuple(result)


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
    directions = [np.asarray(tangent, dtype=leaf.dtype) for tangent, leaf in zip(tangents, leaves, strict=True)]
    for i, (direction, leaf) in enumerate(zip(directions, leaves, strict=True)):
        if direction.shape != leaf.shape:
            raise ValueError(f"tangents[{i}] has shape {direction.shape}, expected its input's shape {leaf.shape}")
    output = _output(f, leaves)
    nothing = np.zeros(output.shape, dtype=output.dtype)
    if not output.requires_grad:
        return output.data, nothing
    weights = as_tensor(np.ones(output.shape, dtype=output.dtype), requires_grad=True)
    rows = grad(output, leaves, [weights], create_graph=True, allow_unused=True)
    used = [(row, d) for row, d in zip(rows, directions, strict=True) if row is not None and row.requires_grad]
    if not used:
        return output.data, nothing
    (tangent,) = grad([row for row, _ in used], weights, [d for _, d in used], allow_unused=True)
    return output.data, nothing if tangent is None else tangent


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
            output = _output(f, list(leaves))
            if output.size != 1:
                raise ValueError(f"f returned shape {output.shape}: a Hessian needs a single element")
            (g,) = _rows(reshape(output, ()), list(leaves), create_graph=True)
            return g[i] if isinstance(g[i], Tensor) else as_tensor(g[i])

        return row

    blocks = [jacobian(gradient(i), *inputs) for i in range(len(inputs))]
    return blocks[0] if len(blocks) == 1 else tuple(blocks)


Tensor.backward = backward
