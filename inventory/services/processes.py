"""What every long-running process of the console does before its work: apps above register it here.

The web process, each worker, beat and the listeners call `started` once, with the name by which people know them.
"""

from collections.abc import Callable

FirstStep = Callable[[str], None]
_first_steps: list[FirstStep] = []


def register_first_step(step: FirstStep) -> None:
    """`step` gets the process's name. It ends the process by SystemExit where that must not begin its work."""
    if step not in _first_steps:
        _first_steps.append(step)


def started(name: str) -> None:
    for step in _first_steps:
        step(name)
