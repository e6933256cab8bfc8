"""What goes wrong in a pipeline: every error names the example or the argument, and no worker outlives its process."""

import importlib.util
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from examples import Numbers, ended, take, targets

import jdl
from jdl.data.pipeline import pipeline

pytest.importorskip("grain", reason="pipelines need the extra jdl[grain]")


def picky(example):
    if example["target"] == 13:
        raise KeyError("thirteen")
    return example


def ragged(example):
    return {**example, "input": np.zeros(int(example["target"]) // 10)}


class Damaged(Numbers):
    def __getitem__(self, index):
        if index == 13:
            raise OSError("unreadable")
        return super().__getitem__(index)


@pytest.mark.parametrize(
    ("data", "map", "message"),
    [
        (
            Numbers(23),
            picky,
            r"example 13 \(number 13\) could not be mapped: KeyError: 'thirteen' \(in picky, test_pip",
        ),
        (Damaged(23), None, r"example 13 \(number 13\) could not be read: OSError: unreadable"),
        (
            Numbers(23),
            ragged,
            r"example 10 \(number 10\) is .*float64\[1\].* and example 8 \(number 8\) is .*float64\[0\].* alike in map",
        ),
    ],
)
def test_an_example_that_fails_is_named_and_keeps_its_place(data, map, message):
    source = pipeline(data, 4, shuffle=False, map=map)
    with pytest.raises(ValueError, match=message):
        take(source, 20)
    place = source.save()["position"]
    with pytest.raises(ValueError, match=message):  # again: none was passed over
        source.next()
    assert source.save()["position"] == place
    ended(source)


def test_errors_in_workers_are_named_also_from_modules_that_workers_cannot_import(tmp_path):
    (tmp_path / "elsewhere.py").write_text(
        "class Odd(Exception):\n"
        "    def __init__(self, one, two):\n"
        "        super().__init__(one)\n"
        "def fails(example):\n"
        "    if example['target'] == 13:\n"
        "        raise Odd('one', 'two')\n"
        "    return example\n"
    )
    spec = importlib.util.spec_from_file_location("elsewhere_1234", tmp_path / "elsewhere.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    source = pipeline(Numbers(23), 4, shuffle=False, map=module.fails, workers=1)
    assert targets(take(source, 3)) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]
    where = r"(elsewhere.py|<dynamic-code>) line 6"  # cloudpickle from 3.1.3 sends no name of the file
    with pytest.raises(ValueError, match=rf"example 13 .*could not be mapped: Odd: one \(in fails, {where}"):
        source.next()
    ended(source)


def test_what_cannot_be_sent_to_workers_is_named():
    lock = threading.Lock()
    with pytest.raises(ValueError, match=r"pipeline\(workers=2\): map cannot be sent .*lock.*or use workers=0"):
        pipeline(Numbers(8), 2, map=lambda example: (lock, example)[1], workers=2)


@pytest.mark.parametrize(
    ("batch_size", "options", "message"),
    [
        (9, {}, r"batch_size=9\): the data has 8 examples; use 1 to 8"),
        (0, {}, r"batch_size=0\)"),
        (3, {"shard": (0, 2)}, r"batch_size=3\) does not divide over 2 processes"),
        (2, {"shard": (2, 2)}, r"shard=\(2, 2\)\): give \(index, count\)"),
        (6, {"shard": (0, 2), "drop_remainder": False}, r"last batch of an epoch has 2 of 8 examples, and 2 processes"),
        (2, {"seed": -1}, r"seed=-1\): it is at least 0"),
        (2, {"workers": -1}, r"workers=-1\): it is at least 0"),
        (2, {"threads": 0}, r"threads=0\): it is at least 1"),
        (2, {"prefetch": -1}, r"prefetch=-1\): it is at least 0"),
        (2, {"map": lambda example: {"input": "words"}}, r"the first example\['input'\] has dtype <U5"),
    ],
)
def test_arguments_that_are_refused(batch_size, options, message):
    with pytest.raises(ValueError, match=message):
        pipeline(Numbers(8), batch_size, **options)


def test_arrays_in_memory_are_for_batches():
    with pytest.raises(ValueError, match=r"for arrays in memory use Batches"):
        pipeline({"input": np.zeros((8, 3))}, 2)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_workers_end_with_their_process(number, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import time, multiprocessing, signal\n"
        "from examples import Numbers\n"
        "from jdl.data.pipeline import pipeline\n"
        "if __name__ == '__main__':\n"
        "    signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a shell's background job ignores it
        "    source = pipeline(Numbers(23), 4, workers=2)\n"
        "    source.next()\n"
        "    print(*(child.pid for child in multiprocessing.active_children()), flush=True)\n"
        "    time.sleep(100)\n"
    )
    paths = [str(Path(__file__).parents[1] / "helpers"), str(Path(jdl.__file__).parent.parent)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    process = subprocess.Popen(
        [sys.executable, script], env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    workers = [int(pid) for pid in process.stdout.readline().split()]
    assert len(workers) == 2
    process.send_signal(number)
    process.communicate(timeout=60)
    deadline = time.monotonic() + 60
    while any(_lives(pid) for pid in workers):
        assert time.monotonic() < deadline, "workers outlive their process"
        time.sleep(0.01)


def _lives(pid):
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z"


def test_a_worker_that_dies_is_an_error():
    source = pipeline(Numbers(8), 2, map=deadly, workers=1)
    with pytest.raises(RuntimeError, match=r"worker process of the pipeline ended with exit code -9: .*fewer workers"):
        take(source, 8)
    ended(source)


def deadly(example):
    if multiprocessing.parent_process() is not None:
        os.kill(os.getpid(), signal.SIGKILL)
    return example
