"""Spaces of hyper-parameters: read from texts, held against a config, written back."""

import dataclasses
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jdl import tune
from jdl.experiment import search_space

numbers = st.floats(-1e6, 1e6, allow_subnormal=False)


@given(numbers, numbers, st.booleans())
def test_a_range_is_read_back_from_its_text(low, high, logarithmic):
    if low < high and (low > 0 or not logarithmic):
        dimension = search_space.Range(low, high, logarithmic)
        assert search_space.parse(str(dimension), float) == dimension
    else:
        with pytest.raises(ValueError, match=r"empty|starts above 0"):
            search_space.Range(low, high, logarithmic)


@given(st.lists(st.integers(), min_size=2, unique=True))
def test_a_choice_is_read_back_from_its_text(values):
    assert search_space.parse(str(tune.choice(*values)), int) == tune.choice(*values)


@dataclasses.dataclass(frozen=True)
class Inner:
    rate: float = 0.1
    on: bool = False


@dataclasses.dataclass(frozen=True)
class Config:
    size: int = 8
    scale: float | None = None
    mode: Literal["up", "down"] = "up"
    shape: tuple[int, ...] = (3, 3)
    inner: Inner = Inner()


def test_fields_of_the_config_and_of_those_within():
    assert list(search_space.fields(Config)) == ["size", "scale", "mode", "shape", "inner.rate", "inner.on"]
    assert search_space.fields(Config)["scale"] is float
    changed = search_space.replaced(Config(), {"inner.rate": 0.5, "size": 3})
    assert changed == Config(size=3, inner=Inner(rate=0.5))


def test_texts_become_dimensions_by_the_type_of_the_field():
    texts = {"size": "2 9", "scale": "log 1e-4 1", "mode": "up down", "inner.on": "true false", "inner.rate": "1 2 3"}
    space = search_space.checked(search_space.from_text(texts, Config), Config)
    assert space == {
        "size": tune.uniform(2, 9),
        "scale": tune.log(1e-4, 1.0),
        "mode": tune.choice("up", "down"),
        "inner.on": tune.choice(True, False),
        "inner.rate": tune.choice(1.0, 2.0, 3.0),
    }
    assert type(space["size"].low) is int


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (
            {"sise": "1 2"},
            r"the space has 'sise', which the Config lacks; its fields are size, scale, mode",
        ),
        (
            {"scale": "1 1"},
            r"the space of scale, '1 1': .*the range from 1 to 1 is empty; give LOW, then",
        ),
        ({"scale": "log 1 0.1"}, r"'log 1 0.1': log 1 0.1: the range from 1 to 0.1 is empty"),
        ({"scale": "log 0 1"}, r"a logarithmic range starts above 0, not at 0"),
        ({"scale": "log 1"}, r'a logarithmic range is "log LOW HIGH"'),
        ({"scale": "0 nan"}, r"the range from 0 to nan is empty"),
        ({"scale": "low high"}, r"the space of scale, 'low high': 'low' is no number"),
        ({"size": "1 2.5"}, r"the space of size, 1 2.5: the field is int; give whole numbers"),
        ({"size": "1 two 3"}, r"'two' is no int, which the field is"),
        ({"size": "4"}, r'write "LOW HIGH", "log LOW HIGH" or, to choose, the values'),
        ({"size": "4 4 4"}, r"a choice has at least 2 values, each of them once"),
        ({"mode": "up sideways"}, r"'sideways' is not what the field holds"),
        ({"mode": "log 1 2"}, r"the space of mode is a range, .*use jdl.tune.choice"),
        ({"inner.on": "yes no"}, r"'yes' is neither true nor false"),
        ({}, r"there is nothing to search: give --space.FIELD, or SPACE in the experiment; fields: size"),
    ],
)
def test_a_space_that_does_not_fit(texts, message):
    with pytest.raises((ValueError, TypeError), match=message):
        search_space.checked(search_space.from_text(texts, Config), Config)


def test_a_declared_space_is_made_of_dimensions():
    with pytest.raises(TypeError, match=r"the space of scale is \(0, 1\); write jdl.tune.uniform, log or choice"):
        search_space.checked({"scale": (0, 1)}, Config)
