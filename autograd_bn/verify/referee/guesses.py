"""What the parameters of a forward pass may be, by their names: values of the kinds that are tried on it."""

import heapq
import itertools
import json
import math
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any

import numpy as np

from .names import BACKWARD, BIAS, FORWARD, RATE, SHIFT, plain

TRIALS = 4000  # choices of a kind for each parameter that are made at most
SMALL = 5000  # numbers of an array whose lengths are read from messages
# Kinds that belong together: features first, vectors, two, four and three gates in one matrix, and these over time;
# images; a regression.
FAMILIES = (
    "DN MN MD MM M1 D1 VM unit:DN onehot:DN bits:1N", "D N", "DT MT T", "BTD BM DT MT T bool:TT", "BTD BM DF MF F",
    "ND NM DG MG G", "BIJD PPDM 111M", "DIJ MDPP", "BDT MDP M", "ND N D +"
)  # fmt: skip
# Sizes that can't be mistaken for each other, by the letters that stand for them below.
SIZES = dict(zip("1NDMFBTVIJKLPHG", (1, 5, 4, 3, 12, 2, 6, 7, 3, 5, 4, 6, 3, 8, 9), strict=True))
# A row is what a parameter may be, likeliest first, and the names, without underscores and capitals, that say so. A
# kind is a shape, as letters or in brackets, after the kind of its entries; after = a value; options are a dict of what
# forward asks for in vain. Several kinds of a row marked ~ may fit: labels and predictions.
TABLE = rf"""
=3 =4 ND BTD D : k
BTD ND : seq(uence)?s?|(hidden)?states|query|key
=4 =3 =8 : d(im)?model|(n|d)?embd|embed(ding)?(dim|size)?
=4 =3 =8 :
    (n|num|dim|d)(in|inputs?|features?|x|channels?|dims?|model)|(in|inputs?)(features|ch\w*|size|dims?|units|nodes)
    (in|inputs?)(n|num|c|d|f|len|length|width|layersize)|(num|n)in\w*|fanin|(size|dim|ch\w*)in|(\w*vocab|embed\w*|wordvec)?size
    embed\w*|features|channels|width|ndims?|dim|n|d
=3 =4 =[3] =[3,3] ND :
    (n|num|dim|d)(out|outputs?|y|neurons|units|hidden|classes|h|filters|a|nodes)|fanout
    (out|outputs?|hidden)(features|dim|ch\w*|size|dims|units?|nodes|n|num|c|d|f)|(size|dim|ch\w*)out
    (num|n)(out|hid|filt|cat|class|lab)\w*|(hidden|out|output)layersize|units|classes|neurons|hidden|filters|m
=[4,3,3] =[4,3] =[3] =4 call:layers : ((layers?|hidden)?)?(layers|sizes|dims|units|neurons|sizelist)(list)?
="x" : .*(path|file|folder|url|name|port).*|\w*dir(ectory)?|fd
options : (hyper)?\w*(params?|parameters|config|cfg|options|opts|kwargs|layer)
~prob:ND unit:ND ND unit:N unit:N1 N N1 unit:DN +ND : (y|t)(pred|hat)\w*|pred\w*|probs|phat|al|yp
~ND prob:ND unit:ND unit:N unit:N1 N N1 DN +ND BTD : out(put)?s?|logits|scores
ND DN MN NM BIJD BM BDIJ : [ac]prev|prev[ac]
=2 : (?!dim)\w*heads?(num)?|(n|num)(layers|blocks)|layersnum
call:layers : \w*(layers|modules|blocks|lst|operators)
call:layer : (sub|encoder|decoder|inner)layer|module|block|activator
=6 : (max)?(seq)?len(gth)?|max\w*len(gth)?|blocksize|(time)?steps|numembeddings|context\w*
=4 =3 =[4,3,5] : d(ff|k|v|hidden|mlp)|\w+dim|\w+channels
=2 int:BTM : \w+(idx|index)
D ND : \w+vec(tor)?
ND D : \w+vec(tor)?s
int:BTM int:NM : ind(ex|ices|exes)|idx|ids|tokens?
call:tanh : act\w*(fn|func|function|f)|(nonlin|activation)\w*(fn|func|function)|func|fn
call:draw : \w*init\w*(fn|func|function)|initiali[sz]er\w*
call:dtanh : dact\w*|act\w*(prime|grad|deriv\w*|backward)
ND BDIJ BDKL LL BDLL BTD BDT DN D +ND BIJD int:BTM DI unit:ND D1 N N1 B11D TD1 BTH DIJ :
    x\w?\d?|t\d|(?!\w*shape)\w*inputs?\w*|data|a(prev)?|z\d?
    images?|img|v|u|feats?|featuresin|tensor|batch
    arr(ay)?|vec(tor)?
DM DF DG MD DT : w(x|i|ax)\w?
MM MF MG MT : w(h|aa|y)\w?
DM MV MD MM : w[a-z]
MDPP =2 DM D PPDM =[2,2,4,3] : kernel
DM MD D +D MDPP VM MN PPDM DN D1 BDM MDP + : w\d?|weights?|kernels?|filt(er)?s?|theta|table
M D F G M1 1M D1 111M + T : {BIAS}
+D +1D11 +1D +D1 +M +N1 =2 : gamma|scale|gain|g
D 1D11 1D D1 M N1 : {SHIFT}
NM BM MN MD BTM : h0?|hprev|prevh|c0?|cprev|prevc
~int:NM onehot:ND columns:ND int:BM int:BTM int:NMM ND N bits:N bits:N1 bits:ND int:NB N1 sign:N sign:N1
  +ND onehot:DN DN bits:1N :
    y|ts?
    labels?|targets?|\w*(true|label|target|truth|actual|real|expected)\w*
onehot:ND columns:ND onehot:DN : \w*(onehot|ohe)\w*
bool:BT bool:ND bits:ND bits:N bool:TT : \w*mask
cis:TP cis:ND TP ND : (freqs?|rot(ary)?)\w*
~NN symmetric:NN : adj\w*|\w*laplacian
D =0.5 : (running|moving|r)?(mean|mu|avg)
+D =0.7 : (running|moving|r)?(var|variance|sigma2)
=[4] =4 =[4,3,5] =[2,4] =[5,4] : (input|normalized|in)?shape(in)?
=[2,2] =[4,1] : (out(put)?|new|target)shape|shapeout
call:rng : rng|\w*generator|randomstate
call:step : optim(izer)?|optimi[sz]er\w*|opt
=2 =3 =[2,2] :
    (n|num)?groups?|stride|\w*factor|\w*pool\w*(size|h(eight)?|w(idth)?)|ksize|f|hf|wf
    (kernel|filter|pool)(size|width|height|[hw])|[hw](filter|kernel)
=[2,2] =[3,3] : (kernel|filter|pool)shape
=1 =0 ="same" ="valid" : pad(ding)?
=0.001 : eps(ilon)?
=0.6 + unit:ND unit:N : p|q|keep\w*|(?!log)\w*rate|\w*ratio|prob\w*|lr|dropout
=0.1 + : reg|alpha|lam\w*|slope|delta|momentum|l1|l2|temperature|margin
=-0.5 + : (lo(w|wer)?|[av]?min)(val(ue)?|bound|clip)?
=0.5 + : (hi(gh)?|upper|[av]?max)(val(ue)?|bound|clip)?
=1 : axis
="relu" ="sigmoid" ="tanh" call:tanh : \w*activation\w*|\w*nonlinearity|act
="mean" : reduction
=true : (is)?train(ing)?|trainingmode
="train" : mode
"""
UNKNOWN = "ND D DM M MM BTD BDIJ =0.5 + int:NM N DN"


