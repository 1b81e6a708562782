"""Fast inner loops behind one function each."""

from scanrl.kernels.scan import Impl, ScanChoice, scan_choice, selective_scan, selective_step

__all__ = ["Impl", "ScanChoice", "scan_choice", "selective_scan", "selective_step"]
