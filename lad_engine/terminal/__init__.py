"""What the command line shows and reads: arguments, requests, the live canvas, traces, replay and progress bars."""
