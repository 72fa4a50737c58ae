"""Decoding families, one per file: a state of fixed buffers and a static step over them."""
