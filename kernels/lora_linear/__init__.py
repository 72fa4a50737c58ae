from ..op import Op
from .cases import bytes_moved, cases
from .reference import lora_linear

OP = Op(__name__, lora_linear, ("cpu", "cublas", "triton"), cases, bytes_moved)
