"""`vllm bench`: how fast an engine or a server is."""
