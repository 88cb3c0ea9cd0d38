"""Fail a test when an event class changes so that what it has stored can no longer be read.

    def test_stored_events_stay_readable():
        check_schemas("tests/event-schemas.json", "inventory")

The file holds the JSON schema of every event, by name and version; commit it. Run the tests with
CQRS_WRITE_SCHEMAS=1 to write what is new. What is incompatible is never written: it wants a new
version and an upcaster.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from ..errors import UnknownMessageType
from ..messages.message import Event
from ..messages.registry import Registered, Registry
from ..messages.registry import registry as default_registry

#: Set to 1, it lets `check_schemas` write.
WRITE = "CQRS_WRITE_SCHEMAS"

#: Schemas by name, then by version.
Schemas = dict[str, dict[str, Any]]

#: What says something about a value without narrowing it.
_REMARKS = ("title", "description", "default", "examples", "$comment", "deprecated")

#: Limits, and whether a reader's must be at least as high as the writer's, or at most.
_LIMITS = {
    "minimum": -1, "exclusiveMinimum": -1, "minLength": -1, "minItems": -1, "minProperties": -1,
    "maximum": 1, "exclusiveMaximum": 1, "maxLength": 1, "maxItems": 1, "maxProperties": 1,
}  # fmt: skip


def check_schemas(
    file: str | Path,
    *packages: str,
    write: bool | None = None,
    application: str = "application",
    registry: Registry = default_registry,
) -> None:
    """Check that event classes can read what was stored since the file was written.

    Args:
        file: the committed schemas; made if it is missing and may be written.
        packages: where the classes are defined: names of modules, or of packages above them. None:
            every registered event.
        write: whether to write what is new and compatible; None asks the environment, by
            `CQRS_WRITE_SCHEMAS=1`.
        application: `cqrs_application`, if names in the file have it in front.
        registry: has the classes and the upcasters.

    Raises:
        AssertionError: a class has changed incompatibly, what the file has can't be read any more,
            or the file lacks something that is compatible; the text says what to do for each.
    """
    __tracebackhide__ = True
    path = Path(file)
    known: Schemas = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    entries = {(e.name, str(e.version)): e for e in _entries(packages, registry)}
    faults, news = [], []
    for (name, version), entry in sorted(entries.items()):
        schema = _schema_of(entry)
        stored = known.get(name, {}).get(version)
        if stored is not None and (why := incompatibility(stored, schema)):
            faults.append(
                f"{name} version {version} has changed: {why}. Give it version {int(version) + 1},"
                f" and write @upcaster({name!r}, {version})."
            )
        elif stored != schema:
            news.append(f"{name} version {version}")
            known.setdefault(name, {})[version] = schema
    faults += _unread(known, entries, registry, application)
    if write is None:
        write = os.environ.get(WRITE) == "1"
    if faults:
        raise AssertionError("\n".join([f"events of {path} can't be read:", *faults]))
    if news and not write:
        raise AssertionError(
            f"{path} lacks {', '.join(news)}: new, or changed compatibly. Run the test with"
            f" {WRITE}=1, and commit the file."
        )
    if news:
        path.write_text(_text_of(known), encoding="utf-8")


def _text_of(known: Schemas) -> str:
    return json.dumps(known, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def incompatibility(written: dict[str, Any], reader: dict[str, Any]) -> str:
    """Return why data of one JSON schema can't all be read by a class of another; "" if they can.

    Args:
        written: of the class that has stored data.
        reader: of the class that is to read it.
    """
    return _Comparison(written.get("$defs", {}), reader.get("$defs", {})).of(written, reader, "$")


def json_schema(cls: type[Any]) -> dict[str, Any]:
    """Return a class's JSON schema, in which moments are no ordinary texts, as msgspec has them."""
    schema: dict[str, Any] = msgspec.json.schema(cls)
    _tell_moments(msgspec.inspect.type_info(cls), schema, schema.get("$defs", {}), set())
    return schema


