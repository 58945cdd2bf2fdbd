"""The demo as a person sees it: the real model behind real services."""

from __future__ import annotations

import os
import re
import subprocess
import sys


def test_the_demo_answers_twice_and_the_second_time_from_the_cache():
    env = os.environ | {"NO_COLOR": "1", "COLUMNS": "100"}
    command = [sys.executable, "-m", "forebay.cli", "demo", "--max-tokens", "12"]
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=240)
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.strip().split("\n")
    assert first == second and "Black Sea" in first
    cached = re.findall(r"cached tokens +\S+ +(\d+) ", done.stderr)
    assert cached[0] == "0" and int(cached[1]) > 200
    stopped = re.findall(r"^(\S+) +stopped", done.stderr, re.MULTILINE)
    assert stopped == ["gateway-0", "decode-0", "prefill-0", "draft-0", "kv_store-0", "redis"]
