/* CPU kernels of the serving path, compiled once per machine by native.py; each has a torch twin in
 * reference.py or paged_reference.py.
 *
 * Every row (token, or query of one head) is computed by the same operations in the same order whatever else
 * is in the call, so its bits depend on neither the batch, the chunk, nor the number of threads. Arithmetic
 * is float32; values are rounded once, on their way out.
 *
 * Vectors are GCC's portable ones: 16 lanes become one AVX-512, two AVX2 or four SSE or NEON registers. OpenMP's
 * symbols come from the runtime that torch has loaded, so that both share one pool of threads.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define LANES 16
#define MAX_VECTORS 16 /* head_dim up to 256 */
#define TILE_QUERIES 12
#define TILE_ROWS 6 /* rows of one value product: 6 x 4 accumulators stay in registers */
#define PANEL 32    /* keys of one score product: 12 x 2 accumulators stay in registers */
#define PARALLEL_WORK 100000 /* multiply-adds or elements that are worth waking the other threads */

typedef float vec __attribute__((vector_size(64)));
typedef float half_vec __attribute__((vector_size(32)));
typedef float quarter_vec __attribute__((vector_size(16)));
typedef int32_t ivec __attribute__((vector_size(64)));
typedef uint32_t uvec __attribute__((vector_size(64)));
typedef uint16_t hvec __attribute__((vector_size(32)));
#define INLINE static inline __attribute__((always_inline))

INLINE vec splat(float x) { return x - (vec){0}; }

INLINE vec select_vec(ivec mask, vec yes, vec no) { return (vec)((mask & (ivec)yes) | (~mask & (ivec)no)); }

INLINE float as_float(uint16_t x) {
    uint32_t bits = (uint32_t)x << 16;
    float y;
    memcpy(&y, &bits, 4);
    return y;
}

INLINE vec load(const void *p, long i, const int is_bf16) {
    if (is_bf16) {
        hvec h;
        memcpy(&h, (const uint16_t *)p + i, sizeof h);
        return (vec)(__builtin_convertvector(h, uvec) << 16);
    }
    vec v;
    memcpy(&v, (const float *)p + i, sizeof v);
    return v;
}

/* Round to nearest even, as torch does. */
INLINE void store(void *p, long i, vec v, const int is_bf16) {
    if (is_bf16) {
        uvec u = (uvec)v;
        uvec rounded = (u + 0x7fff + ((u >> 16) & 1)) >> 16;
        uvec is_nan = (uvec)(v != v);
        hvec h = __builtin_convertvector((is_nan & 0x7fc0) | (~is_nan & rounded), hvec);
        memcpy((uint16_t *)p + i, &h, sizeof h);
    } else {
        memcpy((float *)p + i, &v, sizeof v);
    }
}

INLINE float sum_lanes(vec v) {
    half_vec h = __builtin_shufflevector(v, v, 0, 1, 2, 3, 4, 5, 6, 7) +
                 __builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15);
    quarter_vec q = __builtin_shufflevector(h, h, 0, 1, 2, 3) + __builtin_shufflevector(h, h, 4, 5, 6, 7);
    return (q[0] + q[2]) + (q[1] + q[3]);
}

INLINE float max_lanes(vec v) {
    float top = v[0];
    for (int i = 1; i < LANES; i++) top = v[i] > top ? v[i] : top;
    return top;
}

/* e^x to about 1e-7 relative; below -87 it is 1e-38, above 88 it stays finite; NaN stays NaN. */
INLINE vec exp_vec(vec x) {
    vec y = select_vec(x < splat(-87.0f), splat(-87.0f), x);
    y = select_vec(y > splat(88.0f), splat(88.0f), y);
    const vec shift = splat(12582912.0f); /* 1.5 * 2^23: adding it rounds to an integer */
    vec t = y * splat(1.44269504f) + shift;
    vec n = t - shift;
    vec r = y - n * splat(0.693145752f);
    r = r - n * splat(1.42860677e-6f);
    vec p = splat(1.0f / 720) * r + splat(1.0f / 120);
    p = p * r + splat(1.0f / 24);
    p = p * r + splat(1.0f / 6);
    p = p * r + splat(0.5f);
    p = p * r + splat(1.0f);
    p = p * r + splat(1.0f);
    ivec exponent = ((ivec)t - (ivec)shift) << 23;
    return (vec)((ivec)p + exponent);
}

/* --- norms and activation ------------------------------------------------------------------------------- */

