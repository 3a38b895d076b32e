import pytest
from torch import Tensor

from attack_batch import random_images, random_linear
from detectors import Linear


@pytest.fixture
def linear() -> Linear:
    return random_linear()


@pytest.fixture
def images() -> Tensor:
    """Some values lie on the box."""
    return random_images()
