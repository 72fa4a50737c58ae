from ..op import Op
from .cases import bytes_moved, cases
from .reference import gaussian_noise

OP = Op(__name__, gaussian_noise, ("cpu", "triton"), cases, bytes_moved)
