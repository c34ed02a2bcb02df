"""The backward pass: gradients flow from outputs to inputs, each node once."""

import threading
from collections.abc import Container, Sequence
from typing import Any

import numpy as np

from .node import Array, Leaf, Node, clock, owner_of, recording, topological_order
from .operations import broadcasts, is_half, sum_to
from .tensor import Tensor, as_tensor, exact, tensors_of, unwritable, values_of

_accumulating = threading.Lock()
_array_summed_to = sum_to.__wrapped__  # type: ignore[attr-defined]


def backward(self: Tensor, gradient: Any = None) -> None:
    """`Tensor.backward`."""
    seed = _seed(self, gradient, "gradient")
    gradients = propagate([(self.node, seed)], None, create_graph=False)
    leaves = [(node, value) for node, value in gradients.items() if isinstance(node, Leaf)]
    with _accumulating:
        # Sums first: where one of them fails, no gradient has changed.
        sums = [value if leaf.grad is None else leaf.grad + value for leaf, value in leaves]
        for (leaf, _), total in zip(leaves, sums, strict=True):
            leaf.grad = np.asarray(total, leaf.dtype)


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
    outputs = tensors_of(outputs, "outputs")
    nodes = [tensor.node for tensor in tensors_of(inputs, "inputs")]
    for i, node in enumerate(nodes):
        if not node.requires_grad:
            raise RuntimeError(f"inputs[{i}] does not require a gradient: make it with requires_grad=True")
    if grad_outputs is None:
        grad_outputs = [None] * len(outputs)
    elif not isinstance(grad_outputs, (list, tuple)) or (len(outputs) == 1 and len(grad_outputs) != 1):
        grad_outputs = [grad_outputs]
    if len(grad_outputs) != len(outputs):
        raise ValueError(f"grad_outputs has {len(grad_outputs)} entries for {len(outputs)} outputs")
    seeds = []
    for i, (output, weight) in enumerate(zip(outputs, grad_outputs, strict=True)):
        if output.node.requires_grad or not allow_unused:
            seed = _seed(output, weight, f"grad_outputs[{i}]")
            seeds.append((output.node, _recordable(seed, weight) if create_graph else seed))
    targets = set(nodes)
    differentiate = recording(True)(propagate) if create_graph else propagate
    gradients = differentiate(seeds, targets, create_graph)
    if len(gradients) < len(targets) and not allow_unused:
        i, node = next((i, node) for i, node in enumerate(nodes) if node not in gradients)
        raise RuntimeError(
            f"no output depends on inputs[{i}]{f' ({node.name})' if node.name else ''}: "
            "pass allow_unused=True to get None for it"
        )
    results: list[Any] = [gradients.get(node) for node in nodes]
    if len(targets) < len(nodes) and not create_graph:
        results = [None if result is None else np.array(result) for result in results]
    return tuple(results)


def propagate(
    seeds: Sequence[tuple[Node, Any]], targets: set[Node] | None, create_graph: bool, visits: list[Any] | None = None
) -> dict[Node, Any]:
    """The gradients that reach `targets` (`None`: all leaves) from the seeds, each in memory of its own.

    A node is visited once, after all its consumers. With `create_graph` seeds and results are tensors and the rules run
    on tensors. The order of the visits follows from the structure of the graph alone: processes that hold the same
    graph run in step. `visits` gets each: the node, its gradient and what `pull` made of it.
    """
    order = topological_order([node for node, _ in seeds], receivers=True)
    useful = None if targets is None else _leading_to(targets, order)
    sums: dict[Node, Any] = {}  # of the parts of a node's gradient that have come
    ours: set[Node] = set()  # nodes whose sum was made here, and so may be added to in place
    gradients: dict[Node, Any] = {}

    _add([(node, seed) for node, seed in seeds if useful is None or node in useful], sums, ours, create_graph)
    for visited in reversed(order):
        g = sums.pop(visited, None)
        if g is None:
            continue
        if g.dtype != visited.dtype:  # a wide sum
            g = g.astype(visited.dtype)
        if visited in targets if targets is not None else not visited.wanted:
            gradients[visited] = g
        parts = pull(visited, g, useful, create_graph) if visited.wanted else []
        if visits is not None:
            visits.append((visited, g, parts))
        if parts:
            _add(parts, sums, ours, create_graph)
        parts = []  # or what was added is held on to
    return gradients if create_graph else _owned(gradients, seeds)


def _add(parts: list[tuple[Node, Any]], sums: dict[Node, Any], ours: set[Node], create_graph: bool) -> None:
    """Add the parts to the sums of their nodes."""
    for node, part in parts:
        if node not in sums:
            sums[node] = part
        elif node in ours:
            sums[node] = np.add(sums[node], part, out=sums[node])
        else:
            first = sums[node]
            half = is_half(node)  # whose sums of many parts stop growing at 2048
            total = (first.astype(np.float32) if half and is_half(first) else first) + part
            if not create_graph:  # NumPy gives another byte order, and the bare element of a 0-d object array
                total = np.asarray(total, np.float32 if half else node.dtype)
                ours.add(node)
            sums[node] = total


def _leading_to(targets: set[Node], order: list[Node]) -> set[Node]:
    """The nodes of a topological order from which a gradient reaches one of `targets`, and these."""
    useful = set(targets)
    for node in order:
        for position in node.wanted:
            if node.args[position] in useful:
                useful.add(node)
    return useful


