"""Fixtures of the tests of LearnedOptimizer."""

import pytest
from torch import nn

from lopt.rules import RULES
from tests.lopt.optimizer.common import network


@pytest.fixture(params=RULES)
def name(request) -> str:
    return request.param


@pytest.fixture
def model() -> nn.Sequential:
    return network()
