"""What names mean: every word by which the referee takes something for what it is, in one table.

Names are compared without underscores and capitals, see `plain`, but where a pattern is of methods and functions.
"""

import itertools
import re
from collections.abc import Iterable
from typing import Any

import numpy as np

# The two passes as methods of a class, by their whole names; of functions, words that stand in the place of each other.
FORWARD = """forward forward_pass forward_propagation forward_prop forward_propagate _forward_propagation _forward_pass
fprop fwd _forward feed_forward feedforward propagate propagation propagar vorwaerts avanti compute __call__ function
call loss compute_loss""".split()
BACKWARD = """backward backward_pass backward_propagation backward_prop back_propagate back_propagation backprop bprop
bwd bptt _backward_propagation _backward_pass _backward backpropagate backpropagation retropropagation retropropagar
rueckwaerts indietro""".split()
PASSES = {"backward": "forward", "backprop": "forwardprop", "bprop": "fprop", "bwd": "fwd", "Backward": "Forward"}
PASSES |= {"back_prop": "forward_prop", "_bw": "_fw", "back": "forward"}
# A derivative in its own right: `tanh_prime`, `dtanh`, a method `derivative`, a flag `deriv=False`.
DERIVATIVE = "gradients gradient grad derivative derivate derivs deriv der prime dash vjp pullback".split()
SLOPES = (*DERIVATIVE, "dx", "d")
METHODS = [(f, b) for b in BACKWARD for f in FORWARD]
_COMPUTES = """compute __call__ function loss compute_loss activate activation evaluate call fn func cost compute_cost
objective energy value nll log_likelihood negative_log_likelihood""".split()
METHODS += [(f, b) for b in (*DERIVATIVE, "compute_derivative", "compute_gradient") for f in _COMPUTES]

# A function that returns a loss and its gradients, or none; and what these two are called.
LOSS = re.compile(r"(loss|entropy|nll|mse|hinge|huber|bce|and_grad(ient)?s?)(_|\d|$)", re.IGNORECASE)
_LOSSES = re.compile(rf"^(?!.*(grad|back|deriv|plot|accura))(.*cost|.*{LOSS.pattern})", re.IGNORECASE)
NO_LOSS = re.compile(r"forward|^(test|plot|train|fit|num)")
_TEST = re.compile("^_*test_|_tests?(_cases?)?$")
COST = re.compile(r"\w*(loss|cost|nll)|J|cost_?\w*")
SLOPE = re.compile(r"\w*(grad|cost)\w*|d(?!ata|ic|ist|im|ep|on|eb|ro|ev)\w+|g")
# What has no gradient: labels, masks, running statistics, what positions are turned by, graphs.
_CONSTANT = re.compile(
    r"y|t|(one_?hot_?)?(y|labels?|targets?|true|truth|gt|desired|expected|mask)s?(_?(true|real|train|batch|one_?hot|oh|gt))?"
    r"|(freqs?|rot(ary)?|cos|sin)(_\w+)?|adj\w*|\w*laplacian|ground_?truth|actuals?|observed|gold|ref(erence)?|counts?|(true|real)_?\w*|.*(running|moving|population|eps|label|target|mask|one_?hot|y_?true).*"
)
# What makes an object whole takes a shape alone, and has no name of what reaches for a file.
_GIVEN = r"(\w+_)?shape|(in(put)?|prev\w*)_(dim|size|units)|optim\w*"
BUILDS = re.compile(rf"(?i)(?!_*(save|write|dump|export|load|del|remove|plot))\w+\(({_GIVEN})\)")

ASKS = re.compile(r"(return|need|want|compute|with|calc\w*|get)_?(grad|deriv|jac)\w*")  # a flag for a gradient beside y

# What losses of parameters take, and need not differentiate.
DATA = r"x(s|_?train|_?batch)?|data|inputs?|features"

# What the passes take and return.
CONTEXTS = ("ctx", "context")
CACHES = ("cache", "caches", "memory", "saved", "stored", "tape", "kept", "mem", "res", "residuals", *CONTEXTS)
OUTPUTS = ("output", "out", "outputs", "y", "result", "activation", "a", "z", "value", "data", "loss")
VALUES = ("x", "input", "inputs", *OUTPUTS)
BIAS = r"b\d?|b[a-z]{1,2}|bias(es)?\w*"
SHIFT = "beta|shift|offset"
WEIGHTS = rf"{BIAS}|{SHIFT}|gamma|w|weights?"
RATE = 0.5  # that backward is handed; 1 would hide that it isn't used
RATES = r"(lr|learn(ing)?_?rate|alpha|eta|rate|step_?size)"
TRAINING = r"_?(is_|in_)?train(ing)?(_mode)?"
KEEPING = rf"{TRAINING}|cache|(save|store|keep|use|with|return)_?(for_)?(cache|grad|back|tape|state|inp)\w*"
DY = re.compile(r"d(?!ata|elta|esired|im|ict|ist|loss$).*|g(y|z|o|h|s|out(put)?s?)?|.*grad.*|upstream.*|.*diff")
CHOOSES = r"wrt\w*|\w*respect\w*|which|of|param(eter)?|arg(num)?s?|target_var|grad_(of|for)"

