"""`Tensor`: its data, its gradient, `assign` and the version check, Python's protocols."""

import copy
import pickle
import subprocess
import sys
from fractions import Fraction

import numpy as np
import pytest

import autograd_bn as ag


def test_tensor_copies_and_as_tensor_shares():
    array = np.zeros(3)
    copied, shared = ag.tensor(array), ag.as_tensor(array)
    array[0] = 1
    assert copied.data[0] == 0
    assert shared.data[0] == 1
    assert ag.as_tensor(shared) is shared
    with pytest.raises(TypeError, match=r"copy\(\).*detach\(\)"):
        ag.tensor(shared)
    for data in ([shared, shared], [[1.0], (shared,)]):
        for make in (ag.tensor, ag.as_tensor):
            with pytest.raises(TypeError, match=r"stack\(\).*detach\(\)"):
                make(data)


def test_dtypes_of_new_tensors():
    assert ag.tensor(1.0).dtype == np.float64
    assert ag.tensor([1, 2], dtype=np.float16, requires_grad=True).dtype == np.float16
    assert ag.tensor(np.float32(2)).dtype == np.float32
    assert ag.tensor([True]).dtype == bool
    for data in ([1j], ["a"], np.array(["2026"], "M8[D]"), None, {}, [None, 1.0]):
        for make in (ag.tensor, ag.as_tensor):
            with pytest.raises(TypeError, match="expected real numbers"):
                make(data)
    for data in (1, [1, 2], [True], np.array([0.5, Fraction(1)], dtype=object)):
        with pytest.raises(TypeError, match="requires_grad=True"):
            ag.tensor(data, requires_grad=True)
        with pytest.raises(TypeError, match="requires_grad=True"):
            ag.tensor(data).requires_grad = True


def test_a_leaf_is_frozen_and_thawed():
    t = ag.tensor([1.0, 2.0])
    t.requires_grad = True
    (t * t).sum().backward()
    assert t.grad.tolist() == [2.0, 4.0]
    t.requires_grad = False
    assert not (t * t).requires_grad


def test_exact_integers_become_fractions():
    x = ag.tensor(np.array([1, 2], dtype=object), requires_grad=True)
    assert [type(e) for e in x.data] == [Fraction, Fraction]
    assert ag.mean(x).item() == Fraction(3, 2)


def test_attributes():
    x = ag.tensor(np.ones((2, 3)), name="x", requires_grad=True)
    assert (x.shape, x.dtype, x.ndim, x.size, x.name, len(x)) == ((2, 3), np.float64, 2, 6, "x", 2)
    assert x.T.shape == (3, 2)
    assert ag.tensor(2.5).item() == 2.5
    assert type(ag.tensor(2.5).item()) is float
    assert np.array_equal(x.numpy(), x.data)
    assert (float(ag.tensor([2.5])), int(ag.tensor(2.5)), bool(ag.tensor(0.0))) == (2.5, 2, False)
    with pytest.raises(TypeError, match="len"):
        len(ag.tensor(1.0))
    with pytest.raises(ValueError):
        x.item()
    with pytest.raises(ValueError):
        bool(x)
    assert [row.shape for row in x] == [(3,), (3,)]
    with pytest.raises(AttributeError):
        x.anything = 1


def test_repr_shows_value_shape_and_op():
    x = ag.tensor([1.0, 2.0], requires_grad=True, name="x")
    assert repr(x) == "tensor([1., 2.], shape=(2,), dtype=float64, name='x', requires_grad=True)"
    assert "op='multiply'" in repr(x * 2)
    assert f"{(x * x).sum():.3f}" == "5.000"
    assert f"{x}" == repr(x)


def test_data_of_a_leaf_is_writable_and_of_a_computed_tensor_read_only():
    x = ag.tensor([1.0, 2.0], requires_grad=True)
    x.data[0] = 5.0
    for y in (x * 2, x.sum(), x[0], x.reshape(2, 1), x.T, ag.broadcast_to(x, (2, 2)), ag.stop_gradient(x)):
        assert type(y.data) is np.ndarray
        assert not y.data.flags.writeable
        with pytest.raises(ValueError, match="read-only"):
            y.data[...] = 0
    assert x.data.flags.writeable


