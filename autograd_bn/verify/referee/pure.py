"""What code is arithmetic on arrays through and through: an allow-list, by which alone code is run again, edited.

Whatever a function refers to must be on it: statements, builtins, functions of NumPy, PyTorch and JAX, methods of
arrays and containers, and functions and methods of the author's own file that are such themselves. Whatever it can get
at must be arrays, numbers, strings and containers of them. A file, a logger, a random generator, or a method that isn't
listed: then it is left alone.
"""

import ast
import builtins
import collections
import mmap
import symtable
import sys
import types
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any

import numpy as np

from .source import NoSearch, Source, framework

_words: Callable[[str], frozenset[str]] = lambda text: frozenset(text.split())
# Modules whose functions are known by the names in `_FUNCTIONS`, and those of which nothing does more than compute.
_MODULES = _words("""numpy numpy.linalg numpy.fft numpy.lib.stride_tricks torch torch.nn.functional torch.linalg
torch.special jax jax.numpy jax.numpy.linalg jax.nn jax.lax""")
_WHOLE = frozenset("math cmath scipy.special jax.scipy.special".split())
_FUNCTIONS = frozenset(name for name, value in vars(np).items() if isinstance(value, np.ufunc)) | _words("""addmm all
allclose amax amin any apply_along_axis arange argmax argmin argsort around array array_equal array_split as_tensor
asarray ascontiguousarray atleast_1d atleast_2d atleast_3d average avg_pool1d avg_pool2d bincount bmm broadcast_arrays
broadcast_to c_ cat cholesky chunk clamp clip column_stack concatenate conv1d conv2d conv3d conv_general_dilated
conv_transpose1d conv_transpose2d convolve copy copyto count_nonzero cross cumprod cumsum det diag diag_indices
diagflat diagonal diff digamma dot dstack eigh einsum elu empty empty_like erf erfc errstate expand_dims expit eye fft
fft2 fill_diagonal finfo flatnonzero flip fliplr flipud fold from_numpy full full_like gather ge gelu gt hsplit hstack
identity ifft ifft2 index_select indices inner inv irfft is_tensor isclose isin isscalar ix_ kron le leaky_relu lgamma
linspace log_sigmoid log_softmax logsigmoid logspace logsumexp lt masked_fill masked_select matrix_power max
max_pool1d max_pool2d mean median meshgrid min mm moveaxis mul multi_dot mv nan_to_num ndenumerate ndim ndindex ne neg
newaxis no_grad nonzero norm normalize one_hot ones ones_like outer pad permute pinv prod ptp put put_along_axis qr r_
ravel relu relu6 repeat reshape rfft roll rot90 round rsqrt s_ scatter scatter_add searchsorted select selu shape
sigmoid silu sinc size sliding_window_view slogdet softmax softplus solve sort split squeeze stack std stop_gradient
sub sum svd swapaxes t take take_along_axis tensor tensordot tile topk trace transpose trapezoid tri tril tril_indices
triu triu_indices unfold unique unravel_index unsqueeze var vdot vmap vsplit vstack where zeros zeros_like""")
_DRAWS = frozenset("binomial choice normal permutation rand randint randn random random_sample uniform".split())
_METHODS = _FUNCTIONS | _words("""accumulate add_ append astype at bool byte clamp_ clone contiguous count cpu detach
dim div div_ double endswith eq expand expand_as extend fill fill_ flatten float format get half index index_add
index_add_ insert int item items keys long lower masked_fill_ mul_ neg_ new_full new_ones new_zeros numel numpy pop
reduce reduceat reverse save_for_backward scatter_ scatter_add_ set setdefault startswith sub_ to tolist type type_as
unbind update upper values view view_as zero_""")
_READ = _words("""T mT H shape size ndim dtype real imag flat itemsize nbytes device data grad eps tiny is_cuda
requires_grad layout start stop step saved_tensors needs_input_grad""")
_BUILTINS = _words("""abs all any bool complex dict divmod enumerate float frozenset getattr hasattr int isinstance
len list map max min pow print range reversed round set slice sorted str sum tuple zip""")
_SAFE = [getattr(builtins, name) for name in _BUILTINS]
_STATEMENTS = (
    *(ast.FunctionDef, ast.Return, ast.Delete, ast.Assign, ast.AugAssign, ast.AnnAssign, ast.For, ast.If, ast.With),
    *(ast.Raise, ast.Try, ast.Assert, ast.Expr, ast.Pass, ast.Break, ast.Continue),
)
_TYPES = (int, float, complex, bool, str, bytes, type(None), type(...), slice, range, tuple, list, dict, set, frozenset)
# What classes may define without a word: nothing of it runs when an object is read, written to or computed with.
_HARMLESS = _words("__init__ __post_init__ __new__ __repr__ __str__ __call__ __getnewargs__ __replace__ __annotate__")


