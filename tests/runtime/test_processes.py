"""One program on the devices of several processes: what one process alone would do, and a clear end where it cannot."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

import jdl
from jdl.cli import main as cli
from jdl.runtime import cores, launch
from jdl.training import runs
from jdl.training.checkpoint import shards

SPREAD = Path(__file__).parents[1] / "helpers" / "small_experiments" / "spread.py"
KILLABLE = SPREAD.with_name("killable.py")
PATIENCE = 120  # seconds that a command may take


def start(*arguments):
    return subprocess.Popen(
        [sys.executable, "-m", "jdl", *map(str, arguments)],
        env=os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "", "JAX_NUM_CPU_DEVICES": "1"},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def finish(process, status=0):
    output, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == status, output
    return output


def jdl_(*arguments, status=0):
    return finish(start(*arguments), status)


def launched(count, *arguments, **options):
    return jdl_("launch", "--processes", count, *arguments, **options)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    path = tmp_path_factory.mktemp("alone") / "run"
    jdl_("run", SPREAD, "--devices", "single", "--run-dir", path)
    return runs.Run(path)


def assert_same_training(path, other):
    run = runs.Run(path)
    assert [row["step"] for row in run.rows] == [row["step"] for row in other.rows]  # one log, each row once
    for name, series in other.metrics.items():
        np.testing.assert_allclose(run.metrics[name].values, series.values, rtol=1e-5)
    np.testing.assert_allclose(run.final["loss"], other.final["loss"], rtol=1e-5)
    one, two = run.load_arrays("parameters"), other.load_arrays("parameters")
    assert one is not None
    assert two is not None
    np.testing.assert_allclose(one["kernel"], two["kernel"], rtol=1e-4, atol=1e-6)
    return run


@pytest.mark.slow
def test_two_processes_train_as_one(tmp_path, alone):
    path = tmp_path / "run"
    output = launched(2, "--devices-each", 2, "run", SPREAD, "--devices", "fsdp", "--run-dir", path, "--json")
    run = assert_same_training(path, alone)
    assert json.loads(output.splitlines()[-1])["run"] == str(path)
    assert "'data': 4" in (path / "where.txt").read_text()
    assert run.environment["devices"] == {"backend": "cpu", "kind": "cpu", "count": 4, "processes": 2}
    written = {file.name for file in (run.checkpoint_folder / "00000040").iterdir()}
    assert {"shards-00000.npz", "shards-00001.npz", "manifest.json"} <= written
    sizes = [(run.checkpoint_folder / f"00000040/shards-0000{process}.npz").stat().st_size for process in (0, 1)]
    assert abs(sizes[0] - sizes[1]) < 0.2 * sizes[0]  # each process writes its part
    (path / "result.json").unlink()
    (run.checkpoint_folder / "00000040" / "shards-00001.npz").write_bytes(b"damaged")
    jdl_("resume", path, "--devices", "single")  # from step 30, on one device
    assert_same_training(path, alone)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("count", "each", "arguments"),
    [
        (4, 1, ["--devices", "data"]),
        (2, 1, ["--devices", "pmap"]),
        (2, 2, ["--devices", "fsdp+tensor", "--mesh", "2x2"]),
        (2, 1, ["--devices", "auto"]),
        (2, 1, ["--devices", "data", "--source", "batches"]),
    ],
    ids=lambda value: "-".join(value[1::2]) if isinstance(value, list) else str(value),
)
def test_processes_train_as_one_in_every_mode(count, each, arguments, tmp_path, alone):
    batches = "batches" in arguments
    if batches:
        jdl_("run", SPREAD, "--devices", "single", "--source", "batches", "--run-dir", tmp_path / "alone")
    launched(count, "--devices-each", each, "run", SPREAD, *arguments, "--run-dir", tmp_path / "run")
    assert_same_training(tmp_path / "run", runs.Run(tmp_path / "alone") if batches else alone)


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 4])
def test_each_process_reads_its_part_of_the_data_once_an_epoch(count, tmp_path):
    options = ["--source", "pipeline", "--steps", 4]
    jdl_("run", SPREAD, "--devices", "single", *options, "--run-dir", tmp_path / "alone")
    launched(count, "run", SPREAD, *options, "--notes", tmp_path, "--run-dir", tmp_path / "run")
    assert_same_training(tmp_path / "run", runs.Run(tmp_path / "alone"))
    read = [[int(line) for line in (tmp_path / f"{k}.txt").read_text().split()] for k in range(count)]
    trained = [indices[1:] for indices in read]  # the first is looked at for its shape
    share = 32 // count
    for epoch in range(2):  # of two batches
        parts = [indices[2 * epoch * share : 2 * (epoch + 1) * share] for indices in trained]
        assert sorted(index for part in parts for index in part) == list(range(64))


@pytest.mark.slow
def test_seeds_over_processes_keep_their_bits(tmp_path):
    jdl_("run", KILLABLE, "--seeds", 3, "--steps", 100, "--pause", 0, "--run-dir", tmp_path / "alone")
    launched(2, "run", KILLABLE, "--seeds", 3, "--steps", 100, "--pause", 0, "--run-dir", tmp_path / "run")
    one, two = runs.Run(tmp_path / "alone"), runs.Run(tmp_path / "run")
    assert runs.differences(one.rows, two.rows) == []
    assert one.final == two.final


def wait_for(condition):
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def worker(launch, index):
    """The process id of one of the processes that a launch has started."""
    for entry in Path(f"/proc/{launch.pid}/task/{launch.pid}/children").read_text().split():
        words = Path(f"/proc/{entry}/cmdline").read_text().split("\0")
        if words[words.index("--index") + 1] == str(index):
            return int(entry)
    raise LookupError(index)


@pytest.mark.slow
@pytest.mark.parametrize(("count", "lost"), [(2, 1), (2, 0), (4, 2)])
def test_when_one_is_killed_all_stop_and_the_run_goes_on(count, lost, tmp_path):
    launched(count, "run", SPREAD, "--run-dir", tmp_path / "whole")
    path = tmp_path / "run"
    command = ["launch", "--processes", count, "run", SPREAD, "--pause", 0.1, "--run-dir", path]
    process = start(*command)
    wait_for((path / "checkpoints" / "00000020").is_dir)
    os.kill(worker(process, lost), signal.SIGKILL)
    killed = time.monotonic()
    output = finish(process, status=128 + signal.SIGKILL)
    assert time.monotonic() - killed < 30
    assert f"process {lost} of {count} ended by signal 9; all have stopped" in output
    if lost:
        assert "another process, or the way to it, was lost" in output
    finish(start(*command))
    one, two = runs.Run(tmp_path / "whole"), runs.Run(path)
    assert runs.differences(one.rows, two.rows) == []
    assert one.final == two.final


@pytest.mark.slow
@pytest.mark.parametrize("whom", ["launch", 1])
def test_when_one_is_told_to_end_all_save_and_leave(whom, tmp_path):
    launched(2, "run", SPREAD, "--run-dir", tmp_path / "whole")
    path = tmp_path / "run"
    command = ["launch", "--processes", 2, "run", SPREAD, "--pause", 0.1, "--run-dir", path]
    process = start(*command)
    wait_for(lambda: (path / "metrics.jsonl").is_file() and len(runs.Run(path).rows) > 3)
    os.kill(process.pid if whom == "launch" else worker(process, whom), signal.SIGTERM)
    assert "is saved as of step" in finish(process, status=jdl.REQUEUE)
    finish(start(*command))
    assert runs.differences(runs.Run(tmp_path / "whole").rows, runs.Run(path).rows) == []


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.mark.slow
def test_processes_started_with_different_configs(tmp_path):
    address = f"127.0.0.1:{free_port()}"
    both = [
        start("launch", "--coordinator", address, "--processes", 2, "--index", index,
              "run", SPREAD, "--rate", 0.1 * (index + 1), "--run-dir", tmp_path / "run")
        for index in (0, 1)
    ]  # fmt: skip
    for process in both:
        output = finish(process, status=2)
        assert "process 1 was started with another config than process 0: rate 0.2, not 0.1" in output
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_processes_that_do_not_meet():
    here = ["launch", "--coordinator", f"127.0.0.1:{free_port()}", "--processes", 2, "--patience", 2]
    started = time.monotonic()
    output = jdl_(*here, "--index", 1, "run", SPREAD, status=2)
    assert "nobody listens at 127.0.0.1" in output
    output = jdl_(*here, "--index", 0, "run", SPREAD, status=2)
    assert "process 0 of 2 did not meet the others at 127.0.0.1" in output
    assert time.monotonic() - started < 60
    output = jdl_("launch", "run", SPREAD, status=2)
    assert "Give --coordinator HOST:PORT, --processes N and --index I, or --cluster" in output


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--processes", 3, "run", SPREAD], r"batch of shape (32, 64) does not divide over 3 devices"),
        (["--processes", 2, "run", SPREAD, "--mesh", 1], "mesh 1 has no device of process 1: of 2 processes"),
        (["--processes", 2, "run", SPREAD, "--mesh", 4], "mesh 4 needs 4 devices, and there are 2"),
    ],
)
def test_meshes_that_processes_do_not_make(arguments, message, tmp_path):
    assert message in jdl_("launch", *arguments, "--run-dir", tmp_path / "run", status=2)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["launch", "--processes", 0, "run", "xor"], "--processes 0: at least 1"),
        (["launch", "--processes", 2, "--devices-each", 0, "run", "xor"], "--devices-each 0: at least 1"),
        (["launch", "--processes", 2], "launch takes a command"),
        (["launch", "--coordinator", "here", "--processes", 2, "--index", 1, "run", "xor"], "give HOST:PORT"),
        (["launch", "--coordinator", "h:1", "--processes", 2, "--index", 2, "run", "xor"], "numbered from 0 to 1"),
    ],
)
def test_launches_that_cannot_be(arguments, message, capsys, monkeypatch):
    monkeypatch.setattr(cores, "_share", [])
    with pytest.raises(SystemExit) as ended:
        cli.main(list(map(str, arguments)))
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def test_arrays_are_read_back_from_parts(tmp_path):
    random = np.random.default_rng(0)
    arrays = {
        "matrix": random.normal(size=(6, 4)).astype(np.float32),
        "half": jnp.asarray(random.normal(size=5), jnp.bfloat16),
        "number": np.int32(3),
        "none": np.zeros((0, 2)),
    }
    blocks = [((0, 0), (4, 3)), ((4, 0), (6, 3)), ((0, 3), (6, 4))]
    for process, (start, stop) in enumerate(blocks):
        parts = shards.held(arrays) if process == 0 else {name: [] for name in arrays}
        block = arrays["matrix"][start[0] : stop[0], start[1] : stop[1]]
        shards.write(tmp_path, process, arrays, {**parts, "matrix": [(list(start), block)]})
    read = shards.read(tmp_path)
    for name, array in arrays.items():
        assert (read[name].shape, read[name].dtype) == (np.shape(array), np.asarray(array).dtype)
        np.testing.assert_array_equal(np.asarray(read[name]), np.asarray(array))
    for index in ((slice(1, 5), slice(2, 4)), (slice(None), slice(0, 1)), (slice(4, 6), slice(3, None))):
        np.testing.assert_array_equal(read["matrix"][index], arrays["matrix"][index])


@pytest.mark.parametrize(
    ("count", "visible", "each"),
    [(2, "0,1,2,3", ["0,1", "2,3"]), (2, "5,7", ["5", "7"]), (1, "0", ["0"]), (3, "", [None] * 3)],
)
def test_processes_of_one_machine_share_its_gpus(count, visible, each):
    gpus = launch._gpus({"JAX_PLATFORMS": "cuda", "CUDA_VISIBLE_DEVICES": visible})
    assert [share.get("CUDA_VISIBLE_DEVICES") for share in launch._shares_of_gpus(count, gpus)] == each
    assert launch._gpus({"JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": visible}) == []


def test_more_processes_than_gpus():
    with pytest.raises(ValueError, match=r"--processes 4: they do not divide the 2 GPU\(s\) of this machine \(0, 1\)"):
        launch._shares_of_gpus(4, ["0", "1"])


def test_what_a_signal_ended_is_the_cause_of_what_failed_beside_it(tmp_path, capsys):
    failing = subprocess.Popen([sys.executable, "-c", "raise SystemExit(1)"])
    killed = subprocess.Popen([sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"])
    failing.wait()
    killed.wait()
    outputs = [tmp_path / "0.txt", tmp_path / "1.txt"]
    for file in outputs:
        file.write_text("last words\n")
    assert launch._watch([failing, killed], outputs) == 128 + signal.SIGKILL
    assert "process 1 of 2 ended by signal 9: last words" in capsys.readouterr().err
