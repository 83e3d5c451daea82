"""The filter language of subscriptions: an expression over a message's attributes becomes a predicate. Pure.

    attributes:key      attributes.key = "v"      attributes.key != "v"      hasPrefix(attributes.key, "v")

joined by NOT (or a leading -), AND, OR and parentheses; AND and OR do not mix without parentheses, and a filter has at
most 256 bytes (https://cloud.google.com/pubsub/docs/subscription-message-filter). `!=` is true of a message that has no
such attribute.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import TypeAlias

from cdc_reactor.local.refusals import Refused, invalid

Predicate: TypeAlias = Callable[[Mapping[str, str]], bool]

MAX_FILTER_BYTES = 256

_TOKEN = re.compile(
    r"""\s*(?:
        (?P<string>"(?:[^"\\]|\\.)*")
      | (?P<word>[A-Za-z0-9_][A-Za-z0-9_-]*)
      | (?P<sign>!=|[=:.,()-])
    )""",
    re.VERBOSE,
)
_ESCAPE = re.compile(r"\\(?:u(?P<u>[0-9A-Fa-f]{4})|x(?P<x>[0-9A-Fa-f]{2})|(?P<o>[0-7]{3})|(?P<c>.))", re.DOTALL)
_SHORT_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "a": "\a", "b": "\b", "f": "\f", "v": "\v"}


def parse(text: str) -> Predicate | None:
    """Return the predicate, None for an empty filter; raise INVALID_ARGUMENT when it is no filter."""
    if not text.strip():
        return None
    if len(text.encode()) > MAX_FILTER_BYTES:
        raise invalid(f"The filter has {len(text.encode())} bytes; the maximum is {MAX_FILTER_BYTES}.")
    return _Parser(text).whole()


class _Parser:
    """Recursive descent; each method eats what it is named for."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._tokens = _tokens(text)
        self._at = 0

    def whole(self) -> Predicate:
        predicate = self._expression()
        if self._peek():
            raise self._refusal("AND, OR or the end")
        return predicate

    def _expression(self) -> Predicate:
        terms = [self._term()]
        joint = self._peek()
        if joint not in ("AND", "OR"):
            return terms[0]
        while self._peek() in ("AND", "OR"):
            if self._peek() != joint:
                raise _wrong(self._text, "AND and OR are mixed without parentheses")
            self._next()
            terms.append(self._term())
        return _every(terms) if joint == "AND" else _some(terms)

    def _term(self) -> Predicate:
        if self._peek() in ("NOT", "-"):
            self._next()
            inner = self._primary()
            return lambda attributes: not inner(attributes)
        return self._primary()

    def _primary(self) -> Predicate:
        first = self._next()
        if first == "(":
            inner = self._expression()
            self._eat(")")
            return inner
        if first == "hasPrefix":
            return self._has_prefix()
        if first == "attributes":
            return self._attribute()
        raise self._refusal("attributes, hasPrefix or (", back=1)

    def _has_prefix(self) -> Predicate:
        self._eat("(")
        self._eat("attributes")
        self._eat(".")
        key = self._key()
        self._eat(",")
        prefix = self._string()
        self._eat(")")
        return lambda attributes: key in attributes and attributes[key].startswith(prefix)

    def _attribute(self) -> Predicate:
        sign = self._next()
        if sign == ":":
            key = self._key()
            return lambda attributes: key in attributes
        if sign != ".":
            raise self._refusal(": or .", back=1)
        key = self._key()
        sign = self._next()
        if sign not in ("=", "!="):
            raise self._refusal("= or !=", back=1)
        value = self._string()
        if sign == "=":
            return lambda attributes: attributes.get(key) == value
        return lambda attributes: attributes.get(key) != value

    def _key(self) -> str:
        token = self._peek()
        if token.startswith('"'):
            return self._string()
        if not token or not (token[0].isalnum() or token[0] == "_"):
            raise self._refusal("an attribute's key")
        return self._next()

    def _string(self) -> str:
        token = self._next()
        if not token.startswith('"'):
            raise self._refusal('a "string"', back=1)
        return _ESCAPE.sub(_unescaped, token[1:-1])

    def _peek(self) -> str:
        return self._tokens[self._at] if self._at < len(self._tokens) else ""

    def _next(self) -> str:
        token = self._peek()
        self._at += 1
        return token

    def _eat(self, expected: str) -> None:
        if self._next() != expected:
            raise self._refusal(expected, back=1)

    def _refusal(self, expected: str, *, back: int = 0) -> Refused:
        self._at -= back
        return _wrong(self._text, f"expected {expected}, found {self._peek() or 'the end'}")


def _tokens(text: str) -> list[str]:
    tokens, at = [], 0
    stripped = text.rstrip()
    while at < len(stripped):
        found = _TOKEN.match(stripped, at)
        if not found:
            raise _wrong(text, f"nothing begins like {stripped[at:].strip()[:20]!r}")
        tokens.append(found[0].strip())
        at = found.end()
    return tokens


def _unescaped(escape: re.Match[str]) -> str:
    code = escape["u"] or escape["x"]
    if code:
        return chr(int(code, 16))
    if escape["o"]:
        return chr(int(escape["o"], 8))
    return _SHORT_ESCAPES.get(escape["c"], escape["c"])


def _every(terms: list[Predicate]) -> Predicate:
    return lambda attributes: all(term(attributes) for term in terms)


def _some(terms: list[Predicate]) -> Predicate:
    return lambda attributes: any(term(attributes) for term in terms)


def _wrong(text: str, why: str) -> Refused:
    return invalid(f"Invalid filter {text!r}: {why}.")
