/* How fast one thread computes while everything stays in registers: limits that timings are held against.
 * The chains are independent of each other, so that latencies overlap.
 */
enum { CHAINS = 12 };

INLINE float sum_chains(const vec *x) {
    float sum = 0;
    for (int i = 0; i < CHAINS; i++)
        for (int lane = 0; lane < LANES; lane++) sum += x[i][lane];
    return sum;
}

/* x = 2^(a x): what every state costs in every step of a scan before anything is added up. a < 0 keeps x near 2/3. */
static float rate_exp2(int64_t rounds, float a) {
    vec x[CHAINS];
    for (int i = 0; i < CHAINS; i++) x[i] = (vec){0} + 0.1f * (float)i;
    for (int64_t r = 0; r < rounds; r++) {
#pragma GCC unroll 12
        for (int i = 0; i < CHAINS; i++) x[i] = exp2_lanes(x[i] * a);
    }
    return sum_chains(x);
}

/* x = a x + 1 */
static float rate_fma(int64_t rounds, float a) {
    vec x[CHAINS];
    for (int i = 0; i < CHAINS; i++) x[i] = (vec){0} + 0.1f * (float)i;
    for (int64_t r = 0; r < rounds; r++) {
#pragma GCC unroll 12
        for (int i = 0; i < CHAINS; i++) x[i] = x[i] * a + 1.0f;
    }
    return sum_chains(x);
}
