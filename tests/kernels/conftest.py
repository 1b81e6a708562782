"""What the tests of all kernels use."""

import pytest

from scanrl.kernels import choice, native, native_product

extension, _ = native.extension()
ISAS = [name for name, _, _, runs in extension.isas() if runs] if extension else []


@pytest.fixture(params=ISAS)
def isa(request, monkeypatch):
    """Runs the test once per instruction set."""
    monkeypatch.setenv("SCANRL_ISA", request.param)
    caches = (native.isa, native_product.halves)
    for cache in caches:
        cache.cache_clear()
    yield request.param
    for cache in caches:
        cache.cache_clear()


@pytest.fixture
def fresh():
    """Forgets what was read from the environment, before and after the test."""
    caches = (choice._forced, choice._warn_slow, native.isa)
    for cache in caches:
        cache.cache_clear()
    yield
    for cache in caches:
        cache.cache_clear()


@pytest.fixture
def without_extension(monkeypatch, fresh):
    monkeypatch.setattr(native, "extension", lambda: (None, "the C extension is not available (no module)"))
