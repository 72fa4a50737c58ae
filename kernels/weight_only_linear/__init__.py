from ..op import Op
from .cases import bytes_moved, cases
from .reference import weight_only_linear

OP = Op(__name__, weight_only_linear, ("library", "triton"), cases, bytes_moved)