INLINE void norm_rows(const void *x, void *residual, const void *weight, void *out, long rows, long n, float eps,
                      const int is_bf16) {
#pragma omp parallel for schedule(static) if (rows * n > PARALLEL_WORK)
    for (long row = 0; row < rows; row++) {
        const long at = row * n;
        const void *from = residual ? residual : x;
        vec total = {0};
        for (long i = 0; i < n; i += LANES) {
            if (residual) store(residual, at + i, load(x, at + i, is_bf16) + load(residual, at + i, is_bf16), is_bf16);
            vec v = load(from, at + i, is_bf16);
            total += v * v;
        }
        float scale = 1.0f / __builtin_sqrtf(sum_lanes(total) / (float)n + eps);
        for (long i = 0; i < n; i += LANES)
            store(out, at + i, load(from, at + i, is_bf16) * splat(scale) * load(weight, i, is_bf16), is_bf16);
    }
}

/* out = rms_norm(x + residual) and residual += x; without a residual (0), out = rms_norm(x). */
void forebay_norm(const void *x, void *residual, const void *weight, void *out, long rows, long n, float eps,
                  int is_bf16) {
    if (is_bf16) norm_rows(x, residual, weight, out, rows, n, eps, 1);
    else norm_rows(x, residual, weight, out, rows, n, eps, 0);
}

INLINE void swiglu_rows(const void *gate_up, void *out, long rows, long n, const int is_bf16) {
#pragma omp parallel for schedule(static) if (rows * n > PARALLEL_WORK)
    for (long row = 0; row < rows; row++)
        for (long i = 0; i < n; i += LANES) {
            vec gate = load(gate_up, 2 * row * n + i, is_bf16), up = load(gate_up, (2 * row + 1) * n + i, is_bf16);
            store(out, row * n + i, gate / (splat(1.0f) + exp_vec(-gate)) * up, is_bf16);
        }
}

void forebay_swiglu(const void *gate_up, void *out, long rows, long n, int is_bf16) {
    if (is_bf16) swiglu_rows(gate_up, out, rows, n, 1);
    else swiglu_rows(gate_up, out, rows, n, 0);
}

/* --- rope and the write of keys and values -------------------------------------------------------------- */

INLINE void rope_rows(void *qkv, const float *cos, const float *sin, const int64_t *positions, const int64_t *slots,
                      void *kv_layer, long num_tokens, long num_heads, long num_kv_heads, long block_size,
                      long head_dim, const int is_bf16) {
    const long half = head_dim / 2, row = (num_heads + 2 * num_kv_heads) * head_dim, size = is_bf16 ? 2 : 4;
    const long block = 2 * num_kv_heads * block_size * head_dim;
#pragma omp parallel for schedule(static) if (num_tokens * row > PARALLEL_WORK)
    for (long t = 0; t < num_tokens; t++) {
        const float *c = cos + positions[t] * half, *s = sin + positions[t] * half;
        for (long h = 0; h < num_heads + num_kv_heads; h++)
            for (long i = 0; i < half; i += LANES) {
                const long first = t * row + h * head_dim + i, second = first + half;
                vec a = load(qkv, first, is_bf16), b = load(qkv, second, is_bf16);
                vec cv = load(c, i, 0), sv = load(s, i, 0);
                store(qkv, first, a * cv - b * sv, is_bf16);
                store(qkv, second, b * cv + a * sv, is_bf16);
            }
        if (slots[t] < 0) continue;
        for (long h = 0; h < 2 * num_kv_heads; h++) {
            long to = slots[t] / block_size * block + (h * block_size + slots[t] % block_size) * head_dim;
            long from = t * row + (num_heads + h) * head_dim;
            memcpy((char *)kv_layer + to * size, (char *)qkv + from * size, head_dim * size);
        }
    }
}

void forebay_rope_write(void *qkv, const float *cos, const float *sin, const int64_t *positions,
                        const int64_t *slots, void *kv_layer, long num_tokens, long num_heads, long num_kv_heads,
                        long block_size, long head_dim, int is_bf16) {
    if (is_bf16)
        rope_rows(qkv, cos, sin, positions, slots, kv_layer, num_tokens, num_heads, num_kv_heads, block_size,
                  head_dim, 1);
    else
        rope_rows(qkv, cos, sin, positions, slots, kv_layer, num_tokens, num_heads, num_kv_heads, block_size,
                  head_dim, 0);
}

/* --- attention ------------------------------------------------------------------------------------------ */

typedef struct {
    const void *q; /* [T, Hq, D], rows q_stride elements apart */
    const void *kv; /* [blocks, 2, Hkv, bs, D] */
    void *out; /* [T, Hq, D] */
    long q_stride, num_heads, num_kv_heads, block_size, head_dim;
    float scale;
} attention;

