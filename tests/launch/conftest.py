"""What tests of whole runs need."""

import pytest

from tests.launch.started import end_all


@pytest.fixture(autouse=True)
def nothing_left():
    """Whatever a test started ends with it."""
    yield
    end_all()
