"""A process, and a thread of it, on a core of their own."""

import os
import subprocess
import sys

import pytest

from jdl.runtime import cores

if not hasattr(os, "sched_setaffinity"):
    pytest.skip("no thread can be bound to a core here", allow_module_level=True)

TWO = """
import os, threading
import jdl
from jdl.runtime.cores import another_core, leave_core

assert jdl.one_core() and jdl.one_core()
found = []
thread = threading.Thread(target=lambda: found.append((another_core(), os.sched_getaffinity(0))))
thread.start(), thread.join()
(claim, cores), mine = found[0], os.sched_getaffinity(0)
assert len(mine) == 1 and (claim is None or not mine & cores), (mine, cores)
assert another_core() is None or len(os.sched_getaffinity(0)) == 1
print(len(mine), len(cores), claim is not None, leave_core())
"""


def test_a_process_and_its_thread_have_a_core_each(tmp_path):
    count = len(os.sched_getaffinity(0))
    environment = {**os.environ, "TMPDIR": str(tmp_path)}  # other tests claim cores, too
    said = subprocess.run([sys.executable, "-c", TWO], env=environment, capture_output=True, text=True)
    assert said.returncode == 0, said.stderr
    assert said.stdout.split() == ["1", "1", str(count > 1), str(count)]


@pytest.mark.medium
def test_the_one_that_finds_no_core_left_goes_where_it_may(tmp_path):
    count = len(os.sched_getaffinity(0))
    hold = "import jdl, sys; print(jdl.one_core(), flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", hold]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen(command, env=environment, **pipes) for _ in range(count + 1)]
    claimed = [process.stdout.readline().strip() for process in processes]
    for process in processes:
        process.communicate("")
    assert sorted(claimed) == ["False", *["True"] * count]


def test_devices_may_wait_for_each_other_and_the_users_own_flags_stay(monkeypatch):
    name = "--xla_cpu_collective_call_terminate_timeout_seconds"
    monkeypatch.setenv("XLA_FLAGS", f"--xla_dump_to=here {name}=50")
    cores._let_devices_wait()
    once = os.environ["XLA_FLAGS"].split()
    assert once[:2] == ["--xla_dump_to=here", f"{name}=50"]
    assert once[2:] == ["--xla_cpu_collective_call_warn_stuck_timeout_seconds=3600"]
    cores._let_devices_wait()
    assert os.environ["XLA_FLAGS"].split() == once
    monkeypatch.delenv("XLA_FLAGS")
    cores._let_devices_wait()
    assert f"{name}=604800" in os.environ["XLA_FLAGS"]
