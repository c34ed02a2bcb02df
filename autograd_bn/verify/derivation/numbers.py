"""Numbers as code: constants as a person writes them, and numbers that follow the lengths of arrays."""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from operator import add, mod, mul, sub, truediv
from typing import Any

import numpy as np

from .tracing import Unwritable

Values = tuple[float, ...]  # one a recording


class Numbers:
    """Numbers that have a name: the author's, then the lengths of arrays, by their values in each recording."""

    def __init__(self, named: Mapping[str, Sequence[Any]], arrays: Mapping[Any, str], from_end: bool) -> None:
        lengths = [*named.items()]
        for e, name in arrays.items():
            last = len(e.shapes[0]) - 1 if from_end else -1
            for i, values in enumerate(zip(*e.shapes, strict=True)):
                lengths.append((length_of(name, -1 if 0 < i == last else i), values))
        lengths += [(f"{name}.size", [math.prod(shape) for shape in e.shapes]) for e, name in arrays.items()]
        self.named, known = named, [(text, tuple(map(float, values))) for text, values in lengths]
        self.known = [(text, values) for text, values in known if len(set(values)) > 1 and all(values)]
        less = [(f"({text} - 1)", tuple([n - 1 for n in v])) for text, v in self.known if min(v) > 1]
        own = itertools.combinations([text for text, _ in self.known if text in named], 3)
        self.volumes = [(" * ".join(three), np.prod([named[n] for n in three], axis=0)) for three in own]
        self.products = [*less]
        for (s, v), (t, w) in itertools.combinations(self.known + less, 2):
            self.products += [(f"{s} * {t}", tuple(map(mul, v, w)))]
            self.products += [(f"min({s}, {t})", tuple(map(min, v, w)))]  # of a diagonal

    def text(self, values: Sequence[Any]) -> str:
        """A number as code: by the lengths that it follows, or its inverse, or the square of one of these."""
        number = tuple(map(float, values))
        if len(set(number)) == 1:
            return joined(*constant(number[0]))
        if text := self._following(number, all(np.asarray(value).dtype.kind in "iu" for value in values)):
            return text
        inverse = tuple([1 / n for n in number]) if all(number) else ()
        if inverse and (text := self._following(inverse)) and " / " not in text:
            return joined("1", text)
        below = abs(number[0]) < 1
        square = tuple([n ** (-2 if below else 2) for n in number]) if min(number) > 0 else ()
        if square and (text := self._following(square)):
            return f"1 / np.sqrt({text})" if below else f"np.sqrt({text})"
        several = " and ".join([f"{n:g}" for n in sorted(set(number))][:2])
        raise Unwritable(f"forward reads a number that is {several} at different inputs, which follows no length")

    def _following(self, number: Values, whole: bool | None = None) -> str:
        """A number by the first guess that fits, or nothing; whether it is whole shows where nobody says."""
        if whole is None:
            whole = all(round(n, 9) == round(n) for n in number)
            number = tuple(map(round, number)) if whole else number
        for form, ratios in self._guesses(number, whole):
            if max(ratios) - min(ratios) <= 1e-13 * abs(ratios[0]):
                c, below = constant(ratios[0])
                if len(c) < 8 and not below and not (whole and "." in c):
                    text = form.format(c).replace("+ -", "- ").replace("-1 * ", "-")
                    return text.removeprefix("1 * ").replace(" 1 * ", " ")
        return ""

    def _guesses(self, number: Values, whole: bool) -> Iterator[tuple[str, Values]]:
        """Ways to write a number by a constant and lengths, with that constant in each recording."""
        stroke = " // " if whole else " / "
        for some in (self.known, self.products):
            for text, v in some:
                yield "{} * " + text, tuple(map(truediv, number, v))
                if all(number):
                    yield text + stroke + "{}", tuple(map(truediv, v, number))
                yield joined("{}", text), tuple(map(mul, number, v))
            for text, v in some:
                if text in self.named or (whole and some is self.known):
                    yield text + " + {}", tuple(map(sub, number, v))
                    yield "{} - " + text, tuple(map(add, number, v))
            for text, v in some if whole else ():
                yield from _rounded(text, v, number)
            for text, volume in self.volumes if some is self.known else ():
                ways = (text, np.divide(number, volume)), (joined("1", text), number * volume)
                yield from [(form, (1.0,)) for form, ratios in ways if np.allclose(ratios, 1, 1e-13, 0)]
        for (s, v), (t, w) in itertools.permutations(self.known, 2) if whole else ():
            if s in self.named:  # padded on both sides
                yield f"{t} + {{}} * {s}", tuple(map(truediv, map(sub, number, w), v))
        ratios = [(s, t, v, w) for (s, v), (t, w) in itertools.permutations(self.known, 2)]
        for s, t, v, w in ratios:
            if not whole and not any(map(mod, v, w)) and math.isclose(number[0] * v[0], w[0]):
                yield f"{{}} / ({s} // {t})", tuple(map(truediv, map(mul, number, v), w))
        for s, t, v, w in ratios:
            yield f"{{}} * {s}{stroke}{bracketed(t)}", tuple(map(truediv, map(mul, number, w), v))


def _rounded(text: str, v: Values, number: Values) -> Iterator[tuple[str, Values]]:
    """A length divided by 2, 3 or 4, rounded down or up, or several such parts of it."""
    for c in (2, 3, 4):
        for more in (0, c - 1, -1, 1):
            if all((n + more) // c == m for n, m in zip(v, number, strict=True)):
                above = f"({text} {'-' if more < 0 else '+'} {abs(more)})" if more else text
                yield f"{above} // {c}", (1.0,)
        for times in range(2, c):
            if all(times * n == c * m for n, m in zip(v, number, strict=True)):
                yield f"{times} * {text} // {c}", (1.0,)


def length_of(array: str, axis: int) -> str:
    """The length of an axis as code."""
    return f"{array}.shape[{axis}]" if axis else f"len({array})"


def joined(over: str, under: str) -> str:
    """A quotient on one line."""
    return f"{over} / {bracketed(under)}" if under else over


def bracketed(text: str) -> str:
    """What something is divided by."""
    return f"({text})" if " " in text and not text.startswith(("(", "np.", "min(")) else text


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


# Numbers that no fraction is, and that authors write so.
_TWICE = {"2 / np.pi": 2 / math.pi, "2 * np.pi": 2 * math.pi, "2": 2.0}
ROOTS = {f"np.sqrt({text})": math.sqrt(n) for text, n in _TWICE.items()} | {"np.pi": math.pi}
ROOTS |= {f"np.log({text})": math.log(n) for text, n in _TWICE.items()}


def _short(value: float) -> str:
    """The shortest of the ways to write a constant."""
    texts = [repr(int(value))] if value == int(value) else []
    texts += [text.replace("e+0", "e").replace("e-0", "e-") for text in (repr(value), f"{value:.0e}")]
    return min([text for text in texts if float(text) == value], key=len)
