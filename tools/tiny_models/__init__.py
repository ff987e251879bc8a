"""Tiny but real models: text generator, tokenizer, training, evaluation, random checkpoints."""
