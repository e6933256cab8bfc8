"""Results as records: JSON files beside the experiment, from which every table of results is made.

An experiment declares its records in `RECORDS`, by the name of each variant ("" for the default config):

    RECORDS = {
        "": jdl.Record(seeds=3, bars={"accuracy": ">= 0.93"}, beside="2-layer CNNs 0.916 to 0.934"),
        "mlp": jdl.Record({"network": "mlp"}, seeds=3, bars={"accuracy": ">= 0.89"}),
    }

`jdl run NAME --record` measures one of them and writes `results/NAME-VARIANT.json` in the experiment's folder.
"""

import ast
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, NamedTuple

import numpy as np

from jdl.core.statistics import Interval, iqm_interval, mean_interval
from jdl.experiment import find, search_space
from jdl.experiment.config import encode
from jdl.runtime.files import as_json, write_json
from jdl.training.runs import Run

FOLDER = "results"
_NOT_DECIDING = ("folder", "fetch")  # fields of a Config that do not change the result: where the data are
_DECLARATIONS = {"RECORDS", "SMOKE", "RENAMED", "TUNED"}
_BAR = re.compile(r"(>=|<=) *(-?\d+(?:\.\d+)?(?:e-?\d+)?)")


class Record(NamedTuple):
    """A result of an experiment: how it is measured, and the bar that it must reach.

    Attributes:
        settings: the fields of the Config that differ from their defaults, by dotted name.
        seeds: the number of seeds; they are 0, 1, ...
        bars: by metric, the bar for its average over the seeds: ">= 0.93" or "<= 1.88".
        shown: the metrics that tables show; by default those with a bar, or all if none has one.
        beside: the result of others to compare with, as text.
        statistic: the average, "mean" or "iqm" for the interquartile mean over the seeds.
    """

    settings: Mapping[str, Any] = {}
    seeds: int = 3
    bars: Mapping[str, str] = {}
    shown: Sequence[str] = ()
    beside: str = ""
    statistic: Literal["mean", "iqm"] = "mean"


class Row(NamedTuple):
    """One metric of one record, as `jdl results` shows it.

    Attributes:
        name: the record's name.
        domain: the experiment's folder, such as "rl".
        metric: the metric.
        mean: the average over the seeds by the record's statistic; None if it is not finite or not measured.
        low: the lower end of the 95% interval, or None.
        high: the upper end of the 95% interval, or None.
        values: one value per seed; empty if the record has the interval only.
        bar: the number that the mean must reach; None for a metric without a bar.
        ok: whether the mean reaches the bar; None for a metric without a bar.
        stale: whether the record must be measured again: it never was, or the experiment has changed since.
    """

    name: str
    domain: str
    metric: str
    mean: float | None
    low: float | None
    high: float | None
    values: list[float | None]
    bar: float | None
    ok: bool | None
    stale: bool


class Declared(NamedTuple):
    """A record as an experiment declares it, and as it was measured.

    Attributes:
        module: the experiment.
        domain: the experiment's folder, such as "rl".
        variant: the record's key in RECORDS; empty for the default config.
        record: the declaration.
        measured: the content of the record's file; None if there is none.
    """

    module: ModuleType
    domain: str
    variant: str
    record: Record
    measured: dict[str, Any] | None

    @property
    def experiment(self) -> str:
        """The experiment's name."""
        return file_of(self.module).stem

    @property
    def name(self) -> str:
        """The record's name, EXPERIMENT or EXPERIMENT-VARIANT."""
        return "-".join(filter(None, (self.experiment, self.variant)))

    @property
    def config(self) -> Any:
        """The experiment's config with the record's settings."""
        return search_space.replaced(self.module.Config(), self.record.settings)

    @property
    def words(self) -> list[str]:
        """The words after `jdl` of the command that measures the record."""
        return ["run", self.experiment, *search_space.options(self.config), "--seeds", str(self.record.seeds)]

    @property
    def path(self) -> Path:
        """The record's file."""
        return file_of(self.module).parent / FOLDER / f"{self.name}.json"

    @property
    def stale(self) -> bool:
        """Whether the record must be measured again, because it never was or because the experiment has changed."""
        if self.measured is None:
            return True
        same = self.measured["config"] == _deciding(self.config) and len(self.measured["seeds"]) == self.record.seeds
        return not same or self.measured["fingerprint"] != fingerprint(self.module, self.config)

    @property
    def intervals(self) -> dict[str, Interval]:
        """By metric, the average over the seeds and its 95% interval; empty if the record was not measured."""
        if self.measured is None:
            return {}
        if "intervals" in self.measured:
            kept = {name: _numbers(numbers) for name, numbers in self.measured["intervals"].items()}
            return {name: Interval(*map(np.float64, numbers)) for name, numbers in kept.items()}
        values = {name: np.asarray(_numbers(one)) for name, one in self.measured["metrics"].items()}
        of = (lambda x: iqm_interval(x[:, None])) if self.record.statistic == "iqm" else mean_interval
        nothing = Interval(*[np.float64(np.nan)] * 3)
        return {name: of(x) if np.isfinite(x).all() else nothing for name, x in values.items()}

    @property
    def shown(self) -> list[str]:
        """The metrics that tables show."""
        return list(self.record.shown or self.record.bars or self.intervals)

    def rows(self) -> list[Row]:
        """Make a row for each metric that tables show."""
        found = []
        for metric in self.shown:
            interval = self.intervals.get(metric)
            mean, low, high = (None, None, None) if interval is None else map(_finite, interval)
            sign, bar = parsed(self.record.bars[metric]) if metric in self.record.bars else ("", None)
            ok = None if bar is None else mean is not None and (mean >= bar if sign == ">=" else mean <= bar)
            values = list((self.measured or {}).get("metrics", {}).get(metric, []))
            found.append(
                Row(
                    self.name,
                    self.domain,
                    metric,
                    mean,
                    low,
                    high,
                    values,
                    bar,
                    ok,
                    self.stale,
                )
            )
        return found