/* Element offset of a token's key of one head; its value lies num_kv_heads * block_size * head_dim further. */
INLINE long key_at(const attention *a, const int32_t *blocks, long head, long token) {
    long block = blocks[token / a->block_size];
    return ((block * 2 * a->num_kv_heads + head) * a->block_size + token % a->block_size) * a->head_dim;
}

/* Turn scores into weights in place, zero up to `padded` (a multiple of 16); returns their sum. */
INLINE float softmax(float *scores, long num, long padded) {
    for (long i = num; i < (num + LANES - 1) / LANES * LANES; i++) scores[i] = -__builtin_inff();
    vec tops = load(scores, 0, 0), total = {0};
    for (long i = LANES; i < num; i += LANES) {
        vec v = load(scores, i, 0);
        tops = select_vec(v > tops, v, tops);
    }
    const vec top = splat(max_lanes(tops));
    for (long i = 0; i < num; i += LANES) {
        vec s = load(scores, i, 0);
        vec v = exp_vec(s - top);
        v = (vec)((ivec)v & ~(s == splat(-__builtin_inff())));
        store(scores, i, v, 0);
        total += v;
    }
    for (long i = (num + LANES - 1) / LANES * LANES; i < padded; i += LANES) store(scores, i, (vec){0}, 0);
    return sum_lanes(total);
}

/* One query token, `num` (constant) query heads of one key head, over `context` tokens. */
INLINE void attend_token(const attention *a, const int32_t *blocks, long token, long head, long kv_head, long context,
                         float *scores, const int num, const int vectors, const int is_bf16) {
    const long padded = (context + LANES - 1) / LANES * LANES, to_value = a->num_kv_heads * a->block_size * a->head_dim;
    vec q[4][MAX_VECTORS], acc[4][MAX_VECTORS];
    float totals[4];
    for (int g = 0; g < num; g++)
        for (int d = 0; d < vectors; d++) {
            long at = token * a->q_stride + (head + g) * a->head_dim + d * LANES;
            q[g][d] = load(a->q, at, is_bf16) * splat(a->scale);
            acc[g][d] = (vec){0};
        }
    for (long start = 0; start < context; start += a->block_size) {
        const long end = start + a->block_size < context ? start + a->block_size : context;
        long at = key_at(a, blocks, kv_head, start);
        for (long j = start; j < end; j++, at += a->head_dim) {
            vec sum[4] = {{0}};
            for (int d = 0; d < vectors; d++) {
                vec k = load(a->kv, at + d * LANES, is_bf16);
                for (int g = 0; g < num; g++) sum[g] += q[g][d] * k;
            }
            for (int g = 0; g < num; g++) scores[g * padded + j] = sum_lanes(sum[g]);
        }
    }
    for (int g = 0; g < num; g++) totals[g] = softmax(scores + g * padded, context, padded);
    for (long start = 0; start < context; start += a->block_size) {
        const long end = start + a->block_size < context ? start + a->block_size : context;
        long at = key_at(a, blocks, kv_head, start) + to_value;
        for (long j = start; j < end; j++, at += a->head_dim)
            for (int d = 0; d < vectors; d++) {
                vec v = load(a->kv, at + d * LANES, is_bf16);
                for (int g = 0; g < num; g++) acc[g][d] += splat(scores[g * padded + j]) * v;
            }
    }
    for (int g = 0; g < num; g++)
        for (int d = 0; d < vectors; d++)
            store(a->out, (token * a->num_heads + head + g) * a->head_dim + d * LANES, acc[g][d] / splat(totals[g]),
                  is_bf16);
}

INLINE void attend_group(const attention *a, const int32_t *blocks, long token, long kv_head, long context,
                         float *scores, const int vectors, const int is_bf16) {
    const long group = a->num_heads / a->num_kv_heads;
    for (long g = 0; g < group; g += 4) {
        const long head = kv_head * group + g;
        switch (group - g) {
        case 1: attend_token(a, blocks, token, head, kv_head, context, scores, 1, vectors, is_bf16); break;
        case 2: attend_token(a, blocks, token, head, kv_head, context, scores, 2, vectors, is_bf16); break;
        case 3: attend_token(a, blocks, token, head, kv_head, context, scores, 3, vectors, is_bf16); break;
        default: attend_token(a, blocks, token, head, kv_head, context, scores, 4, vectors, is_bf16);
        }
    }
}