def _tell_moments(type_: Any, schema: Any, definitions: dict[str, Any], seen: set[int]) -> None:
    schema = _resolved(schema, definitions) if isinstance(schema, dict) else {}
    if isinstance(type_, (msgspec.inspect.DateTimeType, msgspec.inspect.TimeType)):
        is_date = isinstance(type_, msgspec.inspect.DateTimeType)
        if schema.get("type") == "string":
            schema.setdefault("format", "date-time" if is_date else "time")
        return
    if id(schema) in seen:
        return
    seen.add(id(schema))
    for one in getattr(type_, "types", ()):  # of a union
        for part in schema.get("anyOf", ()):
            if _is_of(one, part, definitions):
                _tell_moments(one, part, definitions, seen)
    for field in getattr(type_, "fields", ()):
        part = schema.get("properties", {}).get(field.encode_name, {})
        _tell_moments(field.type, part, definitions, seen)
    for at, one in enumerate(getattr(type_, "item_types", ())):
        _tell_moments(
            one, dict(enumerate(schema.get("prefixItems", ()))).get(at), definitions, seen
        )
    _tell_moments_inside(type_, schema, definitions, seen)


def _tell_moments_inside(
    type_: Any, schema: Any, definitions: dict[str, Any], seen: set[int]
) -> None:
    for attribute, key in (("item_type", "items"), ("value_type", "additionalProperties")):
        if hasattr(type_, attribute):
            _tell_moments(getattr(type_, attribute), schema.get(key), definitions, seen)
    if isinstance(type_, msgspec.inspect.Metadata):
        _tell_moments(type_.type, schema, definitions, seen - {id(schema)})


def _is_of(type_: Any, schema: dict[str, Any], definitions: dict[str, Any]) -> bool:
    kind = _resolved(schema, definitions).get("type")
    if isinstance(type_, (msgspec.inspect.DateTimeType, msgspec.inspect.TimeType)):
        return kind == "string"
    if hasattr(type_, "item_type") or hasattr(type_, "item_types"):
        return kind == "array"
    return kind == "object"


def _entries(packages: Iterable[str], registry: Registry) -> Iterator[Registered]:
    wanted = tuple(packages)
    for entry in registry.subclasses(Event):
        module = f"{entry.cls.__module__}."
        if not wanted or any(module.startswith(f"{package}.") for package in wanted):
            yield entry


def _schema_of(entry: Registered) -> dict[str, Any]:
    schema = json_schema(entry.cls)
    reference = schema.get("$ref", "")
    definitions = dict(schema.get("$defs", {}))
    own = definitions.pop(reference.rpartition("/")[2], None)
    if own is None or f'"{reference}"' in json.dumps([own, definitions]):
        return schema
    # A class that is not in itself needs no name; then renaming it changes nothing.
    own.pop("title", None)
    return {**own, "$defs": definitions} if definitions else own


def _unread(
    known: Schemas,
    entries: dict[tuple[str, str], Registered],
    registry: Registry,
    application: str,
) -> list[str]:
    faults = []
    for name, version in ((n, v) for n, versions in known.items() for v in versions):
        if (name, version) in entries:
            continue
        full_name = name if "." in name else f"{application}.{name}"
        try:
            found = registry.resolve("event", full_name, int(version), application)
        except UnknownMessageType as error:
            faults.append(f"{name} version {version} is gone: {error}")
            continue
        if not isinstance(found, Registered):
            continue
        # It was renamed, and is read under an alias.
        if why := incompatibility(known[name][version], _schema_of(found)):
            faults.append(
                f"{name} version {version} is read as {found.name}, which can't read all of it:"
                f" {why}. Write @upcaster({name!r}, {version})."
            )
    return faults


