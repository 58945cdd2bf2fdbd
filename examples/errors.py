"""What can go wrong, and what the exceptions know about it.

python examples/errors.py [host:port]
"""

import sys

from forebay.client import CallError, Forebay, InvalidRequest, RetryPolicy, ServiceUnavailable

# UNAVAILABLE is tried again by itself before the first token; every call ends at its deadline.
with Forebay(*sys.argv[1:], timeout_s=60, retry=RetryPolicy(max_attempts=5)) as client:
    try:
        print(client.generate("Hello", max_tokens=10, n=99).collect().text)
    except InvalidRequest as error:
        print(f"{error.metadata['field']} allows {error.metadata['limit']}, got {error.metadata['got']}")
    except ServiceUnavailable as error:
        print(f"{error.reason}: try again in {error.retry_after_s} s; {error.hint}")
    except CallError as error:
        print(f"{error.reason}: {error.message}")
