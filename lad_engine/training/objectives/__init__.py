"""What a run minimises: one file per decoding family."""
