"""Use cases of attestation, one module a noun. Web, API, command line and tasks call the same functions."""
