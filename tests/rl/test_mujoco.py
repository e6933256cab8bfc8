"""MuJoCo on the host: nothing printed that is not for the user, no video without OpenGL, the extra named."""

import importlib
import sys

import gymnasium
import jax
import pytest

import rl
from rl.envs.libraries import extra_of
from rl.envs.mujoco import without_notices
from rl.runners.vector import make_vec


def test_without_mujoco_the_extra_is_named(monkeypatch):
    known = [name for name in sys.modules if name.startswith(("mujoco", "gymnasium.envs.mujoco"))]
    for name in known:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "mujoco", None)
    with pytest.raises(LookupError, match=r"HalfCheetah-v5': its packages are not installed: pip install 'jdl\[muj"):
        make_vec("HalfCheetah-v5", 1)
    assert extra_of("LunarLander-v3") == "box2d"
    assert extra_of("CartPole-v1") is extra_of("Nope-v1") is None


def test_only_the_notice_of_the_models_age_is_kept_back(monkeypatch, capfd):
    mujoco = pytest.importorskip("mujoco")
    before = mujoco.get_mju_user_warning()
    make_vec("HalfCheetah-v5", 2).close()
    assert "settotalmass" not in "".join(capfd.readouterr())
    with without_notices("HalfCheetah-v5"):
        mujoco.get_mju_user_warning()("the simulation is unstable")
    assert "the simulation is unstable" in capfd.readouterr().err
    assert mujoco.get_mju_user_warning() is before


@pytest.mark.parametrize("env", ["HalfCheetah-v5", "pgx:minatar-breakout"])
def test_a_run_goes_on_without_a_picture(env, monkeypatch, tmp_path, capfd):
    for module in ("mujoco",) if env == "HalfCheetah-v5" else ("pgx", "minatar"):
        pytest.importorskip(module)

    def render(self):
        raise RuntimeError("no OpenGL\nand much more")

    where = "mujoco.mujoco_env:MujocoEnv" if env == "HalfCheetah-v5" else None
    module, name = ("gymnasium.envs." + where if where else "minatar.gym:BaseEnv").split(":")
    spaces = rl.runners.vector.spaces_of(env)
    algorithm = rl.a2c(*spaces)
    agent = algorithm.init(jax.random.key(0))
    path = tmp_path / "video.gif"
    if where is None:
        assert rl.video(algorithm, agent, env, path, max_steps=5) == path
        assert path.stat().st_size > 100
    monkeypatch.setattr(getattr(importlib.import_module(module), name), "render", render)
    assert rl.video(algorithm, agent, env, tmp_path / "none.gif", max_steps=5) is None
    id = gymnasium.spec(rl.envs.gymnasium_id(env)).id
    assert capfd.readouterr().err.strip().splitlines()[-1] == f"no video of {id}: no OpenGL"
