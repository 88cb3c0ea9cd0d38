"""Schemas for Pydantic, and so for FastAPI: a message as a request body or as a model's field.

Pydantic calls this module's functions if it is installed; the library does not depend on it. Values
are checked as when a message is decoded and written, so an accepted message can be sent, unless it
is too large.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any, Final

import msgspec

from ..errors import UnwritableMessage
from .codec import codec_of

if TYPE_CHECKING:
    from pydantic_core import CoreSchema

#: The place of an error in msgspec's text: "… - at `$.lines[0].count`".
_PLACE: Final = re.compile(r"^(?P<text>.*?)(?: - at `(?P<path>[^`]*)`)?$", re.DOTALL)
_STEP: Final = re.compile(r"\.(?P<name>\w+)|\[(?P<index>\d+)\]")
_MISSING: Final = re.compile(r"^Object missing required field `(?P<name>\w+)`$")


def core_schema_of(cls: type[Any]) -> CoreSchema:
    """Return the schema by which Pydantic accepts an instance, or plain values, as a message.

    Args:
        cls: the message's class.
    """
    from pydantic_core import core_schema

    def validate(value: Any) -> Any:
        if isinstance(value, cls):
            return value
        codec = codec_of(cls)
        try:
            message = codec.convert(value)
            if codec.kind != "query":  # which is never sent
                codec.write(message)
        except (msgspec.ValidationError, UnwritableMessage, UnicodeError) as error:
            raise _refusal(cls, value, str(error)) from error
        return message

    return core_schema.no_info_plain_validator_function(
        validate,
        serialization=core_schema.plain_serializer_function_ser_schema(
            msgspec.to_builtins, when_used="json"
        ),
    )


def _refusal(cls: type[Any], value: Any, text: str) -> Exception:
    """Return Pydantic's error, located at the place that msgspec's text names."""
    from pydantic_core import InitErrorDetails, PydanticCustomError, ValidationError

    found = _PLACE.match(text)
    told, path = (found["text"], found["path"] or "") if found else (text, "")
    place: list[str | int] = [
        step["name"] or int(step["index"]) for step in _STEP.finditer(path.removeprefix("$"))
    ]
    missing = _MISSING.match(told)
    if missing:
        place.append(missing["name"])
    # A web framework writes all of this as JSON.
    told = told.encode(errors="backslashreplace").decode()
    # Braces would stand for the error's context.
    kind = PydanticCustomError("missing" if missing else "message_type", "{told}", {"told": told})
    found_there = _part(value, place[:-1] if missing else place)
    detail = InitErrorDetails(type=kind, loc=tuple(place), input=found_there)
    return ValidationError.from_exception_data(cls.__qualname__, [detail])


def _part(value: Any, place: list[str | int]) -> Any:
    """Return the value at a place, or its text if JSON has no form for it."""
    part = value
    try:
        for step in place:
            part = part[step]
    except (LookupError, TypeError):
        part = value
    try:
        json.dumps(part, allow_nan=False, ensure_ascii=False).encode()
    except (TypeError, ValueError, RecursionError):
        return f"{part!r:.200}"
    return part


def json_schema_of(cls: type[Any]) -> dict[str, Any]:
    """Return a message's JSON schema, with nested types written out in place of references."""
    (schema,), components = msgspec.json.schema_components([cls], ref_template="{name}")
    written: dict[str, Any] = _written_out(schema, components, ())
    return written


def _written_out(part: Any, components: dict[str, Any], inside: tuple[str, ...]) -> Any:
    if isinstance(part, list):
        return [_written_out(one, components, inside) for one in part]
    if not isinstance(part, dict):
        return part
    name = part.get("$ref")
    if isinstance(name, str) and name in components:
        # A type that contains itself can't be written out; OpenAPI gets a plain object there.
        if name in inside:
            return {"type": "object", "title": name}
        return _written_out(components[name], components, (*inside, name))
    return {key: _written_out(value, components, inside) for key, value in part.items()}
