"""Large JSON is stored and sent compressed, where that is asked for; and read wherever it comes."""

from __future__ import annotations

import base64
import gzip
import json
import sys
import tracemalloc
from typing import Any

import pytest
from celery import Celery
from hypothesis import given
from hypothesis import strategies as st

from cqrs_celery import CQRS, Aggregate, Command, Event, Session, applies, command_handler, upcaster
from cqrs_celery.app.settings import read_settings
from cqrs_celery.backends.memory.event_store import MemoryEventStore
from cqrs_celery.errors import (
    ConfigurationError,
    InvalidSetting,
    MalformedMessage,
    MissingDependency,
    UnwritableMessage,
)
from cqrs_celery.messages import compression
from cqrs_celery.messages.compression import Compression, compress, decompress, is_compressed
from cqrs_celery.messages.serializer import Serializer


class NoteWritten(Event, name="compressed.note_written", version=2):
    text: str


class NoteKept(Event, name="compressed.note_kept", unknown_fields="keep"):
    text: str


@upcaster("compressed.note_written", 1)
def was_words(data: dict[str, Any]) -> dict[str, Any]:
    return {"text": " ".join(data["words"])}


class Note(Aggregate, name="CompressedNote"):
    text: str = ""

    @applies(NoteWritten)
    def _written(self, event: NoteWritten) -> None:
        self.text = event.text


class WriteNote(Command, name="compressed.write_note", aggregate=Note, key="id"):
    id: str
    text: str


@command_handler(WriteNote)
def write_note(command: WriteNote, session: Session) -> int:
    note = Note(command.id)
    note.record(NoteWritten(text=command.text))
    session.add(note)
    return len(command.text)


LONG = "all work and no play " * 100


@pytest.fixture(params=compression.ALGORITHMS)
def how(request: pytest.FixtureRequest) -> Compression:
    return Compression(request.param)


def json_of(size: int) -> bytes:
    return json.dumps({"text": "a" * (size - len('{"text": ""}'))}).encode()


# ------------------------------------------------------------ the codec


def test_above_the_threshold_data_are_compressed(how):
    """ACCEPTANCE 88."""
    compressed = compress(json_of(1001), how)
    assert len(compressed) < 200
    assert json.loads(compressed).startswith(f"cqrs:{how.algorithm}:")


@pytest.mark.parametrize("size", [13, 999, 1000])
def test_up_to_the_threshold_data_stay_as_they_are(how, size):
    """ACCEPTANCE 89."""
    data = json_of(size)
    assert compress(data, how) is data
    assert compress(data, Compression(how.algorithm, 12)) is not data or size == 13


def test_nothing_is_compressed_twice(how):
    """ACCEPTANCE 90."""
    once = compress(json_of(5000), Compression(how.algorithm, 10))
    for other in compression.ALGORITHMS:
        assert compress(once, Compression(other, 10)) is once


def test_what_does_not_become_smaller_stays_as_it_is(how):
    import random

    noise = json.dumps(base64.b85encode(random.Random(5).randbytes(3000)).decode()).encode()
    assert compress(noise, how) is noise


@given(st.text(max_size=400).map(lambda text: json.dumps({"text": text * 20}).encode()))
def test_what_was_compressed_comes_back(data):
    """ACCEPTANCE 91."""
    for algorithm in compression.ALGORITHMS:
        compressed = compress(data, Compression(algorithm, 100))
        assert decompress(compressed) == data
        assert decompress(memoryview(compressed)) == data


def test_plain_data_are_returned_as_they_are():
    """ACCEPTANCE 92."""
    for data in (b"", b"{}", json_of(5000), b"not json", b"\x00\xff", b'"a text"', b"null"):
        assert decompress(data) is data


@pytest.mark.parametrize(
    "data",
    [
        b'"cqrs:', b'"cqrs:gzip:"', b'"cqrs:gzip:AAAA"', b'"cqrs:zstd:AAAA"', b'"cqrs:lz4:AAAA"',
        b'"cqrs:gzip:' + base64.b64encode(gzip.compress(b"{}", mtime=0)[:-3]) + b'"',
        b'"cqrs:gzip:' + base64.b64encode(gzip.compress(b"{}", mtime=0)) + b'" ',
        b'"cqrs:zstd:KLUv/QAAAAA="', b'"cqrs:zstd:KLUv/Q=="', b'"cqrs:gzip:A"', b'"cqrs:\xff"',
        gzip.compress(b"{}", mtime=0),
    ],
)  # fmt: skip
def test_data_that_merely_look_compressed_are_returned_as_they_are(data):
    """ACCEPTANCE 93."""
    is_whole = data.endswith(b'" ')
    assert decompress(data) is data or is_whole
    assert is_compressed(data) is is_whole