static void attend_short(const attention *a, const int32_t *blocks, long token, long kv_head, long context,
                         float *scores, int is_bf16) {
    const int vectors = (int)(a->head_dim / LANES);
    if (is_bf16) {
        if (vectors == 4) attend_group(a, blocks, token, kv_head, context, scores, 4, 1);
        else if (vectors == 8) attend_group(a, blocks, token, kv_head, context, scores, 8, 1);
        else attend_group(a, blocks, token, kv_head, context, scores, vectors, 1);
    } else {
        if (vectors == 4) attend_group(a, blocks, token, kv_head, context, scores, 4, 0);
        else if (vectors == 8) attend_group(a, blocks, token, kv_head, context, scores, 8, 0);
        else attend_group(a, blocks, token, kv_head, context, scores, vectors, 0);
    }
}

/* Short runs, query by query; `rows` [num_rows, 3]: query token, sequence, context up to itself. */
static void attend_shorts(const attention *a, const int32_t *tables, long max_blocks, const int64_t *rows,
                          long num_rows, long longest, long num_tokens, int is_bf16) {
    const long items = num_rows * a->num_kv_heads;
#pragma omp parallel if (num_tokens * a->num_heads * a->head_dim > PARALLEL_WORK)
    {
        float *scores = aligned_alloc(64, 4 * sizeof(float) * ((longest + LANES - 1) / LANES * LANES));
#pragma omp for schedule(static)
        for (long item = 0; item < items; item++) {
            const int64_t *row = rows + item / a->num_kv_heads * 3;
            attend_short(a, tables + row[1] * max_blocks, row[0], item % a->num_kv_heads, row[2], scores, is_bf16);
        }
        free(scores);
    }
}

/* Keys of one head as [context / PANEL, D, PANEL] and values as [context, D], float32, zero past the context. */
INLINE void unpack_head(const attention *a, const int32_t *blocks, long kv_head, long panel, long context, float *keys,
                        float *values, const int is_bf16) {
    const long dim = a->head_dim, to_value = a->num_kv_heads * a->block_size * dim;
    float *k = keys + panel * dim * PANEL;
    for (long j = 0; j < PANEL; j++) {
        const long token = panel * PANEL + j;
        float *v = values + token * dim;
        if (token >= context) {
            for (long d = 0; d < dim; d++) k[d * PANEL + j] = v[d] = 0;
            continue;
        }
        const long at = key_at(a, blocks, kv_head, token);
        for (long d = 0; d < dim; d += LANES) {
            vec x = load(a->kv, at + d, is_bf16);
            for (int i = 0; i < LANES; i++) k[(d + i) * PANEL + j] = x[i];
            store(v, d, load(a->kv, at + to_value + d, is_bf16), 0);
        }
    }
}

/* scores[row, 0..PANEL) of TILE_QUERIES rows, q [D, TILE_QUERIES] already scaled. */
INLINE void score_panel(const float *q, const float *keys, float *scores, long stride, long dim) {
    vec acc[TILE_QUERIES][2] = {{{0}}};
    for (long d = 0; d < dim; d++) {
        const vec k0 = load(keys, d * PANEL, 0), k1 = load(keys, d * PANEL + LANES, 0);
        for (int r = 0; r < TILE_QUERIES; r++) {
            const vec x = splat(q[d * TILE_QUERIES + r]);
            acc[r][0] += x * k0;
            acc[r][1] += x * k1;
        }
    }
    for (int r = 0; r < TILE_QUERIES; r++)
        for (int i = 0; i < 2; i++) store(scores, r * stride + i * LANES, acc[r][i], 0);
}

/* out[row, 64 columns] = sum over keys of weights[row, key] * values[key], for TILE_ROWS rows. */
INLINE void weigh_values(const float *weights, long stride, const float *values, long num, long dim, float *out) {
    vec acc[TILE_ROWS][4] = {{{0}}};
    for (long j = 0; j < num; j++) {
        vec v[4];
        for (int d = 0; d < 4; d++) v[d] = load(values, j * dim + d * LANES, 0);
        for (int r = 0; r < TILE_ROWS; r++) {
            const vec w = splat(weights[r * stride + j]);
            for (int d = 0; d < 4; d++) acc[r][d] += w * v[d];
        }
    }
    for (int r = 0; r < TILE_ROWS; r++)
        for (int d = 0; d < 4; d++) store(out, r * dim + d * LANES, acc[r][d], 0);
}

