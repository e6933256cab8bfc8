"""Videos of trained agents: one greedy episode as a GIF."""

import contextlib
import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium
import jax
import numpy as np

from jdl.runtime.files import write_bytes
from rl.envs.libraries import gymnasium_id
from rl.runners.vector import mask_of, spaces_of
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
        The path. None, and no file is written, if the environment does not render images, if the packages that it
        renders with are not installed, or if its vector environment has other observations (Atari).
    """
    env = gymnasium_id(env)
    single = gymnasium.make(env)
    single.close()
    if "rgb_array" not in single.metadata.get("render_modes", ()) or single.observation_space != spaces_of(env)[0]:
        return None
    try:
        with _no_display():
            frames = _episode(algorithm, agent, env, seed, max_steps)
    except gymnasium.error.DependencyNotInstalled:
        return None
    from PIL import Image  # comes with matplotlib

    pictures = [Image.fromarray(frame) for frame in frames[:: 1 + len(frames) // _FRAMES]]
    height = round(pictures[0].height * _WIDTH / pictures[0].width)
    pictures = [
        one.resize((_WIDTH, height)).convert("P", palette=Image.Palette.ADAPTIVE, colors=32) for one in pictures
    ]
    buffer = io.BytesIO()
    pictures[0].save(buffer, "GIF", save_all=True, append_images=pictures[1:], duration=40, loop=0, optimize=True)
    write_bytes(Path(path), buffer.getvalue())
    return Path(path)


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
    frames, carry = [np.asarray(world.render())], algorithm.initial_carry(1)
    for time in range(max_steps):
        batch = jax.tree.map(lambda leaf: np.asarray(leaf)[None], observation)
        masks = {"action_mask": [info["action_mask"]]} if "action_mask" in info else {}
        timestep = TimeStep(batch, np.array([time == 0]), mask_of(batch, masks))
        action, carry = act(carry, timestep, time)
        observation, _, terminated, truncated, info = world.step(np.asarray(action)[0])
        frames.append(np.asarray(world.render()))
        if terminated or truncated:
            break
    world.close()
    return frames
