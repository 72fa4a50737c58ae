"""The sibling families: plain transcriptions of their reference loops, what they are compared with, and their adaptations."""
