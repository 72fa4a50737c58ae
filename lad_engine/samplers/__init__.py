"""Decisions only: which token, and which positions keep it."""