def meant(name: str) -> tuple[list[str], bool]:
    """The kinds that a parameter of this name may be of, and whether several of them may fit."""
    for kinds, words in re.findall(r"(?m)^(\S.*?(?:\n  \S.*?)?) :((?: .*|\n {4}.*)+)", TABLE):
        if re.fullmatch("|".join(words.split()), plain(name)):
            return kinds.lstrip("~").split(), kinds[0] == "~"
    return UNKNOWN.split(), True


class Descent:
    """An optimiser for layers that take one: gradient descent, which takes note of nothing."""

    lr = RATE

    def update(self, value: Any, gradient: Any, *_: Any, **__: Any) -> Any:
        """The value after a step."""
        return value - self.lr * gradient

    add = register = register_params = count_layers = step = zero_grad = staticmethod(lambda *_, **__: 0)


class Layer:
    """A layer for containers of some: each mixes what it takes by a factor of its own, so that their order shows."""

    def __init__(self, factor: int) -> None:
        self.factor, self.w, self.dw = factor, np.array([0.7, 0.3]), np.zeros(2)

    def __call__(self, x: Any, *_: Any, **__: Any) -> Any:
        """The output."""
        self.h = x - self.factor * np.mean(x, axis=-1, keepdims=True)
        return np.sin(self.w[0] * self.h + self.w[1])

    def pulled(self, dy: Any, *_: Any, **__: Any) -> Any:
        """The gradient of what it took."""
        slope = dy * np.cos(self.w[0] * self.h + self.w[1])
        self.dw = np.array([np.sum(slope * self.h), np.sum(slope)])
        return self.w[0] * (slope - self.factor * np.mean(slope, axis=-1, keepdims=True))

    def __getattr__(self, name: str) -> Any:
        if name not in FORWARD + BACKWARD:
            raise AttributeError(name)
        return self if name in FORWARD else self.pulled


