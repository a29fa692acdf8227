"""Options and fixtures of the whole test suite."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # goldens_format

import goldens_format

SLOW_SECONDS = 10


def pytest_addoption(parser):
    parser.addoption(
        "--goldens",
        default=str(Path(__file__).parent / "goldens"),
        help="folder with <method>/manifest.json and the files it lists",
    )


def pytest_configure(config):
    config.addinivalue_line("markers", "goldens(method, kind): run once per golden file of that kind")


def pytest_generate_tests(metafunc):
    """``@pytest.mark.goldens(method, kind)`` fills the argument ``golden`` with every file of that kind."""
    marker = metafunc.definition.get_closest_marker("goldens")
    if marker is None or "golden" not in metafunc.fixturenames:
        return
    found = goldens_format.entries(
        Path(metafunc.config.getoption("--goldens")), *marker.args, **marker.kwargs
    )
    parameters = [
        pytest.param(
            golden,
            id=golden.name,
            marks=[pytest.mark.slow] * (golden.get("seconds_one_core", 0) > SLOW_SECONDS),
        )
        for golden in found
    ]
    metafunc.parametrize("golden", parameters)
