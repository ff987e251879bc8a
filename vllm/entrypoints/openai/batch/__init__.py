"""`vllm run-batch`: OpenAI batch files through the server's routes, without a server."""
