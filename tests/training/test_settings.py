"""What training settings refuse."""

from __future__ import annotations

import math

import pytest

from pemt.errors import ConfigError
from pemt.training.settings import TrainSettings


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("learning_rate", 0.0, "above 0"),
        ("learning_rate", math.nan, "finite number above 0"),
        ("learning_rate", math.inf, "finite number above 0"),
        ("epochs", math.nan, "finite number above 0"),
        ("epochs", math.inf, "finite number above 0"),
        ("clip", math.nan, "above 0"),
        ("clip", 0.0, "above 0"),
        ("dropout", math.nan, "below 1"),
        ("batch_size", 0, "at least 1"),
        ("max_source_length", 0, "at least 1"),
        ("max_target_length", 0, "at least 1"),
        ("max_target_length", -3, "at least 1"),
        ("warmup_steps", -5, "0 or more"),
        ("init_seed", -1, "from 0 to 4294967295"),
        ("init_seed", 2**32, "from 0 to 4294967295"),
        ("order_seed", 10**20, "from 0 to 4294967295"),
    ],
)
def test_a_value_that_trains_nothing_is_refused(name, value, allowed):
    with pytest.raises(ConfigError, match=f"^{name}={value}") as error:
        TrainSettings(**{name: value})
    assert allowed in error.value.fix


def test_the_ends_of_what_is_allowed():
    TrainSettings(max_source_length=1, max_target_length=1, warmup_steps=0, clip=math.inf)
    assert TrainSettings(max_source_length=None, learning_rate=None).max_steps == -1
