from ..op import Op
from .cases import bytes_moved, cases
from .reference import attention

OP = Op(__name__, attention, ("sdpa", "triton"), cases, bytes_moved)
