"""The listener to which attestation agents register: a process and a port of its own, and nothing else behind it."""
