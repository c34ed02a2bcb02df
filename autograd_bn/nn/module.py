"""`Module`: something with parameters, a training switch and a state that can be saved."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from reprlib import recursive_repr
from typing import Any, ClassVar, Self

import numpy as np

from ..engine import Leaf, Tensor, no_grad
from ..engine.node import Array, no_update
from ..engine.tensor import held
from ..verify.table import html_table, text_table

# Who watches the calls of modules in this thread.
_watcher: ContextVar[Callable[[Module, tuple[Any, ...], Any], None] | None] = ContextVar("watcher", default=None)


class Module:
    """The base of every layer and net: subclass it, set parameters and modules as attributes, write `forward`.

    A leaf tensor that requires a gradient when it is set as an attribute is a parameter, frozen or not. Modules set as
    attributes, or in a list or tuple that is one, are children. `buffers` names arrays that are state but not trained.

    >>> import autograd_bn as ag
    >>> class Scale(ag.nn.Module):
    ...     def __init__(self):
    ...         self.factor = ag.tensor(2.0, requires_grad=True)
    ...
    ...     def forward(self, x):
    ...         return x * self.factor
    >>> scale = Scale()
    >>> scale([1.0, 2.0]).data, scale.state_dict()
    (array([2., 4.]), {'factor': array(2.)})
    """

    training = True
    buffers: ClassVar[tuple[str, ...]] = ()
    _parameters: frozenset[str] = frozenset()

    def __setattr__(self, name: str, value: Any) -> None:
        if isinstance(value, Tensor) and value.requires_grad and isinstance(value.node, Leaf):
            super().__setattr__("_parameters", self._parameters | {name})
        super().__setattr__(name, value)

    def forward(self, x: Any) -> Any:
        """The module's output; `module(x)` calls it."""
        raise NotImplementedError(f"{type(self).__name__} has no forward method")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        result = self.forward(*args, **kwargs)
        if (seen := _watcher.get()) is not None:
            seen(self, args, result)
        return result

    def named_children(self) -> Iterator[tuple[str, Module]]:
        """The modules that this one holds itself, each with its name."""
        for name, value in vars(self).items():
            if isinstance(value, Module):
                yield name, value
            elif isinstance(value, list | tuple):
                for i, item in enumerate(value):
                    if isinstance(item, Module):
                        yield f"{name}.{i}", item

    def _paths(self, path: str = "", above: tuple[Module, ...] = ()) -> Iterator[tuple[str, Module]]:
        """The module itself, named "", and all below it with their paths ("1.0"); one that is shared under each."""
        yield path, self
        for name, child in self.named_children():
            if child not in (self, *above):  # modules may refer to each other
                yield from child._paths(f"{path}.{name}" if path else name, (self, *above))

    def named_modules(self) -> Iterator[tuple[str, Module]]:
        """The module itself, named "", and all below it with their paths ("1.0"), each once, under its first."""
        paths: dict[Module, str] = {}
        for path, module in self._paths():
            paths.setdefault(module, path)
        return ((path, module) for module, path in paths.items())

    def modules(self) -> Iterator[Module]:
        """The module itself and all below it, each once."""
        return (module for _, module in self.named_modules())

    def _entries(self) -> Iterator[tuple[str, Any, Module, str]]:
        """Every parameter and buffer: its full name, its value, and the module and attribute that hold it."""
        for path, module in self._paths():
            for name, value in vars(module).items():
                if value is not None and (name in module._parameters or name in module.buffers):
                    yield f"{path}.{name}" if path else name, value, module, name

    def named_parameters(self) -> Iterator[tuple[str, Tensor]]:
        """The parameters with their names (`layer.weight`); one that is shared comes once."""
        parameters: dict[int, tuple[str, Tensor]] = {}
        for name, value, _, _ in self._entries():
            if isinstance(value, Tensor):
                parameters.setdefault(id(value), (name, value))
        return iter(parameters.values())

    def parameters(self) -> Iterator[Tensor]:
        """The parameters, in the order in which they were set; one that is shared comes once."""
        return (parameter for _, parameter in self.named_parameters())

    def zero_grad(self) -> None:
        """Forget the gradient of every parameter."""
        for parameter in self.parameters():
            parameter.zero_grad()

    def train(self, mode: bool = True) -> Self:
        """Set this module and all below it to training (`mode=False`: evaluation); returns the module."""
        for module in self.modules():
            module.training = mode
        return self

    def eval(self) -> Self:
        """Set this module and all below it to evaluation; returns the module."""
        return self.train(False)

    def state_dict(self) -> dict[str, Array]:
        """A copy of every parameter and buffer by name, as `save` takes it."""
        return {name: np.array(value) for name, value, _, _ in self._entries()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Overwrite every parameter and buffer with the values in `state`, in place, keeping their dtypes.

        Names and shapes must match exactly: otherwise one `ValueError` lists all that is missing, unexpected,
        read-only or doesn't fit, and nothing has changed.
        """
        entries = list(self._entries())
        values = matched(state, {name: mine for name, mine, _, _ in entries}, type(self).__name__)
        for name, mine, owner, attribute in entries:
            if isinstance(mine, Tensor):
                mine.assign(values[name])
            else:
                setattr(owner, attribute, values[name])

    @contextmanager
    def watching(self, seen: Callable[[str, Module, tuple[Any, ...], Any], None]) -> Iterator[None]:
        """Inside the block, in this thread, `seen(path, module, args, result)` follows every call of a module below."""
        paths = {module: path for path, module in self.named_modules()}

        def mine(module: Module, args: tuple[Any, ...], result: Any) -> None:
            if module in paths:
                seen(paths[module], module, args, result)

        token = _watcher.set(mine)
        try:
            yield
        finally:
            _watcher.reset(token)

    def summary(self, x: Any) -> str:
        """A table of the modules that a batch passes: path, kind, shape of the result, number of parameters.

        The pass is one of evaluation: it changes nothing.

        >>> import numpy as np, autograd_bn as ag
        >>> net = ag.nn.Sequential(ag.nn.Linear(4, 3), ag.nn.ReLU(), ag.nn.Linear(3, 2))
        >>> print(net.summary(np.ones((8, 4))))
        module  kind        result  parameters
        --------------------------------------
        0       Linear      8 x 3           15
        1       ReLU        8 x 3            0
        2       Linear      8 x 2            8
                Sequential  8 x 2           23
        """
        modes = [(module, module.training) for module in self.modules()]
        rows = []

        def seen(path: str, module: Module, args: tuple[Any, ...], result: Any) -> None:
            shape = " x ".join(map(str, getattr(result, "shape", "-")))
            rows.append([path, type(module).__name__, shape, f"{sum(p.size for p in module.parameters()):,}"])

        try:
            with self.eval().watching(seen), no_grad(), no_update():
                self(x)
        finally:
            for module, training in modes:
                module.training = training
        return text_table(["module", "kind", "result", "parameters"], rows, right=[3])

    @recursive_repr()
    def __repr__(self) -> str:
        lines = [f"({name}): {child!r}".replace("\n", "\n  ") for name, child in self.named_children()]
        inside = "".join(f"\n  {line}" for line in lines) + ("\n" if lines else "")
        return f"{type(self).__name__}({self._settings()}{inside})"

    def _repr_html_(self) -> str:
        rows = []
        for path, module in self.named_modules():
            own = sum(p.size for name, p in module.named_parameters() if "." not in name)
            rows.append([path, f"{type(module).__name__}({module._settings()})", f"{own:,}" if own else ""])
        return html_table(["path", "module", "parameters"], rows)

    def _settings(self) -> str:
        """What `repr` shows of the module itself."""
        return ""


class Sequential(Module):
    """Modules one after the other, each applied to the result of the one before; an error names the layer's path.

    >>> import autograd_bn as ag
    >>> net = ag.nn.Sequential(ag.nn.Linear(4, 3, rng=0), ag.nn.ReLU())
    >>> net
    Sequential(
      (0): Linear(4, 3)
      (1): ReLU()
    )
    >>> [name for name, _ in net.named_parameters()]
    ['0.weight', '0.bias']
    """

    def __init__(self, *layers: Module) -> None:
        for i, layer in enumerate(layers):
            if not isinstance(layer, Module):
                raise TypeError(f"layers[{i}] is {layer!r}, expected a Module")
        self.layers = layers

    def named_children(self) -> Iterator[tuple[str, Module]]:
        return ((str(i), layer) for i, layer in enumerate(self.layers))

    def forward(self, x: Any) -> Any:
        for i, layer in enumerate(self.layers):
            try:
                x = layer(x)
            except (TypeError, ValueError) as error:
                _locate(error, str(i), layer)
                raise
        return x

    def __len__(self) -> int:
        return len(self.layers)

    def __iter__(self) -> Iterator[Module]:
        return iter(self.layers)

    def __getitem__(self, index: int) -> Module:
        return self.layers[index]


def _locate(error: Exception, name: str, layer: Module) -> None:
    """Let an error say by its path which layer raises it; the layers inside have said so far."""
    path, kind, text = getattr(error, "layer", ("", type(layer).__name__, str(error)))
    path = f"{name}.{path}" if path else name
    error.layer, error.args = (path, kind, text), (f"layer {path}, {kind}: {text}",)  # type: ignore[attr-defined]


def matched(state: Mapping[str, Any], mine: Mapping[str, Any], owner: str) -> dict[str, Array]:
    """The values of `state` in the dtypes of `mine`; one `ValueError` lists all that doesn't fit."""
    if not isinstance(state, Mapping):
        raise TypeError(f"state is a {type(state).__name__}, expected arrays by name: another's state_dict()")
    problems = [f"missing {name}" for name in mine if name not in state]
    problems += [f"unexpected {name}" for name in state if name not in mine]
    values = {}
    for name in [name for name in mine if name in state]:
        value, old = np.asarray(state[name]), mine[name]
        if value.shape != old.shape:
            problems.append(f"{name} has shape {value.shape}, expected {old.shape}")
        elif not np.can_cast(value.dtype, old.dtype, "same_kind"):
            problems.append(f"{name} has dtype {value.dtype}, which does not fit {old.dtype}")
        elif isinstance(old, Tensor) and not old.data.flags.writeable:
            problems.append(f"{name} is read-only here")
        else:
            try:
                values[name] = np.array(held(value, old.dtype, name))
            except ValueError as error:
                problems.append(str(error))
    if problems:
        raise ValueError(f"state does not match {owner}: " + "; ".join(problems))
    return values
