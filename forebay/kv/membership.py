"""Who is alive: services announce themselves in Redis with a time to live, and are listed by role.

When Redis is gone the last list stays valid: better a dead address, which gRPC notices, than none.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass

from forebay.kv.redis_link import LinkStats, RedisLink


@dataclass(frozen=True)
class Member:
    """One service process. `capacity` is in the role's own unit (blocks for a store or a pool)."""

    role: str
    address: str
    epoch: int
    fingerprint: str = ""
    capacity: int = 0

    def encode(self) -> str:
        """JSON form kept in Redis."""
        return json.dumps(asdict(self), sort_keys=True)


def decode_member(body: bytes) -> Member | None:
    """The member in a JSON body, or None for anything else."""
    try:
        member = Member(**json.loads(body))
        if isinstance(member.address, str) and isinstance(member.role, str):
            return member
    except (ValueError, TypeError):
        pass
    return None


class Membership:
    """Announce, withdraw, list."""

    def __init__(self, url: str, *, ttl_s: float = 3.0, timeout_s: float = 1.0) -> None:
        self._link = RedisLink(url, budget_s=timeout_s)
        self._ttl_s = ttl_s
        self._last: dict[str, list[Member]] = {}

    @property
    def stats(self) -> LinkStats:
        """Calls, failures and bypasses since start."""
        return self._link.stats

    async def announce(self, member: Member) -> bool:
        """Say that `member` is alive for another time to live; False if Redis did not hear."""
        args = [member.address, member.encode(), int(self._ttl_s * 1000)]
        return await self._link.run("members", [_members_key(member.role)], args) is not None

    async def withdraw(self, member: Member) -> None:
        """Leave the list at once."""
        await self._link.run("members", [_members_key(member.role)], [member.address, "", 0])

    async def list(self, role: str) -> list[Member]:
        """Live members of a role by address; the last known ones while Redis is gone."""
        reply = await self._link.run("members", [_members_key(role)], [])
        if isinstance(reply, list):
            members = (decode_member(body) for body in reply if isinstance(body, bytes))
            self._last[role] = sorted(
                (m for m in members if m is not None), key=lambda member: member.address
            )
        return self._last.get(role, [])

    async def keep(self, describe: Callable[[], Member]) -> None:
        """Announce until cancelled, three times per time to live; withdraws at the end."""
        try:
            while True:
                await self.announce(describe())
                await asyncio.sleep(self._ttl_s / 3)
        finally:
            await self.withdraw(describe())

    async def close(self) -> None:
        """Close all connections."""
        await self._link.close()


def _members_key(role: str) -> str:
    return f"fb:members:{{{role}}}"
