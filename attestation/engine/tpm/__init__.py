"""TPM 2.0 structures as a verifier needs them (TPM 2.0 Library Specification, parts 1 and 2)."""
