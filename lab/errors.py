"""What can go wrong while the lab is made or run."""

from __future__ import annotations


class LabError(Exception):
    """The lab cannot be made or run; the message names the object and, where there is one, the way out."""
