"""What of a JSON schema xgrammar 0.2.8 takes without holding the output to it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from vllm.structured_output.notation import string_for_xgrammar
from vllm.structured_output.pattern import NotPlain

Node = Mapping[str, Any]

_IGNORED: Final = frozenset(
    "multipleOf uniqueItems contains minContains maxContains not if dependencies "
    "dependentRequired dependentSchemas unevaluatedProperties unevaluatedItems "
    "$dynamicRef $recursiveRef".split()
)
# Of a node with several of these the first one counts, and no other keyword does.
_LEADERS: Final = ("$ref", "const", "enum", "anyOf", "oneOf", "allOf")
_OF_STRINGS: Final = frozenset({"minLength", "maxLength", "pattern", "format"})
_OF_OBJECTS: Final = frozenset(
    "properties required additionalProperties patternProperties propertyNames minProperties "
    "maxProperties".split()
)
_OF_ARRAYS: Final = frozenset("items prefixItems additionalItems minItems maxItems".split())
_OF_NUMBERS: Final = frozenset("minimum maximum exclusiveMinimum exclusiveMaximum".split())
_ASSERTIONS: Final = (
    {"type", *_LEADERS} | _OF_STRINGS | _OF_OBJECTS | _OF_ARRAYS | _OF_NUMBERS | _IGNORED
)
# Without a type, any of these makes xgrammar take the node for an object or an array.
_TELLING: Final = frozenset({"properties", "items", "prefixItems"})
_UNTYPED: Final = _OF_STRINGS | _OF_NUMBERS | _OF_OBJECTS | _OF_ARRAYS
# Its patterns of these also match 31 February and 01.1.1.1.
_LOOSE_FORMATS: Final = frozenset({"date", "date-time", "ipv4"})
_STRICT_FORMATS: Final = frozenset(
    "time duration email hostname ipv6 uuid uri uri-reference uri-template json-pointer "
    "relative-json-pointer".split()
)
_MAPS: Final = ("properties", "$defs", "definitions", "patternProperties", "dependentSchemas")
_DATA: Final = ("enum", "const", "default", "examples")
_ALL_TYPES: Final = frozenset("object array string number integer boolean null".split())
_MAX_HOPS: Final = 8
# At one place. A weak model can go on with blank lines for ever; deep indentation needs fewer.
MAX_WHITESPACE: Final = 32
# More names of members than these are not tried as what tells alternatives apart.
_MAX_TAGS: Final = 16
# Names and values looked at to tell alternatives apart, and parts of a schema written out again
# where they were referred to. Of a text of 128 Ki characters that refers to one large part from
# thousands of places there would be millions.
_MAX_LOOKED_AT: Final = 200_000
_MAX_COPIED: Final = 20_000


def unenforced(schema: Any) -> str | None:
    """The first such part, in words; None if all of the schema is enforced."""
    unions = _Unions(schema)
    for node in nodes(schema):
        if node is not schema and isinstance(node.get("$id"), str):
            return "$id inside of a schema"
        for problem in (_keyword(node), _leader(node, unions), _of_type(node), _patterns(node)):
            if problem is not None:
                return problem
    return None


def with_tags_required(schema: Any) -> Any:
    """Each oneOf with a discriminator: its member required in every alternative.

    A text without that member could be of several alternatives, which oneOf forbids.
    """
    unions = _Unions(schema)
    room = _MAX_COPIED
    for node in list(nodes(schema)):
        discriminator = node.get("discriminator")
        tag = discriminator.get("propertyName") if isinstance(discriminator, dict) else None
        members = node.get("oneOf")
        if not isinstance(tag, str) or not isinstance(members, list):
            continue
        for index, member in enumerate(members):
            if room < 0:
                break
            found = unions.resolve(member)
            if isinstance(found, dict) and _may_lack(found, tag):
                room -= sum(1 + len(part) for part in nodes(found))
                members[index] = {**found, "required": [*found.get("required", ()), tag]}
    return schema


def _may_lack(node: Node, name: str) -> bool:
    """Whether it is an object's member that is not required."""
    members, required = node.get("properties"), node.get("required", ())
    return (
        isinstance(members, dict)
        and name in members
        and isinstance(required, list | tuple)
        and name not in required
    )


def limits_strings(schema: Any) -> bool:
    """Whether there is a limit of a string anywhere in it."""
    return any(_OF_STRINGS & node.keys() for node in nodes(schema))


def _keyword(node: Node) -> str | None:
    if found := sorted(_IGNORED & node.keys()):
        return ", ".join(found)
    reference = node.get("$ref")
    if isinstance(reference, str) and reference != "#" and not reference.startswith("#/"):
        return "a $ref that is not a path in the schema itself"
    return None


