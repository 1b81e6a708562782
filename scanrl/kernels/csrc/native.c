/* scanrl.kernels._native: the scan, the convolution and the step of a policy for Python. Arrays come as addresses and
 * strides in elements (those of the step as buffers); shapes, dtypes and lifetimes are the caller's business (the native_*.py above). Neither torch nor numpy headers are
 * needed, so one build serves all their versions.
 */
#include "module.h"

#ifdef __GLIBC__
#include <limits.h>
#include <malloc.h>
#endif

#ifdef _OPENMP
enum { OPENMP = 1 };
#else
enum { OPENMP = 0 };
#endif

static const Kernel *const KERNELS[] = {
#if defined(__x86_64__)
    &scanrl_avx512,
    &scanrl_avx2,
#elif defined(__aarch64__)
    &scanrl_neon,
#endif
    &scanrl_portable,
};
enum { KERNEL_COUNT = sizeof KERNELS / sizeof *KERNELS };

static int runs_here(const Kernel *kernel) {
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (kernel == &scanrl_avx512)
        return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
               __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("fma");
    if (kernel == &scanrl_avx2) return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#elif defined(__aarch64__)
    if (kernel == &scanrl_neon) return 1; /* part of the architecture */
#endif
    return kernel == &scanrl_portable;
}

int64_t integer(Arguments *from) {
    if (PyErr_Occurred()) return 0;
    if (from->left-- <= 0) {
        PyErr_SetString(PyExc_TypeError, "too few arguments");
        return 0;
    }
    int64_t value = PyLong_AsLongLong(*from->next++);
    return PyErr_Occurred() ? 0 : value;
}

float *address(Arguments *from) { return (float *)(intptr_t)integer(from); }

Rows rows(Arguments *from) {
    Rows r = {.at = address(from)};
    r.row = integer(from);
    r.step = integer(from);
    return r;
}

int complete(const Arguments *from) {
    if (!PyErr_Occurred() && from->left) PyErr_SetString(PyExc_TypeError, "too many arguments");
    return !PyErr_Occurred();
}

const Kernel *read_kernel(Arguments *from) {
    int64_t isa = integer(from);
    if (PyErr_Occurred()) return NULL;
    if (isa >= 0 && isa < KERNEL_COUNT && runs_here(KERNELS[isa])) return KERNELS[isa];
    PyErr_SetString(PyExc_ValueError, "this processor lacks the instruction set");
    return NULL;
}

int halves(const Kernel *kernel) {
#if defined(__x86_64__)
    return kernel->half_rows && __builtin_cpu_supports("avx512bf16");
#else
    return kernel->half_rows != NULL;
#endif
}

int64_t read_plan(Arguments *from, Plan *plan) {
    plan->kernel = read_kernel(from);
    plan->threads = (int)integer(from);
    plan->slab = integer(from);
    plan->group = integer(from);
    plan->batch = integer(from);
    int64_t length = integer(from);
    plan->channels = integer(from);
    if (PyErr_Occurred()) return 0;
    if (plan->threads < 1 || plan->slab < 1 || plan->group < 1)
        PyErr_SetString(PyExc_ValueError, "threads, slab and group must be positive");
    return length;
}

/* [(name, lanes, tile, runs here)], best first; the position is the `isa` argument above. */
static PyObject *isas(PyObject *self, PyObject *unused) {
    (void)self, (void)unused;
    PyObject *list = PyList_New(0);
    for (int i = 0; list && i < KERNEL_COUNT; i++) {
        const Kernel *k = KERNELS[i];
        PyObject *entry = Py_BuildValue("(siiO)", k->name, k->lanes, k->tile, runs_here(k) ? Py_True : Py_False);
        if (!entry || PyList_Append(list, entry) < 0) Py_CLEAR(list);
        Py_XDECREF(entry);
    }
    return list;
}

/* Whether the kernel `isa` multiplies in bfloat16 here. */
static PyObject *has_half(PyObject *self, PyObject *const *args, Py_ssize_t count) {
    (void)self;
    Arguments from = {args, count};
    const Kernel *kernel = read_kernel(&from);
    return complete(&from) ? PyBool_FromLong(halves(kernel)) : NULL;
}

/* Whether the C library can be told to. */
static PyObject *keep_memory(PyObject *self, PyObject *unused) {
    (void)self, (void)unused;
#ifdef __GLIBC__
    enum { LARGEST = 32 << 20 }; /* what glibc allows */
    return PyBool_FromLong(mallopt(M_MMAP_THRESHOLD, LARGEST) && mallopt(M_TRIM_THRESHOLD, INT_MAX));
#else
    Py_RETURN_FALSE;
#endif
}

#define FAST(function) (PyCFunction)(void (*)(void))function, METH_FASTCALL

/* Of the calls below; native.py compares it, so that an old build is noticed instead of fed. */
#define ABI 7

static PyMethodDef METHODS[] = {
    {"forward", FAST(scan_forward), "Scan: y, and the last state and the checkpoints or the carried state."},
    {"backward", FAST(scan_backward), "Scan: all gradients; where there are parts, the first holds the sum."},
    {"conv_forward", FAST(conv_forward), "Convolution: y."},
    {"conv_backward", FAST(conv_backward), "Convolution: all gradients."},
    {"activation", FAST(activation), "Nonlinearity: y, or the gradient of x."},
    {"product", FAST(product), "Matrix product: C."},
    {"halves", FAST(has_half), "Whether this kernel multiplies in bfloat16 here."},
    {"keep_memory", keep_memory, METH_NOARGS, "Freed memory stays with the process; whether that could be set."},
    {"rate", FAST(rate), "So many rounds of one operation; how many were computed."},
    {"step", FAST(policy_step), "One environment step of a policy: 0 done; 1 its weights are not the model's, 2 an input is not finite."},
    {"step_ops", step_ops, METH_NOARGS, "Names of the instructions of a step, by number."},
    {"isas", isas, METH_NOARGS, "[(name, lanes, tile, runs here)], best first."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef MODULE = {PyModuleDef_HEAD_INIT, "_native", "The inner loops in C.",
                                    -1, METHODS, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__native(void) {
    PyObject *module = PyModule_Create(&MODULE);
    if (module && PyModule_AddIntConstant(module, "openmp", OPENMP) < 0) Py_CLEAR(module);
    if (module && PyModule_AddIntConstant(module, "abi", ABI) < 0) Py_CLEAR(module);
    if (module && PyModule_AddIntConstant(module, "chunk", CHUNK) < 0) Py_CLEAR(module);
    if (module && PyModule_AddIntConstant(module, "panel", PANEL) < 0) Py_CLEAR(module);
    if (module && PyModule_AddIntConstant(module, "streams", STREAMS) < 0) Py_CLEAR(module);
    return module;
}
