from ..op import Op
from .cases import bytes_moved, cases
from .reference import renoise

OP = Op(__name__, renoise, ("cpu", "triton"), cases, bytes_moved, is_exact=True)
