"""A real key server, shared with the adapter's tests."""

from tests.encryption.adapters.conftest import kms_layout, kms_server

__all__ = ["kms_layout", "kms_server"]
