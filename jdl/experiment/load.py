"""Open a finished run again, with its trained state."""

from pathlib import Path
from typing import Any

import jax

from jdl.core.learner import Learner, State
from jdl.core.transforms import jit, seeds
from jdl.experiment.config import decode
from jdl.experiment.execute import COPY, load_copy
from jdl.experiment.population import POPULATION, TRAINED_IN, num_settings, together
from jdl.training.checkpoint.checkpoints import Checkpoints
from jdl.training.runs import Run


class LoadedRun(Run):
    """A run with its trained state, as `load` returns it: `run.metrics`, `run.predict(x)` and all that `Run` has."""

    def __init__(self, path: str | Path, learner: Learner | None = None) -> None:
        super().__init__(path)
        self._given = learner
        self._learner: Learner | None = None
        self._state: State = None

    @property
    def learner(self) -> Learner:
        """The compiled learner: the one given to `load`, else the experiment's, over the run's seeds.

        Raises:
            LookupError: if none was given and the run's experiment has no `learner(config)`.
        """
        if self._learner is None:
            self._learner = jit(self._given or self._experiments_learner(), donate=False)
        return self._learner

    @property
    def state(self) -> State:
        """The best state by the run's monitored metric; the last state if nothing was monitored.

        Raises:
            FileNotFoundError: if the run has no intact checkpoint.
        """
        if self._state is None:
            like = {"best": self.learner.init(jax.random.key(0))}
            restored = Checkpoints(self.checkpoint_folder).restore(like, part=True)
            self._state = self._from_population() if restored is None else restored.tree["best"]
        if self._state is None:
            raise FileNotFoundError(f"{self.path} has no intact checkpoint; `jdl resume {self.path}` trains it")
        return self._state

    def predict(self, inputs: Any) -> jax.Array:
        """Compute the model's outputs with the parameters of each seed.

        Args:
            inputs: [batch, ...], as the experiment's data has them.

        Returns:
            The outputs, [seeds, batch, ...]; of a run of several settings [seeds * settings, batch, ...].

        Raises:
            TypeError: if the learner has no `predict`.
        """
        if self.learner.predict is None:
            raise TypeError(f"the learner of {self.path} has no predict; give its Learner one")
        return self.learner.predict(self.state, {"input": inputs})

    def _from_population(self) -> State:
        """The state of a trial that was trained in one program with others; None if it was not."""
        found = self.description.get(TRAINED_IN)
        if found is None or not (self.path.parent / found["run"]).is_dir():
            return None
        shared = LoadedRun(self.path.parent / found["run"])
        return jax.tree.map(lambda leaf: leaf[found["place"] :: num_settings(shared)], shared.state)

    def _experiments_learner(self) -> Learner:
        if not (self.path / COPY).is_file() and not (self.path.parent / COPY).is_file():
            raise LookupError(f"{self.path} was not made by an experiment; give its learner: jdl.load(path, learner)")
        folder = self.path if (self.path / COPY).is_file() else self.path.parent
        module = load_copy(Run(folder))
        if not hasattr(module, "learner"):
            raise LookupError(
                f"the experiment of {self.path} has no learner(config); give one: jdl.load(path, learner)"
            )
        config = decode(module.Config, self.config)
        if POPULATION in self.description:
            return together(module.learner, config, self)
        one_seed = self.seeds != Run(folder).seeds  # True for a part of `separately`: the same learner, other seeds
        arguments = (config,) if folder == self.path or one_seed else (config, self.path.name)
        return seeds(module.learner(*arguments), self.seeds)


def load(path: str | Path, learner: Learner | None = None) -> LoadedRun:
    """Open a run in a notebook: its config, its metrics as arrays, its trained state, `predict`.

        run = jdl.load("runs/four")
        outputs = run.predict(inputs)

    Args:
        path: the run directory.
        learner: the learner that `fit` was given. It is needed only for a run of a script instead of an experiment.

    Raises:
        FileNotFoundError: if the folder is no run directory.
    """
    return LoadedRun(path, learner)