def _leader(node: Node, unions: _Unions) -> str | None:
    leader = next((name for name in _LEADERS if name in node), None)
    if leader is None:
        return None
    beside = (_ASSERTIONS & node.keys()) - {leader}
    if "type" in beside and _implies_type(node, leader, unions):
        beside -= {"type"}
    if beside:
        return f"{leader} beside {', '.join(sorted(beside))}"
    if leader == "allOf" and _length(node["allOf"]) > 1:
        return "allOf of several schemas"
    if leader == "oneOf" and not unions.are_disjoint(node["oneOf"]):
        return "oneOf whose alternatives may overlap (use anyOf)"
    return None


def _implies_type(node: Node, leader: str, unions: _Unions) -> bool:
    """Whether what the leader allows has the type that stands beside it."""
    types = _types(node["type"])
    if leader == "const":
        return _type_of(node["const"]) in types
    if leader == "enum" and isinstance(node["enum"], list):
        return all(_type_of(value) in types for value in node["enum"])
    if leader in ("anyOf", "oneOf") and isinstance(node[leader], list):
        return all(unions.types(member) <= types for member in node[leader])
    return False


def _of_type(node: Node) -> str | None:
    if any(name in node for name in _LEADERS):
        return None
    if "type" in node and not 0 < len(_names_of_types(node["type"])) <= len(_ALL_TYPES):
        return "a type that is no name and no list of few names"
    if "type" not in node and not _TELLING & node.keys() and (found := _UNTYPED & node.keys()):
        return f"{', '.join(sorted(found))} without a type"
    if isinstance(most := node.get("maxLength"), int) and most < 0:
        return "a negative maxLength"
    ways = _string_limits(node)
    if len(ways) > 1:
        return " beside ".join(ways)
    if _format(node) in _LOOSE_FORMATS:
        return f"format {_format(node)}"
    return _of_members(node)


def _string_limits(node: Node) -> list[str]:
    """Kinds of limits of a string, of which only one is kept."""
    known = _format(node) in _LOOSE_FORMATS | _STRICT_FORMATS
    length = next((name for name in ("minLength", "maxLength") if name in node), None)
    found = ["pattern" if "pattern" in node else None, "format" if known else None, length]
    return [name for name in found if name is not None]


def _format(node: Node) -> str:
    named = node.get("format")
    return named if isinstance(named, str) else ""


def _patterns(node: Node) -> str | None:
    for pattern in patterns_of(node):
        try:
            string_for_xgrammar(pattern)
        except NotPlain as error:
            return f"a pattern with {error}"
    return None


def _of_members(node: Node) -> str | None:
    declared = _names(node.get("properties"))
    if not _names(node.get("required")) <= declared:
        return "required members that are not in properties"
    patterns = _names(node.get("patternProperties"))
    if len(patterns) > 1 or (patterns and declared):
        return "patternProperties beside others that may match"
    if "propertyNames" in node and (declared or patterns or "additionalProperties" in node):
        return "propertyNames beside other keywords of members"
    return None


@dataclass(frozen=True, slots=True)
class _Values:
    """All there are, of a const or an enum."""

    keys: frozenset[str]
    types: frozenset[str]


class _Unions:
    """Alternatives of one schema, with what its references mean.

    Everything is looked up once: a schema may refer to one large part from thousands of places.
    """

    def __init__(self, root: Any) -> None:
        self._root = root
        self._targets: dict[str, Any] = {}
        self._values: dict[int, _Values | None] = {}
        self._tags: dict[int, dict[str, frozenset[str]]] = {}
        self._room = _MAX_LOOKED_AT

    def resolve(self, node: Any) -> Any:
        """A reference that has nothing beside it, followed; anything else as it is."""
        for _ in range(_MAX_HOPS):
            reference = node.get("$ref") if isinstance(node, dict) else None
            if not isinstance(reference, str) or not reference.startswith("#/"):
                break
            if reference not in self._targets:
                self._targets[reference] = self._target(reference)
            node = self._targets[reference]
        return node

    def _target(self, reference: str) -> Any:
        if "~" in reference or "%" in reference:
            return None  # a name that is written in another way than it is
        found = self._root
        for name in reference[2:].split("/"):
            found = found.get(name) if isinstance(found, dict) else None
        return found

    def values(self, node: Any) -> _Values | None:
        """Of a node that has been resolved; None: more than can be listed."""
        if id(node) not in self._values:
            listed = _listed(node)
            self._values[id(node)] = (
                None
                if listed is None
                else _Values(frozenset(map(_key, listed)), frozenset(map(_type_of, listed)))
            )
        return self._values[id(node)]

    def types(self, member: Any) -> frozenset[str]:
        """The types its values can have."""
        node = self.resolve(member)
        if (values := self.values(node)) is not None:
            return values.types
        if isinstance(node, dict) and "type" in node:
            return _types(node["type"])
        if isinstance(node, dict) and "properties" in node and not {*_LEADERS} & node.keys():
            return frozenset({"object"})  # as xgrammar reads it
        return _ALL_TYPES

    def are_disjoint(self, members: Any) -> bool:
        """Whether no value can be of two of them, as far as that is plain to see."""
        if not isinstance(members, list):
            return False
        nodes = [self.resolve(member) for member in members]
        if len({id(node) for node in nodes}) < len(nodes):
            return False
        listed = [values for node in nodes if (values := self.values(node)) is not None]
        others = [node for node in nodes if self.values(node) is None]
        objects = [node for node in others if self.types(node) == {"object"}]
        types = [self.types(node) for node in others if self.types(node) != {"object"}]
        if objects:
            types.append(frozenset({"object"}))
        tags = [self._tags_of(node) for node in objects]
        self._room -= sum(len(values.keys) for values in listed) + sum(map(len, tags))
        # Without a type it is written as an object, but meets a value of any other type too.
        untyped = any("type" not in node for node in objects) and bool(listed or len(types) > 1)
        if self._room < 0 or untyped or not _are_apart(types):
            return False
        return (
            _are_apart([values.keys for values in listed])
            and _union([values.types for values in listed]).isdisjoint(_union(types))
            and (len(tags) < 2 or self._told_apart(tags))
        )

    def _told_apart(self, objects: list[dict[str, frozenset[str]]]) -> bool:
        """Whether some member has other values in each of the objects."""
        common = set(objects[0]).intersection(*objects[1:])
        for name in sorted(common)[:_MAX_TAGS]:
            values = [tags[name] for tags in objects]
            self._room -= sum(map(len, values))
            if self._room >= 0 and _are_apart(values):
                return True
        return False

    def _tags_of(self, node: Node) -> dict[str, frozenset[str]]:
        """Required members with few values, by name."""
        if id(node) not in self._tags:
            members = node.get("properties")
            found = {}
            for name in _names(node.get("required")) & _names(members):
                member = members[name] if isinstance(members, dict) else None
                if (values := self.values(self.resolve(member))) is not None:
                    found[name] = values.keys
            self._tags[id(node)] = found
        return self._tags[id(node)]


