"""What `render`, `to_dot` and `page` can be asked for."""

from collections.abc import Callable
from inspect import Parameter, signature
from typing import Any, TypedDict, TypeVar

F = TypeVar("F", bound=Callable[..., Any])


class Options(TypedDict, total=False):
    """The options that they share; `render` says what each does."""

    values: bool | None
    grads: Any
    expand: bool
    direction: str | None
    around: Any
    hops: int
    inputs: Any


DEFAULTS = Options(values=None, grads=None, expand=False, direction=None, around=None, hops=3, inputs=None)


def settled(options: Options) -> Options:
    """All options, those that were left out as they are by default; an error where one can't be."""
    if unknown := options.keys() - DEFAULTS.keys():
        raise TypeError(f"there is no option {min(unknown)!r}, expected some of {', '.join(DEFAULTS)}")
    every: Options = {**DEFAULTS, **options}
    for name, chosen, kinds in (("values", every["values"], bool | None), ("expand", every["expand"], bool)):
        if not isinstance(chosen, kinds):
            raise TypeError(f"{name} is {chosen!r}, expected True or False")
    if every["direction"] not in (None, "LR", "TB"):
        raise ValueError(f'direction is {every["direction"]!r}, expected "LR", "TB" or None')
    hops = every["hops"]
    if isinstance(hops, bool) or not isinstance(hops, int) or hops < 0:
        raise ValueError(f"hops is {hops!r}, expected 0 or a positive integer")
    if "hops" in options and every["around"] is None:
        raise ValueError(f"hops is {hops}, counted from around, which is None")
    return every


def named(function: F) -> F:
    """The function, whose signature, which `help` and notebooks show, names the options in place of `**options`."""
    shown, keyword = signature(function), Parameter.KEYWORD_ONLY
    own = [parameter for parameter in shown.parameters.values() if parameter.kind is not Parameter.VAR_KEYWORD]
    options = [Parameter(name, keyword, default=default) for name, default in DEFAULTS.items()]
    function.__signature__ = shown.replace(parameters=[*own, *options])  # type: ignore[attr-defined]
    return function
