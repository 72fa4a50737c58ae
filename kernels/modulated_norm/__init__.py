from ..op import Op
from .cases import bytes_moved, cases
from .reference import modulated_norm

OP = Op(__name__, modulated_norm, ("triton",), cases, bytes_moved)
