from ..op import Op
from .cases import bytes_moved, cases, shape
from .reference import gate_up

OP = Op(__name__, gate_up, ("cpu", "cublas", "triton"), cases, bytes_moved, shape=shape)
