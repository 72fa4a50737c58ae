"""Loop drivers over a denoiser's step, and the copies that bring its buffers to the host."""
