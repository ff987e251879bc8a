"""Routes, one file per subject: each parses, calls its Serving object and returns."""
