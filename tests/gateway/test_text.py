"""Text out of tokens: pieces add up, stop strings hold, whatever the cuts."""

import pytest
from gateway_fakes import tiny_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models

from forebay.model.hub import resolve_model
from gateway.detokenizer import WindowDetokenizer
from gateway.stop_strings import StopFilter
from gateway.tokenizer import Tokenizer

DEMO = Backend.from_file(str(resolve_model("demo") / "tokenizer.json"))
TOKENIZERS = {"demo": DEMO, "tiny": tiny_tokenizer()}
EDGES = [
    "",
    "\0",
    "\ufeffbom",
    "a\u0301 é",
    "שלום עולם",
    "👨‍👩‍👧‍👦🏳️‍🌈",
    "\ufffd",
    "𝔘𝔫𝔦",
    "日本語テキスト",
    " \t\n  ",
    "<|im_start|>",
]


def stream(detokenizer, token_ids, cuts):
    """The pieces joined; `cuts` are the sizes of successive chunks."""
    pieces, at = [], 0
    for size in [*cuts, len(token_ids)]:
        pieces.append(detokenizer.push(token_ids[at : at + size]))
        at += size
    pieces.append(detokenizer.flush())
    return "".join(pieces)


cut_sizes = st.lists(st.integers(0, 4), max_size=40)


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize("keep_special", [False, True])
@settings(max_examples=150, deadline=None)
@given(text=st.one_of(st.text(), st.sampled_from(EDGES)), cuts=cut_sizes)
def test_pieces_add_up(name, keep_special, text, cuts):
    backend = TOKENIZERS[name]
    ids = backend.encode(text, add_special_tokens=False).ids
    assert stream(_cached(name, keep_special), ids, cuts) == backend.decode(
        ids, skip_special_tokens=not keep_special
    )


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(max_examples=150, deadline=None)
@given(data=st.data(), cuts=cut_sizes)
def test_any_token_sequence(name, data, cuts):
    """Also sequences that are not UTF-8: tokens of single bytes in any order."""
    backend = TOKENIZERS[name]
    ids = data.draw(st.lists(st.integers(0, min(400, backend.get_vocab_size()) - 1), max_size=30))
    assert stream(_cached(name, False), ids, cuts) == backend.decode(ids)


_TOKENIZERS = {name: Tokenizer(backend, 0) for name, backend in TOKENIZERS.items()}


def _cached(name, keep_special):
    return _TOKENIZERS[name].detokenizer(keep_special=keep_special)


def test_pieces_are_never_half_characters():
    backend = TOKENIZERS["tiny"]
    ids = backend.encode("🎉你").ids
    assert len(ids) > 2
    detokenizer = _cached("tiny", False)
    pieces = [detokenizer.push([i]) for i in ids]
    assert "".join(pieces) == "🎉你" and not any("\ufffd" in piece for piece in pieces)
    detokenizer = _cached("tiny", False)
    assert detokenizer.push(ids[:1]) == "" and detokenizer.flush() == "\ufffd"


async def test_unknown_ids_are_silent():
    tokenizer = Tokenizer(tiny_tokenizer(), 5000)
    assert tokenizer.detokenizer(keep_special=True).push([4999]) == ""


def sentencepiece_like() -> Backend:
    """Llama 2's decoder: spaces as ▁, bytes as <0xNN>, the first space stripped."""
    words = ["<s>", *[f"<0x{i:02X}>" for i in range(256)], "▁", "▁the", "▁cat", "s", "é", "▁▁", "!"]
    backend = Backend(models.WordLevel({word: i for i, word in enumerate(words)}, "<s>"))
    backend.add_special_tokens(["<s>"])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return backend


SENTENCEPIECE = sentencepiece_like()


a_word = st.integers(257, 263).map(lambda i: [i])
a_character = st.characters(codec="utf-8").map(lambda c: [1 + byte for byte in c.encode()])


@settings(max_examples=200, deadline=None)
@given(parts=st.lists(st.one_of(a_word, st.just([0]), a_character), max_size=12), cuts=cut_sizes)
def test_other_tokenizers(parts, cuts):
    ids = [i for part in parts for i in part]
    detokenizer = Tokenizer(SENTENCEPIECE, 0).detokenizer(keep_special=False)
    assert isinstance(detokenizer, WindowDetokenizer)
    assert stream(detokenizer, ids, cuts) == SENTENCEPIECE.decode(ids)


alphabet = st.text("ab🎉", max_size=24)


@settings(max_examples=500, deadline=None)
@given(
    text=alphabet,
    stop=st.lists(st.text("ab🎉", min_size=1, max_size=5), min_size=1, max_size=3),
    data=st.data(),
)
def test_stop_strings_do_not_depend_on_cuts(text, stop, data):
    ends = [(text.find(s) + len(s), text.find(s)) for s in stop if s in text]
    expected = text[: min(ends)[1]] if ends else text
    stops, out, at = StopFilter(stop), "", 0
    while at < len(text):
        size = data.draw(st.integers(1, 4))
        piece, stopped = stops.push(text[at : at + size])
        out += piece
        at += size
        assert expected.startswith(out), "nothing of a stop string gets out"
        if stopped:
            break
    else:
        out += stops.flush()
    assert out == expected


@pytest.mark.parametrize("cut", range(1, 12))
def test_stop_string_at_every_split(cut):
    text = "say <END> now"
    stops = StopFilter(["<END>"])
    first, stopped = stops.push(text[:cut])
    if not stopped:
        second, stopped = stops.push(text[cut:])
        first += second
    assert (first, stopped) == ("say ", True)


def test_held_text_is_flushed():
    stops = StopFilter(["<END>"])
    assert stops.push("a <EN") == ("a ", False)
    assert stops.flush() == "<EN"
