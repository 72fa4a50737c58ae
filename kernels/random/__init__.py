from ..op import Op
from .cases import bytes_moved, cases
from .reference import uniform

OP = Op(__name__, uniform, ("cpu", "triton"), cases, bytes_moved, is_exact=True)
