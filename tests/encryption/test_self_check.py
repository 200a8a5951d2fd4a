"""A worker proves its ciphers before it takes a job."""

import pytest
from celery import signals

from encryption.engine import xts


def test_worker_starts_with_good_ciphers() -> None:
    signals.worker_init.send(sender=None)


def test_worker_does_not_start_with_broken_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(xts, "_VECTOR_CIPHER_HEAD", bytes(16))
    with pytest.raises(SystemExit) as ended:
        signals.worker_init.send(sender=None)
    assert ended.value.code == 70
