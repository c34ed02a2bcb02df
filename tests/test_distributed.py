import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("mpi4py")
MPIEXEC = Path(sys.executable).parent / "mpiexec"  # where pip puts that of the mpich wheel
ROOT = Path(__file__).parent.parent
SCRIPT = Path(__file__).with_name("ranks.py")


def mpiexec(size, *command, timeout=60):
    return subprocess.run(
        [MPIEXEC, "-n", str(size), sys.executable, "-W", "error", *map(str, command)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=timeout,
    )


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_every_rank_gets_what_one_process_gets_on_the_whole_batch(size):
    done = mpiexec(size, "-m", "mpi4py", SCRIPT, "batch_norm")
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{size} checked\n"
