/* Speed limits of this processor for Python; see rate_kernel.h. */
#include "module.h"

/* isa, threads, what (0: exp2, 1: multiply and add), rounds. Returns how many of them were computed, by all threads. */
PyObject *rate(PyObject *self, PyObject *const *args, Py_ssize_t count) {
    (void)self;
    Arguments from = {args, count};
    const Kernel *kernel = read_kernel(&from);
    int threads = (int)integer(&from);
    int64_t what = integer(&from), rounds = integer(&from);
    if (!complete(&from)) return NULL;
    if (threads < 1 || what < 0 || what > 1 || rounds < 1) {
        PyErr_SetString(PyExc_ValueError, "threads and rounds must be positive, what 0 or 1");
        return NULL;
    }
    float sum = 0;
    Py_BEGIN_ALLOW_THREADS
#pragma omp parallel num_threads(threads) reduction(+ : sum)
    sum += (what ? kernel->rate_fma : kernel->rate_exp2)(rounds, -0.5f);
    Py_END_ALLOW_THREADS
    volatile float kept = sum; /* or the compiler sees that nobody looks at the results */
    (void)kept;
    return PyLong_FromLongLong(rounds * kernel->chains * kernel->lanes * threads);
}
