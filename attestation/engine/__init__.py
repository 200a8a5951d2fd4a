"""Evidence of a host's boot, parsed, verified and appraised: pure, with `cryptography` for the mathematics.

The order is in the types: an untrusted quote verifies to a `VerifiedQuote`; an untrusted log replays against its PCRs
to a `ReplayedLog`; only that one's events give findings, and findings give a verdict.
"""
