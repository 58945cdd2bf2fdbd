"""generate, chat, models as a person runs them, against a gateway with canned answers."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time

import pytest
from grpc_health.v1 import health_pb2

from forebay.rpc.server import Server
from forebay.v1 import inference_pb2 as pb

TEXT = "h\N{LATIN SMALL LETTER E WITH ACUTE}llo"


def forebay(*arguments, stdin=None, address=None, binary=False):
    """Run the command; `stdin` and the output are text unless `binary`."""
    env = os.environ | ({"FOREBAY_GATEWAY": address} if address else {}) | {"COLUMNS": "120", "NO_COLOR": "1"}
    command = [sys.executable, "-m", "forebay.cli", *arguments]
    return subprocess.run(command, input=stdin, capture_output=True, text=not binary, env=env, timeout=60)


def generate(gateway, *arguments, **options):
    return forebay("generate", *arguments, address=gateway.address, **options)


def test_text_goes_to_standard_output(gateway):
    done = generate(gateway, "Hi")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{TEXT}\n", "")
    assert gateway.requests[0] == pb.GenerateRequest(text="Hi", sampling={})


def test_json_is_one_line(gateway):
    done = generate(gateway, "Hi", "--json")
    assert done.stdout.count("\n") == 1
    answer = json.loads(done.stdout)
    assert (answer["token_ids"], answer["text"], answer["finish_reason"]) == ([5, 6, 7], TEXT, "stop")
    assert answer["usage"] == {"prompt_tokens": 4, "completion_tokens": 3, "cached_tokens": 2}
    assert answer["receipt"]["seed"] == 2**63 + 1
    assert answer["receipt"]["stages"] == [{"name": "prefill", "ms": 12.5}]
    assert "logprobs" not in answer and "choices" not in answer


def test_json_with_choices_and_logprobs(gateway):
    answer = json.loads(generate(gateway, "Hi", "--json", "--n", "2", "--logprobs", "1").stdout)
    assert [choice["text"] for choice in answer["choices"]] == [TEXT, TEXT]
    expected = {"token_id": 5, "logprob": -0.5, "top_token_ids": [5], "top_logprobs": [-0.5]}
    assert answer["logprobs"] == [expected] == answer["choices"][1]["logprobs"]


def test_several_choices_as_text(gateway):
    assert generate(gateway, "Hi", "-n", "2").stdout == f"[0] {TEXT}\n[1] {TEXT}\n"


def test_every_option_reaches_the_request(gateway):
    options = """--token-ids 1,2,3 --model m --temperature 0.5 --top-p 0.25 --top-k 4 --min-p 0.125 --seed 7
    --n 2 --repetition-penalty 1.5 --presence-penalty 0.5 --frequency-penalty -0.5 --logit-bias 3=-100
    --logit-bias 4=2 --max-tokens 9 --min-tokens 1 --stop END --stop .. --stop-token-ids 8,9 --ignore-eos
    --logprobs 3 --json"""
    assert generate(gateway, *options.split()).returncode == 0
    sampling = {
        "temperature": 0.5, "top_p": 0.25, "top_k": 4, "min_p": 0.125, "seed": 7, "n": 2, "max_tokens": 9,
        "repetition_penalty": 1.5, "presence_penalty": 0.5, "frequency_penalty": -0.5, "min_tokens": 1,
        "logit_bias": {3: -100, 4: 2}, "stop_token_ids": [8, 9], "ignore_eos": True, "logprobs": 3,
    }  # fmt: skip
    expected = pb.GenerateRequest(
        model="m", token_ids={"ids": [1, 2, 3]}, stop=["END", ".."], sampling=sampling
    )
    assert gateway.requests == [expected]


def test_zero_is_sent(gateway):
    generate(gateway, "Hi", "--temperature", "0", "--seed", "0")
    sampling = gateway.requests[0].sampling
    assert sampling.HasField("temperature") and sampling.HasField("seed") and not sampling.HasField("top_p")


def test_prompt_from_standard_input_and_file(gateway, tmp_path):
    generate(gateway, stdin="from stdin\n")
    path = tmp_path / "prompt.txt"
    path.write_bytes("from \N{SNOWMAN} file\r\n".encode())
    generate(gateway, "--file", str(path))
    assert [request.text for request in gateway.requests] == ["from stdin\n", "from \N{SNOWMAN} file\r\n"]


def test_bytes_that_are_not_text(gateway, tmp_path):
    done = generate(gateway, stdin=b"ab\xff", binary=True)
    assert done.returncode == 1 and b"standard input: not valid UTF-8 at byte 2" in done.stderr
    done = generate(gateway, b"ab\xff")
    assert done.returncode == 1 and "prompt: not valid Unicode at character 2" in done.stderr
    done = forebay("chat", b"\xff", address=gateway.address)
    assert done.returncode == 1 and "content: not valid Unicode" in done.stderr
    assert gateway.requests == []


def test_a_refusal_is_one_line(gateway):
    done = generate(gateway, "fail")
    assert done.returncode == 1
    expected = (
        "forebay: INVALID_ARGUMENT: sampling.n: out of range (limit: [1, 16], got: 99) [INVALID_ARGUMENT]\n"
    )
    assert done.stderr == expected


def test_no_gateway_is_one_line():
    done = forebay("generate", "Hi", "--gateway", "127.0.0.1:1")
    assert done.returncode == 1
    assert done.stderr == "forebay: nothing answers at 127.0.0.1:1; `forebay up` starts a gateway\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--token-ids", "1,x"], "not a list of integers"),
        (["--token-ids", "-1"], "-1 is not a token id"),
        (["Hi", "--logit-bias", "3"], "not TOKEN_ID=BIAS"),
        (["Hi", "--seed", "-1"], "--seed: -1 is out of range"),
        (["Hi", "--top-k", "99999999999"], "--top-k: 99999999999 is out of range"),
        (["Hi", "--temprature", "1"], "No such option"),
        (["--file", "/nonexistent"], "No such file"),
    ],
)
def test_wrong_usage_exits_2(gateway, arguments, message):
    done = generate(gateway, *arguments)
    assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr


def test_chat_with_one_message(gateway):
    done = forebay("chat", "Hi", "--system", "Be brief", "--max-tokens", "5", address=gateway.address)
    assert done.stdout == f"{TEXT}\n"
    for shown in ("receipt r-1", "prefill", "12.5 ms", "least loaded", "4 prompt, 3 generated"):
        assert shown in done.stderr
    (request,) = gateway.requests
    assert [(m.role, m.content) for m in request.messages] == [("system", "Be brief"), ("user", "Hi")]
    assert request.sampling.max_tokens == 5


def test_a_conversation_remembers_until_reset(gateway):
    forebay("chat", stdin="one\ntwo\n/reset\nthree\n/quit\n", address=gateway.address)
    contents = [[m.content for m in request.messages] for request in gateway.requests]
    assert contents == [["one"], ["one", TEXT, "two"], ["three"]]


def test_models(gateway):
    done = forebay("models", address=gateway.address)
    assert done.returncode == 0 and "canned" in done.stdout and "128" in done.stdout


async def test_health():
    server = Server("127.0.0.1:0")
    await server.start()
    address = f"127.0.0.1:{server.port}"
    done = await asyncio.to_thread(forebay, "health", address)
    assert (done.returncode, done.stdout) == (1, "NOT_SERVING\n")
    await server.health.set("", health_pb2.HealthCheckResponse.SERVING)
    done = await asyncio.to_thread(forebay, "health", address)
    assert (done.returncode, done.stdout) == (0, "SERVING\n")
    await server.stop(None)
    done = await asyncio.to_thread(forebay, "health", address)
    assert done.returncode == 1 and done.stderr.startswith(f"forebay: nothing answers at {address}")


def test_help_is_quick_and_shows_examples():
    forebay("--help")
    start = time.monotonic()
    done = forebay("--help")
    assert time.monotonic() - start < 3.0, "under a second on an idle machine"
    assert done.returncode == 0 and "Examples" in done.stdout and "forebay chat" in done.stdout


def test_help_imports_nothing_heavy():
    code = (
        "import sys; from forebay.cli import app; "
        "sys.exit(str(sorted({'torch', 'numpy', 'transformers', 'redis'} & sys.modules.keys())) if "
        "{'torch', 'numpy', 'transformers', 'redis'} & sys.modules.keys() else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_import_refuses_an_existing_folder(tmp_path):
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    (tmp_path / "m").mkdir()
    done = forebay("model", "import", str(tmp_path / "m.gguf"))
    assert done.returncode == 1 and "exists already" in done.stderr
