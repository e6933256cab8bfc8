"""Checkpoints: atomic, verified, in the background; what is damaged is passed over, what does not fit is named."""

import errno
import json
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdl.training.checkpoint.checkpoints import Checkpoints


def tree(value=1.0):
    return {
        "params": {"kernel": jnp.full((3, 2), value), "half": jnp.full(4, value, jnp.bfloat16)},
        "key": jax.random.key(7),
        "keys": jax.random.split(jax.random.key(3), 2),
        "step": jnp.int32(5),
        "empty": jnp.zeros((0, 3)),
        "host": {"position": 12, "share": 0.1, "scalar": np.float32(3), "wide": np.arange(3, dtype=np.float64)},
    }


def bits(leaf):
    return np.asarray(
        jax.random.key_data(leaf)
        if hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        else leaf
    )


def saved(folder, steps=(1, 2, 3)):
    checkpoints = Checkpoints(folder)
    for step in steps:
        checkpoints.save(step, tree(float(step)), {"note": step})
    checkpoints.wait()
    return checkpoints


def test_what_is_saved_comes_back(tmp_path):
    checkpoints = saved(tmp_path)
    restored = checkpoints.restore(tree())
    assert restored.step == 3
    assert restored.notes == {"note": 3}
    for one, other in zip(jax.tree.leaves(restored.tree), jax.tree.leaves(tree(3.0)), strict=True):
        np.testing.assert_array_equal(bits(one), bits(other))
        assert bits(one).dtype == bits(other).dtype
    checkpoints.close()


def test_only_the_newest_are_kept(tmp_path):
    checkpoints = saved(tmp_path, range(1, 7))
    assert checkpoints.steps() == [4, 5, 6]
    checkpoints.close()


def test_saving_copies_what_the_next_step_may_overwrite(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    state = {"x": jnp.zeros(1000)}
    advance = jax.jit(lambda s: {"x": s["x"] + 1}, donate_argnums=0)
    for step in range(5):
        checkpoints.save(step, state)
        state = advance(state)
    checkpoints.close()
    for _ in checkpoints.steps():
        np.testing.assert_array_equal(Checkpoints(tmp_path).restore({"x": jnp.zeros(1000)}).tree["x"], 4.0)


def victims(folder):
    return [path for path in sorted((folder / "00000003").rglob("*")) if path.is_file() and path.stat().st_size]


@pytest.mark.parametrize("damage", ["truncate", "flip", "remove"])
def test_a_damaged_checkpoint_is_passed_over(tmp_path, damage):
    saved(tmp_path / "model").close()
    count = len(victims(tmp_path / "model"))
    assert count >= 4
    for index in range(count):
        folder = tmp_path / f"{damage}-{index}"
        saved(folder).close()
        victim = victims(folder)[min(index, len(victims(folder)) - 1)]
        data = bytearray(victim.read_bytes())
        if damage == "truncate":
            victim.write_bytes(data[: len(data) // 2])
        elif damage == "flip":
            data[len(data) // 2] ^= 4
            victim.write_bytes(data)
        else:
            victim.unlink()
        with pytest.warns(UserWarning, match=r"00000003 is damaged .*using the one before it"):
            restored = Checkpoints(folder).restore(tree())
        assert restored.step == 2
        np.testing.assert_array_equal(restored.tree["params"]["kernel"], 2.0)


def test_half_written_checkpoints_are_not_seen(tmp_path):
    saved(tmp_path, [1]).close()
    (tmp_path / "00000002.writing").mkdir()
    assert Checkpoints(tmp_path).restore(tree()).step == 1


def test_nothing_saved_is_none(tmp_path):
    assert Checkpoints(tmp_path / "nowhere").restore(tree()) is None


def test_a_checkpoint_from_another_config_lists_every_difference(tmp_path):
    saved(tmp_path, [1]).close()
    other = tree()
    other["params"] = {"kernel": jnp.zeros((4, 2)), "bias": jnp.zeros(2), "half": jnp.zeros(4, jnp.float32)}
    with pytest.raises(ValueError, match="made with another config") as caught:
        Checkpoints(tmp_path).restore(other)
    message = str(caught.value)
    assert "missing: params/bias" in message
    assert "params/kernel: saved float32[3, 2], wanted float32[4, 2]" in message
    assert "params/half: saved bfloat16[4], wanted float32[4]" in message


def test_a_full_disk_is_said_and_the_older_checkpoint_survives(tmp_path, monkeypatch):
    checkpoints = saved(tmp_path, [1])

    def full(folder, arrays):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("jdl.training.checkpoint.checkpoints._save_arrays", full)
    checkpoints.save(2, tree())
    with pytest.raises(OSError, match=r"could not be written .*No space left.*free space there .*then resume"):
        checkpoints.wait()
    assert checkpoints.restore(tree()).step == 1
    assert not list(tmp_path.glob("*.writing"))


def test_restoring_never_unpickles(tmp_path, monkeypatch):
    saved(tmp_path, [1]).close()

    def refuse(*args, **kwargs):
        raise AssertionError("unpickled")

    for name in ("load", "loads", "Unpickler"):
        monkeypatch.setattr(pickle, name, refuse)
    assert Checkpoints(tmp_path).restore(tree()).step == 1
    for path in tmp_path.rglob("*"):
        if path.is_file():
            assert b"\x80\x04\x95" not in path.read_bytes(), "a pickle's header"


def test_a_checkpoint_restores_onto_other_devices(tmp_path):
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:4]), ("d",))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("d"))
    spread = {"x": jax.device_put(jnp.arange(8.0), sharding)}
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, spread)
    single = checkpoints.restore({"x": jnp.zeros(8)}).tree["x"]
    np.testing.assert_array_equal(single, np.arange(8.0))
    assert len(single.devices()) == 1
    assert len(checkpoints.restore(spread).tree["x"].devices()) == 4
    checkpoints.close()
    manifest = json.loads((tmp_path / "00000001" / "manifest.json").read_text())
    assert "notes.json" in manifest
