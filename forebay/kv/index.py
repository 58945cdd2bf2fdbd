"""The prefix index in Redis: which store node holds which prefix. A hint, never the truth.

Layout, all keys of one root in one cluster slot by their hash tag:

    fb:{<root>}:nodes                        hash   node -> "epoch expires_ms"; one per root
    fb:{<root>}:<node>:<epoch>:<bucket>      hash   block key -> ""; 4,096 buckets by the key's first 12 bits

A node's blocks count only while its heartbeat is fresh and under its latest epoch, so what a dead process
left is ignored at once and expires by itself. Buckets stay small enough for Redis's compact encoding
(about 25 bytes a block).
"""

from __future__ import annotations

from collections.abc import Sequence

from forebay.kv.hashing import KEY_BYTES
from forebay.kv.redis_link import LinkStats, RedisLink

BATCH_KEYS = 256
MAX_MATCH_KEYS = 16384


def pack_keys(keys: Sequence[bytes]) -> bytes:
    """16-byte keys, one after another."""
    return b"".join(keys)


class PrefixIndex:
    """Longest-prefix match over all store nodes in one round trip; registration by the stores."""

    def __init__(
        self,
        url: str,
        *,
        budget_s: float | None = 0.005,
        node_ttl_s: float = 3.0,
        entry_ttl_s: float = 6 * 3600.0,
    ) -> None:
        self._link = RedisLink(url, budget_s=budget_s)
        self._node_ttl_ms, self._entry_ttl_ms = int(node_ttl_s * 1000), int(entry_ttl_s * 1000)

    @property
    def stats(self) -> LinkStats:
        """Calls, failures and bypasses since start."""
        return self._link.stats

    @property
    def is_healthy(self) -> bool:
        """Whether the last call went well."""
        return self._link.is_healthy

    async def wait_ready(self, timeout_s: float = 5.0) -> bool:
        """Connect ahead of the first request, so that its budget need not cover it."""
        return await self._link.wait_ready(timeout_s) and await self._warm_up()

    async def match(self, root: bytes, keys: Sequence[bytes]) -> list[tuple[str, int]]:
        """(node, number of leading blocks it should hold), deepest first; empty if Redis is of no help."""
        if not keys:
            return []
        reply = await self._link.run("match", [_nodes_key(root)], [pack_keys(keys[:MAX_MATCH_KEYS])])
        return _parse_match(reply)

    async def announce(self, root: bytes, node: str, epoch: int) -> bool | None:
        """Heartbeat. True: known; False: it was lost, register everything again; None: no answer."""
        args = [node, epoch, self._node_ttl_ms, self._entry_ttl_ms]
        reply = await self._link.run("announce", [_nodes_key(root)], args)
        return None if reply is None else reply == 1

    async def register(self, root: bytes, node: str, epoch: int, keys: Sequence[bytes]) -> bool | None:
        """Add blocks, parents first. False: the node is not announced under this epoch; None: no answer."""
        return await self._update("add", root, node, epoch, keys)

    async def unregister(self, root: bytes, node: str, epoch: int, keys: Sequence[bytes]) -> bool | None:
        """Remove blocks, children first; answers as `register`."""
        return await self._update("remove", root, node, epoch, keys)

    async def close(self) -> None:
        """Close all connections."""
        await self._link.close()

    async def _update(
        self, action: str, root: bytes, node: str, epoch: int, keys: Sequence[bytes]
    ) -> bool | None:
        # A script blocks the server: 256 writes take about 1 ms.
        for start in range(0, len(keys), BATCH_KEYS):
            packed = pack_keys(keys[start : start + BATCH_KEYS])
            args = [node, epoch, action, self._entry_ttl_ms, packed]
            reply = await self._link.run("update", [_nodes_key(root)], args)
            if reply != 1:
                return None if reply is None else False
        return True

    async def _warm_up(self) -> bool:
        """Loads the script into the server, which may take longer than the budget the first time."""
        return await self._link.run("match", [_nodes_key(b"")], [b""]) is not None or self.is_healthy


def _nodes_key(root: bytes) -> str:
    return f"fb:{{{root[:KEY_BYTES].hex()}}}:nodes"


def _parse_match(reply: object | None) -> list[tuple[str, int]]:
    if not isinstance(reply, list):
        return []
    pairs = zip(reply[::2], reply[1::2], strict=False)
    found = [
        (n.decode("utf-8", "replace"), d) for n, d in pairs if isinstance(n, bytes) and isinstance(d, int)
    ]
    return sorted(found, key=lambda pair: (-pair[1], pair[0]))
