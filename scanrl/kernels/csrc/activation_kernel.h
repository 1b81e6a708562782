/* Nonlinearities of some tokens, forward and backward. Included by kernel.h.
 *
 *     silu(x) = x / (1 + e^-x)        gelu(x) = x Phi(x), Phi the distribution function of the standard normal
 */

/* d silu(x) / dx from x and its sigmoid. */
INLINE vec silu_slope(vec x, vec sigmoid) { return sigmoid * (1.0f + x * (1.0f - sigmoid)); }

/* Phi(x) with an error below 1e-7 and, on request, the density at x: both from one e^(-x^2/2).
 * Phi(-a) e^(a^2/2) is a polynomial in 1 / (1 + 0.3 a), for a >= 0, with relative error 2e-7. */
INLINE vec normal_distribution(vec x, vec *density) {
    vec zero = {0}, a = choose(x > zero, x, -x);
    vec e = exp_negative(x * x * -0.5f), t = 1.0f / (a * 0.3f + 1.0f);
    vec p = t * 0.035693661f - 0.157281637f;
    p = p * t + 0.206488544f;
    p = p * t - 0.0538075695f;
    p = p * t + 0.128626955f;
    p = p * t + 0.0998937794f;
    p = p * t + 0.120757099f;
    p = p * t + 0.119629095f;
    vec tail = p * t * e;
    if (density) *density = e * 0.398942280f;
    return choose(x > zero, 1.0f - tail, tail);
}

INLINE void activation_row(const int kind, const int backward, const float *x, const float *dy, float *out,
                           int64_t channels) {
    for (int64_t e = 0; e < channels; e += LANES) {
        int lanes = (int)least(LANES, channels - e);
        vec v = load(x + e, lanes), density, y;
        if (kind == SILU) {
            vec sigmoid = sigmoid_softplus(v, NULL);
            y = backward ? silu_slope(v, sigmoid) : v * sigmoid;
        } else {
            vec below = normal_distribution(v, &density);
            y = backward ? below + v * density : v * below;
        }
        if (backward) y *= load(dy + e, lanes);
        store(out + e, y, lanes);
    }
}

/* Tokens `first` to `end`, counted through the whole batch. */
static void activation(const Activation *f, int64_t first, int64_t end) {
    for (int64_t i = first; i < end; i++) {
        int64_t row = i / f->length, t = i % f->length;
        const float *x = f->x.at + row * f->x.row + t * f->x.step;
        const float *dy = f->dy.at + row * f->dy.row + t * f->dy.step;
        float *out = f->out + row * f->row + t * f->step;
        if (f->kind == SILU && f->dy.at) activation_row(SILU, 1, x, dy, out, f->channels);
        if (f->kind == SILU && !f->dy.at) activation_row(SILU, 0, x, NULL, out, f->channels);
        if (f->kind == GELU && f->dy.at) activation_row(GELU, 1, x, dy, out, f->channels);
        if (f->kind == GELU && !f->dy.at) activation_row(GELU, 0, x, NULL, out, f->channels);
    }
}