def test_saved_values_cannot_be_overwritten_through_a_view():
    x = ag.tensor([1.0, 2.0], requires_grad=True)
    y = ag.exp(x)
    with ag.no_grad():
        views = [y.reshape(2, 1), y[:1], y.T, ag.stop_gradient(y)]
    for view in [*views, y.detach(), y.reshape(2, 1), ag.as_tensor(y)]:
        with pytest.raises((ValueError, RuntimeError)):
            view.data[...] = 0
        with pytest.raises(RuntimeError):
            view.assign(np.zeros(view.shape))
    assert np.array_equal(ag.grad(y.sum(), x)[0], np.exp([1.0, 2.0]))


def test_no_imaginary_part_is_dropped():
    x = ag.tensor([1.0], requires_grad=True)
    for make in (lambda: ag.tensor(np.array([1j]), dtype=float), lambda: ag.as_tensor(np.array([1j]), dtype=float)):
        with pytest.raises(TypeError, match=r"(data|array) has dtype complex128"):
            make()
    with pytest.raises(TypeError, match="grad has dtype complex128"):
        x.grad = np.array([1j])
    assert x.grad is None


def test_grad_can_be_set_and_cleared():
    x = ag.tensor([1.0, 2.0], requires_grad=True, dtype=np.float32)
    x.grad = [3, 4]
    assert (x.grad.dtype, x.grad.tolist()) == (np.float32, [3.0, 4.0])
    (x * 2).sum().backward()
    assert x.grad.tolist() == [5.0, 6.0]
    with pytest.raises(ValueError, match=r"\(3,\).*\(2,\)"):
        x.grad = np.ones(3)
    x.zero_grad()
    assert x.grad is None
    with pytest.raises(RuntimeError, match="leaf tensors only"):
        (x * 2).grad = None


def test_detach_shares_memory_and_cuts():
    x = ag.tensor([1.0, 2.0], requires_grad=True)
    d = x.detach()
    assert d.data is x.data
    assert not d.requires_grad
    assert np.array_equal(ag.grad((d * x).sum(), x)[0], d.data)
    assert (x * 2).detach().node.op is None


# --- assign --------------------------------------------------------------------------------------------------


def test_assign_takes_no_number_that_is_too_large():
    t = ag.tensor([1.0, 2.0], dtype="float32")
    with pytest.raises(ValueError, match=r"value has 1e\+300, which is too large for float32"):
        t.assign([0.0, 1e300])
    np.testing.assert_array_equal(t.data, [1, 2])
    t.assign([np.inf, 1e-300])
    np.testing.assert_array_equal(t.data, [np.inf, 0])


def test_assign_keeps_memory_shape_and_dtype():
    x = ag.tensor([1.0, 2.0], dtype=np.float32)
    memory = x.data
    x.assign([3, 4])
    x.assign(ag.tensor(np.array([5.0, 6.0])))
    assert x.data is memory
    assert memory.tolist() == [5.0, 6.0]
    for error, value, text in (
        (ValueError, 1.0, r"\(\).*\(2,\)"),
        (ValueError, [1.0], r"\(1,\)"),
        (TypeError, [1j, 0], "complex128"),
    ):
        with pytest.raises(error, match=text):
            x.assign(value)
    assert memory.tolist() == [5.0, 6.0]
    with pytest.raises(RuntimeError, match="computed by 'multiply'"):
        (x * 2).assign([1.0, 2.0])


WAYS = {
    "assign": lambda x, v: x.assign(v),
    "data": lambda x, v: setattr(x, "data", v),
    "detach": lambda x, v: x.detach().assign(v),
    "as_tensor": lambda x, v: ag.as_tensor(x, requires_grad=True, name="again").assign(v),
}


def through_no_grad(x, v):
    with ag.no_grad():
        x.reshape(2, 1).assign(np.reshape(v, (2, 1)))


def in_place(x, v):
    x.data += 1


