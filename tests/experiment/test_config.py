"""Configs come back from JSON as they were, whatever their fields hold."""

import dataclasses
import datetime
import enum
import json
from pathlib import Path
from typing import Any, Literal

import pytest

import jdl
from jdl.cli.main import main
from jdl.experiment import config as configs
from jdl.experiment import search_space


class Act(enum.Enum):
    RELU = "relu"
    TANH = "tanh"


class Cure(enum.Flag):
    DROPOUT = enum.auto()
    DECAY = enum.auto()


@dataclasses.dataclass(frozen=True)
class Inner:
    rate: float = 0.1
    act: Act = Act.RELU


@dataclasses.dataclass(frozen=True)
class Other:
    rate: int = 3


@dataclasses.dataclass(frozen=True)
class Config:
    act: Act = Act.RELU
    maybe: Act | None = None
    inner: Inner = Inner()
    optional: Inner | None = None
    either: Inner | Other = Inner()
    mixed: int | str | Path | None = 3
    acts: tuple[Act, ...] = (Act.RELU,)
    pair: tuple[int, Path] = (1, Path("a"))
    listed: list[Act] = dataclasses.field(default_factory=list)
    by_name: dict[str, Act] = dataclasses.field(default_factory=dict)
    by_number: dict[int, Inner] = dataclasses.field(default_factory=dict)
    by_act: dict[Act, dict[Path, float]] = dataclasses.field(default_factory=dict)
    cures: Cure = Cure.DECAY
    path: Path | None = None
    day: datetime.date = datetime.date(2026, 1, 2)
    moment: datetime.datetime | None = None
    mode: Literal["a", "b"] = "a"
    devices: jdl.Mode = "auto"


CHANGED = Config(
    act=Act.TANH, maybe=Act.TANH, inner=Inner(1.0, Act.TANH), optional=Inner(2.0), either=Other(7), mixed=Path("x"),
    acts=(Act.TANH, Act.RELU), pair=(2, Path("b")), listed=[Act.TANH], by_name={"first": Act.TANH},
    by_number={4: Inner(3.0)}, by_act={Act.TANH: {Path("a"): 1.5}},
    cures=Cure.DROPOUT | Cure.DECAY, path=Path("/p"), day=datetime.date(2025, 3, 4),
    moment=datetime.datetime(2025, 3, 4, 5, 6), mode="b", devices="fsdp",
)  # fmt: skip


@pytest.mark.parametrize("config", [Config(), CHANGED, dataclasses.replace(CHANGED, mixed="x", either=Inner(5.0))])
def test_a_config_comes_back(config):
    text = json.dumps(configs.encode(config))
    assert configs.decode(Config, json.loads(text)) == config


def test_a_config_of_before_is_read():
    plain = {"act": "TANH", "inner": {"rate": 0.5}, "path": "runs", "acts": ["TANH"], "mixed": "x"}
    found = configs.decode(Config, plain)
    assert found == Config(act=Act.TANH, inner=Inner(0.5), path=Path("runs"), acts=(Act.TANH,), mixed="x")


@pytest.mark.parametrize(
    "kind",
    [
        complex, bytes, set[int], tuple[complex, ...], dict[str, bytes], int | bytes, dict[bool, int],
        dict[int | str, int], dict[str | None, int], dict[tuple[int, ...], int],
    ],
)  # fmt: skip
def test_what_json_could_not_give_back_is_refused_by_its_field(kind):
    config = dataclasses.make_dataclass("Config", [("strange", kind)], frozen=True)
    with pytest.raises(TypeError, match=r"the field strange of Config holds .*; use numbers, booleans"):
        configs.check(config)
    configs.check(Config)
    configs.check(dataclasses.make_dataclass("Config", [("anything", Any)]))


def test_enums_are_searched_and_given_by_name():
    kinds = search_space.fields(Config)
    assert search_space.values("act", "RELU TANH", kinds["act"]) == ("RELU", "TANH")
    with pytest.raises(ValueError, match="'GELU' is not among RELU, TANH"):
        search_space.values("act", "GELU", kinds["act"])
    space = search_space.checked({"act": search_space.choice("RELU", "TANH")}, Config)
    assert search_space.replaced(Config(), {"act": space["act"].values[1]}).act is Act.TANH
    assert search_space.options(Config(act=Act.TANH, day=datetime.date(2025, 3, 4))) == [
        "--act", "TANH", "--day", "2025-03-04",
    ]  # fmt: skip


EXPERIMENT = '''
"""A config of many kinds."""
import dataclasses
import enum
from pathlib import Path

class Act(enum.Enum):
    RELU = "relu"
    TANH = "tanh"

@dataclasses.dataclass(frozen=True)
class Inner:
    act: Act = Act.RELU

@dataclasses.dataclass(frozen=True)
class Config:
    act: Act = Act.RELU
    inner: Inner = Inner()
    many: tuple[Act, ...] = ()
    folder: Path | None = None

def main(config, run):
    assert isinstance(config.act, Act) and isinstance(config.inner.act, Act), config
    return {"tanh": float(config.act is Act.TANH) + len(config.many)}
'''


def test_enums_go_through_the_command_and_replay(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("jdl.runtime.cores.ask_for_devices", lambda count: True)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "kinds.py").write_text(EXPERIMENT)
    for words in (
        ["run", "kinds.py", "--act", "TANH", "--inner.act", "TANH", "--many", "RELU", "TANH", "--run-dir", "out"],
        ["replay", "out"],
    ):
        with pytest.raises(SystemExit) as ended:
            main(words)
        assert not ended.value.code, capsys.readouterr().err
    run = jdl.Run("out")
    assert run.config == {"act": "TANH", "inner": {"act": "TANH"}, "many": ["RELU", "TANH"], "folder": None}
    assert run.final == {"tanh": [3.0]}
