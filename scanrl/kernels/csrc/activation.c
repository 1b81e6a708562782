/* Nonlinearities for Python, forward and backward. */
#include "module.h"

enum { TOKENS = 32 }; /* per task */

PyObject *activation(PyObject *self, PyObject *const *args, Py_ssize_t count) {
    (void)self;
    Arguments from = {args, count};
    Activation f = {0};
    const Kernel *kernel = read_kernel(&from);
    int threads = (int)integer(&from);
    f.kind = integer(&from);
    int64_t batch = integer(&from);
    f.length = integer(&from);
    f.channels = integer(&from);
    f.x = rows(&from);
    f.dy = rows(&from);
    f.out = address(&from);
    f.row = integer(&from);
    f.step = integer(&from);
    if (!complete(&from)) return NULL;
    int64_t tokens = batch * f.length;
    Py_BEGIN_ALLOW_THREADS
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t i = 0; i < pieces(tokens, TOKENS); i++)
        kernel->activation(&f, i * TOKENS, least((i + 1) * TOKENS, tokens));
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}
