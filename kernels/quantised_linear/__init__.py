from ..op import Op
from .cases import bytes_moved, cases
from .reference import quantised_linear

OP = Op(__name__, quantised_linear, ("cpu", "library"), cases, bytes_moved)
