"""Training of LAD adapters: data, noising, losses, the loop and its checkpoints."""
