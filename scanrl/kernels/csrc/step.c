/* The step of a policy for Python: streams in blocks, each block with its rows, then the program block by block.
 * Arrays come as buffers; their sizes are checked, the program is taken on trust. */
#include "module.h"

/* ---------------------------------------------------------------- buffers */

enum { BUFFERS = 20 };

typedef struct {
    Py_buffer taken[BUFFERS];
    int count;
} Buffers;

static int64_t bytes_of(const Buffers *all) { return all->count ? all->taken[all->count - 1].len : 0; }

static void require(const char *name, int64_t bytes, int64_t found) {
    if (!PyErr_Occurred() && found < bytes)
        PyErr_Format(PyExc_ValueError, "%s: expected at least %lld bytes, got %lld", name, (long long)bytes,
                     (long long)found);
}

/* The next argument's memory, of at least `bytes`; NULL for None, or with an exception set. */
static void *buffer(Arguments *from, Buffers *all, const char *name, int64_t bytes, int writable) {
    if (PyErr_Occurred()) return NULL;
    if (from->left-- <= 0) {
        PyErr_SetString(PyExc_TypeError, "too few arguments");
        return NULL;
    }
    PyObject *object = *from->next++;
    if (object == Py_None) return NULL;
    Py_buffer *view = &all->taken[all->count];
    if (PyObject_GetBuffer(object, view, writable ? PyBUF_WRITABLE : PyBUF_SIMPLE) < 0) return NULL;
    all->count++;
    require(name, bytes, view->len);
    return view->buf;
}

static void release(Buffers *all) {
    while (all->count) PyBuffer_Release(&all->taken[--all->count]);
}

/* What stood at an address in the model when its weights were copied. */
typedef struct {
    const int32_t *at;
    int64_t bits;
} Probe;

static int unchanged(const Probe *probes, int64_t count) {
    for (int64_t i = 0; i < count; i++)
        if (*probes[i].at != (int32_t)probes[i].bits) return 0;
    return 1;
}

/* ----------------------------------------------------------------- blocks */

typedef struct {
    Step step;
    const Kernel *kernel;
    int threads;
    int64_t streams, block;
    float *scratch; /* (threads, block, places, row_size) */
    const Probe *probes;
    int64_t probe_count;
} Call;

/* Whether observations and rewards are numbers; the other inputs come from us. */
static int all_finite(const Call *call) {
    for (int i = 1; i < LETTERS; i += 2) {
        const float *x = call->step.input[i];
        for (int64_t k = 0; x && k < call->streams * call->step.width[i]; k++)
            if (!(x[k] - x[k] == 0.0f)) return 0; /* neither infinity nor NaN is 0 from itself */
    }
    return 1;
}

/* All orders of the rows of one block. */
typedef struct {
    Row all[STREAMS * PLACES], last[STREAMS], going[STREAMS * PLACES], of_place[PLACES][STREAMS];
} Rowset;

static void add_row(StepBlock *b, Rowset *rows, int64_t starts, Row row) {
    rows->all[b->row_count[ALL]++] = row;
    if (!starts) rows->going[b->row_count[GOING]++] = row;
    rows->of_place[row.place][b->row_count[OF_PLACE + row.place]++] = row;
}

/* Counts the tokens of a stream on by `more`; returns how many there were. */
static int64_t count_tokens(float *state, int64_t more) {
    int64_t before, after;
    memcpy(&before, state, sizeof before);
    after = before + more;
    memcpy(state, &after, sizeof after);
    return before;
}

/* A stream that starts: forgets everything and gets the head tokens. Any other one: the tail tokens of its last step,
 * then the head tokens behind the prefix. */
static void add_stream(StepBlock *b, Rowset *rows, int64_t stream, float *scratch) {
    const Step *step = b->step;
    int64_t starts = step->first[stream] != 0, tail = starts ? 0 : step->places - step->head;
    int64_t skipped = starts ? 0 : step->prefix, count = tail + step->head - skipped, used = b->row_count[ALL];
    Stream *s = &b->streams[b->count++];
    *s = (Stream){rows->all + used, count, step->state + stream * step->state_size,
                  step->rings + stream * step->ring_size};
    if (starts) memset(s->state, 0, (size_t)step->state_size * sizeof *s->state);
    int64_t before = count_tokens(s->state, count);
    for (int64_t t = 0; t < count; t++) {
        int64_t place = t < tail ? step->head + t : t - tail + skipped;
        int64_t at = t < tail ? step->last[stream] : step->now[stream];
        add_row(b, rows, starts, (Row){scratch + (used + t) * step->row_size, stream, place, at, before + t});
    }
    rows->last[b->row_count[LAST]++] = rows->all[used + count - 1];
}

