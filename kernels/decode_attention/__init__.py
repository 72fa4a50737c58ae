from ..op import Op
from .cases import bytes_moved, cases
from .reference import decode_attention

OP = Op(__name__, decode_attention, ("sdpa", "triton"), cases, bytes_moved, writes=("keys", "values"))
