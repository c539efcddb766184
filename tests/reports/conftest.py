"""Sample results for the tests of figures, tables and pages."""

from collections.abc import Callable, Iterator

import pytest
from report_samples import Sample, sample

from tests.reports.rich_samples import everything


@pytest.fixture(autouse=True)
def _no_figure_is_lost(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """A figure that cannot be drawn is left out with a word in the log, which no test is to overlook."""
    yield
    assert not [message for message in caplog.messages if "is left out" in message]


@pytest.fixture(scope="session")
def pair() -> Sample:
    return sample()


@pytest.fixture(scope="session")
def single() -> Sample:
    return sample(("model",))


@pytest.fixture(scope="session")
def full() -> Sample:
    """Two arms of two training seeds, with everything that a run can have."""
    return everything(seeds=2)


@pytest.fixture(scope="session")
def make_sample() -> Callable[..., Sample]:
    return sample
