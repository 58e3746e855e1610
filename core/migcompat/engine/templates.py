"""Rule T: templates in entry values (semantics §3).

``{name:int:1,2}`` or ``{name:string:"a","b"}`` declares a variable, ``{name}`` refers to it, and a value that
is exactly ``{name}/N`` divides. One binding of all variables is shared by all attributes of an entry.

Bindings are never listed up front. Their number is a product, known from the declarations alone; a
non-integral division rules out alternatives of one variable and nothing else; and :class:`Bindings` grows a
partial binding only by the variables of the attribute at hand, after what does not match has gone.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from itertools import product

import msgspec

MAX_BINDINGS = 4096
"""Bindings of one entry (rule T)."""

MAX_DEVICE_BINDINGS = 65_536
"""Bindings of all entries of a device (rule T)."""

MAX_WORK = 4 * 1024 * 1024
"""Bytes that rendering all templates of one entry under all its bindings may take.

Beyond semantics §3, which bounds the number of bindings alone: references are cheap to write, so within that
number an entry of a hostile driver or node could keep a verdict busy for half a minute. At 4096 bindings it
leaves 1 KiB to each, which is a multiple of what any real entry holds.
"""

_PLACE = 8  # what a template costs beside its text, in bytes' worth of work

Binding = dict[str, str]

_NAME = r"[A-Za-z0-9_.-]+"
_INTEGER = r"(?:0|-?[1-9][0-9]*)"
_REFERENCE = re.compile(rf"\{{({_NAME})\}}")
_INT_DECLARATION = re.compile(rf"\{{({_NAME}):int:({_INTEGER}(?:,{_INTEGER})*)\}}")
_STRING_DECLARATION = re.compile(rf'\{{({_NAME}):string:("[^"]*"(?:,"[^"]*")*)\}}')
_DIVISION = re.compile(rf"\{{({_NAME})\}}/([0-9]+)")
_ALTERNATIVE = re.compile(r'"([^"]*)"')


class TemplateError(ValueError):
    """A template that makes its entry malformed (rule T); says why."""


class Variable(msgspec.Struct, frozen=True):
    """A declared variable. ``count``: alternatives as declared, before divisions dropped any of them."""

    alternatives: tuple[str, ...]
    integer: bool
    count: int


class Pattern(msgspec.Struct, frozen=True):
    """One entry value. ``pieces``: literal texts at even places, names of variables at odd ones.

    ``settled``: the first place from which on no variable comes that has not come before.
    """

    text: str
    pieces: tuple[str, ...]
    divisor: int = 0
    settled: int = 0

    @property
    def variables(self) -> tuple[str, ...]:
        """The names of its variables, with repeats."""
        return self.pieces[1::2]

    def render(self, binding: Mapping[str, str]) -> str:
        """The value under *binding*, which binds all its variables."""
        if self.divisor:
            return str(int(binding[self.pieces[1]]) // self.divisor)
        return "".join([binding[p] if i % 2 else p for i, p in enumerate(self.pieces)])

    def work(self, declared: Mapping[str, Variable]) -> int:
        """About how many bytes' worth of work rendering it once takes at most."""
        longest = {name: max(map(len, declared[name].alternatives)) for name in set(self.variables)}
        return sum(map(len, self.pieces[::2])) + sum(longest[name] + _PLACE for name in self.variables)


class Templates(msgspec.Struct, frozen=True):
    """An entry's values with all templates understood. ``count``: bindings, 0 without variables."""

    patterns: dict[str, Pattern]
    variables: dict[str, Variable]
    count: int


def understand(attributes: Mapping[str, str]) -> Templates:
    """Understand the templates of one entry. Raises TemplateError when they make it unusable.

    Variables are ordered by name, so that the order of an entry's attributes plays no part.
    """
    declared: dict[str, Variable] = {}
    patterns = {name: _pattern(text, declared) for name, text in sorted(attributes.items())}
    count = 1 if declared else 0
    for variable in declared.values():
        count *= variable.count
        if count > MAX_BINDINGS:
            raise TemplateError(f"the templates have more than {MAX_BINDINGS} bindings")
    for pattern in patterns.values():
        for name in pattern.variables:
            if name not in declared:
                raise TemplateError(f"the template variable {name} is not declared")
        if pattern.divisor:
            _divide(pattern, declared)
    templated = [pattern for pattern in patterns.values() if pattern.variables]
    if count * sum(pattern.work(declared) for pattern in templated) > MAX_WORK:
        raise TemplateError(f"the templates render to more than {MAX_WORK} bytes")
    return Templates(patterns, dict(sorted(declared.items())), count)


def _pattern(text: str, declared: dict[str, Variable]) -> Pattern:
    """Split *text* at its templates and note the variables that it declares."""
    if "{" not in text and "}" not in text:
        return Pattern(text, (text,))
    division = _DIVISION.fullmatch(text)
    if division:
        name, digits = division.groups()
        if digits[0] == "0":
            raise TemplateError(f"a template divides by {digits}")
        return Pattern(text, ("", name, ""), int(digits))
    pieces = [""]
    seen: set[str] = set()
    place = settled = 0
    while place < len(text):
        if text[place] not in "{}":
            start = place
            while place < len(text) and text[place] not in "{}":
                place += 1
            pieces[-1] += text[start:place]
            continue
        name, place = _template(text, place, declared)
        pieces += [name, ""]
        if name not in seen:
            seen.add(name)
            settled = len(pieces) - 1
    return Pattern(text, tuple(pieces), settled=settled)


