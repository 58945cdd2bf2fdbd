"""The error tree as data: statuses, reasons, messages."""

from __future__ import annotations

import re
from collections.abc import Iterable

import pytest
from google.rpc import error_details_pb2

from forebay import errors
from forebay.errors import ForebayError, InvalidArgument, PoolExhausted, Unavailable, suggest
from forebay.rpc.interceptor import MAX_MESSAGE_BYTES, MAX_METADATA_BYTES, clip, to_status


def tree(cls=ForebayError):
    return [cls, *(sub for child in cls.__subclasses__() for sub in tree(child))]


@pytest.mark.parametrize("cls", tree())
def test_every_reason_has_the_form_of_aip_193(cls):
    assert re.fullmatch(r"[A-Z][A-Z0-9_]*[A-Z0-9]", cls.reason) and len(cls.reason) <= 63


def test_only_unavailable_is_retryable():
    retryable = [cls for cls in tree() if cls.status.name == "UNAVAILABLE"]
    assert retryable and all(issubclass(cls, Unavailable) for cls in retryable)


def test_every_public_class_is_in_the_tree():
    public = {value for value in vars(errors).values() if isinstance(value, type)} - {Iterable}
    assert public <= set(tree())


def test_a_message_names_field_limit_and_got():
    error = InvalidArgument("must be at least 1", field="n", limit=16, got=99)
    assert error.message == "n: must be at least 1 (limit: 16, got: 99)"
    assert error.metadata == {"field": "n", "limit": "16", "got": "99"}


def test_status_details_of_an_invalid_argument():
    status = to_status(InvalidArgument("too long", field="text", limit=5, got=6, reason="TOO_LONG"))
    info, request = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
    assert status.details[0].Unpack(info) and status.details[1].Unpack(request)
    assert (info.reason, info.domain, info.metadata["limit"]) == ("TOO_LONG", "forebay", "5")
    assert request.field_violations[0].field == "text"


@pytest.mark.parametrize("delay_s", [0.25, 1.0, 90.5])
def test_status_details_of_unavailable_say_when_to_retry(delay_s):
    status = to_status(Unavailable("busy", retry_after_s=delay_s, num_waiting=3))
    retry = error_details_pb2.RetryInfo()
    assert status.details[1].Unpack(retry)
    assert retry.retry_delay.ToMilliseconds() == delay_s * 1000


def test_a_long_value_cannot_overflow_the_trailing_metadata():
    error = InvalidArgument("bad", field="text", got="\N{SNOWMAN}" * 10_000)
    status = to_status(error)
    assert len(status.message.encode()) <= MAX_MESSAGE_BYTES
    assert 4 / 3 * status.ByteSize() + 3 * MAX_MESSAGE_BYTES < 8192
    info = error_details_pb2.ErrorInfo()
    status.details[0].Unpack(info)
    assert len(info.metadata["got"].encode()) <= MAX_METADATA_BYTES


def test_clip_cuts_at_a_character_and_survives_lone_surrogates():
    assert clip("abc", 10) == "abc"
    assert clip("\N{SNOWMAN}" * 5, 10) == "\N{SNOWMAN}" * 2 + "..."
    assert clip("a\ud800b", 10) == "a?b"


def test_suggest():
    assert suggest("mdoel", ["model", "listen"]) == " (did you mean 'model'?)"
    assert suggest("zzz", ["model"]) == ""
    assert issubclass(PoolExhausted, errors.ResourceExhausted)
