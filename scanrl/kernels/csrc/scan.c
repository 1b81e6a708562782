/* The selective scan for Python. Of gradients to which several tasks contribute, one part per group (dB, dC) or slab
 * (dchannel) comes with the arguments, and the first part ends up with the sum. */
#include "module.h"

static void run_forward(const Plan *plan, const Forward *f) {
    int64_t tasks = count_tasks(plan);
    void (*scan)(const Forward *, int64_t, int64_t) =
        f->carried ? plan->kernel->scan_carried : plan->kernel->scan_forward;
#pragma omp parallel for schedule(dynamic) num_threads(plan->threads)
    for (int64_t i = 0; i < tasks; i++) {
        Task t = task(plan, i);
        for (int64_t row = t.row; row < t.last_row; row++)
            for (int64_t block = t.block; block < t.last_block; block++) scan(f, row, block);
    }
}

enum { DB, DC, DCHANNEL, GRADIENTS };

static void run_task(const Plan *plan, const Backward *whole, const Parts parts[GRADIENTS], int64_t index) {
    const Inputs *in = &whole->in;
    Task t = task(plan, index);
    Backward own = *whole;
    own.dB = part(&parts[DB], t.group);
    own.dC = part(&parts[DC], t.group);
    own.dchannel = part(&parts[DCHANNEL], t.slab);
    int64_t per_row = parts[DB].size / plan->batch, e = block_start(plan, t.block), end = block_start(plan, t.last_block);
    clear(own.dB + t.row * per_row, (t.last_row - t.row) * per_row);
    clear(own.dC + t.row * per_row, (t.last_row - t.row) * per_row);
    for (int64_t n = 0; n < in->states + 2; n++) clear(own.dchannel + n * in->channels + e, end - e);
    for (int64_t row = t.row; row < t.last_row; row++)
        for (int64_t block = t.block; block < t.last_block; block++) plan->kernel->scan_backward(&own, row, block);
}

static void run_backward(const Plan *plan, const Backward *whole) {
    const Inputs *in = &whole->in;
    int64_t tasks = count_tasks(plan), tile = plan->kernel->tile;
    int64_t inner = plan->batch * in->length * pieces(in->states, tile) * tile;
    int64_t channel = (in->states + 2) * in->channels;
    const Parts parts[GRADIENTS] = {
        [DB] = {whole->dB, whole->dB + inner, count_groups(plan), inner},
        [DC] = {whole->dC, whole->dC + inner, count_groups(plan), inner},
        [DCHANNEL] = {whole->dchannel, whole->dchannel + channel, count_slabs(plan), channel},
    };
#pragma omp parallel num_threads(plan->threads)
    {
#pragma omp for schedule(dynamic)
        for (int64_t i = 0; i < tasks; i++) run_task(plan, whole, parts, i);
        for (int k = 0; k < GRADIENTS; k++) {
            int64_t count = count_pieces(&parts[k]);
#pragma omp for schedule(static) nowait
            for (int64_t i = 0; i < count; i++) add_parts(&parts[k], i);
        }
    }
}

/* The plan, N, softplus, then the arrays of Inputs. */
static void read_inputs(Arguments *from, Plan *plan, Inputs *in) {
    in->length = read_plan(from, plan);
    in->channels = plan->channels;
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
}

PyObject *scan_forward(PyObject *self, PyObject *const *args, Py_ssize_t count) {
    (void)self;
    Arguments from = {args, count};
    Plan plan = {0};
    Forward f = {0};
    read_inputs(&from, &plan, &f.in);
    f.y = address(&from);
    f.h = address(&from);
    f.checkpoints = address(&from);
    f.carried = (double *)address(&from);
    if (!complete(&from)) return NULL;
    Py_BEGIN_ALLOW_THREADS
    run_forward(&plan, &f);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

PyObject *scan_backward(PyObject *self, PyObject *const *args, Py_ssize_t count) {
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
    p.dz_row = integer(&from);
    p.dz_step = integer(&from);
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
