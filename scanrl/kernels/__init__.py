"""Fast inner loops behind one function each."""

from scanrl.kernels.choice import Impl, ScanChoice, scan_choice
from scanrl.kernels.conv import causal_conv
from scanrl.kernels.scan import selective_scan, selective_step

__all__ = ["Impl", "ScanChoice", "causal_conv", "scan_choice", "selective_scan", "selective_step"]
