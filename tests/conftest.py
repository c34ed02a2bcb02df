"""Settings of the whole test suite."""

import os

# Before anything loads them: the threads of PyTorch and OpenBLAS cost tests of this size far more than they bring.
for _threads in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(_threads, "1")

import pytest  # noqa: E402
from hypothesis import settings  # noqa: E402

collect_ignore = ["bench"]  # it imports what only the benchmarks need

settings.register_profile("default", deadline=None, print_blob=True)
settings.load_profile("default")


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector):
    """Where nothing may be skipped, a module that can't be collected for want of a package fails."""
    return _no_skips((yield))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """Where nothing may be skipped, a skipped test fails."""
    return _no_skips((yield))


def _no_skips(report):
    if os.environ.get("AUTOGRAD_BN_NO_SKIPS") and report.skipped and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"skipped, where nothing may be: {report.longrepr[2]}"
    return report


@pytest.fixture
def no_search(monkeypatch):
    """Let the referee look for no repair, so that its other explanations are heard."""
    monkeypatch.setattr("autograd_bn.verify.referee.repair.WORK", 0)
