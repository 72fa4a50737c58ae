from ..op import Op
from .cases import bytes_moved, cases
from .reference import rmsnorm_quantise

OP = Op(__name__, rmsnorm_quantise, ("cpu", "triton"), cases, bytes_moved)
