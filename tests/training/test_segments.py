"""Rings in checkpoints: only new rows are written, and what is restored is what was there."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdl.core import ring
from jdl.core.ring import Ring
from jdl.training.checkpoint.checkpoints import Checkpoints

LIKE = {"a": jax.ShapeDtypeStruct((2,), jnp.float32), "b": jax.ShapeDtypeStruct((), jnp.uint8)}


def with_more(kept, counts):
    """Each lane with so many more rows, numbered."""
    most = max(counts)
    numbers = kept.written[:, None] + jnp.arange(most)
    rows = {"a": jnp.stack([numbers, -numbers], -1).astype(jnp.float32), "b": (numbers % 251).astype(jnp.uint8)}
    wanted = jnp.where(jnp.arange(most) < jnp.array(counts)[:, None], numbers, -1)
    return ring.put(kept, rows, wanted).replace(written=kept.written + jnp.array(counts))


def saved_rows(folder):
    found = {}
    for file in sorted((folder / "segments").glob("*.npz")):
        with np.load(file) as held:
            found[file.name] = (held["start"].tolist(), held["stop"].tolist())
    return found


def test_only_what_is_new_is_written(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    kept = ring.empty(LIKE, 2, 10)
    tree = lambda: {"state": {"memory": kept, "other": jnp.arange(3)}, "best": {"memory": kept}}  # noqa: E731
    states = {}
    for step, counts in enumerate([(4, 3), (4, 4), (6, 7), (0, 1), (5, 5)], 1):
        kept = with_more(kept, counts)
        states[step] = kept
        checkpoints.save(step, tree(), same_rows={"best": "state"})
        checkpoints.wait()
        bounds = list(saved_rows(tmp_path).values())[-1]
        assert bounds == ((np.array(kept.written) - counts).tolist(), kept.written.tolist())
    # What two checkpoints need: the newest ten rows of each lane, as of step 4 and of step 5.
    assert [stop for _, stop in saved_rows(tmp_path).values()] == [[8, 7], [14, 14], [14, 15], [19, 20]]
    blank = {"state": {"memory": ring.empty(LIKE, 2, 10), "other": jnp.zeros(3, int)}}
    restored = Checkpoints(tmp_path).restore(blank, part=True)
    for one, other in zip(jax.tree.leaves(restored.tree["state"]["memory"]), jax.tree.leaves(kept), strict=True):
        np.testing.assert_array_equal(one, other)
    best = Checkpoints(tmp_path).restore({"best": {"memory": ring.empty(LIKE, 2, 10)}}, part=True)
    np.testing.assert_array_equal(best.tree["best"]["memory"].rows["a"], kept.rows["a"])
    checkpoints.close()


def test_a_damaged_segment_is_passed_over_and_written_again(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    first = with_more(ring.empty(LIKE, 2, 10), (4, 4))
    second = with_more(first, (3, 3))
    for step, kept in ((1, first), (2, second)):
        checkpoints.save(step, {"memory": kept})
    checkpoints.close()
    newest = sorted((tmp_path / "segments").glob("*.npz"))[-1]
    newest.write_bytes(b"not what it was")
    again = Checkpoints(tmp_path)
    with pytest.warns(
        UserWarning, match=rf"is damaged \(segments/{newest.name} is missing or differs\); using the one"
    ):
        restored = again.restore({"memory": ring.empty(LIKE, 2, 10)})
    assert restored.step == 1
    np.testing.assert_array_equal(restored.tree["memory"].rows["a"], first.rows["a"])
    again.save(2, {"memory": second})
    again.close()
    restored = Checkpoints(tmp_path).restore({"memory": ring.empty(LIKE, 2, 10)})
    assert restored.step == 2
    np.testing.assert_array_equal(restored.tree["memory"].rows["b"], second.rows["b"])


def test_a_log_without_capacity_grows(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    rows = np.arange(12).reshape(1, 6, 2)
    for step, count in ((1, 0), (2, 4), (3, 6)):
        checkpoints.save(step, {"log": Ring(rows[:, :count], np.array([count]))})
    checkpoints.close()
    assert list(saved_rows(tmp_path).values()) == [([0], [4]), ([4], [6])]
    restored = Checkpoints(tmp_path).restore({"log": Ring(rows[:, :0], np.array([0]))})
    np.testing.assert_array_equal(restored.tree["log"].rows, rows)
    assert restored.tree["log"].written == 6


def test_runs_and_lanes_on_several_devices(tmp_path):
    devices = jax.devices()[:2]
    if len(devices) < 2:
        pytest.skip("needs two devices")
    mesh = jax.sharding.Mesh(np.array(devices), ("runs",))
    over = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("runs"))
    one = with_more(ring.empty(LIKE, 2, 10), (4, 12))
    two = with_more(ring.empty(LIKE, 2, 10), (1, 7))
    both = jax.device_put(jax.tree.map(lambda *leaves: jnp.stack(leaves), one, two), over)
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, {"memory": both})
    checkpoints.close()
    restored = Checkpoints(tmp_path).restore({"memory": jax.tree.map(jnp.zeros_like, both)})
    for found, wanted in zip(jax.tree.leaves(restored.tree["memory"]), jax.tree.leaves(both), strict=True):
        np.testing.assert_array_equal(found, wanted)
