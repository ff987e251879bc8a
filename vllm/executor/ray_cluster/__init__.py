"""Ranks that Ray places: a bundle and an actor for each, and an agent on every machine."""
