from ..op import Op
from .cases import bytes_moved, cases, shape
from .reference import packed_attention

OP = Op(__name__, packed_attention, ("cpu", "sdpa", "triton"), cases, bytes_moved, shape=shape)
