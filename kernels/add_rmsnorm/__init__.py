from ..op import Op
from .cases import bytes_moved, cases
from .reference import add_rmsnorm

OP = Op(__name__, add_rmsnorm, ("cpu", "triton"), cases, bytes_moved)
