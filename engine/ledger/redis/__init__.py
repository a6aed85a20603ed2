"""The ledger of the cluster, in Redis: one shard a partition, one Lua file an atomic act (docs/ledger-redis.md)."""