class _Comparison:
    """A comparison of two schemas, each with its definitions."""

    def __init__(self, written: dict[str, Any], reader: dict[str, Any]) -> None:
        self._written = written
        self._reader = reader
        self._known: dict[tuple[int, int], str] = {}

    def of(self, written: Any, reader: Any, where: str) -> str:
        """Return why the reader can't read what is written here; "" if it can."""
        written = _resolved(written, self._written)
        reader = _resolved(reader, self._reader)
        pair = id(written), id(reader)
        if pair not in self._known:
            # What is inside itself fits, if all else does.
            self._known[pair] = ""
            self._known[pair] = self._of(written, reader, where)
        return self._known[pair]

    def _of(self, written: dict[str, Any], reader: dict[str, Any], where: str) -> str:
        if "anyOf" in written:
            return next(filter(None, (self.of(w, reader, where) for w in written["anyOf"])), "")
        if "anyOf" in reader:
            whys = [self.of(written, one, where) for one in reader["anyOf"]]
            return "" if "" in whys else f"{where} no longer takes {_named(written)}"
        return self._plain(written, reader, where)

    def _plain(self, written: dict[str, Any], reader: dict[str, Any], where: str) -> str:
        values = _values(written)
        if (accepted := _values(reader)) is not None:
            if values is None:
                return f"{where} takes only {accepted}, and may have been something else"
            gone = [value for value in values if value not in accepted]
            return f"{where} no longer takes {gone}" if gone else ""
        if values is not None:
            kinds = {_KINDS.get(type(value), "") for value in values}
            is_free = set(reader) <= {"type", *_REMARKS}
            if is_free and all(_takes(kind, reader.get("type")) for kind in kinds):
                return ""
            return f"{where} is {_named(reader)} now, and was one of {values}"
        if not _takes(written.get("type"), reader.get("type")):
            return f"{where} is {_named(reader)} now, and was {_named(written)}"
        return (
            self._narrowed(written, reader, where)
            or self._fields(written, reader, where)
            or self._items(written, reader, where)
        )

    def _narrowed(self, written: dict[str, Any], reader: dict[str, Any], where: str) -> str:
        for name, limit in reader.items():
            had = written.get(name)
            if name in _LIMITS:
                if had is None or (limit - had) * _LIMITS[name] < 0:
                    return f"{where} has {name} {limit} now, and had {had}"
            elif name not in (*_REMARKS, *_STRUCTURE) and had != limit:
                return f"{where} has {name} {limit!r} now, and had {had!r}"
        return ""

    def _fields(self, written: dict[str, Any], reader: dict[str, Any], where: str) -> str:
        had, has = written.get("properties", {}), reader.get("properties", {})
        for name in reader.get("required", ()):
            if name not in written.get("required", ()):
                return f"{where}.{name} is required now, and may not be there"
        others = reader.get("additionalProperties", True)
        for name, schema in had.items():
            if name in has:
                why = self.of(schema, has[name], f"{where}.{name}")
            elif others is False:
                why = f"{where}.{name} is refused now"
            else:
                why = "" if others is True else self.of(schema, others, f"{where}.{name}")
            if why:
                return why
        if isinstance(others, dict):
            return self.of(_any_of(written.get("additionalProperties")), others, f"{where}.*")
        return ""

    def _items(self, written: dict[str, Any], reader: dict[str, Any], where: str) -> str:
        had, has = written.get("prefixItems", []), reader.get("prefixItems", [])
        rest_had, rest_has = _any_of(written.get("items")), _any_of(reader.get("items"))
        for at in range(max(len(had), len(has))):
            one = had[at] if at < len(had) else rest_had
            other = has[at] if at < len(has) else rest_has
            if why := self.of(one, other, f"{where}[{at}]"):
                return why
        return self.of(rest_had, rest_has, f"{where}[]")


_STRUCTURE = (
    "type", "properties", "required", "additionalProperties", "items", "prefixItems", "$defs",
    "discriminator",
)  # fmt: skip

#: One object, since comparisons know schemas by it.
_ANYTHING: dict[str, Any] = {}

_KINDS = {str: "string", int: "integer", type(None): "null", bool: "boolean", float: "number"}


def _resolved(schema: dict[str, Any], definitions: dict[str, Any]) -> dict[str, Any]:
    while "$ref" in schema:
        schema = definitions[schema["$ref"].rpartition("/")[2]]
    return schema


def _any_of(schema: Any) -> dict[str, Any]:
    return schema if isinstance(schema, dict) else _ANYTHING


def _values(schema: dict[str, Any]) -> list[Any] | None:
    if "const" in schema:
        return [schema["const"]]
    return schema.get("enum")


def _takes(written: str | None, reader: str | None) -> bool:
    return reader in (None, written) or (written, reader) == ("integer", "number")


def _named(schema: dict[str, Any]) -> str:
    words = [str(schema[key]) for key in ("type", "format") if key in schema]
    return " ".join(words) or json.dumps(schema)