def declared(domain: str = "") -> list[Declared]:
    """List the records that experiments declare. It imports the experiments.

    Args:
        domain: a folder of experiments such as "rl"; by default all folders.

    Raises:
        LookupError: for a folder that does not exist.
        ValueError: for a bar that cannot be read.
    """
    found = []
    for one in find.experiments(domain):
        module = find.find(str(one.file))
        for variant, record in getattr(module, "RECORDS", {}).items():
            for text in record.bars.values():
                parsed(text)
            made = Declared(module, one.domain, variant, record, None)
            found.append(made._replace(measured=_read(made.path)))
    return found


def of_config(module: ModuleType, config: Any, domain: str = "") -> Declared:
    """Return the record that a run of a config measures.

    Args:
        module: the experiment.
        config: the config.
        domain: the experiment's folder.

    Returns:
        The record that the experiment declares for this config. If it declares none, one that is named after the
        options that make the config.
    """
    for variant, record in getattr(module, "RECORDS", {}).items():
        made = Declared(module, domain, variant, record, None)
        if _deciding(made.config) == _deciding(config):
            return made
    words = [word for word in search_space.options(config) if word not in ("--fetch", "--no-fetch")]
    variant = re.sub(r"[^A-Za-z0-9.]+", "-", " ".join(words)).strip("-")
    settings = {name: search_space.value_of(config, name) for name in search_space.fields(type(config))}
    return Declared(module, domain, variant, Record(settings), None)


def write(made: Declared, run: Run) -> Path:
    """Write a finished run as a record.

    Args:
        made: the record.
        run: the run that measured it.

    Returns:
        The record's file.
    """
    assert run.result is not None
    environment = run.environment
    record = {
        "name": made.name,
        "command": " ".join(["jdl", *made.words[:-1], str(len(run.seeds))]),
        "config": _deciding(made.config),
        "seeds": list(run.seeds),
        "metrics": run.result["metrics"],
        "seconds": run.result["seconds"],
        "date": datetime.now(UTC).date().isoformat(),
        "devices": environment["devices"],
        "versions": environment["packages"],
        "git": environment["git"],
        "fingerprint": fingerprint(made.module, made.config),
    }
    made.path.parent.mkdir(exist_ok=True)
    write_json(made.path, record)
    return made.path


def fingerprint(module: ModuleType, config: Any) -> str:
    """Compute a digest of an experiment's program, by which a record knows that the experiment has changed.

    Comments, docstrings and the declarations RECORDS, SMOKE and RENAMED do not count, nor constants that only these
    use. Of TUNED, settings by the value of a field such as `env`, those of the record's config count. The digest covers
    the experiment's file only: a change in a module that it imports does not make a record stale.

    Args:
        module: the experiment.
        config: the record's config.
    """
    tree = ast.parse(file_of(module).read_text())
    tree.body = _counting(tree.body)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            node.body = node.body[1:] or [ast.Pass()]
    text = ast.dump(tree)
    if (tuned := getattr(module, "TUNED", None)) is not None:
        chosen = {str(value).rpartition(":")[2] for value in vars(config).values()}  # env may have a module in front
        text += json.dumps(
            as_json(encode({name: tuned[name] for name in sorted(tuned) if name in chosen})), sort_keys=True
        )
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def parsed(bar: str) -> tuple[str, float]:
    """Read the sign and the number of a bar.

    Args:
        bar: the text, such as ">= 0.93".

    Raises:
        ValueError: for another text.
    """
    found = _BAR.fullmatch(bar.strip())
    if found is None:
        raise ValueError(f'a bar is ">= 0.93" or "<= 1.88", this one is {bar!r}')
    return found[1], float(found[2])


def file_of(module: ModuleType) -> Path:
    """Return the file of an experiment."""
    return Path(str(module.__file__))


def _counting(body: list[ast.stmt]) -> list[ast.stmt]:
    """The statements of an experiment without its declarations, and without constants that only those use."""
    declared = [node for node in body if _assigned(node) & _DECLARATIONS]
    rest = [node for node in body if node not in declared]
    while True:
        used = {part.id for node in rest for part in ast.walk(node) if isinstance(part, ast.Name) and _is_read(part)}
        unused = [
            node for node in rest if (names := _assigned(node)) and not names & used and _mentioned(names, declared)
        ]
        if not unused:
            return rest
        declared += unused
        rest = [node for node in rest if node not in unused]


def _assigned(node: ast.stmt) -> set[str]:
    """The names that an assignment gives a value."""
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    return {part.id for target in targets for part in ast.walk(target) if isinstance(part, ast.Name)}


def _mentioned(names: set[str], nodes: list[ast.stmt]) -> bool:
    return any(isinstance(part, ast.Name) and part.id in names for node in nodes for part in ast.walk(node))


def _is_read(name: ast.Name) -> bool:
    return isinstance(name.ctx, ast.Load)


def _deciding(config: Any) -> dict[str, Any]:
    """Convert a config to JSON, without the fields that do not change the result."""
    return {name: value for name, value in as_json(encode(config)).items() if name not in _NOT_DECIDING}


def _read(path: Path) -> dict[str, Any] | None:
    return json.loads(path.read_text()) if path.is_file() else None


def _numbers(values: Sequence[float | None]) -> list[float]:
    return [np.nan if value is None else value for value in values]


def _finite(value: Any) -> float | None:
    return float(value) if np.isfinite(value) else None
