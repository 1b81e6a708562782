/* scanrl.kernels._native: the scan for Python. Arrays come as addresses and strides in elements; shapes, dtypes and
 * lifetimes are the caller's business (native.py). Neither torch nor numpy headers are needed, so one build serves all
 * their versions.
 *
 * Work is cut into tasks: a slab of batch rows times a group of channel blocks. The cut comes from the caller, depends
 * on shapes alone, and every task adds into a buffer of its own, so results do not depend on the number of threads.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <string.h>

#include "scan.h"

#ifdef _OPENMP
enum { OPENMP = 1 };
#else
enum { OPENMP = 0 };
#endif

static const Kernel *const KERNELS[] = {
#if defined(__x86_64__)
    &scanrl_avx512,
    &scanrl_avx2,
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
#endif
    return kernel == &scanrl_portable;
}

/* ------------------------------------------------------------------ tasks */

typedef struct {
    const Kernel *kernel;
    int threads;
    int64_t batch, slab, group; /* rows; rows and channel blocks per task */
} Plan;

typedef struct {
    int64_t slab, group, row, last_row, block, last_block;
} Task;

static int64_t pieces(int64_t whole, int64_t size) { return (whole + size - 1) / size; }

static int64_t blocks(const Plan *plan, const Inputs *in) { return pieces(in->channels, plan->kernel->lanes); }

static int64_t count_tasks(const Plan *plan, const Inputs *in) {
    return pieces(plan->batch, plan->slab) * pieces(blocks(plan, in), plan->group);
}

static Task task(const Plan *plan, const Inputs *in, int64_t index) {
    int64_t groups = pieces(blocks(plan, in), plan->group);
    Task t = {.slab = index / groups, .group = index % groups};
    t.row = t.slab * plan->slab;
    t.last_row = t.row + plan->slab < plan->batch ? t.row + plan->slab : plan->batch;
    t.block = t.group * plan->group;
    t.last_block = t.block + plan->group < blocks(plan, in) ? t.block + plan->group : blocks(plan, in);
    return t;
}

static void run_forward(const Plan *plan, const Forward *f) {
    int64_t tasks = count_tasks(plan, &f->in);
#pragma omp parallel for schedule(dynamic) num_threads(plan->threads)
    for (int64_t i = 0; i < tasks; i++) {
        Task t = task(plan, &f->in, i);
        for (int64_t row = t.row; row < t.last_row; row++)
            for (int64_t block = t.block; block < t.last_block; block++) plan->kernel->forward(f, row, block);
    }
}

/* Shared gradients, one part per group (dB, dC) or slab (dchannel): the first part ends up with the sum. */
typedef struct {
    float *first;
    int64_t parts, size;
} Parts;

enum { PIECE = 4096 };

static void add_parts(const Parts *p, int64_t piece) {
    int64_t from = piece * PIECE, to = from + PIECE < p->size ? from + PIECE : p->size;
    for (int64_t part = 1; part < p->parts; part++)
        for (int64_t i = from; i < to; i++) p->first[i] += p->first[part * p->size + i];
}

static void clear(float *p, int64_t count) { memset(p, 0, (size_t)count * sizeof *p); }

static void run_task(const Plan *plan, const Backward *whole, const Parts shared[3], int64_t index) {
    const Inputs *in = &whole->in;
    Task t = task(plan, in, index);
    Backward part = *whole;
    part.dB += t.group * shared[0].size;
    part.dC += t.group * shared[1].size;
    part.dchannel += t.slab * shared[2].size;
    int64_t per_row = shared[0].size / plan->batch, lanes = plan->kernel->lanes;
    int64_t e = t.block * lanes, last = t.last_block * lanes < in->channels ? t.last_block * lanes : in->channels;
    clear(part.dB + t.row * per_row, (t.last_row - t.row) * per_row);
    clear(part.dC + t.row * per_row, (t.last_row - t.row) * per_row);
    for (int64_t n = 0; n < in->states + 2; n++) clear(part.dchannel + n * in->channels + e, last - e);
    for (int64_t row = t.row; row < t.last_row; row++)
        for (int64_t block = t.block; block < t.last_block; block++) plan->kernel->backward(&part, row, block);
}

static void run_backward(const Plan *plan, const Backward *whole) {
    const Inputs *in = &whole->in;
    int64_t tasks = count_tasks(plan, in), tile = plan->kernel->tile;
    int64_t groups = pieces(blocks(plan, in), plan->group), slabs = pieces(plan->batch, plan->slab);
    int64_t inner = plan->batch * in->length * pieces(in->states, tile) * tile;
    const Parts shared[3] = {
        {whole->dB, groups, inner},
        {whole->dC, groups, inner},
        {whole->dchannel, slabs, (in->states + 2) * in->channels},
    };
#pragma omp parallel num_threads(plan->threads)
    {
#pragma omp for schedule(dynamic)
        for (int64_t i = 0; i < tasks; i++) run_task(plan, whole, shared, i);
        for (int k = 0; k < 3; k++) {
            int64_t count = shared[k].parts > 1 ? pieces(shared[k].size, PIECE) : 0;
#pragma omp for schedule(static) nowait
            for (int64_t i = 0; i < count; i++) add_parts(&shared[k], i);
        }
    }
}