/* TILE_QUERIES queries of one query head, from token `first`; `before`: context ahead of `first`. */
INLINE void attend_tile(const attention *a, long first, long num, long before, long head, const float *keys,
                        const float *values, float *scratch, const int is_bf16) {
    const long dim = a->head_dim, last = before + num, padded = (last + PANEL - 1) / PANEL * PANEL;
    float *q = scratch, *out = q + TILE_QUERIES * dim, *scores = out + TILE_QUERIES * dim, totals[TILE_QUERIES];
    for (long r = 0; r < TILE_QUERIES; r++)
        for (long d = 0; d < dim; d += LANES) {
            const long at = (first + (r < num ? r : 0)) * a->q_stride + head * dim + d;
            const vec x = load(a->q, at, is_bf16) * splat(a->scale);
            for (int i = 0; i < LANES; i++) q[(d + i) * TILE_QUERIES + r] = x[i];
        }
    for (long j = 0; j < padded; j += PANEL) score_panel(q, keys + j * dim, scores + j, padded, dim);
    for (long r = 0; r < TILE_QUERIES; r++)
        totals[r] = softmax(scores + r * padded, before + (r < num ? r : 0) + 1, padded);
    for (long r = 0; r < TILE_QUERIES; r += TILE_ROWS)
        for (long d = 0; d < dim; d += 4 * LANES)
            weigh_values(scores + r * padded, padded, values + d, last, dim, out + r * dim + d);
    for (long r = 0; r < num; r++)
        for (long d = 0; d < dim; d += LANES)
            store(a->out, ((first + r) * a->num_heads + head) * dim + d, load(out, r * dim + d, 0) / splat(totals[r]),
                  is_bf16);
}

/* One sequence's long run: `num` queries from token `first`, the last ones of `context`. */
INLINE void attend_long(const attention *a, const int32_t *blocks, long first, long num, long context,
                        const int is_bf16) {
    const long dim = a->head_dim, panels = (context + PANEL - 1) / PANEL, head_size = panels * PANEL * dim;
    const long tiles = (num + TILE_QUERIES - 1) / TILE_QUERIES, group = a->num_heads / a->num_kv_heads;
    float *keys = aligned_alloc(64, 2 * sizeof(float) * a->num_kv_heads * head_size);
    float *values = keys + a->num_kv_heads * head_size;
#pragma omp parallel
    {
        float *scratch = aligned_alloc(64, sizeof(float) * TILE_QUERIES * (2 * dim + panels * PANEL));
#pragma omp for schedule(static)
        for (long i = 0; i < a->num_kv_heads * panels; i++) {
            const long head = i / panels, at = head * head_size;
            unpack_head(a, blocks, head, i % panels, context, keys + at, values + at, is_bf16);
        }
#pragma omp for schedule(dynamic)
        for (long i = 0; i < a->num_heads * tiles; i++) { /* the longest first: they end together */
            const long head = i % a->num_heads, start = (tiles - 1 - i / a->num_heads) * TILE_QUERIES;
            const long size = num - start < TILE_QUERIES ? num - start : TILE_QUERIES;
            const long at = head / group * head_size;
            attend_tile(a, first + start, size, context - num + start, head, keys + at, values + at, scratch, is_bf16);
        }
        free(scratch);
    }
    free(keys);
}

static void attend_long_bf16(const attention *a, const int32_t *blocks, long first, long num, long context) {
    attend_long(a, blocks, first, num, context, 1);
}

static void attend_long_float(const attention *a, const int32_t *blocks, long first, long num, long context) {
    attend_long(a, blocks, first, num, context, 0);
}

/* Causal attention of a varlen batch; a sequence's queries are the last positions of its context. */
void forebay_attention(const void *q, long q_stride, const void *kv, const int32_t *tables, long max_blocks,
                       const int32_t *cu_query_lens, const int32_t *context_lens, long num_sequences, long num_heads,
                       long num_kv_heads, long block_size, long head_dim, long max_short_run, float scale,
                       int is_bf16, void *out) {
    attention a = {q, kv, out, q_stride, num_heads, num_kv_heads, block_size, head_dim, scale};
    int64_t *rows = malloc(3 * sizeof(int64_t) * cu_query_lens[num_sequences] + 1);
    long num_rows = 0, longest = 0, num_tokens = 0;
    for (long s = 0; s < num_sequences; s++) {
        const long first = cu_query_lens[s], end = cu_query_lens[s + 1], context = context_lens[s];
        if (end - first > max_short_run && head_dim % (4 * LANES) == 0) {
            (is_bf16 ? attend_long_bf16 : attend_long_float)(&a, tables + s * max_blocks, first, end - first, context);
            continue;
        }
        for (long t = first; t < end; t++) {
            int64_t row[3] = {t, s, context - end + t + 1};
            memcpy(rows + 3 * num_rows++, row, sizeof row);
            num_tokens += row[2];
            longest = row[2] > longest ? row[2] : longest;
        }
    }
    if (num_rows) attend_shorts(&a, tables, max_blocks, rows, num_rows, longest, num_tokens, is_bf16);
    free(rows);
}
