"""Collectors, and certificates for them."""

from collections.abc import Callable, Iterator

import pytest

from lab.pki import Authority, Issued
from tests.console.appliance.collector import Collector

CollectorMaker = Callable[..., Collector]


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority.create(tmp_path_factory.mktemp("syslog-ca"), "Collectors")


@pytest.fixture(scope="session")
def identity(authority: Authority) -> Issued:
    """Of a collector on this machine."""
    return authority.issue("collector", dns=["localhost"], ips=["127.0.0.1"], server=True)


@pytest.fixture
def collectors() -> Iterator[CollectorMaker]:
    """Makes collectors, and closes them at the end."""
    made: list[Collector] = []

    def make(*args: object, **options: object) -> Collector:
        made.append(Collector(*args, **options))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for one in made:
        one.close()