@pytest.mark.parametrize("overwrite", [*WAYS.values(), through_no_grad, in_place])
@pytest.mark.parametrize(
    "view",
    [
        lambda x: x,
        lambda x: x.reshape(2, 1),
        lambda x: x.T,
        lambda x: x[::-1],
        lambda x: x[1:],
        lambda x: ag.broadcast_to(x, (3, 2)),
        lambda x: ag.stop_gradient(x),
        lambda x: x.detach(),
        lambda x: x.reshape(1, 2).T[::-1].reshape(2),
    ],
)
def test_an_overwritten_value_is_noticed_through_every_view(overwrite, view):
    x, w = ag.tensor([1.0, 2.0], requires_grad=True), ag.tensor(3.0, requires_grad=True)
    y = (view(x) * w).sum()
    overwrite(x, [7.0, 8.0])
    with pytest.raises(RuntimeError, match="overwritten"):
        y.backward()
    assert w.grad is None
    fresh = (view(x) * w).sum()
    fresh.backward()
    assert w.grad == view(x).data.sum()


@pytest.mark.parametrize("options", [{"name": "again"}, {"dtype": "float32"}])
def test_a_leaf_with_gradient_is_made_no_leaf_without_one(options):
    x = ag.tensor([1.0], requires_grad=True)
    with pytest.raises(RuntimeError, match="cuts the graph"):
        ag.as_tensor(x, **options)
    assert not ag.as_tensor(x.detach(), **options).requires_grad


def test_a_copy_is_not_taken_for_a_view():
    x, w = ag.tensor(np.ones((2, 2)), requires_grad=True), ag.tensor(3.0, requires_grad=True)
    copies = [x[[0, 1]], x.copy(), ag.reshape(x.T, 4), x * 1]
    y = sum((c * w).sum() for c in copies)
    x.assign(np.zeros((2, 2)))
    y.backward()
    assert w.grad == 16.0


def test_what_was_assigned_before_it_was_read_is_no_harm():
    w, other = (ag.tensor([1.0, 2.0], requires_grad=True) for _ in range(2))
    w.assign([3.0, 4.0])
    loss = (w * w).sum()
    other.assign([5.0, 6.0])
    loss.backward()
    assert w.grad.tolist() == [6, 8]


def test_what_is_not_read_may_be_overwritten():
    x = ag.tensor([1.0, 2.0], requires_grad=True)
    y = (x * 2 + x).sum()
    x.assign([5.0, 5.0])
    y.backward()
    assert x.grad.tolist() == [3.0, 3.0]


def test_a_leaf_can_be_copied_with_its_gradient():
    x = ag.tensor([1.0, 2.0], requires_grad=True, name="x")
    (x * x).sum().backward()
    other = copy.deepcopy(x)
    other.assign([0.0, 0.0])
    assert (other.name, other.grad.tolist(), x.data.tolist()) == ("x", [2.0, 4.0], [1.0, 2.0])
    (other * 2).sum().backward()
    assert x.grad.tolist() == [2.0, 4.0]


@pytest.mark.parametrize("f", [lambda x, pair: x * pair, lambda x, pair: pair - x, lambda x, pair: ag.exp(pair)])
def test_a_list_of_tensors_is_no_constant_operand(f):
    x = ag.tensor([1.0, 2.0], requires_grad=True)
    with pytest.raises(TypeError, match=r"an operand of \w+ is a list of tensors.*stack\(\)"):
        f(x, [x.sum(), x.sum()])


# --- Lists of tensors, tensors as metadata ---------------------------------------------------------------------


def objects(*tensors):
    array = np.empty(len(tensors), dtype=object)
    for i, tensor in enumerate(tensors):
        array[i] = tensor
    return array


LEAF = ag.tensor([1.0, 2.0], requires_grad=True)
NUMBER = ag.tensor(1.0, requires_grad=True)
HIDDEN = {
    "objects": lambda: LEAF * objects(NUMBER, NUMBER),
    "objects on the left": lambda: objects(NUMBER, NUMBER) + LEAF,
    "objects of one": lambda: ag.exp(objects(NUMBER)),
    "nested": lambda: LEAF * [[NUMBER, 1.0], (2.0, 3.0)],
    "padding": lambda: ag.pad(LEAF, 1, constant_values=NUMBER),
    "padding, by NumPy": lambda: np.pad(LEAF, 1, constant_values=NUMBER),
    "an axis": lambda: ag.sum(LEAF, NUMBER),
    "a shape": lambda: ag.reshape(LEAF, (NUMBER, 2)),
    "a tensor of objects": lambda: ag.tensor(objects(NUMBER, NUMBER)),
    "gamma": lambda: ag.batch_norm(np.ones((3, 2)), [NUMBER, NUMBER]),
    "beta": lambda: ag.batch_norm(np.ones((3, 2)), None, objects(NUMBER, NUMBER)),
    "x": lambda: ag.batch_norm([LEAF, LEAF]),
    "mean": lambda: ag.batch_norm(np.ones((3, 2)), mean=[NUMBER, NUMBER], var=[1.0, 1.0]),
    "eps": lambda: ag.batch_norm(np.ones((3, 2)), eps=[NUMBER, NUMBER]),
}


