"""Adapters as first-class objects: read, check, attach or merge, write, convert."""
