"""Numbers only: everything a decode needs per step, computed on the host once per request."""
