from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def tiny_story() -> Path:
    return Path(__file__).parents[2] / "examples/models/tiny-story"
