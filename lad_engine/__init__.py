"""A performance engine for diffusion language models adapted from autoregressive ones."""

from pathlib import Path as _Path
from pkgutil import extend_path as _extend_path

__version__ = "0.1.0"

# `python -m lad_engine.<verb>` inside a clone imports this folder rather than the installed package: it then finds kernels/ in the
# folder above, and the built extension in the installed package.
__path__ = _extend_path(__path__, __name__)
if (_Path(__file__).parent.parent / "kernels" / "op.py").is_file():
    __path__.insert(1, str(_Path(__file__).parent.parent))
