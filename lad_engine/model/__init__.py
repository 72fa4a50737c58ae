"""The decoder and its parts: facts, weights, transformer, head, cache."""
