"""Fast inner loops behind one function each."""

from scanrl.kernels.choice import Impl, ScanChoice, scan_choice
from scanrl.kernels.conv import causal_conv
from scanrl.kernels.layers import fast, linear, mlp
from scanrl.kernels.native import keep_memory
from scanrl.kernels.native_local import local_linear
from scanrl.kernels.native_mamba import Inner, Weights, mamba
from scanrl.kernels.scan import selective_scan, selective_step

__all__ = [
    "Impl",
    "Inner",
    "ScanChoice",
    "Weights",
    "causal_conv",
    "fast",
    "keep_memory",
    "linear",
    "local_linear",
    "mamba",
    "mlp",
    "scan_choice",
    "selective_scan",
    "selective_step",
]