def inert(value: Any) -> bool:
    """Whether a value is a number, an array in memory, a string, or a container, which do nothing of their own."""
    torch, jax = framework("torch"), framework("jax")
    if isinstance(value, np.ndarray):
        base = value
        while isinstance(base.base, np.ndarray):
            base = base.base
        shared = type(base) is not np.ndarray or isinstance(base.base, mmap.mmap | memoryview)
        return type(value) is np.ndarray and value.dtype.kind in "fiubcUSmM" and not shared
    if isinstance(value, type):
        return value in _TYPES or (issubclass(value, np.generic | np.ndarray) and value.__module__ == "numpy")
    if isinstance(value, collections.defaultdict):
        return type(value) is collections.defaultdict and value.default_factory in (int, float, list, dict, None)
    if torch is not None and isinstance(value, torch.Tensor):
        return type(value) in (torch.Tensor, torch.nn.Parameter) and not value.is_shared()
    if torch is not None and isinstance(value, torch.dtype | torch.device | torch.Size):
        return True
    if jax is not None and isinstance(value, jax.Array):
        return True
    return type(value) in (*_TYPES, collections.OrderedDict) or isinstance(value, np.generic | np.dtype)


def exchangeable(value: Any) -> bool:
    """Whether an edit may put something else in the place of a value: arrays, numbers, axes, and None."""
    if isinstance(value, tuple):
        return all(type(axis) is int for axis in value)
    if type(value) is int:
        return abs(value) < 1e6  # a length: no array gets large by an edit
    array = hasattr(value, "dtype") and hasattr(value, "ndim")
    return inert(value) and (array or value is None or isinstance(value, float | complex | slice))


def _simple(value: Any) -> bool:
    """Whether an object only keeps what is set on it, or is a named tuple: of a class without special methods."""
    if not (isinstance(getattr(value, "__dict__", None), dict) or hasattr(value, "_fields")):
        return False
    if isinstance(value, type | types.ModuleType):
        return False
    for cls in type(value).__mro__:
        known = {*_HARMLESS, "__eq__"} if "__dataclass_fields__" in vars(cls) else _HARMLESS
        special = {n for n, v in vars(cls).items() if n.startswith("__") and callable(v) and n != "__class__"}
        if not _trusted(cls) and (not special <= known or vars(cls).get("__slots__")):
            return False
    return True


def _trusted(cls: type) -> bool:
    """Whether a class of Python's or PyTorch's keeps what is set on it and does no more."""
    return cls in (object, tuple, types.SimpleNamespace) or cls.__module__ in ("torch.autograd.function", "torch._C")


def _inside(value: Any) -> dict[str, Any]:
    return getattr(value, "__dict__", {})


def reached(roots: Iterable[Any], names: Collection[str]) -> Iterator[Any]:
    """These values and all that code which mentions these attributes can get at from them, each once."""
    seen, left = dict[int, Any](), list(roots)
    while left:
        value = left.pop()
        if id(value) in seen or type(value) in (int, float, str, bool, type(None)):
            continue
        seen[id(value)] = value
        yield value
        if isinstance(value, tuple | list | set | frozenset):
            left += value
        elif isinstance(value, dict):
            left += [*value, *value.values()]
        if _simple(value):
            left += [v for name, v in _inside(value).items() if name in names]
            left += getattr(value, "saved_tensors", ())


class Kept:
    """All that some values reach as it is now, so that it can be made so again."""

    def __init__(self, values: Iterable[Any]) -> None:
        self.arrays, self.tensors, self.held = list[Any](), list[Any](), list[Any]()
        for value in values:
            if isinstance(value, np.ndarray):
                self.arrays.append((value, value.copy()))
            elif hasattr(value, "copy_"):
                self.tensors.append((value, value.detach().clone(), value._version))
            elif isinstance(value, list | dict | set | collections.deque):
                self.held.append((value, value.copy()))
            elif _simple(value):
                self.held.append((_inside(value), _inside(value).copy()))

    def restore(self) -> bool:
        """Undo what was done; False where PyTorch will know, which counts the changes, or a view can't be written."""
        for array, before in self.arrays:
            if array.flags.writeable and array.tobytes() != before.tobytes():
                array[...] = before
        ids: Any = lambda mapping: {key: id(item) for key, item in mapping.items()}
        for value, before in self.held:
            if isinstance(value, list | collections.deque):
                value.clear()
                value.extend(before)
            elif isinstance(value, set) or ids(value) != ids(before):
                value.clear()
                value.update(before)
        changed = [row for row in self.tensors if not bool((row[0].detach() == row[1]).all())]
        for tensor, before, _ in changed:
            tensor.data.copy_(before)  # which PyTorch doesn't count, as it doesn't count what `.data` and NumPy write
        views = all(array.tobytes() == before.tobytes() for array, before in self.arrays if not array.flags.writeable)
        return views and all(tensor._version == version for tensor, _, version in self.tensors)


