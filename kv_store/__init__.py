"""The KV store service: blocks off the GPU, leases, eviction, publication to the prefix index."""
