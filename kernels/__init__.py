"""Kernels of lad_engine, one folder per op; installed as `lad_engine.kernels`."""

# With the repository root on sys.path, transformers finds this folder under the name of a popular package and reads its version.
__version__ = "0.0.0"
