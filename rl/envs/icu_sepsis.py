"""ICU-Sepsis (Choudhary et al. 2024): treatments of sepsis in intensive care, a table fitted to records of patients.

There are 713 states of a patient and three that end an episode, 25 treatments (five doses of fluids, five of
vasopressors), and a reward of 1 for survival. The table is that of the package `icu-sepsis` (`pip install
'jdl[health]'`), which itself is not imported: it wants a Gym of long ago.

It is a benchmark for algorithms. Its authors, and we, warn against medical conclusions.
"""

import functools
import importlib.util
from pathlib import Path

import numpy as np
from jaxtyping import Float

from rl.envs.as_gymnasium import AsGymnasium
from rl.envs.environment import Environment
from rl.envs.toy_text import Table, from_table

NAME = "ICUSepsis-v0"
MAX_STEPS = 500
_SURVIVAL = 714
_ENDS = 713, _SURVIVAL, 715  # the first is death, the last is the state after either


def icu_sepsis() -> Environment:
    """The environment, compiled; observations are states.

    Raises:
        LookupError: if the package is not installed.
    """
    return from_table(NAME, icu_sepsis_table(), MAX_STEPS)


@functools.cache
def icu_sepsis_table() -> Table:
    """The transitions: at most 213 outcomes of each treatment in each state.

    Raises:
        LookupError: if the package is not installed.
    """
    probability = _array("tx_mat")
    width = int((probability > 0).sum(-1).max())
    outcome = np.argsort(-probability, -1, kind="stable")[..., :width].astype(np.int32)
    chance = np.take_along_axis(probability, outcome, -1)
    reward = (outcome == _SURVIVAL).astype(np.float32)  # as in its table of rewards, which takes a second to read
    return Table(chance, outcome, reward, np.isin(outcome, _ENDS), _array("d_0"))


def clinicians() -> Float[np.ndarray, "states actions"]:
    """The probability of each treatment in each state, as fitted to what clinicians did; uniform at the end.

    Raises:
        LookupError: if the package is not installed.
    """
    policy = _array("expert_policy")
    total = policy.sum(-1, keepdims=True)
    return np.where(total > 0, policy / np.where(total > 0, total, 1), 1 / policy.shape[1])


class ICUSepsis(AsGymnasium):
    """The environment behind Gymnasium's interface, "ICUSepsis-v0"."""

    def __init__(self, render_mode: str | None = None) -> None:
        super().__init__(icu_sepsis, render_mode)
        self.rules = icu_sepsis_table()


def _array(name: str) -> np.ndarray:
    found = importlib.util.find_spec("icu_sepsis")
    if found is None or found.origin is None:
        raise LookupError(f"{NAME} reads the table of the package icu-sepsis: pip install 'jdl[health]'")
    with np.load(Path(found.origin).parent / "envs" / "assets" / "dynamics.npz") as file:
        return file[name]