@given(st.binary() | st.text().map(lambda t: b'"cqrs:gzip:' + t.encode() + b'"'))
def test_whatever_is_no_compressed_form_comes_back(data):
    """ACCEPTANCE 92 and 93."""
    assert decompress(data) is data


def test_a_cut_or_changed_text_is_not_taken_for_whole(how):
    whole = compress(json_of(5000), how)
    for at in range(20, len(whole) - 2, 3):
        changed = whole[:at] + (b"A" if whole[at : at + 1] != b"A" else b"B") + whole[at + 1 :]
        assert decompress(changed) in (changed, json_of(5000))
        assert decompress(whole[:at] + b'"') == whole[:at] + b'"'


def test_another_algorithm_is_refused():
    with pytest.raises(ConfigurationError, match="no compression 'lz4'; accepted: gzip or zstd"):
        Compression("lz4")


def test_without_zstd_it_is_said_how_to_install_it(monkeypatch):
    compressed = compress(json_of(5000), Compression("zstd"))
    module = "compression" if sys.version_info >= (3, 14) else "backports"
    monkeypatch.setitem(sys.modules, module, None)
    compression._zstd.cache_clear()
    for attempt in (lambda: Compression("zstd"), lambda: decompress(compressed)):
        with pytest.raises(MissingDependency, match=r"pip install '\.\[zstd\]', in a checkout"):
            attempt()
    assert decompress(compress(json_of(5000), Compression("gzip"))) == json_of(5000)
    monkeypatch.undo()
    compression._zstd.cache_clear()


# ------------------------------------------------------------ messages


@pytest.mark.parametrize("cls", [NoteWritten, NoteKept])
def test_a_message_comes_back_whoever_reads_it(how, cls):
    """ACCEPTANCE 88, 89 and 91, for events and messages; who reads needs no setting."""
    writer, reader = Serializer("compressed", compression=how), Serializer("compressed")
    for text, is_large in ((LONG, True), ("short", False)):
        message = cls(text=text)
        encoded = writer.encode(message)
        assert is_compressed(encoded.data) is is_large
        plain = json.loads(json.dumps(writer.to_plain(message)))
        assert isinstance(plain["data"], str) is is_large
        for _ in range(2):  # the first time, what reads it is looked up
            assert reader.decode("event", *encoded) == message
            assert reader.from_plain("event", plain) == message


def test_an_old_version_is_decompressed_before_it_is_upcast(how):
    data = compress(json.dumps({"words": LONG.split()}).encode(), how)
    serializer, name = Serializer("compressed"), "compressed.note_written"
    expected = NoteWritten(text=LONG.strip())
    assert serializer.decode("event", name, 1, data) == expected
    plain = {"type": name, "version": 1, "data": json.loads(data)}
    assert serializer.from_plain("event", plain) == expected


def test_data_that_look_compressed_and_are_not_are_a_clear_error():
    serializer = Serializer("compressed")
    for _ in range(2):
        with pytest.raises(MalformedMessage, match="Expected `object`, got `str`"):
            serializer.decode("event", "compressed.note_written", 2, b'"cqrs:gzip:AAAA"')
    with pytest.raises(MalformedMessage, match="Expected `object`, got `str`"):
        serializer.convert_all("event", "compressed.note_written", 2, "cqrs:gzip:AAAA")


def test_compressed_data_that_do_not_fit_are_an_error_that_says_where(how):
    data = compress(json.dumps({"text": 5, "rest": LONG}).encode(), how)
    with pytest.raises(MalformedMessage, match=r"\$\.text"):
        Serializer("compressed").decode("event", "compressed.note_written", 2, data)


# ------------------------------------------------------------ a ceiling


