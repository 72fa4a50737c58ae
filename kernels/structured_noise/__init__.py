"""Training noise of LAD as an op; see reference.py."""

from ..op import Op
from .cases import bytes_moved, cases
from .reference import structured_noise

OP = Op(__name__, structured_noise, ("cpu", "triton"), cases, bytes_moved, is_exact=True)
