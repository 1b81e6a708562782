"""The choice of an implementation, and what is refused."""

import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from scan_cases import make

from scanrl.kernels import choice, native, scan_choice, selective_scan, selective_step

ROOT = Path(__file__).parents[2]
HAS_NATIVE = native.extension()[0] is not None


def forced(monkeypatch, name):
    monkeypatch.setenv("SCANRL_SCAN", name)
    choice._forced.cache_clear()


def test_without_the_extension_the_reference_runs_and_warns_once(without_extension, monkeypatch):
    monkeypatch.delenv("SCANRL_SCAN", raising=False)
    x = make(2, 5, 3, 2)
    with pytest.warns(RuntimeWarning, match="install a C compiler"):
        found = selective_scan(**x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        selective_scan(**x)
    expected = selective_scan(**x, impl="reference")
    assert all(map(torch.equal, found, expected))


def test_a_forced_native_scan_without_the_extension_raises(without_extension):
    with pytest.raises(RuntimeError, match=r"native implementation was asked for.*not available.*install a C compiler"):
        selective_scan(**make(1, 2, 3, 4), impl="native")


def test_the_choice_without_the_extension_says_how_to_get_it(without_extension, monkeypatch):
    monkeypatch.delenv("SCANRL_SCAN", raising=False)
    found = scan_choice()
    assert found.impl == "reference"
    assert found.reason.endswith(
        "install a C compiler, then run in the clone: pip install --force-reinstall --no-deps ."  # it is on no index
    )


@pytest.mark.skipif(not HAS_NATIVE, reason="no C extension")
def test_the_choice_names_instruction_set_and_threads(monkeypatch, fresh):
    monkeypatch.delenv("SCANRL_SCAN", raising=False)
    found = scan_choice()
    assert found.impl == "native"
    assert found.detail == f"{native.isa().name}, {torch.get_num_threads()} threads"


@pytest.mark.parametrize("device", ["cuda", "meta", "nonsense", ""])
def test_asking_for_the_choice_never_raises(device, fresh, monkeypatch):
    for name in ("", "gpu", "native", "wrong"):
        forced(monkeypatch, name)
        assert scan_choice(device).impl in ("reference", "gpu", "none")


def test_the_environment_forces_an_implementation(monkeypatch, fresh):
    x = make(1, 4, 3, 2)
    forced(monkeypatch, "reference")
    assert scan_choice().impl == "reference"
    assert all(map(torch.equal, selective_scan(**x), selective_scan(**x, impl="reference")))
    forced(monkeypatch, "gpu")
    with pytest.raises((RuntimeError, ValueError), match="the gpu implementation"):
        selective_scan(**x)
    forced(monkeypatch, "fast")
    with pytest.raises(ValueError, match=r"SCANRL_SCAN: expected one of .*got 'fast'"):
        selective_scan(**x)


def test_an_argument_goes_before_the_environment(monkeypatch, fresh):
    forced(monkeypatch, "gpu")
    selective_scan(**make(1, 4, 3, 2), impl="reference")


@pytest.mark.parametrize("impl, error", [("gpu", (RuntimeError, ValueError)), ("fast", ValueError)])
def test_an_implementation_that_cannot_run_is_refused(impl, error):
    with pytest.raises(error, match="gpu"):
        selective_scan(**make(1, 4, 3, 2), impl=impl)


@pytest.mark.skipif(not HAS_NATIVE, reason="no C extension")
def test_the_native_scan_refuses_float64_and_other_devices():
    x = make(1, 4, 3, 2)
    with pytest.raises(ValueError, match="float64"):
        selective_scan(**{n: v.double() for n, v in x.items()}, impl="native")
    with pytest.raises(ValueError, match="meta"):
        selective_scan(**{n: v.to("meta") for n, v in x.items()}, impl="native")


WRONG = {
    "u": torch.zeros(2, 5),
    "dt": torch.zeros(2, 5, 4),
    "A": torch.zeros(2, 3),
    "B": torch.zeros(2, 5, 3),
    "C": torch.zeros(2, 6, 2),
    "D": torch.zeros(3, 1),
    "z": torch.zeros(1, 5, 3),
    "dt_bias": torch.zeros(2),
    "h": torch.zeros(2, 2, 3),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_shape_is_refused_by_name(name):
    with pytest.raises(ValueError, match=f"^{name}: expected shape"):
        selective_scan(**{**make(2, 5, 3, 2), name: WRONG[name]})


@pytest.mark.parametrize(
    ("name", "wrong"),
    [(n, w) for n in WRONG for w in ("int", "complex", "double", "list", "device") if (n, w) != ("h", "double")],
)
def test_a_wrong_dtype_or_device_is_refused_by_name(name, wrong):
    x = make(2, 5, 3, 2)
    value = x[name]
    x[name] = {
        "int": value.long(),
        "complex": value + 0j,
        "double": value.double(),
        "list": value.tolist(),
        "device": value.to("meta"),
    }[wrong]
    blamed = r"^\w+: " if name == "u" and wrong in ("double", "device") else f"^{name}: "
    with pytest.raises((TypeError, ValueError), match=blamed):
        selective_scan(**x)


@pytest.mark.parametrize("name", ["u", "dt", "A", "B", "C"])
def test_a_missing_required_argument_is_refused_by_name(name):
    with pytest.raises(TypeError, match=f"^{name}: "):
        selective_scan(**{**make(2, 5, 3, 2), name: None})


def test_a_half_precision_state_is_refused():
    x = make(2, 5, 3, 2)
    with pytest.raises(TypeError, match=r"^h: the state is kept in float32"):
        selective_scan(**{**x, "h": x["h"].bfloat16()})


@pytest.mark.parametrize("impl", ["reference", "native"] if HAS_NATIVE else ["reference"])
def test_a_float64_state_stays_one_beside_float32_arguments(impl):
    x = make(2, 5, 3, 2)
    wide = {**x, "h": x["h"].double()}
    y, last = selective_scan(**wide, impl=impl)
    assert y.dtype == torch.float32
    assert last.dtype == torch.float64
    assert not torch.equal(last.float().double(), last)
    assert torch.equal(wide["h"], x["h"].double())  # the old state is as it was
    truth, state = selective_scan(**{n: v.double() for n, v in x.items()})
    torch.testing.assert_close((y.double(), last), (truth, state), rtol=1e-5, atol=1e-6)
    wide["h"].requires_grad_()
    y, last = selective_scan(**wide, impl=impl)
    (y.sum() + last.sum()).backward()
    assert last.dtype == wide["h"].grad.dtype == torch.float64


def test_a_step_checks_its_arguments():
    x = make(2, 1, 3, 4)
    token = {name: x[name][:, 0] for name in ("u", "dt", "B", "C", "z")}
    with pytest.raises(ValueError, match=r"^B: expected shape"):
        selective_step(**{**token, "B": torch.zeros(2, 3)}, A=x["A"], h=x["h"])
    with pytest.raises(TypeError, match=r"^h: "):
        selective_step(**token, A=x["A"], h=None)


@pytest.mark.parametrize("impl", ["reference", "native"] if HAS_NATIVE else ["reference"])
def test_autocast_does_not_change_the_result(impl):
    x = make(2, 5, 3, 2)
    with torch.autocast("cpu", torch.bfloat16):
        found = selective_scan(**x, impl=impl)
    assert all(map(torch.equal, found, selective_scan(**x, impl=impl)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_close_to_the_truth(dtype):
    x = make(2, 40, 20, 16)
    truth, last = selective_scan(**{n: v.double() for n, v in x.items()})
    y, h = selective_scan(**{n: v if n == "h" else v.to(dtype) for n, v in x.items()})
    assert y.dtype == dtype
    assert h.dtype == torch.float32
    assert (y.double() - truth).abs().max() <= 2e-2 * truth.abs().max()
    assert (h.double() - last).abs().max() <= 2e-2 * last.abs().max()


def test_importing_the_scan_needs_no_compiler_and_no_extension():
    code = """
import sys
sys.modules["scanrl.kernels._native"] = None
import torch
from scanrl.kernels import scan_choice
assert scan_choice().impl == "reference", scan_choice()
"""
    environment = {k: v for k, v in os.environ.items() if k not in ("SCANRL_SCAN", "SCANRL_ISA")}
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
