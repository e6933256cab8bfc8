"""The notices of MuJoCo, kept off the screen."""

import contextlib
import importlib
import sys
from collections.abc import Iterator
from typing import Any

from rl.envs.libraries import extra_of


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
