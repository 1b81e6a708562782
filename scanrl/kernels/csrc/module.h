/* What the files behind the Python module use together: arguments taken in order, and the cut of work into tasks.
 *
 * A task is a slab of batch rows times a group of channel blocks. The cut comes from the caller, depends on shapes
 * alone, and every task adds into memory of its own, so results do not depend on the number of threads.
 */
#ifndef SCANRL_MODULE_H
#define SCANRL_MODULE_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <string.h>

#include "isa.h"

/* -------------------------------------------------------------- arguments */

typedef struct {
    PyObject *const *next;
    Py_ssize_t left;
} Arguments;

/* The next integer; 0 with an exception set when it is none or there is no next one. */
int64_t integer(Arguments *from);
float *address(Arguments *from);
Rows rows(Arguments *from);

/* The build of the kernels that the next integer, `isa`, names; NULL with an exception set if it cannot run here. */
const Kernel *read_kernel(Arguments *from);

/* Whether all arguments were there and none is left; an exception is set if not. */
int complete(const Arguments *from);

/* ------------------------------------------------------------------ tasks */

typedef struct {
    const Kernel *kernel;
    int threads;
    int64_t slab, group; /* rows and channel blocks per task */
    int64_t batch, channels;
} Plan;

typedef struct {
    int64_t slab, group, row, last_row, block, last_block;
} Task;

/* Whether it multiplies in bfloat16 on this processor. */
int halves(const Kernel *kernel);

/* isa, threads, slab, group, B, L, channels; returns L. */
int64_t read_plan(Arguments *from, Plan *plan);

static inline int64_t pieces(int64_t whole, int64_t size) { return (whole + size - 1) / size; }

static inline int64_t count_slabs(const Plan *plan) { return pieces(plan->batch, plan->slab); }

static inline int64_t count_blocks(const Plan *plan) { return pieces(plan->channels, plan->kernel->lanes); }

static inline int64_t count_groups(const Plan *plan) { return pieces(count_blocks(plan), plan->group); }

static inline int64_t count_tasks(const Plan *plan) { return count_slabs(plan) * count_groups(plan); }

static inline Task task(const Plan *plan, int64_t index) {
    int64_t groups = count_groups(plan);
    Task t = {.slab = index / groups, .group = index % groups};
    t.row = t.slab * plan->slab;
    t.last_row = least(t.row + plan->slab, plan->batch);
    t.block = t.group * plan->group;
    t.last_block = least(t.block + plan->group, count_blocks(plan));
    return t;
}

/* The first channel of a block; beyond the last block, the number of channels. */
static inline int64_t block_start(const Plan *plan, int64_t block) {
    return least(block * plan->kernel->lanes, plan->channels);
}

/* A gradient to which several tasks contribute, each in a part of its own: all parts are added to the first. */
typedef struct {
    float *first, *others;
    int64_t parts, size; /* with the first */
} Parts;

enum { PIECE = 4096 };

static inline int64_t count_pieces(const Parts *p) { return p->parts > 1 ? pieces(p->size, PIECE) : 0; }

static inline void add_parts(const Parts *p, int64_t piece) {
    int64_t from = piece * PIECE, to = least(from + PIECE, p->size);
    for (int64_t part = 0; part < p->parts - 1; part++)
        for (int64_t i = from; i < to; i++) p->first[i] += p->others[part * p->size + i];
}

static inline float *part(const Parts *p, int64_t index) {
    return index ? p->others + (index - 1) * p->size : p->first;
}

static inline void clear(float *p, int64_t count) { memset(p, 0, (size_t)count * sizeof *p); }

/* -------------------------------------------------------------- functions */

PyObject *scan_forward(PyObject *self, PyObject *const *args, Py_ssize_t count);
PyObject *scan_backward(PyObject *self, PyObject *const *args, Py_ssize_t count);
PyObject *conv_forward(PyObject *self, PyObject *const *args, Py_ssize_t count);
PyObject *conv_backward(PyObject *self, PyObject *const *args, Py_ssize_t count);
PyObject *activation(PyObject *self, PyObject *const *args, Py_ssize_t count);
PyObject *product(PyObject *self, PyObject *const *args, Py_ssize_t count);
PyObject *rate(PyObject *self, PyObject *const *args, Py_ssize_t count);
PyObject *policy_step(PyObject *self, PyObject *const *args, Py_ssize_t count);
PyObject *step_ops(PyObject *self, PyObject *unused);

#endif
