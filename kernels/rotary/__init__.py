from ..op import Op
from .cases import bytes_moved, cases
from .reference import rotary

OP = Op(__name__, rotary, ("triton",), cases, bytes_moved)
