"""Benchmarks beside named peers, and the traffic model."""

OURS = "ours"  # in every comparison