def _are_apart(sets: list[frozenset[str]]) -> bool:
    return len(_union(sets)) == sum(map(len, sets))


def _union(sets: list[frozenset[str]]) -> frozenset[str]:
    return frozenset[str]().union(*sets)


def nodes(schema: Any) -> Iterator[dict[str, Any]]:
    """The schema and those inside of it, where keywords are keywords and not names."""
    todo = [schema]
    while todo:
        node = todo.pop()
        if isinstance(node, list):
            todo += node
        elif isinstance(node, dict):
            yield node
            for name, value in node.items():
                if name in _MAPS and isinstance(value, dict):
                    todo += value.values()
                elif name == "propertyNames" and isinstance(value, dict) and "$ref" not in value:
                    todo.append({"type": "string", **value})
                elif name not in _DATA:
                    todo.append(value)


def patterns_of(node: Node) -> list[str]:
    """Of strings and of the names of members."""
    named = node.get("patternProperties")
    found = [node.get("pattern"), *(named if isinstance(named, dict) else ())]
    return [pattern for pattern in found if isinstance(pattern, str)]


def rewrite_patterns(schema: Any, rewritten: Callable[[str], str]) -> Any:
    """Every pattern of the schema in another notation, in place."""
    # Of what propertyNames holds there may be a copy among the nodes.
    found = [part for node in nodes(schema) for part in (node, node.get("propertyNames"))]
    for node in {id(part): part for part in found if isinstance(part, dict)}.values():
        if isinstance(pattern := node.get("pattern"), str):
            node["pattern"] = rewritten(pattern)
        if isinstance(named := node.get("patternProperties"), dict):
            node["patternProperties"] = {rewritten(name): part for name, part in named.items()}
    return schema


def _listed(node: Any) -> list[Any] | None:
    if not isinstance(node, dict):
        return None
    if "const" in node:
        return [node["const"]]
    values = node.get("enum")
    return values if isinstance(values, list) else None


def _key(value: Any) -> str:
    """Equal for values that JSON schema holds equal: 1 and 1.0, but not 1 and true."""
    return json.dumps(_with_whole_numbers(value), sort_keys=True)


def _with_whole_numbers(value: Any) -> Any:
    if isinstance(value, list):
        return [_with_whole_numbers(item) for item in value]
    if isinstance(value, dict):
        return {name: _with_whole_numbers(item) for name, item in value.items()}
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _type_of(value: Any) -> str:
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, int) or (isinstance(value, float) and value.is_integer()):
        return "integer"
    names = {float: "number", str: "string", list: "array", dict: "object"}
    return names.get(type(value), "null")


def _types(named: Any) -> frozenset[str]:
    """Names of types; a number may be an integer."""
    names = _names_of_types(named)
    if len(names) > len(_ALL_TYPES):
        return _ALL_TYPES
    return frozenset(names | {"integer"} if "number" in names else names)


def _names_of_types(named: Any) -> set[str]:
    return _names(named if isinstance(named, list) else [named])


def _names(value: Any) -> set[str]:
    many = isinstance(value, dict | list)
    return {name for name in value if isinstance(name, str)} if many else set()


def _length(value: Any) -> int:
    return len(value) if isinstance(value, list) else 0
