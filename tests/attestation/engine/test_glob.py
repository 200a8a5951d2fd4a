import pytest
from hypothesis import given
from hypothesis import strategies as st

from attestation.engine.glob import MAX_PATTERN, MAX_TEXT, BadPattern, Glob, escaped


@pytest.mark.parametrize(
    ("pattern", "text", "matches"),
    [
        ("/usr/bin/true", "/usr/bin/true", True),
        ("/usr/bin/true", "/usr/bin/true ", False),
        ("/usr/*/true", "/usr/bin/true", True),
        ("/usr/*/true", "/usr/local/bin/true", False),
        ("/usr/**/true", "/usr/local/bin/true", True),
        ("/usr/*", "/usr/", True),
        ("/var/**", "/var/", True),
        ("/var/**", "/var", False),
        ("/var/**", "/usr/var/x", False),
        ("**.pyc", "/a/b.pyc", True),
        ("*.pyc", "/a/b.pyc", False),
        ("**", "", True),
        ("*", "/", False),
        ("a*b*c", "abbbc", True),
        ("a*b*c", "abbb", False),
        ("a?c", "abc", True),
        ("a?c", "a/c", False),
        ("a?c", "ac", False),
        ("a***c", "a/x/c", True),
        (r"a\*c", "a*c", True),
        (r"a\*c", "abc", False),
        (r"\**", "*x", True),
        (r"/x\**", "/x*", True),
        ("*a", "aaa", True),
        ("**a/**b", "x/a/y/b", True),
    ],
)
def test_patterns(pattern: str, text: str, matches: bool) -> None:
    assert Glob(pattern, separator="/").matches(text) is matches


def test_a_word_of_a_command_line() -> None:
    pattern = Glob("* root=UUID=* ro", separator=" ")
    assert pattern.matches("/vmlinuz root=UUID=1 ro")
    assert not pattern.matches("/vmlinuz init=/bin/sh root=UUID=1 ro")


@pytest.mark.parametrize("space", ["\t", "\n", "\v", "\f", "\r", "\xa0", "\ufffd", "\u3000", "\0", "à"])
def test_no_white_space_of_the_kernel_is_inside_a_word(space: str) -> None:
    assert not Glob("* root=UUID=* ro", separator=" ").matches(f"/vmlinuz root=UUID=1{space}init=/bin/sh ro")
    assert not Glob("a?b", separator=" ").matches(f"a{space}b")
    assert Glob(f"x{space}**", separator=" ").matches(f"x{space}{space}")


@pytest.mark.parametrize("pattern", ["", "x" * (MAX_PATTERN + 1), "x\\"])
def test_bad_patterns(pattern: str) -> None:
    with pytest.raises(BadPattern):
        Glob(pattern, separator="/")


@given(st.text(max_size=40))
def test_an_escaped_text_matches_itself_alone(text: str) -> None:
    if text:
        assert Glob(escaped(text), separator="/").matches(text)
        assert not Glob(escaped(text), separator="/").matches(text + "x")


@given(st.text("a*/?", min_size=1, max_size=12), st.text("a/b", max_size=12))
def test_as_a_slow_reading_of_the_rules(pattern: str, text: str) -> None:
    assert Glob(pattern, separator="/").matches(text) is _slowly(pattern, text)


def _slowly(pattern: str, text: str) -> bool:
    if not pattern:
        return not text
    if pattern[0] != "*":
        one = bool(text) and (text[0] != "/" if pattern[0] == "?" else text[0] == pattern[0])
        return one and _slowly(pattern[1:], text[1:])
    rest = pattern.lstrip("*")
    several = len(pattern) - len(rest) > 1
    for length in range(len(text) + 1):
        if (several or "/" not in text[:length]) and _slowly(rest, text[length:]):
            return True
    return False


def test_the_worst_pattern_comes_to_an_end() -> None:
    """A backtracking matcher would take longer than the universe has existed."""
    pattern = Glob("*a" * 200 + "b", separator="/")
    assert not pattern.matches("a" * MAX_TEXT)
    assert not pattern.matches("a" * (MAX_TEXT + 1) + "b")
