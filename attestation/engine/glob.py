"""Patterns for command lines and paths, matched in time linear in the text: an NFA whose states are bits of an integer.

    *   any characters but the separator (a word of a command line, a name in a path)
    **  any characters
    ?   one character but the separator
    \\   takes the next character literally

A regular expression from an administrator could take exponential time on a text from a hostile host; this cannot.

With a space as separator, for command lines, * and ? are printable ASCII and nothing else: Linux ends a word at each
byte that its isspace() knows, tabs and 0xa0 among them, and a wildcard must not let a further argument in.
"""

from typing import ClassVar

from attestation.engine.errors import Malformed

MAX_PATTERN = 4096
MAX_TEXT = 8_192


class BadPattern(Malformed):
    what: ClassVar[str] = "pattern"


class Glob:
    """One compiled pattern. A text longer than MAX_TEXT matches nothing."""

    __slots__ = ("_accept", "_any", "_inner", "_literals", "_prefix", "_separator", "_start", "_words", "pattern")

    def __init__(self, pattern: str, *, separator: str) -> None:
        """`separator`: one character that * and ? do not cross. Raises BadPattern."""
        if not pattern or len(pattern) > MAX_PATTERN:
            raise BadPattern(f"1 to {MAX_PATTERN} characters", offset=0)
        self.pattern = pattern
        self._separator = separator
        self._words = separator == " "
        self._literals: dict[str, int] = {}
        self._any = 0
        self._inner = 0
        one_inner = 0
        states = 0
        for wildcard, character in _tokens(pattern):
            bit = 1 << states
            if wildcard == "**":
                self._any |= bit
            elif wildcard == "*":
                self._inner |= bit
            elif wildcard == "?":
                one_inner |= bit
            else:
                self._literals[character] = self._literals.get(character, 0) | bit
            states += 1
        self._literals[""] = one_inner
        self._accept = 1 << states
        self._start = self._past_stars(1)
        # The commonest pattern of an exclude list, /var/**, needs no automaton.
        head = pattern[:-2]
        self._prefix = head if pattern.endswith("**") and not set(head) & set("*?\\") else None

    def matches(self, text: str) -> bool:
        """The whole text."""
        if len(text) > MAX_TEXT:
            return False
        if self._prefix is not None:
            return text.startswith(self._prefix)
        states, literals, one_inner = self._start, self._literals, self._literals[""]
        many, inner, words, separator = self._any, self._inner, self._words, self._separator
        stars = many | inner
        for character in text:
            moved = states & literals.get(character, 0)
            stayed = states & many
            if "!" <= character <= "~" if words else character != separator:
                moved |= states & one_inner
                stayed |= states & inner
            states = moved << 1 | stayed
            states |= (states & stars) << 1  # _past_stars, written out: this loop is what a match costs
            if not states:
                return False
        return bool(states & self._accept)

    def _past_stars(self, states: int) -> int:
        # Stars never stand side by side (_tokens), so one step is enough.
        return states | (states & (self._any | self._inner)) << 1


def _tokens(pattern: str) -> list[tuple[str, str]]:
    """(wildcard, literal), one of them empty. Neighbouring stars become one: ** where there are two or more."""
    tokens: list[tuple[str, str]] = []
    at = 0
    while at < len(pattern):
        character = pattern[at]
        at += 1
        if character == "\\":
            if at == len(pattern):
                raise BadPattern("a character behind the backslash", offset=at)
            tokens.append(("", pattern[at]))
            at += 1
        elif character == "*":
            if tokens and tokens[-1][0] in ("*", "**"):
                tokens[-1] = ("**", "")
            else:
                tokens.append(("*", ""))
        elif character == "?":
            tokens.append(("?", ""))
        else:
            tokens.append(("", character))
    return tokens


def escaped(text: str) -> str:
    """The pattern that matches exactly `text`."""
    return "".join("\\" + character if character in "*?\\" else character for character in text)
