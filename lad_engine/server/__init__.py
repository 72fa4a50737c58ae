"""The HTTP face of a backend: OpenAI's endpoints, refinement steps as server-sent events, metrics and the demo pages."""
