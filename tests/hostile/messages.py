"""Messages that no honest client sends, made from the descriptors: whatever a method takes, this knows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from google.protobuf import message_factory
from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor
from google.protobuf.message import Message
from hypothesis import strategies as st

MAX_DEPTH = 5
DEEPEST = 30
"""Levels of a Struct: each is three messages within each other, of which protobuf takes 100."""

_BITS = {
    FieldDescriptor.CPPTYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.CPPTYPE_INT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.CPPTYPE_UINT32: (0, 2**32 - 1),
    FieldDescriptor.CPPTYPE_UINT64: (0, 2**64 - 1),
}
_FLOATS = (FieldDescriptor.CPPTYPE_DOUBLE, FieldDescriptor.CPPTYPE_FLOAT)
CANARY = "/nhop-hostile-canary"
"""An absolute path at which nothing is, and nothing may ever be."""

STRINGS = (
    *("", " ", ".", "..", "../../x", "../" * 40 + CANARY[1:], "a/b", "/etc/passwd", CANARY, "~/x", "~root"),
    *("\0", "study\0", "a\nb: c", "\x1b[2J", "\r\n\r\n", "%s%n{0}", "$HOME", "'; DROP TABLE trials;--"),
    *("ü ö", "\u202e", "\ufeff", "\U0001f600" * 20, "\ud7ff", "٣", "²", "host:٣", "ps/²", "worker/٣", "NaN"),
    *("study", "s1", "STUDY", "agent", "ps/0", "worker/0", "worker/-1", "worker/99999999999999999999", "-1"),
    *("h:" + "9" * 5000, "ps/" + "9" * 5000, "[::1]:1", "127.0.0.1:1", "127.0.0.1:0", "[" * 50, ":" * 50),
    *("f" * 64, "F" * 64, "x" * 65, "x" * 255, "ü" * 5000, "\0" * 5000, "\n" * 20_000, "x" * 200_000),
    *("restore.npz", "model.keras", "checkpoint.npz", "os:system", "grpc.health.v1.Health"),
    *("unix:/tmp/x", "file:///etc/passwd", "http://127.0.0.1:1/x", "s3://none/x", "\\\\host\\share", "CON"),
)  # fmt: skip
"""Texts, each of which means something to somebody."""


def message_class(descriptor: Descriptor) -> Any:
    """The class of a message."""
    return message_factory.GetMessageClass(descriptor)


def requests(method: MethodDescriptor) -> Any:
    """The class of what a method takes."""
    return message_class(method.input_type)


# --- values -----------------------------------------------------------------------------------

_texts = st.sampled_from(STRINGS) | st.text(st.characters(codec="utf-8"), max_size=20)
_bytes = st.binary(max_size=64) | st.sampled_from((b"", bytes(1 << 20), bytes((1 << 20) + 1)))
_numbers = st.sampled_from(
    (float("nan"), float("inf"), -float("inf"), -0.0, 1e308, 5e-324, 2.0**53, -1.0, 0.5)
)


def scalars(field: FieldDescriptor) -> st.SearchStrategy[Any]:
    """Values of a field that holds no message."""
    kind = field.cpp_type
    if kind in _BITS:
        low, high = _BITS[kind]
        edges = [n for n in (0, 1, 2, -1, 63, 64, 1000, 1001, 10**6, 2**31, low, high) if low <= n <= high]
        return st.sampled_from(edges) | st.integers(low, high)
    if kind in _FLOATS:
        return _numbers | st.floats(width=32 if kind == FieldDescriptor.CPPTYPE_FLOAT else 64)
    if kind == FieldDescriptor.CPPTYPE_BOOL:
        return st.booleans()
    if kind == FieldDescriptor.CPPTYPE_ENUM:
        return st.sampled_from([*field.enum_type.values_by_number, -1, 99, 2**31 - 1, -(2**31)])
    return _bytes if field.type == FieldDescriptor.TYPE_BYTES else _texts


@st.composite
def structs(draw: st.DrawFn, descriptor: Descriptor) -> Message:
    """A Struct, Value or ListValue: hostile names, values of all kinds, deep."""
    leaf = st.none() | st.booleans() | _numbers | _texts
    tree = draw(
        st.recursive(
            leaf, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_texts, inner, max_size=4)
        )
    )
    for _ in range(draw(st.sampled_from((0, 0, 0, 1, 10, DEEPEST - 3)))):
        tree = draw(st.sampled_from(({"x": tree}, [tree])))
    message = message_class(descriptor)()
    value = {"x": tree} if descriptor.name == "Struct" else [tree] if descriptor.name == "ListValue" else tree
    _fill_value(message, value)
    return message


def _fill_value(message: Any, value: Any) -> None:
    match message.DESCRIPTOR.name, value:
        case "Struct", _:
            for name, inner in value.items():
                _fill_value(message.fields[name], inner)
        case "ListValue", _:
            for inner in value:
                _fill_value(message.values.add(), inner)
        case _, None:
            message.null_value = 0
        case _, bool():
            message.bool_value = value
        case _, float():
            message.number_value = value
        case _, str():
            message.string_value = value
        case _, dict():
            message.struct_value.SetInParent()
            _fill_value(message.struct_value, value)
        case _, list():
            message.list_value.SetInParent()
            _fill_value(message.list_value, value)


# --- messages ---------------------------------------------------------------------------------


@st.composite
def hostile(draw: st.DrawFn, descriptor: Descriptor, depth: int = 0) -> Message:
    """A message with hostile values in some of its fields; of a oneof, one or none."""
    if descriptor.full_name in (
        "google.protobuf.Struct",
        "google.protobuf.Value",
        "google.protobuf.ListValue",
    ):
        return draw(structs(descriptor))
    message = message_class(descriptor)()
    for field in descriptor.fields:
        if draw(st.integers(0, 3)) and (depth < MAX_DEPTH or field.message_type is None):
            draw(changed_field(message, field, depth))
    return message


@st.composite
def changed_field(draw: st.DrawFn, message: Any, field: FieldDescriptor, depth: int = 0) -> None:
    """Puts hostile values into a field."""
    entry = field.message_type
    if entry is not None and entry.GetOptions().map_entry:
        getattr(message, field.name).clear()
        for _ in range(draw(st.integers(0, 3))):
            key = draw(scalars(entry.fields_by_name["key"]))
            value = entry.fields_by_name["value"]
            if value.message_type is None:
                getattr(message, field.name)[key] = draw(scalars(value))
            else:
                getattr(message, field.name)[key].CopyFrom(draw(hostile(value.message_type, depth + 1)))
    elif field.is_repeated:
        message.ClearField(field.name)
        values = [_value(draw, field, depth) for _ in range(draw(st.integers(0, 3)))]
        times = draw(st.sampled_from((1, 1, 1, 1, 2, 400)))
        limit = 1 << 20  # bytes: what is larger is refused by its size, which another test sees to
        if sum(len(v.encode() if isinstance(v, str) else bytes(8)) for v in values) * times > limit:
            times = 1
        getattr(message, field.name).extend(values * times)
    elif entry is not None:
        getattr(message, field.name).CopyFrom(_value(draw, field, depth))
    else:
        setattr(message, field.name, _value(draw, field, depth))


def _value(draw: st.DrawFn, field: FieldDescriptor, depth: int) -> Any:
    if field.message_type is not None:
        return draw(hostile(field.message_type, depth + 1))
    return draw(scalars(field))


@st.composite
def mutated(draw: st.DrawFn, template: Message) -> Message:
    """A valid message in which one to three fields have become hostile, or are missing."""
    message = message_class(template.DESCRIPTOR)()
    message.CopyFrom(template)
    for _ in range(draw(st.sampled_from((1, 1, 1, 2, 3)))):
        _mutate(draw, message)
    return message


def _mutate(draw: st.DrawFn, message: Any) -> None:
    fields = list(message.DESCRIPTOR.fields)
    if not fields:
        return
    field = draw(st.sampled_from(fields))
    singular = field.message_type is not None and not field.is_repeated
    if singular and message.HasField(field.name) and draw(st.integers(0, 3)):
        _mutate(draw, getattr(message, field.name))
    elif draw(st.integers(0, 5)):
        draw(changed_field(message, field))
    else:
        message.ClearField(field.name)


# --- bytes ------------------------------------------------------------------------------------


@st.composite
def damaged(draw: st.DrawFn, template: Message) -> bytes:
    """A valid message, cut short, with bits flipped, or with bytes put into it."""
    data = bytearray(template.SerializeToString())
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, max(0, len(data) - 1)))
        match draw(st.sampled_from(("cut", "flip", "insert", "double"))):
            case "cut":
                del data[place:]
            case "flip" if data:
                data[place] ^= 1 << draw(st.integers(0, 7))
            case "insert":
                data[place:place] = draw(st.binary(min_size=1, max_size=8))
            case "double":
                data[place:place] = data[place : place + 64]
    return bytes(data)


def nested(descriptor: Descriptor, levels: int) -> bytes:
    """So many messages within each other, in the first field of each that holds one."""
    data = b""
    for _ in range(levels):
        number = next((f.number for f in descriptor.fields if f.message_type is not None), 1)
        data = varint(number << 3 | 2) + varint(len(data)) + data
    return data


def stuffed(descriptor: Descriptor, size: int) -> list[bytes]:
    """For each repeated field within the messages of a message: so many bytes of empty elements of it."""
    found = []
    for path in _repeated(descriptor, ()):
        text = path[-1].message_type is not None or path[-1].cpp_type == FieldDescriptor.CPPTYPE_STRING
        element = varint(path[-1].number << 3 | 2) + b"\0" if text else varint(path[-1].number << 3) + b"\1"
        data = element * (size // len(element))
        for field in reversed(path[:-1]):
            data = varint(field.number << 3 | 2) + varint(len(data)) + data
        found.append(data)
    return found


def _repeated(
    descriptor: Descriptor, around: tuple[FieldDescriptor, ...]
) -> Iterator[tuple[FieldDescriptor, ...]]:
    for field in descriptor.fields:
        if field.is_repeated:
            yield (*around, field)
        elif field.message_type is not None and len(around) < MAX_DEPTH:
            yield from _repeated(field.message_type, (*around, field))


def groups(levels: int) -> bytes:
    """So many groups of an unknown field within each other, none of which ends."""
    return varint(1000 << 3 | 3) * levels


def varint(value: int) -> bytes:
    """A whole number as protobuf writes it."""
    data = bytearray()
    while value > 0x7F:
        data.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*data, value])
