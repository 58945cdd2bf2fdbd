"""The router's arithmetic."""

import pytest

from gateway.router import DEFAULT_PREFILL_TOKENS_PER_S, Demand, RoutedKeys, Router, WorkerState

KEYS = [bytes([i]) * 16 for i in range(10)]


def demand(num_tokens=165, num_store_blocks=0, keys=KEYS, **fields):
    return Demand(keys, num_tokens, num_store_blocks, 16, 1 << 20, **fields)


def prefill(name, **fields):
    return WorkerState(name, prefill_tokens_per_s=1000.0, link_bytes_per_s=1e9, **fields)


def decode(name, **fields):
    return WorkerState(name, num_blocks=100, link_bytes_per_s=1e9, **fields)


def test_shorter_queue_wins():
    route = Router(0).route(demand(), [prefill("a", num_queued_tokens=900), prefill("b")], [decode("d")])
    assert route.prefill.address == "b"
    assert route.placement.expected_ttft_ms == pytest.approx(165 + 10 * (1 << 20) / 1e6, rel=1e-3)


def test_cache_outweighs_queue_until_it_does_not():
    router, a, b = Router(0), prefill("a"), prefill("b")
    router.route(demand(), [a], [decode("d")]).close()
    a.num_queued_tokens = 150
    assert router.route(demand(), [a, b], [decode("d")]).prefill is a
    a.num_queued_tokens = 170
    c = prefill("c")
    assert router.route(demand(), [a, c], [decode("d")]).prefill is c


def test_store_blocks_need_no_computing():
    route = Router(0).route(demand(num_store_blocks=8), [prefill("a")], [decode("d")])
    placement = route.placement
    assert (placement.num_novel_tokens, placement.num_moved_blocks) == (165 - 128, 8)
    assert route.num_cached_tokens == 128
    assert "37 of 165 tokens novel" in placement.reason and "8 blocks to move" in placement.reason


def test_at_least_one_token_is_computed():
    assert demand(num_tokens=160, num_store_blocks=10).novel_tokens(10) == 1


def test_default_rates():
    route = Router(0).route(demand(), [WorkerState("a")], [WorkerState("d")])
    assert route.placement.prefill_tokens_per_s == DEFAULT_PREFILL_TOKENS_PER_S
    assert route.placement.link_bytes_per_s > 0


def test_idle_decode_wins_and_full_one_loses():
    busy, idle, full = decode("busy", num_running=9), decode("idle"), decode("full", num_used_blocks=95)
    assert Router(0).route(demand(), [], [busy, idle]).decode is idle
    assert Router(0).route(demand(), [], [full, busy]).decode is busy
    assert Router(0).route(demand(), [], [full]).decode is full


def test_decode_affinity():
    router, a, b = Router(0), decode("a"), decode("b")
    router.route(demand(), [], [a]).close()
    assert router.route(demand(), [], [b, a]).decode is a


@pytest.mark.parametrize(
    "limit, num_store_blocks, is_local",
    [
        (0, 10, False),
        (-1, 10, True),
        (-1, 9, False),
        (4, 10, False),
        (5, 10, True),
        (165, 0, True),
        (164, 0, False),
    ],
)
def test_local_prefill_of_short_tails(limit, num_store_blocks, is_local):
    route = Router(limit).route(demand(num_store_blocks=num_store_blocks), [prefill("a")], [decode("d")])
    assert (route.prefill is None) == is_local
    assert route.placement.prefill == ("decode" if is_local else "a")


def test_aggregated_worker_serves_both_parts():
    workers = ("x", "y")
    router = Router(0)
    for i in range(6):
        keys = [bytes([i, j]) * 8 for j in range(10)]
        prefills, decodes = [prefill(w) for w in workers], [decode(w, num_running=i % 3) for w in workers]
        route = router.route(demand(keys=keys), prefills, decodes)
        assert route.prefill.address == route.decode.address


def test_mixed_aggregated_and_dedicated():
    prefills = [prefill("x", num_queued_tokens=10**6), prefill("p")]
    route = Router(0).route(demand(), prefills, [decode("x"), decode("d")])
    assert (route.prefill.address, route.decode.address) == ("p", "d")
    only_aggregated = [prefill("x", num_queued_tokens=10**6)]
    route = Router(0).route(demand(), only_aggregated, [decode("x"), decode("d")])
    assert route.prefill is None and route.decode.address == "d"


def test_own_counts_spread_load_before_any_report():
    router, a, b = Router(0), prefill("a"), prefill("b")
    routes = [router.route(demand(keys=[bytes([i]) * 16]), [a, b], [decode("d")]) for i in range(4)]
    assert [r.prefill.address for r in routes] == ["a", "b", "a", "b"]
    for route in routes:
        route.prefill_done()
        route.close()
        route.close()
    assert a.own_queued_tokens == b.own_queued_tokens == 0
    assert all(r.decode.own_sequences == 0 for r in routes)


def test_routed_keys_are_bounded_and_forget_children_first():
    keys = RoutedKeys(max_keys=4)
    keys.add(KEYS[:3])
    keys.add(KEYS[5:7])
    assert len(keys) == 4
    assert keys.match(KEYS) == 2 and keys.match(KEYS[5:]) == 2
    keys.clear()
    assert keys.match(KEYS) == 0
