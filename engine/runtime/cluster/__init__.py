"""The cluster: Kafka is the log, Faust runs the workers, Redis is the ledger (docs/cluster.md)."""
