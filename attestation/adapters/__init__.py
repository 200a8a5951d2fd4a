"""The outside of attestation: agents on hosts."""
