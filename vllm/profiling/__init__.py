"""Recording what an engine does: the torch profiler, and a timeline of our own."""
