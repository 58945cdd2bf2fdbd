"""Print a completion as it is generated, then where its time went.

python examples/stream.py [host:port]
"""

import sys

from forebay.client import Forebay

with Forebay(*sys.argv[1:]) as client, client.generate("Once upon a time", max_tokens=40) as stream:
    for delta in stream:
        print(delta.text, end="", flush=True)
        if delta.receipt is not None:
            print(f"\n\nfirst token after {delta.receipt.ttft_ms:.0f} ms")
            for stage in delta.receipt.stages:
                print(f"{stage.name:>14} {stage.ms:8.1f} ms")
