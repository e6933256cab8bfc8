"""What the checks of an environment find, each kind once."""

import dataclasses
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import gymnasium
import jax
import numpy as np
from gymnasium import spaces

from rl.distributions import head
from rl.spaces import is_grid, is_image, zeros


class Checked(NamedTuple):
    """The findings about an environment.

    Attributes:
        name: of the environment.
        problems: what breaks training, or makes it irreproducible.
        notes: what is worth knowing before training.
        episodes: how many ended while it was checked.
        steps_per_second: of one environment on the host, or of all together on the device; 0 if it never took a step.
    """

    name: str
    problems: list[str]
    notes: list[str]
    episodes: int
    steps_per_second: float

    def __str__(self) -> str:
        count = len(self.problems)
        head = f"{self.name}: {f'{count} problem' + 's' * (count > 1) if count else 'nothing wrong was found'}"
        lines = [head, *(f"  wrong: {text}" for text in self.problems), *(f"  note: {text}" for text in self.notes)]
        return "\n".join([*lines, f"  {self.episodes} episodes ended; {self.steps_per_second:,.0f} steps a second"])


@dataclasses.dataclass
class Findings:
    """Problems and notes, the first of each kind."""

    problems: dict[str, str] = dataclasses.field(default_factory=dict)
    notes: dict[str, str] = dataclasses.field(default_factory=dict)

    def wrong(self, kind: str, text: str) -> None:
        """Something that breaks training.

        Args:
            kind: of which the first is kept.
            text: what is wrong, and the remedy.
        """
        self.problems.setdefault(kind, text)

    def note(self, kind: str, text: str) -> None:
        """Something worth knowing.

        Args:
            kind: of which the first is kept.
            text: what was seen, and what to do about it.
        """
        self.notes.setdefault(kind, text)

    def attempt(self, what: str, function: Callable[[], Any]) -> Any:
        """The result of a function; None, and a problem, where it raises.

        Args:
            what: what is attempted, for the message.
            function: what to call.
        """
        try:
            return function()
        except Exception as error:
            first = str(error).strip().split("\n")[0]
            self.wrong(f"attempt {what}", f"{what} raises {type(error).__name__}: {first}")
            return None


def look_at_spaces(findings: Findings, observation_space: Any, action_space: Any) -> bool:
    """Look at the spaces; return whether there are two."""
    for name, space in (("observation_space", observation_space), ("action_space", action_space)):
        if not isinstance(space, gymnasium.Space):
            findings.wrong(name, f"{name} is {space!r}; set it to one of gymnasium.spaces")
    if not (isinstance(observation_space, gymnasium.Space) and isinstance(action_space, gymnasium.Space)):
        return False
    try:
        zeros(observation_space)
    except ValueError as error:
        findings.wrong("observation_space", str(error))
    try:
        head(action_space)
    except ValueError as error:
        findings.wrong("action_space", str(error))
    for part in leaves_of(observation_space):
        if isinstance(part, spaces.Box) and len(part.shape) == 3 and not (is_image(part) or is_grid(part)):
            findings.note(
                "picture",
                f"observations of {part} look like pictures, but only uint8 ones of at least 36 x 36, and boolean ones "
                "of at least 8 x 8, get a convolutional network; these are flattened: give a network of your own",
            )
        if isinstance(part, spaces.Box) and part.dtype == np.float64:
            findings.note("float64", "float64 observations become float32 on their way to the network")
    if isinstance(action_space, spaces.Box):
        _look_at_scale(findings, action_space)
    return True


def leaves_of(space: gymnasium.Space) -> list[gymnasium.Space]:
    """The parts of a Dict or Tuple space, of parts of these, and so on; a list of the space itself for any other."""
    if isinstance(space, spaces.Dict):
        return [leaf for part in space.spaces.values() for leaf in leaves_of(part)]
    if isinstance(space, spaces.Tuple):
        return [leaf for part in space.spaces for leaf in leaves_of(part)]
    return [space]


def look_at_observation(findings: Findings, space: gymnasium.Space, observation: Any, when: str) -> None:
    """Look whether an observation is in its space; say which part is not, and why."""
    with warnings.catch_warnings(action="ignore"):  # Gymnasium warns of what is said here
        contained = space.contains(observation)
    if contained and not (isinstance(space, spaces.Box) and not isinstance(observation, np.ndarray)):  # lists are taken
        _look_for_nan(findings, observation, when)
        return
    findings.wrong(
        "observation", f"{when} gives an observation that is not in observation_space: {_why(space, observation)}"
    )


