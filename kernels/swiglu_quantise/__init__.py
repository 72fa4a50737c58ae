from ..op import Op
from .cases import bytes_moved, cases
from .reference import swiglu_quantise

OP = Op(__name__, swiglu_quantise, ("cpu", "triton"), cases, bytes_moved)
