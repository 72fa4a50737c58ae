from ..op import Op
from .cases import bytes_moved, cases, shape
from .reference import lora_linear

OP = Op(__name__, lora_linear, ("cpu", "cublas", "triton"), cases, bytes_moved, shape=shape)
