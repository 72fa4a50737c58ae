from ..op import Op
from .cases import bytes_moved, cases
from .reference import lm_head

OP = Op(__name__, lm_head, ("cpu", "cublas", "triton"), cases, bytes_moved)