def _template(text: str, place: int, declared: dict[str, Variable]) -> tuple[str, int]:
    """The variable that the template at *place* names, and where the text goes on."""
    reference = _REFERENCE.match(text, place)
    if reference:
        return reference[1], reference.end()
    found = _INT_DECLARATION.match(text, place)
    integer = found is not None
    found = found or _STRING_DECLARATION.match(text, place)
    if found is None:
        raise TemplateError("a template is neither {name} nor a declaration with a list of alternatives")
    name, listed = found.groups()
    if name in declared:
        raise TemplateError(f"the template variable {name} is declared twice")
    alternatives = listed.split(",") if integer else _ALTERNATIVE.findall(listed)
    declared[name] = Variable(tuple(dict.fromkeys(alternatives)), integer, len(alternatives))
    return name, found.end()


def _divide(pattern: Pattern, declared: dict[str, Variable]) -> None:
    """Drop the alternatives that the division in *pattern* does not divide."""
    name = pattern.pieces[1]
    variable = declared[name]
    if not variable.integer:
        raise TemplateError(f"a template divides {name}, which is no integer")
    left = tuple(value for value in variable.alternatives if int(value) % pattern.divisor == 0)
    if not left:
        raise TemplateError(f"no alternative of {name} can be divided by {pattern.divisor}")
    declared[name] = msgspec.structs.replace(variable, alternatives=left)


class Bindings:
    """The bindings of one entry under which all attributes looked at so far match."""

    def __init__(self, templates: Templates) -> None:
        self._variables = templates.variables
        self._alive: list[Binding] = [{}]

    def narrow_literal(self, pattern: Pattern, value: str) -> bool:
        """Keep the bindings under which *pattern* is *value*; whether any is left. If none: all are kept."""
        if len(pattern.pieces) == 1:
            return pattern.text == value
        if pattern.divisor:
            return self.narrow(pattern, lambda rendered: rendered == value)
        return self._keep([found for old in self._alive for found in self._solve(pattern, old, value)])

    def narrow(self, pattern: Pattern, accepts: Callable[[str], bool]) -> bool:
        """Like :meth:`narrow_literal` for any condition on the rendered value."""
        if len(pattern.pieces) == 1:
            return accepts(pattern.text)
        known: dict[str, bool] = {}
        left = []
        for old in self._alive:
            for found in self._extensions(pattern, old):
                rendered = pattern.render(found)
                verdict = known.get(rendered)
                if verdict is None:
                    verdict = known[rendered] = accepts(rendered)
                if verdict:
                    left.append(found)
        return self._keep(left)

    def sample(self, pattern: Pattern) -> str:
        """*pattern* for a message: rendered if the bindings left leave no choice, else as it was written."""
        rendered: set[str] = set()
        for old in self._alive:
            for found in self._extensions(pattern, old):
                rendered.add(pattern.render(found))
                if len(rendered) > 1:
                    return pattern.text
        return rendered.pop()

    def first(self) -> dict[str, str | int]:
        """The first binding left, in the order of the variables' names and of their alternatives.

        ``int`` variables as numbers. A variable that nothing looked at has its first alternative.
        """
        places = {
            name: {value: place for place, value in enumerate(variable.alternatives)}
            for name, variable in self._variables.items()
        }

        def key(binding: Binding) -> tuple[int, ...]:
            return tuple(places[name][binding[name]] if name in binding else 0 for name in places)

        best = min(self._alive, key=key)
        chosen = {
            name: best.get(name, variable.alternatives[0]) for name, variable in self._variables.items()
        }
        return {name: int(text) if self._variables[name].integer else text for name, text in chosen.items()}

    def _keep(self, left: list[Binding]) -> bool:
        if left:
            self._alive = left
        return bool(left)

    def _extensions(self, pattern: Pattern, old: Binding) -> Iterator[Binding]:
        """*old* with the pattern's unbound variables bound in every way."""
        names = [name for name in dict.fromkeys(pattern.variables) if name not in old]
        for values in product(*(self._variables[name].alternatives for name in names)):
            yield {**old, **dict(zip(names, values, strict=True))}

    def _solve(self, pattern: Pattern, start: Binding, value: str) -> Iterator[Binding]:
        """The ways to bind the pattern's variables, beyond *start*, so that it reads *value*."""
        pending = [(start, 0, 0)]
        while pending:
            bound, piece, place = pending.pop()
            if piece == pattern.settled:
                if pattern.render(bound) == value:
                    yield bound
                continue
            literal = pattern.pieces[piece]
            if not value.startswith(literal, place):
                continue
            place += len(literal)
            name = pattern.pieces[piece + 1]
            alternatives = (bound[name],) if name in bound else self._variables[name].alternatives
            pending.extend(
                (bound if name in bound else {**bound, name: text}, piece + 2, place + len(text))
                for text in alternatives
                if value.startswith(text, place)
            )
