"""The expressions of GitHub's workflows, as far as ours use them; what is beyond that raises.

https://docs.github.com/en/actions/reference/workflows-and-actions/expressions
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

TOKEN = re.compile(r"\s*(?:'((?:[^']|'')*)'|(\d+)|([A-Za-z_][\w-]*)|(==|!=|&&|\|\||[!().,]))")
WORDS = {"true": True, "false": False, "null": None}

Contexts = Mapping[str, Any]
Functions = Mapping[str, Callable[..., Any]]


def interpolate(text: Any, contexts: Contexts, functions: Functions) -> Any:
    """Text with each ${{ }} replaced by its value; what is nothing but one keeps the value's type. Other values stay."""
    if not isinstance(text, str):
        return text
    if whole := re.fullmatch(r"\$\{\{((?:(?!\}\}).)*)\}\}", text.strip()):
        return evaluate(whole[1], contexts, functions)
    return re.sub(r"\$\{\{(.*?)\}\}", lambda found: string(evaluate(found[1], contexts, functions)), text)


def evaluate(text: str, contexts: Contexts, functions: Functions) -> Any:
    """The value of an expression. Raises ValueError for what is not one, or unknown here."""
    tokens = []
    at = 0
    while text[at:].strip():
        if not (match := TOKEN.match(text, at)):
            raise ValueError(f"cannot read {text[at:]!r} of {text!r}")
        at = match.end()
        tokens.append(match)
    reader = _Reader(tokens, contexts, {"fromJSON": json.loads, **functions})
    value = reader.either()
    if reader.tokens:
        raise ValueError(f"{text!r} goes on after its end")
    return value


def string(value: Any) -> str:
    """A value as text puts it."""
    if value is None or isinstance(value, bool):
        return {None: "", True: "true", False: "false"}[value]
    return value if isinstance(value, str) else json.dumps(value)


class _Reader:
    """Reads from the loosest operator down to values."""

    def __init__(self, tokens: list[re.Match[str]], contexts: Contexts, functions: Functions) -> None:
        self.tokens, self.contexts, self.functions = tokens, contexts, functions

    def take(self, *signs: str) -> str:
        """The next token where it is one of these signs."""
        return self.tokens.pop(0)[4] if self.tokens and self.tokens[0][4] in signs else ""

    def need(self, sign: str) -> None:
        if not self.take(sign):
            raise ValueError(f"{sign} is missing")

    def either(self) -> Any:
        value = self.both()
        while self.take("||"):
            other = self.both()
            value = value or other
        return value

    def both(self) -> Any:
        value = self.compared()
        while self.take("&&"):
            other = self.compared()
            value = value and other
        return value

    def compared(self) -> Any:
        value = self.unary()
        while sign := self.take("==", "!="):
            same = string(value).lower() == string(self.unary()).lower()
            value = same == (sign == "==")
        return value

    def unary(self) -> Any:
        if self.take("!"):
            return not self.unary()
        if self.take("("):
            value = self.either()
            self.need(")")
            return value
        return self.value()

    def value(self) -> Any:
        if not self.tokens or self.tokens[0][4]:
            raise ValueError("a value is missing")
        token = self.tokens.pop(0)
        if token[1] is not None:
            return token[1].replace("''", "'")
        if token[2]:
            return int(token[2])
        name = token[3]
        if self.take("("):
            return self.call(name)
        return WORDS[name] if name in WORDS else self.path(name)

    def call(self, name: str) -> Any:
        given = []
        while not self.take(")"):
            given.append(self.either())
            self.take(",")
        if name not in self.functions:
            raise ValueError(f"the function {name} is unknown here")
        return self.functions[name](*given)

    def path(self, name: str) -> Any:
        """What is not there is null, but for contexts and their first names: a mistake in the workflow."""
        if name not in self.contexts:
            raise ValueError(f"there is no {name} here")
        value, strict = self.contexts[name], name not in ("secrets", "vars")
        while self.take("."):
            key = self.tokens.pop(0)[3]
            if strict and key not in value:
                raise ValueError(f"{name} has no {key}")
            value, strict = (value or {}).get(key), False
        return value
