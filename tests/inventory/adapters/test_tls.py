"""TLS on either end: nothing below 1.2, and under 1.2 only ECDHE with AES-GCM."""

import re
import ssl
from pathlib import Path

import pytest

from inventory.adapters import tls


@pytest.mark.parametrize("context", [tls.client_context(), tls.server_context()], ids=["client", "server"])
def test_versions_and_suites(context: ssl.SSLContext) -> None:
    assert context.minimum_version == ssl.TLSVersion.TLSv1_2
    old = [suite["name"] for suite in context.get_ciphers() if suite["protocol"] != "TLSv1.3"]
    assert old
    assert all(name.startswith("ECDHE-") and "-GCM-" in name for name in old)


def test_a_client_verifies() -> None:
    context = tls.client_context()
    assert context.verify_mode == ssl.CERT_REQUIRED
    assert context.check_hostname
    assert context.cert_store_stats()["x509"] == 0


def test_nobody_makes_a_context_past_it() -> None:
    """But the agent, which is one file for a host where nothing of this console is installed."""
    root = Path(__file__).resolve().parents[3]
    made = {
        str(file.relative_to(root))
        for package in ("console", "inventory", "encryption", "attestation")
        for file in (root / package).rglob("*.py")
        if re.search(r"SSLContext\(|create_default_context|_create_unverified_context", file.read_text("utf-8"))
    }
    assert made == {"inventory/adapters/tls.py", "attestation/agent/bartizan_agent.py"}
