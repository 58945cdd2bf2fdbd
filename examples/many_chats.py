"""Ask several questions at once with asyncio; the shared beginning is computed once.

python examples/many_chats.py [host:port]
"""

import asyncio
import sys

from forebay.client import AsyncForebay, Message

SYSTEM = Message(role="system", content="You answer in one short sentence. " * 20)
QUESTIONS = ["Why is the sky blue?", "Why is grass green?", "Why is snow white?"]


async def ask(client: AsyncForebay, question: str) -> None:
    """One conversation of one question."""
    answer = await client.chat([SYSTEM, Message(role="user", content=question)], max_tokens=30).collect()
    cached = answer.usage.cached_tokens if answer.usage else 0
    print(f"{question} {answer.text!r} ({cached} prompt tokens from the cache)")


async def main() -> None:
    """The first question alone, the others side by side."""
    async with AsyncForebay(*sys.argv[1:]) as client:
        await ask(client, QUESTIONS[0])
        await asyncio.gather(*(ask(client, question) for question in QUESTIONS[1:]))


asyncio.run(main())