def pull(
    node: Node, g: Any, within: Container[Node] | None = None, create_graph: bool = False
) -> list[tuple[Node, Any]]:
    """What a node hands on of its gradient `g`: each input (of those `within`) with its part. Here rules are called.

    With `create_graph` a rule reads tensors at their places in the graph, and so is itself recorded.
    """
    if clock.now > node.read:
        node.check_unchanged()
    op, saved, args = node.primitive, node.saved, node.args
    if create_graph and saved:
        sources = zip((*args, node, None), saved, strict=True)
        saved = tuple([Tensor(v, s) if isinstance(s, Node) else v for s, v in sources])
    elif op is not None and not op.own:  # a user's rule may write to what it gets
        g, saved = unwritable(g), tuple(map(unwritable, saved))
    parts = []
    joint: Any = None
    for position in node.wanted:
        parent = args[position]
        if within is not None and parent not in within:
            continue
        rule = op.rules[position if op.many else 0]  # type: ignore[union-attr]
        if op.joint:  # type: ignore[union-attr]
            if joint is None:
                joint = _joint(node, g, saved, within)
            part = joint[position]
        elif rule.metadata:
            part = rule.function(g, *rule.pick(saved), **rule.about(node, position))
        elif rule.place is not None:
            part = rule.function(g, saved[rule.place])
        else:
            part = rule.function(g, *rule.pick(saved))
        if getattr(part, "dtype", None) is not parent.dtype or part.shape != parent.shape:
            part = _fitted(part, parent, node, position)
        parts.append((parent, as_tensor(part) if create_graph else part))
    return parts


def _joint(node: Node, g: Any, saved: tuple[Any, ...], within: Container[Node] | None) -> Sequence[Any]:
    """What the rule for all inputs at once gives: a gradient for each, or None where none is wanted."""
    args, rule = node.args, node.primitive.rules[0]  # type: ignore[union-attr]
    asked = [False] * len(args)
    for position in node.wanted:
        asked[position] = within is None or args[position] in within
    results = rule.function(g, tuple(asked), *rule.pick(saved), **rule.about(node, node.wanted[0]))
    if not isinstance(results, (tuple, list)) or len(results) != len(args):
        came = f"{len(results)} gradients" if isinstance(results, (tuple, list)) else f"a {type(results).__name__}"
        raise TypeError(f"the rule of {node.op!r} gave {came}, expected a tuple of {len(args)}, one for each input")
    return results


def _owned(gradients: dict[Node, Array], seeds: Sequence[tuple[Node, Array]]) -> dict[Node, Array]:
    """The gradients, copied where memory is not theirs alone: a rule may pass its argument on, or to two inputs."""
    taken = {id(owner_of(seed)) for _, seed in seeds}
    for node, g in gradients.items():
        if g.dtype.kind == "O":
            gradients[node] = g = exact(g, f"the gradient of {node.name or 'an input'}")
        owner = id(owner_of(g))
        if owner in taken or type(g) is not np.ndarray or not g.flags.writeable:
            gradients[node] = np.array(g)
        taken.add(owner)
    return gradients


def _fitted(part: Any, parent: Node, node: Node, position: int) -> Any:
    """A rule's result as a gradient of `parent`: summed over broadcast axes, in the parent's dtype."""
    what = f"the rule of {node.op!r} for its argument {position + 1}"
    if part is None:
        raise TypeError(f"{what} gave None")
    if not isinstance(part, (np.ndarray, np.generic, Tensor)):
        part = exact(part, what) if parent.dtype.kind == "O" else np.asarray(part)
    if part.shape != parent.shape:
        if not broadcasts(parent.shape, part.shape):
            raise ValueError(f"{what} gave shape {part.shape}, expected the shape of that input, {parent.shape}")
        part = (sum_to if type(part) is Tensor else _array_summed_to)(part, parent.shape)
    if part.dtype != parent.dtype:
        if part.dtype.kind == "c":
            raise TypeError(f"{what} gave complex numbers: they have no derivative here")
        part = part.astype(parent.dtype)
    return part


def _seed(output: Tensor, gradient: Any, what: str) -> Any:
    node = output.node
    if not node.requires_grad:
        raise RuntimeError(f"{node!r} does not require a gradient: nothing below it has requires_grad=True")
    if gradient is None:
        if output.size != 1:
            raise ValueError(
                f"{what} is needed for an output of shape {node.shape}: only a single element has a default of 1"
            )
        return exact(np.ones(node.shape, object), what) if node.dtype.kind == "O" else np.ones(node.shape, node.dtype)
    array = gradient if type(gradient) is np.ndarray and gradient.dtype.kind == "f" else values_of(gradient)
    if array.shape != node.shape:
        raise ValueError(f"{what} has shape {array.shape}, expected the output's shape {node.shape}")
    if array.dtype.kind not in "fiubO" and array.dtype != node.dtype:
        raise TypeError(f"{what} has dtype {array.dtype}, expected real numbers")
    if node.dtype.kind == "O":
        return exact(array, what)
    return array if array.dtype == node.dtype else array.astype(node.dtype)


def _recordable(seed: Any, weight: Any) -> Tensor:
    """A seed as a tensor, which keeps its place in the graph where the caller gave one."""
    if not isinstance(weight, Tensor) or (weight.dtype != seed.dtype and weight.dtype.kind + seed.dtype.kind != "ff"):
        return as_tensor(seed)
    return weight if weight.dtype == seed.dtype else weight.astype(seed.dtype)