@pytest.mark.parametrize("call", HIDDEN.values(), ids=HIDDEN)
def test_tensors_in_a_list_in_objects_or_in_metadata_are_refused(call):
    with pytest.raises(TypeError, match=r"of tensors, which would cut the graph|metadata.*got a tensor"):
        call()


# --- In place --------------------------------------------------------------------------------------------------


def centred_in_place(h):
    h -= h.mean(0)
    return h


def test_in_place_is_refused_where_somebody_else_would_keep_the_old_values():
    x = ag.tensor([1.0, 2.0, 4.0], requires_grad=True)
    y = x * 1
    kept = y
    with pytest.raises(RuntimeError, match=r"t = t - step.*no_grad"):
        y += 10
    with pytest.raises(RuntimeError, match="something else holds"):
        centred_in_place(kept)
    for viewed in (lambda: y[:2], lambda: y.reshape(3, 1), lambda: y.T, lambda: x[:2]):
        view = viewed()  # which nothing else holds
        with pytest.raises(RuntimeError, match="a view of"):
            view += 10
    both = [y * 1]
    for h in both:
        with pytest.raises(RuntimeError):
            h *= 2
    assert y.data.tolist() == [1.0, 2.0, 4.0]


class Holder:
    pass


total_of_the_module = None


def test_in_place_goes_on_where_one_name_holds_the_tensor():
    global total_of_the_module
    x = ag.tensor([1.0, 2.0, 4.0], requires_grad=True)
    holder, items, total = Holder(), [x * 1], 0
    holder.h, total_of_the_module = x * 1, x * 1
    holder.h += 1
    items[0] *= 2
    total_of_the_module -= 1
    for row in x:
        total += row * row
    assert (holder.h.data.tolist(), items[0].data.tolist(), total.item()) == ([2, 3, 5], [2, 4, 8], 21)
    assert total_of_the_module.data.tolist() == [0, 1, 3]
    result = centred_in_place(x * 3)
    assert result.data.sum() == 0

    def closure():
        nonlocal total
        total /= 2
        return total.item()

    assert closure() == 10.5
    h = x * 2
    g = h * h  # holds the node and what it saved, not the tensor
    h += 1
    assert (h.data.tolist(), g.data.tolist()) == ([3, 5, 9], [4, 16, 64])
    with ag.no_grad():
        w = x.detach().copy()
        kept = w
        w -= 1
    assert kept.data.tolist() == [0, 1, 3]


def in_a_loop(x):
    for i in range(3):
        x = x * 1
        x += i


def after_an_error(x):
    h = x * 1
    try:
        raise ValueError
    except ValueError:
        h += 1
    finally:
        h -= 1


def by_what_holds_it_for_a_moment(x):
    h = x * 1
    h += 1 if h.ndim else 2
    h *= h.sum()
    h -= next(iter([h * i for i in range(2)]))


def as_an_argument(x):
    centred_in_place(x * 1)


def in_a_generator(x):
    def halves():
        h = x * 1
        yield 1
        h /= 2
        yield h

    list(halves())


@pytest.mark.parametrize(
    "change", [in_a_loop, after_an_error, by_what_holds_it_for_a_moment, as_an_argument, in_a_generator]
)
def test_in_place_goes_on_wherever_the_name_is_loaded(change):
    for _ in range(3):  # the interpreter specializes what it runs again
        change(ag.tensor([1.0, 2.0, 4.0], requires_grad=True) * 1)


def with_another_name(x):
    h = x * 1
    g = h
    h += 1
    return g


