"""The one part of the build that pyproject.toml cannot express: the optional C extension.

Without a compiler the package installs all the same and scan and convolution run on their torch references.
"""

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError, LinkError

CSRC = "scanrl/kernels/csrc"
SOURCES = ("native", "scan", "conv", "activation", "product", "rate", "step", "portable", "neon", "avx2", "avx512")
HEADERS = (
    *("module", "isa", "kernel", "lanes", "rows"),
    *("scan", "scan_kernel", "carry_kernel", "conv", "conv_kernel", "activation", "activation_kernel"),
    *("product", "product_kernel", "half_kernel", "rate_kernel"),
    *("step", "step_kernel", "step_linear"),
)


class BuildKernels(build_ext):
    """Builds with OpenMP where the compiler has it, else for one thread."""

    def build_extension(self, ext):
        try:
            super().build_extension(ext)
        except (CompileError, LinkError):
            ext.extra_compile_args = [a for a in ext.extra_compile_args if a != "-fopenmp"]
            ext.extra_link_args = []
            super().build_extension(ext)


setup(
    ext_modules=[
        Extension(
            "scanrl.kernels._native",
            sources=[f"{CSRC}/{name}.c" for name in SOURCES],
            depends=[f"{CSRC}/{name}.h" for name in HEADERS],
            define_macros=[("Py_LIMITED_API", "0x030B0000")],
            extra_compile_args=["-O3", "-std=gnu11", "-fopenmp", "-fvisibility=hidden", "-fno-math-errno"],
            extra_link_args=["-fopenmp"],
            py_limited_api=True,
            optional=True,
        )
    ],
    cmdclass={"build_ext": BuildKernels},
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
