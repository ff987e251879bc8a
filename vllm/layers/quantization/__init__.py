"""Quantized weights: encodings say what lies in a checkpoint, methods how it is multiplied."""