/* ----------------------------------------------------- arguments, in order */

typedef struct {
    PyObject *const *next;
    Py_ssize_t left;
} Arguments;

/* The next integer; 0 with an exception set when it is none or there is no next one. */
static int64_t integer(Arguments *from) {
    if (PyErr_Occurred()) return 0;
    if (from->left-- <= 0) {
        PyErr_SetString(PyExc_TypeError, "too few arguments");
        return 0;
    }
    int64_t value = PyLong_AsLongLong(*from->next++);
    return PyErr_Occurred() ? 0 : value;
}

static float *address(Arguments *from) { return (float *)(intptr_t)integer(from); }

static Rows rows(Arguments *from) {
    Rows r = {.at = address(from)};
    r.row = integer(from);
    r.step = integer(from);
    return r;
}

/* isa, threads, slab, group, B, L, E, N, softplus, then the arrays of Inputs. */
static void read_inputs(Arguments *from, Plan *plan, Inputs *in) {
    int64_t isa = integer(from);
    plan->threads = (int)integer(from);
    plan->slab = integer(from);
    plan->group = integer(from);
    plan->batch = integer(from);
    in->length = integer(from);
    in->channels = integer(from);
    in->states = integer(from);
    in->softplus = integer(from);
    in->u = rows(from);
    in->dt = rows(from);
    in->z = rows(from);
    in->B = rows(from);
    in->C = rows(from);
    in->A = address(from);
    in->D = address(from);
    in->bias = address(from);
    in->h0 = address(from);
    if (PyErr_Occurred()) return;
    if (isa < 0 || isa >= KERNEL_COUNT || !runs_here(KERNELS[isa])) {
        PyErr_SetString(PyExc_ValueError, "this processor lacks the instruction set");
    } else if (plan->threads < 1 || plan->slab < 1 || plan->group < 1) {
        PyErr_SetString(PyExc_ValueError, "threads, slab and group must be positive");
    } else {
        plan->kernel = KERNELS[isa];
    }
}

static int complete(const Arguments *from) {
    if (!PyErr_Occurred() && from->left) PyErr_SetString(PyExc_TypeError, "too many arguments");
    return !PyErr_Occurred();
}

static PyObject *py_forward(PyObject *self, PyObject *const *args, Py_ssize_t count) {
    (void)self;
    Arguments from = {args, count};
    Plan plan = {0};
    Forward f = {0};
    read_inputs(&from, &plan, &f.in);
    f.y = address(&from);
    f.h = address(&from);
    f.checkpoints = address(&from);
    if (!complete(&from)) return NULL;
    Py_BEGIN_ALLOW_THREADS
    run_forward(&plan, &f);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

static PyObject *py_backward(PyObject *self, PyObject *const *args, Py_ssize_t count) {
    (void)self;
    Arguments from = {args, count};
    Plan plan = {0};
    Backward p = {0};
    read_inputs(&from, &plan, &p.in);
    p.checkpoints = address(&from);
    p.dy = rows(&from);
    p.dh_last = address(&from);
    p.du = address(&from);
    p.ddt = address(&from);
    p.dz = address(&from);
    p.dB = address(&from);
    p.dC = address(&from);
    p.dchannel = address(&from);
    p.dh = address(&from);
    if (!complete(&from)) return NULL;
    Py_BEGIN_ALLOW_THREADS
    run_backward(&plan, &p);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

/* [(name, lanes, tile, runs here)], best first; the position is the `isa` argument above. */
static PyObject *py_isas(PyObject *self, PyObject *unused) {
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

static PyMethodDef METHODS[] = {
    {"forward", (PyCFunction)(void (*)(void))py_forward, METH_FASTCALL, "y, the last state and the checkpoints."},
    {"backward", (PyCFunction)(void (*)(void))py_backward, METH_FASTCALL, "All gradients; of shared ones the first part holds the sum."},
    {"isas", py_isas, METH_NOARGS, "[(name, lanes, tile, runs here)], best first."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef MODULE = {PyModuleDef_HEAD_INIT, "_native", "The selective scan in C.", -1, METHODS,
                                    NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__native(void) {
    PyObject *module = PyModule_Create(&MODULE);
    if (module && PyModule_AddIntConstant(module, "openmp", OPENMP) < 0) Py_CLEAR(module);
    if (module && PyModule_AddIntConstant(module, "chunk", CHUNK) < 0) Py_CLEAR(module);
    return module;
}
