"""A checkout's shape in a temporary folder: nothing here touches the real state folder."""

from pathlib import Path

import pytest

from console.launch.address import Listen
from console.launch.processes import Installation
from console.launch.state import State

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture
def state(tmp_path: Path) -> State:
    """A state folder with its secrets."""
    made = State(tmp_path / "var")
    made.create()
    return made


@pytest.fixture
def installation(state: State) -> Installation:
    return Installation(ROOT, state, Listen("127.0.0.1", 8440), Listen("127.0.0.1", 8890))