def bomb(algorithm: str, size: int) -> bytes:
    """Return a small message that says it is a note of so many bytes."""
    return compress(b'{"text":"' + b"x" * size + b'"}', Compression(algorithm, 10))


def test_what_expands_to_more_than_a_message_may_have_is_not_read(how):
    # given 64 MiB in a few bytes
    data = bomb(how.algorithm, 64 * 1024 * 1024)
    assert len(data) < 200_000
    serializer, name = Serializer("compressed"), "compressed.note_written"
    # then, whichever way it comes
    tracemalloc.start()
    for read, source in (
        (serializer.decode, data),
        (serializer.decode, data),
        (serializer.convert_all, json.loads(data)),
    ):
        with pytest.raises(MalformedMessage, match="cqrs_max_message_bytes") as refused:
            read("event", name, 2, source)
        assert "holds more than 16,777,216 bytes of JSON" in str(refused.value)
        assert (refused.value.name, refused.value.version) == (name, 2)
    # and without ever holding the whole of it
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 48 * 1024 * 1024
    assert is_compressed(data)


def test_a_message_of_just_the_size_is_read(how):
    size = len(b'{"text":""}') + 5000
    data = bomb(how.algorithm, 5000)
    accepting, refusing = (Serializer("compressed", max_bytes=size - n) for n in (0, 1))
    note = NoteWritten(text="x" * 5000)
    assert accepting.decode("event", "compressed.note_written", 2, data) == note
    assert len(accepting.encode(note).data) == size
    with pytest.raises(MalformedMessage, match=f"more than {size - 1:,} bytes"):
        refusing.decode("event", "compressed.note_written", 2, data)
    with pytest.raises(UnwritableMessage, match="cqrs_max_message_bytes"):
        refusing.encode(note)


def test_a_compressed_text_with_something_behind_it_is_no_compressed_text():
    packed = gzip.compress(b"{}", mtime=0)
    for rest in (b"more", packed):
        data = b'"cqrs:gzip:' + base64.b64encode(packed + rest) + b'"'
        assert decompress(data) is data


# ------------------------------------------------------------ the application


def test_an_application_compresses_what_it_stores_and_sends_once_it_is_told_to(how):
    settings = {"cqrs_compression": how.algorithm, "cqrs_event_store": "memory://"}
    app = Celery("compressed", changes={**settings, "task_always_eager": True})
    cqrs = CQRS(app)
    WriteNote(id="7", text=LONG).delay().get()
    (stored,) = cqrs.store.read_all()
    assert is_compressed(stored.event.data)
    # then: an application without the setting reads it
    other = CQRS(Celery("compressed"), store=cqrs.store)
    with other.session() as session:
        assert session.get(Note, "7").text == LONG


def test_nothing_is_compressed_by_default():
    cqrs = CQRS(Celery("compressed"), store=MemoryEventStore())
    cqrs.execute(WriteNote(id="7", text=LONG))
    assert not is_compressed(cqrs.store.read_all()[0].event.data)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("cqrs_compression", "lz4"), ("cqrs_compression", True),
        ("cqrs_compression_threshold_bytes", 0), ("cqrs_compression_threshold_bytes", "1k"),
    ],
)  # fmt: skip
def test_a_setting_that_is_none_is_refused(name, value):
    with pytest.raises(InvalidSetting) as refused:
        read_settings(Celery("compressed", changes={name: value}))
    assert refused.value.setting == name


def test_the_threshold_is_a_setting():
    changes = {"cqrs_compression": "gzip", "cqrs_compression_threshold_bytes": 50}
    found = read_settings(Celery("compressed", changes=changes)).compression
    assert found == Compression("gzip", 50)


def test_a_dead_letter_is_shown_with_what_was_compressed(how):
    from types import SimpleNamespace

    from cqrs_celery.cli.dead_letters import _message
    from cqrs_celery.transport import envelope

    plain = Serializer("compressed", compression=how).to_plain(NoteWritten(text=LONG))
    message = {"properties": {}, "headers": {}, "body": ""}
    head = envelope.head_of({**message, "content-type": "application/json"})
    letter: Any = SimpleNamespace(
        payload=head.encode(), body=json.dumps([[plain], {}, {}]).encode()
    )
    assert _message(letter) == {"message": {**plain, "data": {"text": LONG}}}
