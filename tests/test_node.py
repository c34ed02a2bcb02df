"""Nodes, their order, and `no_grad`."""

import asyncio
import threading

import numpy as np
import pytest

import autograd_bn as ag
from autograd_bn.engine.node import mode, no_update, topological_order


def test_inputs_come_before_their_consumers_in_recorded_order():
    x = ag.tensor([1.0], requires_grad=True, name="x")
    a = x * 2
    b = ag.exp(a)
    c = a + b
    order = topological_order([c.node, b.node])
    assert [node.op or node.name for node in order] == ["x", "multiply", "exp", "add"]


def test_a_constant_is_an_argument_but_no_input():
    x = ag.tensor([1.0, 2.0], requires_grad=True)
    node = (3 - x).node
    assert (node.op, node.args[0], node.inputs) == ("subtract", 3, (x.node,))
    assert "subtract" in repr(node)


def test_a_tensor_without_gradient_is_recorded_and_keeps_nothing():
    x = ag.tensor([1.0, 2.0])
    y = x * x
    assert (y.requires_grad, y.node.wanted, y.node.saved, y.node.op) == (False, (), (), "multiply")


def test_become_rewires_the_consumers():
    x = ag.tensor([1.0, 2.0], requires_grad=True)
    y = x * x
    z = y.sum()
    y.node.name = "y"
    y.node.take_over(ag.square(x).node)
    assert ag.Graph(z).ops == {"square": 1, "sum": 1}
    assert y.name == "y"
    assert np.array_equal(ag.grad(z, x)[0], 2 * x.data)


def test_no_grad_records_nothing_and_is_restored_after_an_exception():
    x = ag.tensor([1.0], requires_grad=True)

    def fail():
        with ag.no_grad(), ag.no_grad():
            assert not (x * 2).requires_grad
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert (x * 2).requires_grad
    with ag.no_grad():
        y = x * 2
        assert y.node.op is None
        assert np.array_equal(y.data, [2.0])
        with ag.no_grad():
            pass
        assert not (x * 2).requires_grad


def test_no_grad_as_a_decorator():
    x = ag.tensor([1.0], requires_grad=True)

    @ag.no_grad()
    def f():
        return x * 2

    assert not f().requires_grad
    assert not f().requires_grad
    assert (x * 2).requires_grad


def test_no_grad_is_of_one_thread():
    x = ag.tensor([1.0], requires_grad=True)
    inside, looked, seen = threading.Event(), threading.Event(), []

    def other():
        inside.wait(10)
        seen.append((x * 2).requires_grad)
        looked.set()

    thread = threading.Thread(target=other)
    thread.start()
    with ag.no_grad():
        inside.set()
        looked.wait(10)
    thread.join()
    assert seen == [True]


def test_recording_left_off_in_a_thread_that_ended_is_of_that_thread_alone():
    def leave_open():
        next(suspended())

    def suspended():
        with ag.no_grad():
            yield

    for _ in range(20):  # so that a number of a thread comes again
        thread = threading.Thread(target=leave_open)
        thread.start()
        thread.join()
        found = []
        other = threading.Thread(
            target=lambda out=found: out.append((ag.tensor(1.0, requires_grad=True) * 2).requires_grad)
        )
        other.start()
        other.join()
        assert found == [True]


def test_a_block_without_updates_may_stand_in_another():
    with no_update():
        with no_update():
            pass
        assert not mode.updating.get()
    assert mode.updating.get()


def test_become_takes_over_the_time_at_which_it_read():
    w = ag.tensor([1.0, 2.0], requires_grad=True, name="w")
    y, other = w * 3, ag.square(w)
    y.node.take_over(other.node)
    w.assign([5.0, 6.0])
    with pytest.raises(RuntimeError, match="overwritten"):
        y.sum().backward()


def test_no_grad_refuses_what_runs_after_the_call():
    def numbers():
        yield 1

    async def later():
        return 1

    async def stream():
        yield 1

    for function in (numbers, later, stream):
        with pytest.raises(TypeError, match=f"{function.__name__} is a generator or a coroutine"):
            ag.no_grad()(function)


def test_one_no_grad_may_be_entered_again():
    off, x = ag.no_grad(), ag.tensor([1.0], requires_grad=True)
    with off:
        with off:
            pass
        assert not (x * 2).requires_grad
    assert (x * 2).requires_grad

    @off
    def countdown(n):
        return countdown(n - 1) if n else (x * 2).requires_grad

    assert countdown(3) is False
    assert (x * 2).requires_grad


def test_no_grad_around_an_await_leaves_other_tasks_alone():
    x = ag.tensor([1.0, 2.0], requires_grad=True)

    async def quiet(entered, go_on):
        with ag.no_grad():
            entered.set()
            await go_on.wait()
            return (x * 2).requires_grad

    async def loud(entered, go_on):
        await entered.wait()
        y = x * 3
        go_on.set()
        return y.requires_grad

    async def both():
        events = asyncio.Event(), asyncio.Event()
        return await asyncio.gather(quiet(*events), loud(*events))

    assert asyncio.run(both()) == [False, True]
    assert (x * 1).requires_grad
