/* The matrix product for Python. Tasks are rows of C and each sums over all of K in the same order, so results do not
 * depend on the number of threads. */
#include "module.h"

static void run(const Kernel *kernel, int threads, int half, const Product *p) {
    int64_t panels = pieces(p->n, p->width), blocks = pieces(p->m, BLOCK);
#pragma omp parallel num_threads(threads)
    for (int64_t k0 = 0; k0 < p->k; k0 += DEPTH) {
        int64_t depth = least(DEPTH, p->k - k0);
#pragma omp for schedule(static)
        for (int64_t i = 0; i < panels; i++) (half ? kernel->half_panel : kernel->product_panel)(p, i, k0, depth);
#pragma omp for schedule(dynamic)
        for (int64_t i = 0; i < blocks; i++)
            (half ? kernel->half_rows : kernel->product_rows)(p, i * BLOCK, least((i + 1) * BLOCK, p->m), k0, depth);
    }
}

static Axis axis(Arguments *from) {
    Axis a = {.inner = integer(from)};
    a.outer = integer(from);
    a.step = integer(from);
    return a;
}

static Matrix matrix(Arguments *from) {
    Matrix m = {.at = address(from)};
    m.row = axis(from);
    m.column = axis(from);
    return m;
}

PyObject *product(PyObject *self, PyObject *const *args, Py_ssize_t count) {
    (void)self;
    Arguments from = {args, count};
    Product p = {0};
    const Kernel *kernel = read_kernel(&from);
    int threads = (int)integer(&from), half = (int)integer(&from);
    p.m = integer(&from);
    p.n = integer(&from);
    p.k = integer(&from);
    p.a = matrix(&from);
    p.b = matrix(&from);
    p.c = address(&from);
    p.c_row = axis(&from);
    p.bias = address(&from);
    p.add = integer(&from);
    p.panels = address(&from);
    if (!complete(&from)) return NULL;
    if (half && !halves(kernel)) {
        PyErr_SetString(PyExc_ValueError, "this processor does not multiply in bfloat16");
        return NULL;
    }
    p.width = kernel->panel;
    Py_BEGIN_ALLOW_THREADS
    run(kernel, threads, half, &p);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}
