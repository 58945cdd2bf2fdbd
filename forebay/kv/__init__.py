"""KV-cache blocks: keys, layout, pool, index and the connector to the store."""
