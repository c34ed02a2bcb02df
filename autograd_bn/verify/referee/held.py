"""The arrays that an author's objects hold: where they are, and which of them are gradients of which."""

from collections import deque
from collections.abc import Iterator, Sequence
from types import BuiltinFunctionType, FunctionType, MemberDescriptorType, MethodType, ModuleType
from typing import Any

import numpy as np

from ...engine import Tensor
from .names import GRADIENT_PLACES, PLACES, derivative_of, plain

Path = tuple[Any, ...]  # attributes, keys and numbers from an object down to what it holds
CLOSED = (type, ModuleType, FunctionType, MethodType, BuiltinFunctionType, str, bytes, np.ndarray, Tensor)


def is_float(value: Any) -> bool:
    """Whether a value is an array that has a gradient."""
    return isinstance(value, np.ndarray) and value.dtype.kind == "f"


def is_array(value: Any) -> bool:
    """Whether a value is an array of floats, of NumPy or of a framework."""
    return is_float(value) or (is_tensor(value) and bool(value.is_floating_point()))


def is_tensor(value: Any) -> bool:
    """Whether a value is an array of PyTorch's."""
    return hasattr(value, "is_leaf") and hasattr(value, "detach")


def inner(value: Any) -> Any:
    """The array in an object of an author's own class of arrays, `value.data`; anything else as it is."""
    held = getattr(value, "data", None)
    own = isinstance(held, np.ndarray) and not isinstance(value, np.ndarray | Tensor)
    return held if own else value


def vector(value: Any) -> Any:
    """A list of floats, or of such lists, as the array that it stands for; anything else as it is."""
    if not isinstance(value, list) or not 0 < len(value) <= 1_000:  # a longer one is data
        return value
    items = list(map(vector, value))
    numbers = all(hasattr(item, "real") and not is_tensor(item) and np.ndim(item) == 0 for item in items)
    rows = all(isinstance(item, np.ndarray) for item in items) and all(isinstance(item, list) for item in value)
    if numbers and any(not isinstance(item, int) for item in items):
        return np.stack(items)
    return np.stack(items) if rows and len({item.shape for item in items}) == 1 else value


def inside(value: Any) -> Iterator[tuple[Any, Any]]:
    """What a container or an object holds, with where."""
    if isinstance(value, dict):
        yield from value.items()
    elif isinstance(value, tuple | list | deque):
        yield from enumerate(value)
    elif not isinstance(value, CLOSED):
        kept = [(name, held) for kind in type(value).__mro__[::-1] for name, held in vars(kind).items()]
        shared = [n for n, v in kept if is_float(v) or (isinstance(v, MemberDescriptorType) and hasattr(value, n))]
        yield from ({name: getattr(value, name) for name in shared} | getattr(value, "__dict__", {})).items()
        if is_tensor(value) and value.is_leaf and value.grad is not None:
            yield "grad", value.grad


def objects(root: Any) -> list[Any]:
    """What an object holds, and what that holds, itself first."""
    found, seen = [root], {id(root)}
    for value in found:
        new = [item for _, item in inside(value) if id(item) not in seen and len(found) < 500]
        seen |= set(map(id, new))
        found += new
    return found


def arrays(root: Any) -> dict[Path, Any]:
    """Every array of floats in an object, the outer ones first, lists of floats as arrays; numbers that are floats."""
    held, seen = dict[Path, Any](), set[int]()
    todo: list[tuple[Path, Any]] = [((), root)]
    while todo and len(seen) < 5000:
        path, value = todo.pop(0)
        value = vector(value)
        if is_array(value) or isinstance(value, float | np.floating):
            held[path] = value
        if id(value) not in seen:
            seen.add(id(value))
            todo += [((*path, key), item) for key, item in inside(value)]
    return held


def get(root: Any, path: Path) -> Any:
    """What stands at a place, or None."""
    for key in path:
        root = dict(inside(root)).get(key)
    return root


def put(root: Any, path: Path, new: Any) -> None:
    """Have another value at a place; tuples on the way are made anew."""
    owner, key = get(root, path[:-1]), path[-1]
    if isinstance(new, np.ndarray) and isinstance(get(root, path), list):
        new = new.tolist()
    if isinstance(owner, tuple):
        items = [new if i == key else item for i, item in enumerate(owner)]
        put(root, path[:-1], type(owner)._make(items) if hasattr(owner, "_make") else tuple(items))
    elif isinstance(owner, dict | list | deque):
        owner[key] = new
    else:
        object.__setattr__(owner, key, new)


def label(path: Path) -> str:
    """What to call the array at a place: the name its author gave it."""
    keys = [word for key in path for word in (key if isinstance(key, tuple) else (key,))]
    words = [key for key in keys if key not in PLACES]
    words = words if any(isinstance(word, str) for word in words) else list(path)
    return "".join([f"[{w}]" if isinstance(w, int) else f".{w}" for w in words]).removeprefix(".")


def kinship(parameter: Path, slot: Path) -> float:
    """How surely names and places say that one array is the gradient of another: 3 sure, 1 likely, 0 no word of it."""
    ours = [plain(str(key)) for key in parameter if key not in PLACES]
    theirs = [plain(str(key)) for key in slot if key not in PLACES | GRADIENT_PLACES]
    marked = any(key in GRADIENT_PLACES for key in slot)
    if marked and ours == theirs:
        return 3.0
    if len(parameter) > 2 < len(slot) and isinstance(slot[-1], int) and slot[-1] == parameter[-1]:
        return kinship(parameter[:-1], slot[:-1])  # weights[1], dweights[1]
    meant = derivative_of(theirs[-1])[:-1] + ([theirs[-1]] if marked else [])
    if ours[-1] in meant:
        return 3.0 if ours[:-1] == theirs[:-1] else 2.0
    return 1.0 if any(ours[-1].startswith(m) or m.startswith(ours[-1]) for m in meant) else 0.0


def looks_like_a_gradient(slot: Path) -> bool:
    """Whether a place's name says that a gradient is there."""
    return any(key in GRADIENT_PLACES for key in slot) or len(derivative_of(str(slot[-1]))) > 1


def groups(held: dict[Path, Any]) -> list[tuple[Any, list[Path]]]:
    """Arrays with every place at which each of them stands."""
    grouped: dict[tuple[Any, Any], tuple[Any, list[Path]]] = {}
    for path, value in held.items():
        same = id(value) if hasattr(value, "shape") else path
        grouped.setdefault((path[0], same), (value, []))[1].append(path)
    return list(grouped.values())


def best(paths: Sequence[Path], slots: Sequence[Path]) -> list[tuple[float, Path]]:
    """Slots by how surely each is the gradient of the array at `paths`, the surest first."""
    rated = [(max(kinship(path, slot) for path in paths), slot) for slot in slots]
    return sorted(rated, key=lambda pair: -pair[0])
