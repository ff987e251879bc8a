"""Our engine and others side by side on one machine; `benchmarks/compare.py` is the program."""
