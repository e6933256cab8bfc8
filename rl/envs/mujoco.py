"""What the environments of MuJoCo need around them: its notices kept off the screen, the missing package named."""

import contextlib
import importlib
import sys
from collections.abc import Iterator
from typing import Any

import gymnasium

_EXTRAS = "mujoco", "box2d"  # of jdl, as Gymnasium's modules are called


@contextlib.contextmanager
def without_notices(env: str) -> Iterator[None]:
    """Keep MuJoCo from printing, for each copy of a model, that the model's file uses a deprecated attribute.

    Its other warnings are printed. Models of other threads that compile meanwhile are treated alike.

    Args:
        env: id of a Gymnasium environment; nothing happens for those that are not MuJoCo's.
    """
    if extra_of(env) != "mujoco":
        yield
        return
    try:
        mujoco: Any = importlib.import_module("mujoco")
    except ImportError:
        yield
        return
    before = mujoco.get_mju_user_warning()

    def told(message: str) -> None:
        if "deprecated" not in message:
            print(f"MuJoCo: {message}", file=sys.stderr)

    mujoco.set_mju_user_warning(told)
    try:
        yield
    finally:
        mujoco.set_mju_user_warning(before)


def extra_of(env: str) -> str | None:
    """The extra of jdl with the packages that an environment of Gymnasium's own needs, None for no extra.

    Args:
        env: id of the Gymnasium environment.
    """
    spec = gymnasium.registry.get(env)
    where = "" if spec is None else str(spec.entry_point)
    if where.startswith("rl.envs.car_racing:"):
        return "box2d"
    return next((extra for extra in _EXTRAS if f"envs.{extra}" in where), None)