def layers() -> list[Layer]:
    """Two layers that do not commute."""
    return [Layer(2), Layer(3)]


class Lengths(tuple[Any, ...]):
    """A shape or the sizes of layers, for authors who add a list to it and for those who add a tuple."""

    __slots__ = ()

    def __add__(self, other: Any) -> Any:
        return type(other)([*self, *other])

    def __radd__(self, other: Any) -> Any:
        return type(other)([*other, *self])


def drawn(kind: str, rng: np.random.Generator) -> Any:
    """A value of a kind as the table lists them."""
    if kind == "options":
        return {}
    if kind.startswith("call:"):
        draw: Any = lambda *shape: np.random.default_rng(0).normal(size=np.hstack(shape).astype(int))
        made = {"tanh": np.tanh, "dtanh": lambda x: 1 - np.tanh(x) ** 2, "draw": draw, "step": Descent()}
        made |= {"layer": Layer(2), "layers": layers(), "rng": np.random.default_rng(0)}
        return made[kind[5:]]
    if kind.startswith("="):
        value = json.loads(kind[1:])
        return Lengths(value) if isinstance(value, list) else value
    what, _, letters = kind.rpartition(":")
    plus, shape = letters.startswith("+"), shape_of(kind)
    last, count = shape[-1] if shape else 1, int(np.prod(shape))
    bits: Any = lambda: rng.permutation(np.arange(count) % 2).reshape(shape).astype(float)
    drawn_as: dict[str, Any] = {
        "int": lambda: rng.integers(0, last, shape[:-1]),
        "onehot": lambda: np.eye(last)[rng.permutation(np.arange(count // last) % last)].reshape(shape),
        "columns": lambda: np.eye(shape[0])[rng.permutation(np.arange(last)) % shape[0]].T,  # one-hot, classes first
        "bits": bits,
        "sign": lambda: 2 * bits() - 1,
        "bool": lambda: rng.random(shape) < 0.8,
        "symmetric": lambda: np.add(half := rng.normal(size=shape), half.T),
        "cis": lambda: np.exp(1j * rng.uniform(-3, 3, shape)),  # of length 1 in the plane
        "unit": lambda: rng.uniform(0.1, 0.9, shape),
        "prob": lambda: np.divide(part := rng.uniform(0.1, 0.9, shape), part.sum(-1, keepdims=True)),
    }
    if what in drawn_as:
        return drawn_as[what]()
    wide = max(shape, default=0) if letters.startswith("(") and len(shape) == 2 else 0  # sums over it stay moderate
    return rng.uniform(0.5, 2, shape) if plus else (rng.normal(size=shape) * 1.5 + 0.2) / max(1, wide / 3) ** 0.5


def parsed_inputs(text: str) -> dict[str, Any]:
    """Inputs as the command line gives them: `x=(6,4) y=onehot(6,3) k=3 act="relu"`; `ValueError` for anything else."""
    inputs, rng = dict[str, Any](), np.random.default_rng(1)
    form = r"(\w+)=(int|onehot|columns|bits|sign|bool|unit|prob|positive)?(\([\d, ]*\)|\"[^\"]*\"|\[[^\]]*\]|[^\s(]+)"
    if re.sub(form, "", text).strip():
        raise ValueError(f"--inputs is {text!r}, expected such as 'x=(6,4) y=onehot(6,3) k=2'")
    for name, kind, value in re.findall(form, text):
        if value.startswith("("):
            kind = "+" if kind == "positive" else f"{kind}:" if kind else ""
            inputs[name] = np.asarray(drawn(f"{kind}{value}", rng))  # of a shape of no axes too
        else:
            inputs[name] = value
            with suppress(ValueError):
                inputs[name] = drawn(f"={value}", rng)
    return inputs


def likeliest(listed: list[list[str]]) -> Iterator[tuple[str, ...]]:
    """All choices, those first whose ranks have the least sum."""
    waiting = [(0, (0,) * len(listed))]
    while waiting:
        total, ranks = heapq.heappop(waiting)
        yield tuple([kinds[rank] for kinds, rank in zip(listed, ranks, strict=True)])
        last = max([i for i, rank in enumerate(ranks) if rank], default=0)
        for i in range(last, len(ranks)):
            if ranks[i] + 1 < len(listed[i]):
                heapq.heappush(waiting, (total + 1, (*ranks[:i], ranks[i] + 1, *ranks[i + 1 :])))


def by_turns(*sources: Iterator[Any]) -> Iterator[Any]:
    """What these give, one of each in turn, while there is any."""
    over = object()
    return (item for items in itertools.zip_longest(*sources, fillvalue=over) for item in items if item is not over)


class Choices:
    """Choices of a kind for each parameter, in chains: each follows from what was said of the one before.

    Chains begin by turns with the likeliest, with kinds that belong together, and with arrays in which every axis has a
    length of its own: of these, "size 5 is different from 3" says which two should be the same.
    """

    def __init__(self, kinds: list[list[str]]) -> None:
        self._kinds, self._next = kinds, list[tuple[str, ...]]()

    def __iter__(self) -> Iterator[tuple[str, ...]]:
        likely, apart = likeliest(self._kinds), map(spread, likeliest(self._kinds))
        first = [[sorted(kinds, key=lambda kind: kind not in f.split()) for kinds in self._kinds] for f in FAMILIES]
        together, families = (by_turns(*map(likeliest, first)) for _ in range(2))
        tried = set[tuple[str, ...]]()
        for start in by_turns(likely, likely, together, apart, map(spread, families)):
            self._next = [start]
            while self._next:
                chosen = self._next.pop()
                if chosen not in tried:
                    tried.add(chosen)
                    yield chosen
            if len(tried) > TRIALS:
                return

    def refused(self, chosen: Sequence[str], message: str, shapes: Sequence[Sequence[int] | None] = ()) -> bool:
        """Whether a choice follows from what was said of one: a message, or shapes that gradients have."""
        closer = tuple(itertools.starmap(_shaped, itertools.zip_longest(chosen, shapes)))
        closer = agreed(chosen, message) if closer == chosen else closer
        lengths = [map(int, re.findall(r"\d+", kind)) for kind in closer if "(" in kind]
        if closer == tuple(chosen) or any(math.prod(axes) > SMALL for axes in lengths):
            return False
        self._next.append(closer)
        return True


def spread(chosen: Sequence[str]) -> tuple[str, ...]:
    """The same kinds with a length of its own for every axis of an array; last axes can be split into four gates."""
    firsts, lasts = iter((5, 7, 3, 6, 9, 10, 11, 13, 14, 15, 17, 18)), iter((8, 12, 28, 44, 76, 92, 124, 148))
    longer = list[str]()
    for kind in chosen:
        letters = re.sub(r"^(\w+:|\+)", "", kind)
        if letters.isalnum() and letters.isupper() and not kind.startswith("int:"):
            firm = [1 if letter == "1" else next(firsts, SIZES[letter]) for letter in letters[:-1]]
            kind = _shaped(kind, [*firm, 1 if letters[-1] == "1" and firm else next(lasts, 4)])
        longer.append(kind)
    return tuple(longer)


def shape_of(kind: str) -> tuple[int, ...]:
    """The shape of a kind of array, with the length of the classes that indices reach into; () of anything else."""
    letters = kind.rpartition(":")[2].lstrip("+")
    sizes = re.findall(r"\d+", letters) if "(" in letters else [SIZES[letter] for letter in letters if letter in SIZES]
    return tuple(map(int, sizes))


def _shaped(kind: str, shape: Sequence[int] | None) -> str:
    """A kind of array with another shape."""
    broadcast = len(shape or ()) > max(len(shape_of(kind)), 2)
    if shape is None or 0 in shape or kind[0] in "=k" or broadcast:
        return kind
    return "+" if not shape else f"{re.sub(r'[A-Z0-9(,)]+$', '', kind)}({','.join(map(str, shape))})"


def agreed(chosen: Sequence[str], message: str) -> tuple[str, ...]:
    """Kinds as `spread` gives them, with the two lengths the same that a message says must be.

    The smaller one is kept, but one that can be split into four, and one that no axis has, as a sum or a quarter.
    """
    if "non-broadcastable output operand with shape (1," in message:  # written for one example at a time
        return tuple([re.sub(r"^((\w+:|\+)?)N(?=[A-Z])", r"\g<1>1", kind) for kind in chosen])
    if column := re.search(r"labels of other shape than the output, \((\d+, 1)\)", message):
        label = re.compile(r"int:|(bits:)?(N|\(\d+\))$")
        return tuple([f"bits:({column[1]})" if label.match(kind) else kind for kind in chosen])
    back = re.search(r"invalid gradient at index (\d+) - got \[([\d, ]*)\]", message)
    if back:  # PyTorch says of which shape
        shape = [int(n) for n in re.findall(r"\d+", back[2])]
        return tuple([_shaped(kind, shape) if i == int(back[1]) else kind for i, kind in enumerate(chosen)])
    if re.search("used as indices must be of integer|only integers, slices", message):
        first = [i for i, kind in enumerate(chosen) if re.fullmatch(r"\+?([A-Z]+|\([\d,]+\))", kind)][:1]
        return tuple(["int:NM" if i in first else kind for i, kind in enumerate(chosen)])
    if "not finite" in message:  # it takes powers, roots or logarithms, and of 1 - p next
        return tuple([re.sub(r"^\+?(?=[A-Z(])", lambda plus: "unit:" if plus[0] else "+", kind) for kind in chosen])
    if re.search("integral type|integer scalar|must be integers|as an integer", message):
        return tuple(["=2" if kind.startswith("=0.") else kind for kind in chosen])
    if re.search("Python scalar|(truth value of an array|Boolean value of Tensor) with", message):
        return tuple(["+" if re.search(r"[A-Z)]$", kind) and ":" not in kind else kind for kind in chosen])
    shapes = re.findall(r"->\(([^)]*)\)", message) or re.findall(r"\((\d[\d, ]*)\)", message)
    said: list[Any] = re.findall(r"(?:size|from|!=|aligned:|tensor [ab]|\dx(?=\d+ and)|(?<=\d) and) ?\(?(\d+)", message)
    if "broadcast" in message and len(shapes) > 1:
        ends = itertools.zip_longest(*[reversed(re.findall(r"\w+", shape)) for shape in shapes])
        said = next((axis for end in ends if len(axis := sorted({*end} - {"1", "newaxis", None})) > 1), [])
    lengths = {length for kind in chosen if "(" in kind for length in re.findall(r"\d+", kind)}
    if reshaped := re.search(r"array of size (\d+) into shape \(([\d, ]+)\)", message):
        size, axes = int(reshaped[1]), [int(n) for n in re.findall(r"\d+", reshaped[2])]
        pairs = itertools.permutations(sorted(lengths), 2)
        said = next(([a, b] for a, b in pairs if int(a) * math.prod(axes) == int(b) * size), [])
        flat = [i for i, k in enumerate(chosen) if re.fullmatch(r"[A-Z]|\(\d+\)", k) and shape_of(k)[0] >= size]
        if flat and not said and size < math.prod(axes):  # all parameters in one vector, of which this is a part
            more = shape_of(chosen[flat[0]])[0] + math.prod(axes) - size
            return tuple([f"({more})" if i == flat[0] else kind for i, kind in enumerate(chosen)])
        if not said:  # axes of length 1 are put into the array of this size
            sized = [re.search(r"[A-Z1)]$", kind) and math.prod(shape_of(kind)) == size for kind in chosen]
            axes = [n for n in axes if n > 1]
            return tuple([_shaped(kind, axes) if fits else kind for kind, fits in zip(chosen, sized, strict=True)])
    ranked = sorted(said[:2], key=lambda length: (length in lengths, int(length) % 4 > 0, int(length)))
    if len(ranked) < 2 or ranked[1] not in lengths or "1" in ranked:  # any length goes with 1
        return tuple(chosen)
    return tuple([re.sub(rf"\b{ranked[1]}\b", ranked[0], kind) if "(" in kind else kind for kind in chosen])


def shown(kind: str) -> str:
    """A kind as the command line gives it."""
    if kind.startswith("=") or kind == "options":
        return kind.removeprefix("=").replace(" ", "")
    return f"{kind.rpartition(':')[0]}({','.join(map(str, shape_of(kind)))})"
