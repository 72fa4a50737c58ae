from ..op import Op
from .cases import bytes_moved, cases
from .reference import swiglu

OP = Op(__name__, swiglu, ("cpu", "triton"), cases, bytes_moved)
