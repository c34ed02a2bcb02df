"""Numbers as code: constants as a person writes them, and numbers that follow the lengths of arrays."""

import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from typing import Any

import numpy as np

from ...engine.node import Array
from .tracing import Unwritable

# Numbers that no fraction is, and that authors write so.
_TWICE = {"2 / np.pi": 2 / math.pi, "2 * np.pi": 2 * math.pi, "2": 2.0}
ROOTS = {f"np.sqrt({text})": math.sqrt(n) for text, n in _TWICE.items()} | {"np.pi": math.pi}
ROOTS |= {f"np.log({text})": math.log(n) for text, n in _TWICE.items()}


class Numbers:
    """Numbers that have a name: the author's, then the lengths of arrays, by their values in each recording."""

    def __init__(self, named: Mapping[str, Sequence[Any]], arrays: Mapping[Any, str], from_end: bool) -> None:
        lengths: list[tuple[str, Sequence[Any]]] = [*named.items()]
        for e, name in arrays.items():
            last = len(e.shapes[0]) - 1 if from_end else -1
            for i, values in enumerate(zip(*e.shapes, strict=True)):
                lengths.append((length_of(name, -1 if 0 < i == last else i), values))
        lengths += [(f"{name}.size", [math.prod(shape) for shape in e.shapes]) for e, name in arrays.items()]
        masks = [(e, name) for e, name in arrays.items() if e.values[0].dtype == bool]
        lengths += [(f"{name}.sum()", [*map(np.sum, e.values)]) for e, name in masks]
        self.named = named
        self.known = [(text, np.array(v, float)) for text, v in lengths if len(set(v)) > 1 and all(v)]
        own = itertools.combinations([each for each in self.known if each[0] in named], 3)
        self.products = [(f"{r} * {s} * {t}", u * v * w) for (r, u), (s, v), (t, w) in own]
        self.products += (less := [(f"({text} - 1)", v - 1) for text, v in self.known if min(v) > 1])
        self.products += [(f"{text}**2", v**2) for text, v in self.known if text in named]
        for (s, v), (t, w) in itertools.combinations(self.known + less, 2):
            self.products += [(f"{s} * {t}", v * w), (f"min({s}, {t})", np.minimum(v, w))]  # of a diagonal

    def text(self, values: Sequence[Any]) -> str:
        """A number as code: by the lengths that it follows, or its inverse, or the square of one of these."""
        number = np.array(values, float)
        if len({*number}) == 1:
            return joined(*constant(float(number[0])))
        whole = all(np.asarray(value).dtype.kind in "iu" for value in values)
        root, power = ("1 / np.sqrt({})", -2.0) if min(abs(number)) < 1 else ("np.sqrt({})", 2.0)
        ways: dict[str, Array] = {"{}": number}
        ways |= {} if whole or not all(number) else {"1 / {}": 1 / number, root: number**power}
        for exact, (form, turned) in itertools.product((True, False), ways.items()):
            integral = whole if form == "{}" else np.allclose(turned, np.round(turned), 0, 1e-9)
            text = self._following(np.round(turned) if integral else turned, integral, exact)
            if text and (form == "{}" or " / " not in text):
                return form.format(bracketed(text) if form == "1 / {}" else text)
        several = " and ".join([f"{n:g}" for n in np.unique(number)][:2])
        raise Unwritable(f"forward reads a number that is {several} at different inputs, which follows no length")

    def _following(self, number: Array, whole: bool, exact: bool) -> str:
        """A number by the length that it is if `exact`, else by the first guess that fits, or nothing."""
        if exact:
            return next((text for text, v in self.known if np.array_equal(v, number)), "")
        for form, ratios in self._guesses(number, whole):
            if max(ratios) - min(ratios) <= 1e-13 * abs(ratios[0]):
                c, below = constant(float(ratios[0]))
                if (len(c) < 8 or "np." in c) and not below and not (whole and "." in c):
                    text = form.format(c).replace("+ -", "- ").replace("-1 * ", "-")
                    return text.removeprefix("1 * ").replace(" 1 * ", " ")
        return ""

    def _guesses(self, number: Array, whole: bool) -> Iterator[tuple[str, Any]]:
        """Ways to write a number by a constant and lengths, with that constant in each recording."""
        stroke = " // " if whole else " / "
        for some in (self.known, self.products):
            for text, v in some:
                yield "{} * " + text, number / v
                if all(number):
                    yield text + stroke + "{}", v / number
                yield joined("{}", text), number * v
            for text, v in some:
                if text in self.named or (whole and some is self.known):
                    yield text + " + {}", number - v
                    yield "{} - " + text, number + v
                if text in self.named and all(v):
                    yield f"1 / {text} + {{}}", number - 1 / v
            for (text, v), c in itertools.product(some, (2, 3, 4)) if whole else ():  # divided, rounded down or up
                for more in (0, c - 1, -1, 1):
                    above = f"({text} {'-' if more < 0 else '+'} {abs(more)})" if more else text
                    yield f"{above} // {c}", np.where((v + more) // c == number, 1, np.inf)
        pairs = [*itertools.permutations(self.known, 2)]
        for (s, v), (t, w) in pairs if whole else ():
            if s in self.named:  # padded on both sides
                yield f"{t} + {{}} * {s}", (number - w) / v
        for (s, v), (t, w) in pairs:
            yield f"{{}} * {s}{stroke}{bracketed(t)}", number * w / v
            yield f"{s} + {t}", np.where(v + w == number, 1, np.inf)  # of what is joined


def length_of(array: str, axis: int) -> str:
    """The length of an axis as code."""
    return f"{array}.shape[{axis}]" if axis else f"len({array})"


def joined(over: str, under: str) -> str:
    """A quotient on one line."""
    return f"{over} / {bracketed(under)}" if under else over


def bracketed(text: str) -> str:
    """What something is divided by."""
    whole = re.fullmatch(r"[\w.]*\(([^()]|\([^()]*\))*\)", text)  # np.sqrt(n), (n - 1)
    return text if whole or " " not in text else f"({text})"


def constant(value: float, divided: bool = False) -> tuple[str, str]:
    """A constant above and below the stroke: 0.5, but 1 and 2 where something was `divided` by 2, and 1 and 3."""
    if not math.isfinite(value):
        return repr(value).replace("inf", "np.inf").replace("nan", "np.nan"), ""
    near = float(f"{value:.15g}")
    value = near if len(repr(near)) < len(repr(value)) - 3 else value  # 3 * 0.3 is 0.9 to a reader
    if value and value != 1 and (divided or len(_short(value)) > 6):
        ratio = Fraction(value).limit_denominator(1000)
        for top, bottom in ((1, float(f"{1 / value:.15g}")), (ratio.numerator, ratio.denominator)):
            if len(_short(bottom)) < 7 and math.isclose(top, value * bottom, rel_tol=1e-14):
                return str(top), _short(bottom)
    for text, known in ROOTS.items() if len(_short(value)) > 8 else ():
        times = float(f"{value / known:.12g}")
        if len(_short(times)) < 10 and math.isclose(times * known, value, rel_tol=1e-14):
            return (text if times == 1 else f"{_short(times)} * {text}"), ""
    return _short(value), ""


def _short(value: float) -> str:
    """The shortest of the ways to write a constant."""
    texts = [repr(int(value))] if value == int(value) else []
    texts += [text.replace("e+0", "e").replace("e-0", "e-") for text in (repr(value), f"{value:.0e}")]
    return min([text for text in texts if float(text) == value], key=len)