static void fill(StepBlock *b, Rowset *rows, const Step *step, int64_t first, int64_t count, float *scratch) {
    *b = (StepBlock){.step = step};
    b->rows[ALL] = rows->all, b->rows[LAST] = rows->last, b->rows[GOING] = rows->going;
    for (int64_t m = 0; m < step->places; m++) b->rows[OF_PLACE + m] = rows->of_place[m];
    for (int64_t stream = first; stream < first + count; stream++)
        if (!step->only || step->only[stream]) add_stream(b, rows, stream, scratch);
}

static void run_block(const Call *call, int64_t index, int thread) {
    StepBlock b;
    Rowset rows;
    int64_t first = index * call->block, most = call->block * call->step.places * call->step.row_size;
    fill(&b, &rows, &call->step, first, least(call->block, call->streams - first), call->scratch + thread * most);
    if (b.count) call->kernel->step(&b);
}

static void run(const Call *call) {
    int64_t blocks = pieces(call->streams, call->block);
    if (call->threads == 1) {
        for (int64_t i = 0; i < blocks; i++) run_block(call, i, 0);
        return;
    }
#pragma omp parallel for schedule(static) num_threads(call->threads)
    for (int t = 0; t < call->threads; t++)
        for (int64_t i = t; i < blocks; i += call->threads) run_block(call, i, t);
}

/* -------------------------------------------------------------- arguments */

static int64_t positive(Arguments *from, const char *name, int64_t most) {
    int64_t value = integer(from);
    if (!PyErr_Occurred() && (value < 1 || value > most))
        PyErr_Format(PyExc_ValueError, "%s: expected 1 to %lld, got %lld", name, (long long)most, (long long)value);
    return value;
}

/* threads, block, then what Step says of the program, then the arrays. */
static void read_call(Arguments *from, Buffers *all, Call *call) {
    Step *step = &call->step;
    enum { MANY = 1 << 30 };
    call->kernel = read_kernel(from);
    call->threads = (int)positive(from, "threads", MANY);
    call->block = positive(from, "block", STREAMS);
    step->places = positive(from, "places", PLACES);
    step->head = positive(from, "head", step->places);
    step->prefix = integer(from);
    step->row_size = positive(from, "row_size", MANY);
    step->state_size = positive(from, "state_size", MANY);
    step->ring_size = integer(from);
    step->output_width = positive(from, "output_width", MANY);
    step->code = buffer(from, all, "code", sizeof *step->code, 0);
    step->instructions = bytes_of(all) / (int64_t)sizeof *step->code;
    step->weights = buffer(from, all, "weights", 0, 0);
    call->probes = buffer(from, all, "probes", 0, 0);
    call->probe_count = bytes_of(all) / (int64_t)sizeof *call->probes;
    call->scratch = buffer(from, all, "scratch", 4 * call->threads * call->block * step->places * step->row_size, 1);
    step->state = buffer(from, all, "state", 0, 1);
    int64_t state = bytes_of(all);
    step->rings = buffer(from, all, "rings", 0, 1);
    int64_t rings = bytes_of(all);
    step->first = buffer(from, all, "first", 0, 0);
    call->streams = bytes_of(all);
    require("state", 4 * call->streams * step->state_size, state);
    require("rings", 4 * call->streams * step->ring_size, rings);
    step->last = buffer(from, all, "last", 8 * call->streams, 0);
    step->now = buffer(from, all, "now", 8 * call->streams, 0);
    step->only = buffer(from, all, "only", call->streams, 0);
    step->output = buffer(from, all, "output", 4 * call->streams * step->output_width, 1);
    for (int i = 0; i < LETTERS; i++) {
        step->input[i] = buffer(from, all, "input", 4 * call->streams, 0);
        step->width[i] = step->input[i] && call->streams ? bytes_of(all) / (4 * call->streams) : 0;
    }
}

enum { DONE, STALE, INFINITE }; /* with the last two, nothing has been done */

PyObject *policy_step(PyObject *self, PyObject *const *args, Py_ssize_t count) {
    (void)self;
    Arguments from = {args, count};
    Buffers all = {.count = 0};
    Call call = {0};
    read_call(&from, &all, &call);
    int ready = complete(&from), outcome = DONE;
    if (ready && !unchanged(call.probes, call.probe_count)) outcome = STALE;
    if (ready && !all_finite(&call)) outcome = INFINITE;
    if (ready && outcome == DONE) {
        Py_BEGIN_ALLOW_THREADS
        run(&call);
        Py_END_ALLOW_THREADS
    }
    release(&all);
    return ready ? PyLong_FromLong(outcome) : NULL;
}

PyObject *step_ops(PyObject *self, PyObject *unused) {
    (void)self, (void)unused;
#define OP(name) #name,
    static const char *const names[STEP_COUNT] = {STEP_OPS(OP)};
#undef OP
    PyObject *list = PyList_New(STEP_COUNT);
    for (int i = 0; list && i < STEP_COUNT; i++) {
        PyObject *name = PyUnicode_FromString(names[i]);
        if (!name || PyList_SetItem(list, i, name) < 0) Py_CLEAR(list);
    }
    return list;
}
