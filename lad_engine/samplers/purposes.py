"""What a random number is for; the values are those of the Philox contract in `kernels/random` (a test compares them)."""

SAMPLE = 0
START = 4
FLOW_START = 10
FLOW_TARGET = 11
REVEAL = 5
ORDER = 6
SIMPLEX_NOISE = 8