def in_a_list_too(x):
    h = x * 1
    kept = [h]
    h += 1
    return kept


def shared_by_a_closure(x):
    h = x * 1
    g = h
    h += 1
    return lambda: (g, h)


def of_the_caller(x):
    h = x * 1
    centred_in_place(h)
    return h


def of_the_caller_by_name(x):
    h = x * 1
    centred_in_place(h=h)
    return h


def seen_through_a_view(x):
    h = x * 1
    top = h[:2]
    h += 1
    return top


def seen_through_a_view_of_a_view(x):
    h = x * 1
    top = h.reshape(1, 3).T[:2]
    h += 1
    return top


def a_constant_seen_through_a_view(x):
    h = ag.tensor([1.0, 2.0])
    top = h[:1]
    h += x[0]
    return top


def test_in_place_goes_on_where_the_views_are_gone():
    h = ag.tensor([1.0, 2.0, 4.0], requires_grad=True) * 1
    total = h[0] * 2 + h.reshape(3, 1).sum()
    for row in h:
        total = total + row
    del row
    h += 1
    assert (h.data.tolist(), total.item()) == ([2, 3, 5], 16)


@pytest.mark.parametrize(
    "change",
    [
        seen_through_a_view,
        seen_through_a_view_of_a_view,
        a_constant_seen_through_a_view,
        with_another_name,
        in_a_list_too,
        shared_by_a_closure,
        of_the_caller,
        of_the_caller_by_name,
    ],
)
def test_in_place_is_refused_wherever_somebody_else_holds_the_tensor(change):
    for _ in range(3):
        with pytest.raises(RuntimeError, match="something else holds this one"):
            change(ag.tensor([1.0, 2.0, 4.0], requires_grad=True) * 1)


def test_elements_cannot_be_set_and_the_ways_out_are_named():
    for x in (ag.tensor([1.0, 2.0]), ag.tensor([1.0, 2.0], requires_grad=True) * 1):
        with pytest.raises(TypeError, match=r"np\.where.*stack"):
            x[0] = 5.0


# --- Memory ----------------------------------------------------------------------------------------------------


def test_an_overwrite_is_seen_through_all_that_share_memory():
    array = np.array([1.0, 2.0])
    for other in (lambda t: ag.as_tensor(array), lambda t: ag.as_tensor(t.data), lambda t: ag.as_tensor(array[::-1])):
        x = ag.as_tensor(array, requires_grad=True)
        w = ag.tensor(3.0, requires_grad=True)
        y = (x * w).sum()
        other(x).assign([7.0, 8.0])
        with pytest.raises(RuntimeError, match="overwritten"):
            y.backward()
        (x * w).sum().backward()
        assert w.grad == 15.0
    x, apart = ag.tensor([1.0, 2.0], requires_grad=True), ag.tensor([1.0, 2.0])
    y = (x * x).sum()
    apart.assign([5.0, 5.0])
    y.backward()


def test_a_primitive_may_return_its_own_input():
    @ag.primitive(lambda g: g)
    def same(x, /):
        return x

    @ag.primitive(lambda g: g, lambda g: g)
    def second(a, b, /):
        return b[::-1]

    x, w = ag.tensor([1.0, 2.0], requires_grad=True), ag.tensor([3.0, 3.0], requires_grad=True)
    y, z = same(x), second(x, w)
    assert not y.data.flags.writeable
    assert x.data.flags.writeable
    loss = (y * y + z * z).sum()
    x.assign([7.0, 8.0])
    w.assign([0.0, 0.0])
    loss.backward()  # of what the forward pass computed
    assert (x.grad.tolist(), w.grad.tolist(), y.data.tolist()) == ([8.0, 10.0], [6.0, 6.0], [1.0, 2.0])


def test_reading_data_locks_nothing():
    x = ag.tensor([1.0, 2.0], requires_grad=True)
    y = ag.reshape(x, (2, 1))
    for _ in range(2):
        assert not y.data.flags.writeable
        assert not (x * 2).data.flags.writeable
    x.data[0] = 5.0
    assert y.data[0, 0] == 5.0


