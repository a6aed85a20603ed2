"""Faults of a cluster of real processes: what is caused, and what must hold after each (docs/faults-cluster.md)."""
