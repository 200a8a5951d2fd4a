"""Steps run once for one set of inputs, and again when an input or the result has changed."""

import io
import sys
from pathlib import Path

import pytest

from console.launch.steps import LaunchError, Steps, digest, run_command


class Work:
    """An action that counts its runs."""

    def __init__(self, outcome: str | None = None) -> None:
        self.runs = 0
        self.outcome = outcome

    def __call__(self) -> str | None:
        self.runs += 1
        return self.outcome


@pytest.fixture
def out() -> io.StringIO:
    return io.StringIO()


@pytest.fixture
def steps(tmp_path: Path, out: io.StringIO) -> Steps:
    return Steps(tmp_path / "stamps", out)


def test_a_step_with_the_same_key_is_skipped(steps: Steps, out: io.StringIO) -> None:
    work = Work("3 things made")
    assert steps.run("things", "making", work, key="one")
    assert not steps.run("things", "making", work, key="one")
    assert work.runs == 1
    said = out.getvalue()
    assert "making" in said
    assert "3 things made (" in said
    assert said.rstrip().endswith("up to date")


def test_another_key_runs_it_again(steps: Steps) -> None:
    work = Work()
    steps.run("things", "making", work, key="one")
    steps.run("things", "making", work, key="two")
    assert work.runs == 2


def test_a_result_that_is_gone_is_made_again(steps: Steps, tmp_path: Path) -> None:
    result = tmp_path / "result"
    work = Work()
    result.touch()
    steps.run("things", "making", work, key="one", result=result)
    result.unlink()
    steps.run("things", "making", work, key="one", result=result)
    assert work.runs == 2


def test_a_step_without_a_key_always_runs(steps: Steps) -> None:
    work = Work()
    steps.run("things", "making", work)
    steps.run("things", "making", work)
    assert work.runs == 2


def test_a_failed_step_is_not_taken_for_done(steps: Steps) -> None:
    def fail() -> None:
        raise LaunchError("no")

    work = Work()
    steps.run("things", "making", work, key="one")
    with pytest.raises(LaunchError):
        steps.run("things", "making", fail, key="two")
    steps.run("things", "making", work, key="one")
    assert work.runs == 2


def test_digest_sees_contents_names_and_texts(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    one.write_text("a")
    two.write_text("b")
    before = digest([one, two], "text")
    assert digest([two, one], "text") == before
    assert digest([one, two], "other") != before
    two.write_text("c")
    assert digest([one, two], "text") != before


def test_a_failing_command_brings_the_end_of_its_output(tmp_path: Path) -> None:
    lines = "print('\\n'.join(str(n) for n in range(100)), flush=True)"
    script = f"import sys; {lines}; print('the reason', file=sys.stderr); sys.exit(7)"
    with pytest.raises(LaunchError, match="trying failed with exit code 7") as caught:
        run_command([sys.executable, "-c", script], cwd=tmp_path, what="trying")
    said = caught.value.details.splitlines()
    assert said[-2:] == ["99", "the reason"]
    assert "0" not in said


def test_a_command_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(LaunchError, match="cannot run /nonexistent/program"):
        run_command(["/nonexistent/program"], cwd=tmp_path, what="trying")
