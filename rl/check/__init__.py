"""Everything that is wrong with an environment of one's own, found in one pass."""

from collections.abc import Callable

import gymnasium

from rl.check.compiled import check_compiled
from rl.check.findings import Checked
from rl.check.on_host import check_on_host
from rl.envs.environment import Environment

__all__ = ["Checked", "check_env"]


def check_env(
    env: str | gymnasium.Env | Environment | Callable[[], gymnasium.Env], *, steps: int = 2000, seed: int = 0
) -> Checked:
    """Look for everything in an environment that would break training or make it irreproducible.

    It plays episodes with random actions, some of them twice. Spaces, types and bounds, not-a-numbers, seeds, arrays
    that are returned and then changed, time limits, masks and vectorization are looked at, and the speed is measured.

    Args:
        env: the id of a Gymnasium environment ("MODULE:ID"), a function that makes one, or one; or a compiled
            `rl.envs.Environment`. One that is given is stepped and reset.
        steps: how many to play; of a compiled environment, in each of 64 copies.
        seed: of the first reset and of the actions.

    Returns:
        The findings; print them.

    Raises:
        ValueError: for fewer than 1 step.
        TypeError: for something that is no environment.
    """
    if steps < 1:
        raise ValueError(f"check_env(steps={steps}): at least 1")
    if isinstance(env, Environment):
        return check_compiled(env, steps, seed)
    if isinstance(env, str):
        name = env
        return check_on_host(lambda: gymnasium.make(name, disable_env_checker=True), name, steps, seed)
    if isinstance(env, gymnasium.Env):
        given = env
        return check_on_host(lambda: given, str(given), steps, seed, one=True)
    if isinstance(env, gymnasium.vector.VectorEnv) or not callable(env):
        raise TypeError(
            f"check_env({env!r}): give the id of an environment, a gymnasium.Env, a function that makes one, or an "
            "rl.envs.Environment; of a vector of environments, a single one"
        )
    return check_on_host(env, getattr(env, "__name__", str(env)), steps, seed)
