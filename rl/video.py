"""Videos of trained agents: one greedy episode as a GIF."""

import contextlib
import io
import os
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium
import jax
import numpy as np

from jdl.runtime.files import write_bytes
from rl.envs.libraries import gymnasium_id
from rl.envs.mujoco import without_notices
from rl.envs.shared_policy import agents_of
from rl.runners.vector import Vector, make_vec, mask_of, spaces_of
from rl.spaces import legal
from rl.types import Agent, Algorithm, TimeStep

_WIDTH = 300  # pixels
_FRAMES = 250  # limit; longer episodes are subsampled


def video(
    algorithm: Algorithm, agent: Agent, env: str, path: str | Path, *, seed: int = 0, max_steps: int = 1000
) -> Path | None:
    """Play a greedy episode of a registered environment and write it as a GIF.

    Args:
        algorithm: the algorithm that trained the agent.
        agent: the agent of one run, without an axis of runs.
        env: id of the Gymnasium environment, or a name of a library's (`pgx:2048`).
        path: file to write.
        seed: of the environment's reset and of the agent.
        max_steps: steps after which the episode is cut off.

    Returns:
        The path. None, and no file is written, if the environment does not render images, if its vector environment
        has other observations (Atari), or if it cannot render here, which is told on stderr: the packages that it
        renders with may be missing, or OpenGL, without which MuJoCo draws nothing.
    """
    env, count = gymnasium_id(env), agents_of(env)
    play = _episode if count == 1 else _episode_of_agents
    with without_notices(env):
        single = gymnasium.make(env) if count == 1 else make_vec(env, count)
    single.close()
    other = isinstance(single, gymnasium.Env) and single.observation_space != spaces_of(env)[0]
    if "rgb_array" not in single.metadata.get("render_modes", ()) or other:
        return None
    try:
        with _no_display(), without_notices(env):
            frames = play(algorithm, agent, env, seed, max_steps)
    except _CannotRender as error:
        print(f"no video of {env}: {error}", file=sys.stderr)
        return None
    from PIL import Image  # comes with matplotlib

    pictures = [Image.fromarray(frame) for frame in frames[:: 1 + len(frames) // _FRAMES]]
    height = round(pictures[0].height * _WIDTH / pictures[0].width)
    smooth = Image.Resampling.BICUBIC if pictures[0].width >= 36 else Image.Resampling.NEAREST  # a grid stays one
    # A fifth of the time of the usual way to choose colors, which are off by one of 255 on average.
    few = {"colors": 32, "method": Image.Quantize.FASTOCTREE, "dither": Image.Dither.NONE}
    pictures = [one.resize((_WIDTH, height), smooth).quantize(**few) for one in pictures]
    buffer = io.BytesIO()
    pictures[0].save(buffer, "GIF", save_all=True, append_images=pictures[1:], duration=40, loop=0, optimize=True)
    write_bytes(Path(path), buffer.getvalue())
    return Path(path)


class _CannotRender(Exception):
    """The environment has no picture of itself here."""


@contextlib.contextmanager
def _no_display() -> Iterator[None]:
    """Let pygame draw without a display server; SDL would look for one and complain on stderr."""
    given = os.environ.get("SDL_VIDEODRIVER")
    os.environ["SDL_VIDEODRIVER"] = given or "dummy"
    try:
        yield
    finally:
        if given is None:
            del os.environ["SDL_VIDEODRIVER"]


def _episode(algorithm: Algorithm, agent: Agent, env: str, seed: int, max_steps: int) -> list[np.ndarray]:
    world = gymnasium.make(env, render_mode="rgb_array")
    as_taken, keys = legal(world.action_space), jax.random.split(jax.random.key(seed), max_steps)

    @jax.jit
    def act(carry: Any, timestep: TimeStep, time: int) -> tuple[Any, Any]:
        action, carry, _ = algorithm.act(agent, carry, timestep, keys[time], True)
        return as_taken(action), carry

    observation, info = world.reset(seed=seed)
    frames, carry = [_first_frame(world)], algorithm.initial_carry(1)
    reward = 0.0
    for time in range(max_steps):
        batch = jax.tree.map(lambda leaf: np.asarray(leaf)[None], observation)
        masks = {"action_mask": [info["action_mask"]]} if "action_mask" in info else {}
        timestep = TimeStep(batch, np.array([time == 0]), mask_of(batch, masks), np.array([reward], np.float32))
        action, carry = act(carry, timestep, time)
        observation, reward, terminated, truncated, info = world.step(np.asarray(action)[0])
        frames.append(_frame(world))
        if terminated or truncated:
            break
    world.close()
    return frames


def _first_frame(world: gymnasium.Env) -> np.ndarray:
    """The picture of the first state; raises `_CannotRender`, with one line of why, where there is none."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a missing display
            return _frame(world)
    except Exception as error:  # each library of OpenGL has errors of its own
        why = str(error).splitlines() or [type(error).__name__]
        raise _CannotRender(why[0]) from error


def _frame(world: gymnasium.Env) -> np.ndarray:
    """A picture [height, width, 3], uint8; MinAtar's colors are numbers from 0 to 1."""
    picture = np.asarray(world.render())
    return picture if picture.dtype == np.uint8 else (255 * picture).astype(np.uint8)


def _episode_of_agents(algorithm: Algorithm, agent: Agent, env: str, seed: int, max_steps: int) -> list[np.ndarray]:
    """As `_episode`, of an environment whose agents share the policy (`rl.envs.SharedPolicy`)."""
    world = Vector(make_vec(env, agents_of(env), render_mode="rgb_array"))
    as_taken, keys = legal(world.action_space), jax.random.split(jax.random.key(seed), max_steps)

    @jax.jit
    def act(carry: Any, timestep: TimeStep, time: int) -> tuple[Any, Any]:
        action, carry, _ = algorithm.act(agent, carry, timestep, keys[time], True)
        return as_taken(action), carry

    seen, carry, running = world.reset(seed), algorithm.initial_carry(world.num_envs), np.ones(world.num_envs, bool)
    frames = [_picture(world)]
    for time in range(max_steps):
        action, carry = act(carry, TimeStep(*seen), time)
        step = world.step(np.asarray(action))
        seen, running = step.seen, running & ~(step.terminated | step.truncated)
        frames.append(_picture(world))
        if not running.any():
            break
    world.close()
    return frames


def _picture(world: Vector) -> np.ndarray:
    """What the first copy shows."""
    return np.asarray(next(iter(world.envs.render() or ())))
