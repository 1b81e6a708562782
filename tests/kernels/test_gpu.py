"""The Triton kernels: when they run, that they compile for real devices, and their arithmetic (in `gpu_cases.py`)."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from scan_cases import make

from scanrl.kernels import causal_conv, choice, gpu, scan_choice, selective_scan

HERE = Path(__file__).parent
needs_triton = pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed")


def child(*words: str, **environment: str) -> str:
    """Output of a Python process that has not imported triton yet."""
    clean = {k: v for k, v in os.environ.items() if k not in ("SCANRL_SCAN", "TRITON_INTERPRET")}
    environment = {**clean, "PYTHONPATH": str(HERE.parents[1]), **environment}
    run = subprocess.run([sys.executable, *words], env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout[-5000:] + run.stderr[-5000:]
    return run.stdout


@needs_triton
@pytest.mark.timeout(600)  # a minute of computing on a quiet machine
def test_the_kernels_are_right_in_the_interpreter():
    said = child("-m", "pytest", str(HERE / "gpu_cases.py"), "-p", "no:cacheprovider", TRITON_INTERPRET="1")
    assert "passed" in said
    assert "skipped" not in said


@pytest.mark.gpu
@pytest.mark.timeout(600)
def test_the_kernels_are_right_on_the_device():
    assert "passed" in child("-m", "pytest", str(HERE / "gpu_cases.py"), "-p", "no:cacheprovider")


@pytest.mark.gpu
@pytest.mark.parametrize("shape", [(64, 60, 256, 16), (4, 2048, 256, 16), (1, 5000, 100, 16), (2, 300, 40, 64)])
def test_large_scans_on_the_device_match_the_truth(shape):
    from gpu_cases import compare

    x = make(*shape)
    compare({**x, "A": x["A"] / 4})


@needs_triton
@pytest.mark.timeout(300)
@pytest.mark.parametrize("device", ["80 bf16", "90 fp32"])  # compute capability and inputs
def test_every_kernel_compiles_for_a_device_that_is_not_here(device):
    said = child(str(HERE / "gpu_compile.py"), *device.split())
    assert len(said.split()) == 25


def test_importing_and_running_on_the_cpu_imports_no_triton():
    code = """
import sys, torch
from scanrl.kernels import scan_choice, selective_scan
x = torch.ones(1, 2, 3)
selective_scan(x, x, -torch.ones(3, 3), x, x, impl="reference")
scan_choice("cpu")
assert "triton" not in sys.modules
"""
    child("-c", code)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_the_timings_refuse_without_a_cuda_device():
    words = [sys.executable, str(HERE.parents[1] / "results" / "gpu_speed.py"), "run"]
    run = subprocess.run(words, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(HERE.parents[1])})
    assert run.returncode == 1
    assert run.stderr == "gpu_speed: expected a CUDA device, got none; nothing was measured\n"


@pytest.fixture
def without_triton(monkeypatch, fresh):
    monkeypatch.setattr(gpu, "found", lambda: gpu.Triton("triton is not installed (pip install triton)"))


def test_forced_without_triton_it_says_what_to_install(without_triton):
    for call in (lambda: selective_scan(**make(1, 4, 3, 2), impl="gpu"), lambda: causal_conv(*conv(), impl="gpu")):
        with pytest.raises(RuntimeError, match=r"gpu implementation was asked for, but .*\(pip install triton\)"):
            call()


def test_without_triton_a_cuda_device_gets_the_reference_and_one_warning(without_triton, monkeypatch):
    monkeypatch.delenv("SCANRL_SCAN", raising=False)
    found = scan_choice("cuda")
    assert found.impl == "reference"
    assert found.reason == "triton is not installed (pip install triton)"
    with pytest.warns(RuntimeWarning, match=r"selective_scan, causal_conv: .*slower: .*pip install triton"):
        choice._warn_slow("cuda")


def test_an_old_triton_is_not_used(monkeypatch, fresh):
    monkeypatch.setattr(gpu, "find_spec", lambda name: name)
    monkeypatch.setattr(gpu.metadata, "version", lambda name: "3.1.0")
    gpu.found.cache_clear()
    try:
        assert gpu.found().why == "triton 3.1.0 is older than 3.3 (pip install triton --upgrade)"
    finally:
        gpu.found.cache_clear()


@needs_triton
def test_cuda_tensors_get_the_kernels_by_themselves(monkeypatch, fresh):
    monkeypatch.delenv("SCANRL_SCAN", raising=False)
    found = scan_choice("cuda")
    assert found.impl == "gpu"
    assert found.reason == "the fastest on cuda"
    assert found.detail.startswith("triton 3.")
    assert choice._automatic("cuda", torch.float64) == "reference"


@needs_triton
@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="the interpreter takes tensors on the CPU")
def test_cpu_tensors_are_refused_outside_the_interpreter():
    with pytest.raises(ValueError, match=r"^u: the gpu implementation takes .* on CUDA, got torch.float32 on cpu"):
        selective_scan(**make(1, 4, 3, 2), impl="gpu")
    with pytest.raises(ValueError, match=r"^x: the gpu implementation takes"):
        causal_conv(*conv(), impl="gpu")


def conv() -> tuple[torch.Tensor, ...]:
    return torch.ones(1, 4, 3), torch.ones(1, 2, 3), torch.ones(1, 3)
