from ..op import Op
from .cases import bytes_moved, cases
from .reference import soft_embedding

OP = Op(__name__, soft_embedding, ("cpu", "triton"), cases, bytes_moved)
