/* The causal convolution for Python. The first slab adds up the gradients of kernel and bias where the results belong;
 * the parts of the other slabs come as `others`, first all (M, w, D) of the kernel and then all (M, D) of the bias. */
#include "module.h"

static void run_forward(const Plan *plan, const ConvForward *f) {
    int64_t tasks = count_tasks(plan);
#pragma omp parallel for schedule(dynamic) num_threads(plan->threads)
    for (int64_t i = 0; i < tasks; i++) {
        Task t = task(plan, i);
        int64_t e = block_start(plan, t.block), end = block_start(plan, t.last_block);
        for (int64_t row = t.row; row < t.last_row; row++) plan->kernel->conv_forward(f, row, e, end);
    }
}

typedef struct {
    Parts kernel, bias;
} Sums;

static void run_task(const Plan *plan, const ConvBackward *whole, const Sums *sums, int64_t index) {
    const ConvInputs *in = &whole->in;
    Task t = task(plan, index);
    ConvBackward own = *whole;
    own.dkernel = part(&sums->kernel, t.slab);
    own.dbias = part(&sums->bias, t.slab);
    int64_t e = block_start(plan, t.block), end = block_start(plan, t.last_block);
    for (int64_t i = 0; i < in->places * in->window; i++) clear(own.dkernel + i * in->channels + e, end - e);
    for (int64_t i = 0; i < in->places; i++) clear(own.dbias + i * in->channels + e, end - e);
    for (int64_t row = t.row; row < t.last_row; row++) plan->kernel->conv_backward(&own, row, e, end);
}

static void run_backward(const Plan *plan, const ConvBackward *whole, float *others) {
    int64_t tasks = count_tasks(plan), slabs = count_slabs(plan);
    int64_t bias = whole->in.places * whole->in.channels, kernel = bias * whole->in.window;
    const Sums sums = {
        .kernel = {whole->dkernel, others, slabs, kernel},
        .bias = {whole->dbias, others ? others + (slabs - 1) * kernel : NULL, slabs, bias},
    };
#pragma omp parallel num_threads(plan->threads)
    {
#pragma omp for schedule(dynamic)
        for (int64_t i = 0; i < tasks; i++) run_task(plan, whole, &sums, i);
#pragma omp for schedule(static) nowait
        for (int64_t i = 0; i < count_pieces(&sums.kernel); i++) add_parts(&sums.kernel, i);
#pragma omp for schedule(static)
        for (int64_t i = 0; i < count_pieces(&sums.bias); i++) add_parts(&sums.bias, i);
    }
}

/* The plan, M, w, silu, then the arrays of ConvInputs. */
static void read_inputs(Arguments *from, Plan *plan, ConvInputs *in) {
    in->length = read_plan(from, plan);
    in->channels = plan->channels;
    in->places = integer(from);
    in->window = integer(from);
    in->silu = integer(from);
    in->x = rows(from);
    in->past = rows(from);
    in->kernel = address(from);
    in->bias = address(from);
    in->place = (const int64_t *)address(from);
}

PyObject *conv_forward(PyObject *self, PyObject *const *args, Py_ssize_t count) {
    (void)self;
    Arguments from = {args, count};
    Plan plan = {0};
    ConvForward f = {0};
    read_inputs(&from, &plan, &f.in);
    f.y = address(&from);
    if (!complete(&from)) return NULL;
    Py_BEGIN_ALLOW_THREADS
    run_forward(&plan, &f);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

PyObject *conv_backward(PyObject *self, PyObject *const *args, Py_ssize_t count) {
    (void)self;
    Arguments from = {args, count};
    Plan plan = {0};
    ConvBackward p = {0};
    read_inputs(&from, &plan, &p.in);
    p.dy = rows(&from);
    p.dx = address(&from);
    p.dx_row = integer(&from);
    p.dx_step = integer(&from);
    p.dpast = address(&from);
    p.dkernel = address(&from);
    p.dbias = address(&from);
    float *others = address(&from);
    if (!complete(&from)) return NULL;
    Py_BEGIN_ALLOW_THREADS
    run_backward(&plan, &p, others);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}
