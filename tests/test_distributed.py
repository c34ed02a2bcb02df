import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import autograd_bn as ag
from autograd_bn.engine import primitive

pytest.importorskip("mpi4py")
# pip puts that of the mpich wheel beside Python.
MPIEXEC = shutil.which("mpiexec", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
ROOT = Path(__file__).parent.parent
SCRIPT = Path(__file__).with_name("ranks.py")
CHECKS = """
    batch_norm_equals_one_process
    running_statistics_equal_one_process
    batch_norm_of_each_rank_alone_differs
    statistics_have_the_same_bits_on_every_rank
    exact_rationals_are_summed_exactly
    many_fractions_are_summed_exactly
    float16_does_not_overflow
    an_empty_batch_is_empty_on_every_rank
    allreduce_is_its_own_derivative
    the_fused_form_has_one_exchange_each_way
    training_equals_one_process
    the_papers_net_trains_as_on_one_process
    gradients_are_averaged_by_count
    ranks_that_disagree_raise_the_same_error
""".split()


def mpiexec(size, *command, timeout=120):
    return subprocess.run(
        [MPIEXEC, "-n", str(size), sys.executable, "-W", "error", *map(str, command)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=timeout,
    )


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_on_ranks(size):
    """All the checks in one job; those that passed are in its output."""
    checks = CHECKS + ["two_thousand_allreduces_leak_nothing"] * (size == 2)
    done = mpiexec(size, "-m", "mpi4py", SCRIPT, *checks)
    assert (done.returncode, done.stdout.split()) == (0, checks), done.stderr


@pytest.mark.parametrize(
    ("fault", "command", "message"),
    [
        ("one_rank_raises", [], "planted"),
        ("one_rank_raises", ["-m", "mpi4py"], "planted"),
        ("one_rank_raises_before_it_says_anything", ["-m", "mpi4py"], "planted"),
        ("one_rank_raises_before_its_layer_is_called", [], "planted"),
        ("a_second_ctrl_c_on_one_rank_ends_the_job", [], "BAD TERMINATION"),
        ("one_rank_raises_before_it_says_anything", [], "planted"),
        ("one_rank_exits", [], "rank 1 left the job; rank "),
        ("one_rank_exits_before_it_says_anything", [], "rank 1 left the job; rank "),
        ("one_rank_exits_before_it_says_anything", ["-m", "mpi4py"], "rank 1 left the job; rank "),
        ("one_rank_fails_in_a_thread", [], "rank 1 failed in a thread by RuntimeError: planted; rank "),
        ("one_rank_fails_in_a_thread_before_it_says_anything", [], "ZeroDivisionError"),
        ("one_rank_is_killed", [], "signal 9"),
        ("one_rank_does_something_else", [], "the ranks disagree"),
    ],
)
def test_a_rank_that_fails_ends_the_job(fault, command, message):
    for _ in range(3):  # an aborted launcher may drop all output that it has not yet passed on
        done = mpiexec(2, *command, SCRIPT, fault, timeout=60)
        assert done.returncode != 0
        if said := done.stdout + done.stderr:
            break
    assert message in said


def test_a_rank_that_nobody_waits_for_may_leave():
    done = mpiexec(4, SCRIPT, "a_rank_of_another_group_may_leave", timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "went on\n" * 2, "")


def test_the_command_trains_on_ranks_and_the_first_one_reports(tmp_path):
    command = ["-m", "autograd_bn", "train", "--steps", "20", "--json", "-o", tmp_path / "plot.svg"]
    done = mpiexec(2, *command, "--mpi")
    assert done.returncode == 0, done.stderr
    alone = json.loads(subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, check=True).stdout)
    together = json.loads(done.stdout)  # one report, and nothing else
    assert done.stderr == ""
    for found, expected in zip(together["nets"], alone["nets"], strict=True):
        assert found["loss"] == pytest.approx(expected["loss"], rel=1e-4)


def test_a_usage_error_ends_every_rank():
    done = mpiexec(2, "-m", "autograd_bn", "train", "--mpi", "--steps", "0")
    assert done.returncode == 2
    assert set(done.stderr.splitlines()) == {"autograd-bn train: --steps is 0, expected a finite number of at least 1"}


def test_ctrl_c_on_one_rank_stops_all_after_the_same_step():
    done = mpiexec(3, SCRIPT, "ctrl_c_on_one_rank_stops_all_after_the_same_step")
    assert done.returncode == 0, done.stderr
    assert "stopped after step 4" in done.stderr


def test_one_process_never_imports_mpi4py():
    code = (
        "import sys, autograd_bn as ag, numpy as np; x = ag.tensor(np.eye(3), requires_grad=True); "
        "ag.batch_norm(x).sum().backward(); ag.distributed.allreduce; assert 'mpi4py' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, timeout=60)


@pytest.mark.parametrize("form", ["fused", "composed"])
def test_what_is_no_communicator_is_named(form):
    with pytest.raises(TypeError, match="comm is a int, expected an mpi4py communicator"):
        ag.batch_norm(np.ones((4, 3)), comm=4, form=form)
    with pytest.raises(TypeError, match="comm is a int, expected an mpi4py communicator"):
        ag.nn.BatchNorm(3, comm=4, form=form)


def test_the_order_of_the_backward_pass_follows_from_the_graph_alone():
    visited = []

    def rule(g, label):
        visited.append(label)
        return g

    @primitive(rule)
    def probe(x, /, label):
        return x * 1

    orders, kept = set(), []
    for _ in range(20):
        x = ag.tensor(1.0, requires_grad=True)
        outputs = [probe(probe(x, label=f"{i} below"), label=f"{i}") for i in range(8)]
        kept.append((x, outputs, [object() for _ in range(len(kept))]))  # other addresses the next time
        visited.clear()
        ag.grad(outputs, x, [1.0] * 8)
        orders.add(tuple(visited))
    assert len(orders) == 1