class Allowed:
    """What a backward pass, called with `taken`, can call: all of it is on the list, or `NoSearch` is raised.

    `draws`: NumPy's random numbers are too, whose state whoever runs it puts back.
    """

    def __init__(self, function: Any, taken: Iterable[Any], draws: bool = False) -> None:
        self.draws = draws
        self.file = getattr(getattr(function, "__code__", None), "co_filename", "")
        self.taken = list(taken)
        self.roots: list[Any] = []  # what the functions read beside what they are handed
        self.mentioned: dict[str, tuple[Source, Any]] = {}  # attributes, each with where
        self.stored: set[str] = set()
        self.members: set[str] = set()  # of the objects at hand
        self.functions: dict[Any, Source] = {}
        self.pending: list[tuple[Any, tuple[Source, Any] | None]] = [(function, None)]
        known = -1
        while self.pending or known != len(self.mentioned):
            known = len(self.mentioned)
            while self.pending:
                other, told = self.pending.pop()
                if other not in self.functions:
                    self._check(other, told)
            self._objects()

    def knows(self, owner: Any, name: str) -> bool:
        """Whether a function of a module, or a method of any value at hand, is on the list."""
        if isinstance(owner, types.ModuleType):
            return name in _FUNCTIONS and owner.__name__ in _MODULES and callable(getattr(owner, name, None))
        return name in _METHODS and name not in self.members

    def kept(self, taken: Iterable[Any]) -> Kept:
        """All that the functions reach when they are called with these arguments."""
        return Kept(reached([*taken, *self.roots], {*self.mentioned}))

    def _check(self, function: Any, told: tuple[Source, Any] | None) -> None:
        """One function's own text: its statements, and what it refers to."""
        if getattr(getattr(function, "__code__", None), "co_filename", None) != self.file and told:
            _refuse(*told)
        source = self.functions[function] = Source(function)
        self.roots += [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
        nodes = [*ast.walk(source.bare)]
        for node in nodes:
            if isinstance(node, ast.stmt) and not isinstance(node, _STATEMENTS):
                _refuse(source, node, f"`{type(node).__name__.lower()}`")
        parents = {child: node for node in nodes for child in ast.iter_child_nodes(node)}
        space, outer = vars(builtins) | function.__globals__ | {**source.outside.nonlocals}, set[str]()
        tables = [symtable.symtable(ast.unparse(source.bare), "text", "exec")]
        for table in tables:  # what the text, or a function inside it, takes from outside
            outer |= {s.get_name() for s in table.get_symbols() if s.is_global() and table.get_type() == "function"}
            tables += table.get_children()
        for node in nodes:
            if isinstance(node, ast.Await | ast.Yield | ast.YieldFrom):
                _refuse(source, node)
            if isinstance(node, ast.Name) and node.id in outer and node.id in space:
                self._outside(source, node, parents, space[node.id])
            if isinstance(node, ast.Attribute):
                root: Any = node
                while isinstance(root, ast.Attribute):
                    root = root.value
                load, name = isinstance(node.ctx, ast.Load), getattr(root, "id", "")
                own = name in ("self", "ctx") and root is node.value  # what it is called changes no array
                module = name in outer and isinstance(space.get(name), types.ModuleType)
                taken = module or (node.attr in _READ | _METHODS and not own)
                above = node.attr == "__init__" and ast.unparse(node.value) == "super()"
                if (node.attr.startswith("__") and not above) or (taken and not load):
                    _refuse(source, node)
                self.stored |= set() if load else {node.attr}
                if not module:
                    self.mentioned.setdefault(node.attr, (source, node))
            if isinstance(node, ast.Call):
                self._call(source, node, outer)

    def _call(self, source: Source, node: ast.Call, outer: set[str]) -> None:
        name = node.func.id if isinstance(node.func, ast.Name) else ""
        if name in ("getattr", "hasattr"):
            attribute = getattr([*node.args, None, None][1], "value", None)
            if isinstance(attribute, str) and not attribute.startswith("__"):
                self.mentioned.setdefault(attribute, (source, node))
            else:
                _refuse(source, node)
        elif name == "print" and node.keywords:
            _refuse(source, node)
        elif name not in outer and not isinstance(node.func, ast.Attribute):
            self.mentioned.setdefault("__call__", (source, node))

    def _outside(self, source: Source, node: Any, parents: dict[Any, Any], value: Any) -> None:
        """A name from outside the function, with the attributes that lead on from a module."""
        at = node
        while isinstance(value, types.ModuleType):
            module, at = value.__name__, parents[at]
            if not isinstance(at, ast.Attribute):
                _refuse(source, node)
            value = getattr(value, at.attr, None)
            listed = module in _WHOLE or (module in _MODULES and at.attr in _FUNCTIONS)
            listed |= self.draws and module == "numpy.random" and at.attr in _DRAWS
            if listed and not isinstance(value, types.ModuleType):
                if isinstance(parents[at], ast.Attribute):
                    self.mentioned.setdefault(parents[at].attr, (source, parents[at]))
                return
        error = isinstance(value, type) and issubclass(value, Exception)
        error = error and value.__module__ in ("builtins", "numpy.linalg")
        safe = error or value is super or any(value is builtin for builtin in _SAFE)
        # What is printed by the code that is edited goes nowhere, but its helpers may run as they stand.
        if value is print and source is not next(iter(self.functions.values())):
            _refuse(source, at)
        if not isinstance(node.ctx, ast.Load):
            _refuse(source, node)
        if not safe and not self._function(value, (source, at)):
            self.roots.append(value)
            if not (inert(value) or _simple(value)):
                _refuse(source, at)

    def _function(self, value: Any, told: tuple[Source, Any] | None) -> bool:
        """Whether a value is a function on the list, or one of the author's, which is checked in its turn."""
        if isinstance(value, types.FunctionType) and value.__code__.co_filename == self.file:
            self.pending += [] if value in self.functions else [(value, told)]
            return True
        module, name = getattr(value, "__module__", None), getattr(value, "__name__", "")
        if isinstance(value, np.ufunc):
            module = next((m for m in ("numpy", "scipy.special") if getattr(sys.modules.get(m), name, 0) is value), "")
        listed = module in _WHOLE or (module in _MODULES and name in _FUNCTIONS)
        return listed and getattr(sys.modules.get(str(module)), name, None) is value

    def _objects(self) -> None:
        """What the attributes mentioned are on the objects at hand: what can be read or called is on the list too."""
        there = {"__call__", *_METHODS, *_READ, *self.stored}
        for value in [*reached([*self.taken, *self.roots], {*self.mentioned})]:
            if not _simple(value):
                if not (inert(value) or self._function(value, None)):
                    raise NoSearch(
                        f"it can reach a {type(value).__name__}, which may do more than arithmetic on arrays"
                    )
                continue
            there |= {*_inside(value), *getattr(value, "_fields", ())}
            self.members |= {*_inside(value), *[name for cls in type(value).__mro__ for name in vars(cls)]}
            for cls in type(value).__mro__:
                for name in set(vars(cls)) & set(self.mentioned) if not _trusted(cls) else ():
                    there.add(name)
                    self._member(vars(cls)[name], self.mentioned[name])
            if any(v is not value and _simple(v) for v in _inside(value).values()):
                self.mentioned.setdefault("__call__", next(iter(self.mentioned.values())))
        for name in self.mentioned:
            if name not in there:
                _refuse(*self.mentioned[name])

    def _member(self, member: Any, told: tuple[Source, Any]) -> None:
        """What a class has under a name that is mentioned."""
        runs = [getattr(member, "__func__", member)] if isinstance(member, types.FunctionType | staticmethod) else []
        runs += [member.fget, member.fset] if isinstance(member, property) else []
        self.pending += [(f, told) for f in runs if f is not None and f not in self.functions]
        if runs:
            return
        if not isinstance(member, types.MemberDescriptorType) and not hasattr(type(member), "__get__"):
            self.roots.append(member)
        else:
            _refuse(*told)


def _refuse(source: Source, node: Any, words: str = "") -> None:
    line, what = source.first + node.lineno - 1, words or f"`{source.segment(node)}`"
    raise NoSearch(f"line {line} has {what}, which is more than arithmetic on arrays")
