"""Compiles every Triton kernel for a CUDA device that need not be there and prints its name.

    python gpu_compile.py 90 fp32  # compute capability, dtype of the inputs

The scan's states must stay in the layout they are computed in: a conversion per token would cost more than the scan.
"""

import sys

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from scanrl.kernels import gpu_conv_kernels as conv
from scanrl.kernels import gpu_scan_kernels as scan

SCAN = {"N": 16, "BLOCK": 16, "CHUNK": 8, "SOFTPLUS": True}
CONV = {"WINDOW": 6, "T": 16, "D": 32}
HALF = ("u", "dt", "B", "C", "z", "y", "x", "dy", "du", "ddt", "dz", "dx", "past", "dpast")  # where the inputs are
NUMBERS = ("length", "channels", "states", "segment", "segments", "rows", "width", "places", "each", "per")
MISSING = dict.fromkeys(("D", "z", "bias", "start", "dlast", "dz"))
NO_PAST = dict.fromkeys(("past", "place", "dpast"))
# The launcher makes a constant of every number that is 1, as that of segments mostly is.
ONE = dict.fromkeys(("length", "states", "segment", "segments", "rows", "width", "places", "each", "per"), 1)
ONE |= dict.fromkeys((f"{name}{axis}" for name in ("u", "dt", "B", "C", "z", "dy", "x", "past") for axis in "01"), 1)
KERNELS = {
    "forward": (scan.forward, {**SCAN, "sums": None}),
    "local": (scan.forward, {**SCAN, "start": None, "y": None, "checkpoints": None}),
    "wide_forward": (scan.forward, {**SCAN, "checkpoints": None, "sums": None}),
    "wide_local": (scan.forward, {**SCAN, "start": None, "y": None, "checkpoints": None}),
    "wide_carry": (scan.carry, {**SCAN, "REVERSE": False}),
    "carry": (scan.carry, {**SCAN, "REVERSE": True}),
    "local_backward": (scan.local_backward, SCAN),
    "backward": (scan.backward, SCAN),
    "conv": (conv.forward, CONV),
    "inputs": (conv.backward_inputs, CONV),
    "weights": (conv.backward_weights, CONV),
    "one_forward": (scan.forward, {**SCAN, **ONE, "sums": None}),
    "one_carry": (scan.carry, {**SCAN, **ONE, "REVERSE": False}),
    "one_local_backward": (scan.local_backward, {**SCAN, **ONE}),
    "one_backward": (scan.backward, {**SCAN, **ONE}),
    "one_conv": (conv.forward, {**CONV, **ONE}),
    "one_inputs": (conv.backward_inputs, {**CONV, **ONE}),
    "one_weights": (conv.backward_weights, {**CONV, **ONE}),
    "bare_forward": (scan.forward, {**SCAN, **MISSING, "sums": None, "checkpoints": None, "SOFTPLUS": False}),
    "bare_carry": (scan.carry, {**SCAN, **MISSING, "REVERSE": False}),
    "bare_local_backward": (scan.local_backward, {**SCAN, **MISSING}),
    "bare_backward": (scan.backward, {**SCAN, **MISSING, "SOFTPLUS": False}),
    "bare_conv": (conv.forward, {**CONV, **NO_PAST}),
    "bare_inputs": (conv.backward_inputs, {**CONV, **NO_PAST}),
    "bare_weights": (conv.backward_weights, {**CONV, **NO_PAST}),
}


def compiled(kernel: triton.JITFunction, constants: dict, capability: int, kind: str, wide_state: bool):
    signature = {}
    for name in kernel.arg_names:
        if name in constants:
            signature[name] = "constexpr"
        elif name in NUMBERS or name[-1].isdigit():
            signature[name] = "i32"
        else:
            wide = "fp64" if wide_state and name in ("rates", "start", "last", "sums", "local", "carried") else "fp32"
            signature[name] = "*i64" if name == "place" else f"*{kind if name in HALF else wide}"
    fixed = {(kernel.arg_names.index(name),): value for name, value in constants.items() if name in kernel.arg_names}
    # Addresses of whole tensors are multiples of 16, as the launcher finds out by itself.
    aligned = {(i,): [["tt.divisibility", 16]] for i, name in enumerate(kernel.arg_names) if signature[name][0] == "*"}
    source = ASTSource(kernel, signature, fixed, aligned)
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": 1})


def main() -> None:
    for name, (kernel, constants) in KERNELS.items():
        code = compiled(kernel, constants, int(sys.argv[1]), sys.argv[2], name[:4] == "wide").asm
        assert len(code["cubin"]) > 1000
        conversions = [line for line in code["ttgir"].splitlines() if "ttg.convert_layout" in line]
        states = [line for line in conversions if "tensor<16x16xf32" in line]
        assert kernel.__module__ == conv.__name__ or not states, f"{name}: {states[0]}"
        print(name)


if __name__ == "__main__":
    main()
