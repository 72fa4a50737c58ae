from ..op import Op
from .cases import bytes_moved, cases
from .reference import quantise_rows

OP = Op(__name__, quantise_rows, ("cpu", "triton"), cases, bytes_moved, is_exact=True)