def look_at_mask(findings: Findings, action_space: gymnasium.Space, mask: Any, options: list[int]) -> None:
    """Look at the shape of an action mask, and whether each choice has an allowed option."""
    total = sum(options)
    if np.shape(mask) != (total,):
        findings.wrong(
            "mask",
            f"action_mask has the shape {np.shape(mask)}; for {action_space} it is ({total},), one for each option",
        )
        return
    if not all(part.any() for part in np.split(np.asarray(mask, bool), np.cumsum(options)[:-1])):
        findings.wrong("mask", "an action_mask forbids every action; an episode with nothing left to do has terminated")


def look_at_lengths(findings: Findings, terminated: list[int], truncated: list[int], steps: int) -> None:
    """Look at the lengths of the episodes that ended either way."""
    if not terminated and not truncated:
        findings.note(
            "endless",
            f"no episode ended within {steps} steps of random actions: returns are logged as episodes end; a time "
            "limit (max_episode_steps of gymnasium.register, rl.envs.time_limit) would end them",
        )
    elif len(terminated) >= 3 and not truncated and len(set(terminated)) == 1 and terminated[0] > 1:
        findings.note(
            "time limit",
            f"every episode terminated after exactly {terminated[0]} steps. If that is a limit of time, return it as "
            "truncated: after a termination nothing more is expected, and values of late states are learned wrong",
        )


def look_at_numbers(findings: Findings, observations: np.ndarray | None, rewards: list[float]) -> None:
    """Look at the scale of observations, [step, number], and of rewards."""
    if observations is not None and observations.size and np.issubdtype(observations.dtype, np.floating):
        largest, spread = np.abs(observations).max(), observations.std(0)
        if largest > 20:
            findings.note("scale", f"observations reach {largest:.3g}: pass normalize_observations=True")
        elif len(observations) > 50 and (spread == 0).all():
            findings.note("constant", "every observation was the same")
    if rewards and max(map(abs, rewards)) > 100:
        findings.note(
            "reward", f"rewards reach {max(rewards, key=abs):.3g}: PPO and A2C learn better with rl.scaled_rewards"
        )
    elif len(rewards) > 50 and not any(rewards):
        findings.note("reward", "every reward was zero: random actions alone never find one")


def _look_at_scale(findings: Findings, space: spaces.Box) -> None:
    low, high = np.asarray(space.low, np.float64), np.asarray(space.high, np.float64)
    if not (np.isfinite(low).all() and np.isfinite(high).all()):
        findings.note("bounds", "some actions have no bounds: what a policy may do is up to the environment")
    elif (np.abs(np.maximum(-low, high) - 1) > 0.5).any() or (low > 0).any() or (high < 0).any():
        findings.note(
            "bounds",
            f"actions are from {low.min():g} to {high.max():g}: PPO, A2C and REINFORCE begin with actions about 0 of "
            "standard deviation 1; gymnasium.wrappers.RescaleAction(env, -1, 1) suits them (SAC and TD3 need nothing)",
        )


def _look_for_nan(findings: Findings, observation: Any, when: str) -> None:
    for part in jax.tree.leaves(observation):
        if np.issubdtype(np.asarray(part).dtype, np.floating) and not np.isfinite(part).all():
            findings.wrong("nan", f"{when} gives an observation that is not finite: {_short(part)}")


def _why(space: gymnasium.Space, observation: Any) -> str:
    if isinstance(space, spaces.Dict):
        if not isinstance(observation, dict) or set(observation) != set(space.spaces):
            parts = sorted(observation) if isinstance(observation, dict) else f"those of a {type(observation).__name__}"
            return f"its parts are {parts}, not {sorted(space.spaces)}"
        return "; ".join(
            f"part {name!r}: {_why(part, observation[name])}"
            for name, part in space.spaces.items()
            if not part.contains(observation[name])
        )
    if isinstance(space, spaces.Tuple):
        if not isinstance(observation, tuple) or len(observation) != len(space.spaces):
            return f"it is no tuple of {len(space.spaces)}"
        return "; ".join(
            f"part {i}: {_why(part, observation[i])}"
            for i, part in enumerate(space.spaces)
            if not part.contains(observation[i])
        )
    array = np.asarray(observation)
    if isinstance(space, spaces.Box):
        if not isinstance(observation, np.ndarray):
            return f"it is a {type(observation).__name__}, not an array"
        if array.shape != space.shape:
            return f"its shape is {array.shape}, not {space.shape}"
        if not np.can_cast(array.dtype, space.dtype):
            return f"its type is {array.dtype}, not {space.dtype}"
        if np.isnan(array.astype(np.float64)).any():
            return f"it is not finite: {_short(array)}"
        return f"{_short(array)} is outside of its bounds, from {_short(space.low)} to {_short(space.high)}"
    return f"{_short(observation)} is not in {space}"


def _short(value: Any) -> str:
    return np.array2string(np.asarray(value), threshold=8, edgeitems=2, precision=4).replace("\n", "")
