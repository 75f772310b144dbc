"""Benchmarks beside named peers, and the traffic model."""
