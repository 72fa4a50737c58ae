from ..op import Op
from .cases import bytes_moved, cases, shape
from .reference import few_row_linear

OP = Op(__name__, few_row_linear, ("cublas", "triton"), cases, bytes_moved, shape=shape)