def test_leaves_can_be_pickled_and_are_fresh():
    x = ag.tensor([1.0, 2.0], requires_grad=True, name="x")
    (x * x).sum().backward()
    for _ in range(5):
        x.assign(x.data)
    other = pickle.loads(pickle.dumps(x))
    assert (other.name, other.data.tolist(), other.grad.tolist(), other.requires_grad) == ("x", [1, 2], [2, 4], True)
    y = (other * other).sum()
    y.backward()
    y = (other * other).sum()
    other.assign([0.0, 0.0])
    with pytest.raises(RuntimeError, match="overwritten"):
        y.backward()
    with pytest.raises(TypeError, match=r"detach\(\)"):
        pickle.dumps(x * 2)


def test_a_pickle_of_another_process_is_not_overwritten():
    code = "import pickle, sys, autograd_bn as ag; x = ag.tensor([1.0], requires_grad=True)\n"
    code += "for _ in range(9): x.assign([2.0])\n"
    code += "sys.stdout.buffer.write(pickle.dumps(x))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    x = pickle.loads(done.stdout)
    (x * x).sum().backward()
    assert x.grad.tolist() == [4.0]


def test_a_deep_graph_can_be_copied_with_what_is_known_of_it():
    x = ag.tensor([1.0, 2.0], requires_grad=True)
    y = x
    for _ in range(5000):
        y = y * 1.0
    other = copy.deepcopy((x, y))
    other[1].sum().backward()
    assert (x.grad, other[0].grad.tolist()) == (None, [1.0, 1.0])
    assert other[1].node.primitive is y.node.primitive
    square = (x * x).sum()
    x.assign([5.0, 5.0])
    with pytest.raises(RuntimeError, match="overwritten"):
        copy.deepcopy(square).backward()


# --- Words -----------------------------------------------------------------------------------------------------


def test_words_of_pytorch_work_or_name_ours():
    x = ag.tensor([[1.0, -4.0]], requires_grad=True)
    assert x.relu().pow(2).data.tolist() == [[1.0, 0.0]]
    assert x.abs().sqrt().tolist() == [[1.0, 2.0]]
    assert np.array_equal(x.tanh().data, np.tanh(x.data))
    assert (x.flatten().shape, x.argmax(), x.view(-1).shape, x.all()) == ((2,), 0, (2,), True)
    for name, ours in (("unsqueeze", "expand_dims"), ("numel", r"t\.size"), ("to", "astype"), ("permute", "transpose")):
        with pytest.raises(AttributeError, match=f"tensors have no {name!r}: write .*{ours}"):
            getattr(x, name)
    with pytest.raises(AttributeError, match=r"tensors have no 'nonsense'$"):
        x.nonsense  # noqa: B018
    for call in (lambda: ag.sum(x, dim=0), lambda: x.mean(dim=0), lambda: ag.softmax(x, dim=1)):
        with pytest.raises(TypeError, match="no dim=: it is called axis="):
            call()
    with pytest.raises(TypeError, match=r"ag\.tensor\(data"):
        ag.Tensor([1.0])
    for name, ours in (("zeros", "NumPy"), ("cat", "concatenate"), ("from_numpy", "as_tensor"), ("tile", r"np\.tile")):
        with pytest.raises(AttributeError, match=f"has no attribute {name!r}: write .*{ours}"):
            getattr(ag, name)


def test_the_grad_of_a_computed_tensor_warns():
    x = ag.tensor([1.0], requires_grad=True)
    with pytest.warns(UserWarning, match=r"'multiply' is always None.*ag\.grad"):
        assert (x * 2).grad is None
    assert x.grad is None
    assert (x.detach() * 2).grad is None


def test_tab_lists_what_is_public():
    listed = dir(ag)
    assert {"tensor", "nn", "batch_norm", "render", "optim", "softmax"} <= set(listed)
    assert not {"import_module", "Any", "TYPE_CHECKING", "engine", "annotations"} & set(listed)
    assert all(name in dir(ag.tensor(1.0)) for name in ("sum", "relu", "clip", "backward"))


def test_a_tensor_is_compared_with_what_is_no_number_as_an_array_is():
    t = ag.tensor([1.0, 2.0], requires_grad=True)
    assert not (t == "train").any()
    assert (t != None).all()  # noqa: E711
