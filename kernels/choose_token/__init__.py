from ..op import Op
from .cases import bytes_moved, cases
from .reference import choose_token

OP = Op(__name__, choose_token, ("cpu", "triton"), cases, bytes_moved)
