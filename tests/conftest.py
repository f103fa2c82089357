"""What ``make test`` runs: the same examples each time. ``make test-long`` (``--long``) runs more.

``--long`` adds the tests marked ``long``, and searches for random examples, ten times as many. One
that fails is printed with the ``@reproduce_failure`` that repeats it; once its cause is mended it
stays in the test as an ``@example``.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.internal.conjecture import providers

# How long a machine takes for an example is none of a test's business.
ANY_SPEED = [HealthCheck.too_slow]
settings.register_profile(
    "ci",
    derandomize=True,
    database=None,
    print_blob=True,
    deadline=None,
    suppress_health_check=ANY_SPEED,
)
# Hypothesis takes its own settings for machines where CI is set: nothing is left to its defaults.
settings.register_profile(
    "long",
    max_examples=1000,
    derandomize=False,
    print_blob=True,
    deadline=None,
    suppress_health_check=ANY_SPEED,
)


def examples(count: int, *suppressed: HealthCheck) -> settings:
    """So many examples of a test, ten times as many with ``--long``; else it has a hundred."""
    return settings(
        max_examples=count * settings.default.max_examples // 100,
        suppress_health_check=[*ANY_SPEED, *suppressed],
    )


@pytest.fixture
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Programs ask each other, whatever proxy this machine's shell is told of."""
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "*")


@pytest.fixture
def short_path() -> Iterator[Path]:
    """A gateway's socket has a path of a hundred characters at most; pytest's may be longer."""
    with tempfile.TemporaryDirectory(prefix="tinyfleet-") as folder:
        yield Path(folder)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--long", action="store_true", help="also what takes long, at random")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("long"):
        settings.load_profile("long")
        return
    settings.load_profile("ci")
    # Hypothesis also tries constants that it finds in the modules of ours that happen to be loaded:
    # a test run by itself would have other examples than one among all. It has no setting for that.
    if hasattr(providers, "_get_local_constants"):
        setattr(providers, "_get_local_constants", lambda: providers._local_constants)  # noqa: B010


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("long"):
        return
    long = [item for item in items if item.get_closest_marker("long")]
    if long:
        config.hook.pytest_deselected(items=long)
        items[:] = [item for item in items if item not in long]
