"""Ranks that Ray places: bundles, an actor for each, and an agent of `executor/nodes` per machine."""
