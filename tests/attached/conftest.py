"""The model to which the tests of this folder attach."""

import pytest

from tests.helpers.generation import make_model


@pytest.fixture
def model():
    return make_model()