# Words on the way to a parameter or to a gradient that say no more than that.
PLACES = set("params parameters param values value data weights_and_biases tensors vars variables state model".split())
GRADIENT_PLACES = set(
    "grads gradients grad gradient dparams diff g deriv derivs derivatives derivative gradval dvalue grad_value".split()
)
# What a gradient has around the name of what it is the gradient of.
_BEFORE = "dlossd dcostd dld dcd djd ded gradients gradient grads grad nabla delta partial dloss dl dj d g".split()
_AFTER = ("gradients", "gradient", "grads", "grad", "delta", "diff")
# The textbook's names, and what else they are called.
ROLES = {
    "xhat": "xhat xnorm xnormalized xnormalised xn normed normalized normalised hatx xnormal normx",
    "mean": "mean mu samplemean batchmean mub avg average m",
    "var": "var variance sigma2 sigmasq sigmasquared samplevar batchvar vari v sigsq",
    "std": "std sqrtvar sigma sd stddev samplestd",
    "invstd": "ivar inv invvar invstd rstd istd inversestd invsqrtvar stdinv",
}


def plain(name: str) -> str:
    """A name without underscores and capitals."""
    return name.lower().replace("_", "")


def canonical(name: str) -> str | None:
    """The textbook's name for what somebody called `name`."""
    return next((role for role, names in ROLES.items() if plain(name) in names.split()), None)


def derivative_of(key: str) -> list[str]:
    """What `key` may be the gradient of: `dx`, `grad_x`, `x_grad`, `dL_dx` of x; `x` itself comes last."""
    short = plain(key)
    names = [short.removeprefix(word) for word in _BEFORE if short.startswith(word)]
    names += [short.removesuffix(word) for word in _AFTER if short.endswith(word)]
    return [name for name in [*names, short] if name]


def roots(name: str) -> list[str]:
    """What a function may be the derivative of by its own name, in small letters: `tanh` for `dtanh`."""
    words = f"(?:{'|'.join(SLOPES)})"
    ends = [re.fullmatch(pattern, name.lower()) for pattern in (rf"(\w+?)_?{words}", rf"{words}_?(?:of_)?(\w+)")]
    return [match[1] for match in ends if match]


def is_slope(*functions: Any) -> bool:
    """Whether a function's name says that it is the derivative of another, or of what it stands beside in a class."""
    back, fore = (getattr(function, "__name__", "") for function in functions)
    return back.removeprefix("compute_") in DERIVATIVE or fore.lower() in roots(back)


def forward_of(name: str, functions: Iterable[str]) -> str | None:
    """The forward pass, of some functions, that a function's name says that it is the backward pass of."""
    if _TEST.search(name):
        return None
    others = [other for other in functions if other != name]
    for back, fore in PASSES.items():
        if back in name:
            wanted, bare = name.replace(back, fore), re.sub(f"_?{back}_?", "", name)  # relu, relu_backward
            known = [other for other in others if wanted == other or wanted.startswith(f"{other}_")]
            return max(known or [other for other in others if other == bare], key=len, default=None)
    words = ("cost", "loss", "fun", "func", "f", "objective", "energy", "potential", "nll", "log_likelihood", "")
    costs = [re.sub("grad(ient)?s?|jac", word, name.lower()).strip("_") for word in words]  # compute_gradient, jac
    nearest = [*reversed([*itertools.takewhile(lambda other: other != name, functions)]), *others]
    fitting = [other for other in nearest if other.lower() in (*roots(name), *costs)]
    return min(fitting, key=lambda other: other.lower() not in roots(name), default=None)


def is_loss(name: str) -> bool:
    """Whether a function's name says that it returns a loss, and no gradient of one."""
    return bool(_LOSSES.search(name)) and not roots(name)


def is_label(name: str) -> bool:
    """Whether a name says that something has no gradient: labels, masks, running statistics."""
    return bool(_CONSTANT.fullmatch(name.lower()))


def is_constant(name: str, value: Any) -> bool:
    """Whether backward may leave an input out: by its name, or as labels and masks are numbers of 0 and 1 or of ±1."""
    return is_label(name) or {*np.unique(value).tolist()} in ({0.0, 1.0}, {-1.0, 1.0})
