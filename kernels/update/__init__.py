from ..op import Op
from .cases import bytes_moved, cases
from .reference import update

OP = Op(__name__, update, ("cpu", "triton"), cases, bytes_moved, is_exact=True, writes=("buffers",))
