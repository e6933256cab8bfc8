"""Learning from recorded experience alone: data sets, algorithms, and estimates of a policy's value."""

from rl.offline.bc import bc
from rl.offline.cql import cql, discrete_cql
from rl.offline.dataset import Dataset, Episode, check_spaces, from_episodes, join
from rl.offline.decision_transformer import decision_transformer
from rl.offline.evaluation import WeightedEstimate, fitted_q_evaluation, weighted_importance_sampling
from rl.offline.iql import iql
from rl.offline.learner import learner
from rl.offline.minari_sets import load, local, save, split
from rl.offline.record import record, record_random, record_run, replay_of, replay_of_run
from rl.offline.td3_bc import td3_bc

__all__ = [
    "Dataset",
    "Episode",
    "WeightedEstimate",
    "bc",
    "check_spaces",
    "cql",
    "decision_transformer",
    "discrete_cql",
    "fitted_q_evaluation",
    "from_episodes",
    "iql",
    "join",
    "learner",
    "load",
    "local",
    "record",
    "record_random",
    "record_run",
    "replay_of",
    "replay_of_run",
    "save",
    "split",
    "td3_bc",
    "weighted_importance_sampling",
]
