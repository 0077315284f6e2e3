// Attention over a pack, and its gradients (Dao et al. 2022), in tiles of bfloat16: queries and keys in blocks of 32, of which only those pairs
// are computed that the mask leaves something of. As in torch's kernel, scores, exponentials and sums are float32 and shares are bfloat16.
//
// Queries, keys, values: (tokens, heads, d) with the strides given, in values. Pairs, row by row: those of query block n are starts[n] to
// starts[n + 1], with key block columns[p]; bit j of bits[32 p + i] says whether query i of the block sees key j. d is a multiple of 32.
#include <math.h>

#include "tiles.h"

#ifdef TILES

#define TOGETHER 4  // query heads of a key head that share what they add to its gradients

typedef struct {
    const uint16_t *values;
    int64_t token, head;  // what lies between two of them
} matrix;

typedef struct {
    const int32_t *starts, *columns;
    const uint32_t *bits;
    int64_t blocks, widest;  // widest: the most pairs of a block of queries
} pairs;

// Of a block's rows (32, d), what a product over the rows takes on its right side: `d / 16` tiles.
static void lay_down(const uint16_t *rows, uint16_t *to, int64_t d) {
    for (int64_t j = 0; j < d; j += TILE)
        for (int i = 0; i < TILE; i++, to += SIDE) _mm512_store_si512(to, in_turn(rows + 2 * i * d + j, rows + (2 * i + 1) * d + j));
}

// Of a block's rows (32, d) the columns: (d, 32).
static void turn(const uint16_t *rows, uint16_t *to, int64_t d) {
    for (int64_t j = 0; j < d; j += TILE, to += TILE * SIDE) {
        __m512i row[TILE];
#pragma GCC unroll 16
        for (int i = 0; i < TILE; i++) row[i] = in_turn(rows + 2 * i * d + j, rows + (2 * i + 1) * d + j);
        transpose(row);
#pragma GCC unroll 16
        for (int i = 0; i < TILE; i++) _mm512_store_si512(to + i * SIDE, row[i]);
    }
}

// The 32 rows of a block, zeros for those after the last token: (32, d).
static void take(matrix x, int64_t head, int64_t block, int64_t tokens, int64_t d, uint16_t *to) {
    const uint16_t *from = x.values + head * x.head + block * SIDE * x.token;
    for (int64_t i = 0; i < SIDE; i++, from += x.token)
        if (block * SIDE + i < tokens)
            memcpy(to + i * d, from, (size_t)d * 2);
        else
            memset(to + i * d, 0, (size_t)d * 2);
}

// Sums (32, 32) = a · bᵀ over d.
static inline void scores_of(const uint16_t *a, const uint16_t *across, float *sums, int64_t d) {
    clear(sums);
    add_up(sums, a, d, across, 0, d);
    put(sums);
}

// Row i, 32 of its values from sums of d / 32 times (32, 32), as bfloat16, times `factor`.
static inline __m512i row_of(const float *sums, int64_t i, float factor) {
    __m512 by = _mm512_set1_ps(factor);
    return narrowed(_mm512_mul_ps(lanes_of(sums, i, 0), by), _mm512_mul_ps(lanes_of(sums, i, 1), by));
}

// Sums over pairs of shares (each 32 × 32) times the key block's rows, written to the block's rows of `to`: (tokens, heads, d).
static void gather(const uint16_t *shares, const uint16_t *down, const int32_t *columns, int64_t count, const float *factor, float *sums,
                   uint16_t *to, int64_t head, int64_t heads, int64_t block, int64_t tokens, int64_t d) {
    for (int64_t j = 0; j < d; j += SIDE) {
        clear(sums);
        for (int64_t p = 0; p < count; p++) multiply(sums, shares + p * AREA, SIDE, 0, down + columns[p] * SIDE * d + j * SIDE, 0, 1);
        put(sums);
        for (int64_t i = 0; i < SIDE && block * SIDE + i < tokens; i++)
            _mm512_storeu_si512(to + ((block * SIDE + i) * heads + head) * d + j, row_of(sums, i, factor ? factor[i] : 1.0f));
    }
}

// The first task of a thread. Tasks are key head by key head and in each block by block; each thread gets as many pairs.
static int64_t first_task(const pairs *given, int64_t key_heads, int64_t thread, int64_t threads) {
    int64_t all = given->starts[given->blocks], at = all * key_heads * thread / threads, head = all ? at / all : key_heads, block = 0;
    if (head >= key_heads) return key_heads * given->blocks;
    while (given->starts[block] < at % all) block++;
    return head * given->blocks + block;
}

// Shares of a block of queries, not yet divided by their sums, from its scores; sum and logarithm of the sum of exponentials for each query.
static void soft_max(const float *scores, const uint32_t *bits, int64_t count, float scale, uint16_t *shares, float *divisor, float *logsumexp) {
    for (int64_t i = 0; i < SIDE; i++) {
        __m512 by = _mm512_set1_ps(scale), most = _mm512_set1_ps(-INFINITY), sum = _mm512_setzero_ps();
        for (int64_t p = 0; p < count; p++)
            for (int c = 0; c < 2; c++) {
                __mmask16 seen = (__mmask16)(bits[p * SIDE + i] >> c * TILE);
                most = _mm512_mask_max_ps(most, seen, most, _mm512_mul_ps(lanes_of(scores + p * AREA, i, c), by));
            }
        float largest = _mm512_reduce_max_ps(most);
        if (largest == -INFINITY) largest = 0;  // nothing is seen: shares of 0
        for (int64_t p = 0; p < count; p++) {
            __m512 e[2];
            for (int c = 0; c < 2; c++) {
                __mmask16 seen = (__mmask16)(bits[p * SIDE + i] >> c * TILE);
                __m512 s = _mm512_fmsub_ps(lanes_of(scores + p * AREA, i, c), by, _mm512_set1_ps(largest));
                e[c] = exponentials(s, seen);
                sum = _mm512_add_ps(sum, e[c]);
            }
            _mm512_store_si512(shares + p * AREA + i * SIDE, narrowed(e[0], e[1]));
        }
        float total = _mm512_reduce_add_ps(sum);
        divisor[i] = total > 0 ? 1.0f / total : 0.0f;
        logsumexp[i] = total > 0 ? largest + logf(total) : 0.0f;
    }
}

// out: (tokens, heads, d), logsumexp: (heads, 32 · blocks). There may be more keys than queries. Returns 0, or 1 where there is no memory.
int tile_attention_bf16(const uint16_t *q, int64_t q_token, int64_t q_head, const uint16_t *k, int64_t k_token, int64_t k_head, const uint16_t *v,
                        int64_t v_token, int64_t v_head, const int32_t *starts, const int32_t *columns, const uint32_t *bits, uint16_t *out,
                        float *logsumexp, int64_t blocks, int64_t widest, int64_t tokens, int64_t key_tokens, int64_t heads, int64_t key_heads, int64_t d,
                        float scale, int threads) {
    matrix queries = {q, q_token, q_head}, keys = {k, k_token, k_head}, values = {v, v_token, v_head};
    pairs given = {starts, columns, bits, blocks, widest};
    int64_t key_blocks = (key_tokens + SIDE - 1) / SIDE, block_values = SIDE * d, head_values = key_blocks * block_values, group = heads / key_heads;
    size_t whole = ROUND((size_t)(key_heads * head_values * 2)), rows = ROUND((size_t)block_values * 2);
    size_t own = rows + (size_t)widest * AREA * 6 + AREA * 4;
    uint8_t *memory = aligned_alloc(64, 2 * whole + (size_t)threads * own);
    if (memory == 0) return 1;
    uint16_t *across = (uint16_t *)memory, *down = (uint16_t *)(memory + whole);
#pragma omp parallel num_threads(threads)
    {
        tile_shapes found;
        tiles_begin(&found);
#pragma omp for schedule(static)
        for (int64_t thread = 0; thread < threads; thread++) {
            uint16_t *block_rows = (uint16_t *)(memory + 2 * whole + (size_t)thread * own);
            for (int64_t n = key_heads * key_blocks * thread / threads; n < key_heads * key_blocks * (thread + 1) / threads; n++) {
                take(keys, n / key_blocks, n % key_blocks, key_tokens, d, block_rows);
                lay_across(block_rows, across + n * block_values, d);
                take(values, n / key_blocks, n % key_blocks, key_tokens, d, block_rows);
                lay_down(block_rows, down + n * block_values, d);
            }
        }
#pragma omp for schedule(static)
        for (int64_t thread = 0; thread < threads; thread++) {
            uint8_t *at = memory + 2 * whole + (size_t)thread * own;
            uint16_t *block_rows = (uint16_t *)at, *shares = (uint16_t *)(at += rows);
            float *scores = (float *)(at += widest * AREA * 2), *sums = (float *)(at + widest * AREA * 4), divisor[SIDE];
            int64_t last = first_task(&given, key_heads, thread + 1, threads);
            for (int64_t task = first_task(&given, key_heads, thread, threads); task < last; task++) {
                int64_t key_head = task / blocks, block = task % blocks, from = starts[block], count = starts[block + 1] - from;
                for (int64_t head = key_head * group; head < (key_head + 1) * group; head++) {
                    take(queries, head, block, tokens, d, block_rows);
                    for (int64_t p = 0; p < count; p++)
                        scores_of(block_rows, across + key_head * head_values + columns[from + p] * block_values, scores + p * AREA, d);
                    soft_max(scores, bits + from * SIDE, count, scale, shares, divisor, logsumexp + (head * blocks + block) * SIDE);
                    gather(shares, down + key_head * head_values, columns + from, count, divisor, sums, out, head, heads, block, tokens, d);
                }
            }
        }
        tiles_end(&found);
    }
    free(memory);
    return 0;
}

// What the backward pass of a block of queries needs of one of its heads.
typedef struct {
    uint16_t *rows, *dout, *rows_turned, *dout_turned;  // (32, d) twice, (d, 32) twice
    uint16_t *shares, *dscores, *dscores_rows;          // of one pair, laid for a product over queries, twice; of all, row by row
    const float *logsumexp;
    float delta[SIDE];
} view;

// Algorithm 4, lines 11 to 14: p = exp(scale · s - logsumexp), ds = scale · p · (dp - delta), of one pair.
static void derive(const view *own, const float *s, const float *dp, const uint32_t *bits, float scale, uint16_t *dscores_rows) {
    const __m512 by = _mm512_set1_ps(scale);
    for (int i = 0; i < SIDE; i += 2)
        for (int c = 0; c < 2; c++) {
            __m512 e[2], ds[2];
            for (int n = 0; n < 2; n++) {
                __m512 x = _mm512_fmsub_ps(lanes_of(s, i + n, c), by, _mm512_set1_ps(own->logsumexp[i + n]));
                __mmask16 seen = (__mmask16)(bits[i + n] >> c * TILE);
                e[n] = exponentials(x, seen);
                __m512 difference = _mm512_sub_ps(lanes_of(dp, i + n, c), _mm512_set1_ps(own->delta[i + n]));
                ds[n] = _mm512_maskz_mul_ps(seen, _mm512_mul_ps(e[n], difference), by);
            }
            __m512i shares = narrowed(e[0], e[1]), both = narrowed(ds[0], ds[1]);
            int to = c * 2 * QUARTER + i / 2 * SIDE;
            _mm512_store_si512(own->shares + to, turned_in(shares));
            _mm512_store_si512(own->dscores + to, turned_in(both));
            _mm256_store_si256((__m256i *)(dscores_rows + i * SIDE + c * TILE), _mm512_castsi512_si256(both));
            _mm256_store_si256((__m256i *)(dscores_rows + (i + 1) * SIDE + c * TILE), _mm512_extracti64x4_epi64(both, 1));
        }
}

// Sums (d, 32 keys) += over heads: (d, 32 queries) · (32 queries, 32 keys).
static inline void add_product(float *sums, view *const views, int count, int of_values, int64_t d) {
    for (int64_t j = 0; j < d; j += SIDE, sums += AREA) {
        fetch(sums);
        for (int h = 0; h < count; h++)
            multiply(sums, (of_values ? views[h].dout_turned : views[h].rows_turned) + j * SIDE, SIDE, 0, of_values ? views[h].shares : views[h].dscores,
                     0, 1);
        put(sums);
    }
}

// Sums of (d, 32 keys) from several threads, added in their order, as rows of keys: `to` (tokens, key heads, d).
static void finish(float *const *parts, int64_t count, int64_t block, int64_t tokens, int64_t gap, int64_t d, uint16_t *to) {
    for (int64_t j = 0; j < d; j += TILE)
        for (int c = 0; c < 2; c++) {
            int64_t at = j / SIDE * AREA + (j / TILE % 2 * 2 + c) * QUARTER;
            __m512i row[TILE];
#pragma GCC unroll 16
            for (int i = 0; i < TILE; i++) {
                __m512 sum = _mm512_load_ps(parts[0] + at + i * TILE);
                for (int64_t n = 1; n < count; n++) sum = _mm512_add_ps(sum, _mm512_load_ps(parts[n] + at + i * TILE));
                row[i] = (__m512i)sum;
            }
            transpose(row);
#pragma GCC unroll 16
            for (int i = 0; i < TILE; i++) {
                int64_t token = block * SIDE + c * TILE + i;
                if (token < tokens) _mm256_storeu_si256((__m256i *)(to + token * gap + j), (__m256i)_mm512_cvtneps_pbh((__m512)row[i]));
            }
        }
}

static float inner_product(const uint16_t *a, const uint16_t *b, int64_t d) {
    __m512 sum = _mm512_setzero_ps();
    for (int64_t j = 0; j < d; j += TILE) sum = _mm512_fmadd_ps(widened(a + j), widened(b + j), sum);
    return _mm512_reduce_add_ps(sum);
}

// dout, out, dq: (tokens, heads, d), dk, dv: (tokens, key heads, d), without gaps. Returns 0, or 1 where there is no memory.
int tile_attention_backward_bf16(const uint16_t *q, int64_t q_token, int64_t q_head, const uint16_t *k, int64_t k_token, int64_t k_head,
                                 const uint16_t *v, int64_t v_token, int64_t v_head, const int32_t *starts, const int32_t *columns,
                                 const uint32_t *bits, const uint16_t *out, const float *logsumexp, const uint16_t *dout, uint16_t *dq,
                                 uint16_t *dk, uint16_t *dv, int64_t blocks, int64_t widest, int64_t tokens, int64_t heads, int64_t key_heads,
                                 int64_t d, float scale, int threads) {
    matrix queries = {q, q_token, q_head}, keys = {k, k_token, k_head}, values = {v, v_token, v_head}, douts = {dout, heads * d, d};
    pairs given = {starts, columns, bits, blocks, widest};
    int64_t block_values = SIDE * d, head_values = blocks * block_values, group = heads / key_heads;
    int together = group < TOGETHER ? (int)group : TOGETHER;
    size_t whole = ROUND((size_t)(key_heads * head_values * 2)), rows = ROUND((size_t)block_values * 2);
    size_t a_view = 4 * rows + (size_t)(2 + widest) * AREA * 2, own = (size_t)together * a_view + 3 * AREA * 4;
    // What a thread adds to a key head's gradients: keys' and values', block by block (d, 32). At most so many, as threads share but heads.
    size_t a_part = (size_t)head_values * 2 * 4, parts = (size_t)(key_heads + threads);
    uint8_t *memory = aligned_alloc(64, 3 * whole + (size_t)threads * own + parts * a_part);
    if (memory == 0) return 1;
    uint16_t *k_across = (uint16_t *)memory, *k_down = (uint16_t *)(memory + whole), *v_across = (uint16_t *)(memory + 2 * whole);
    uint8_t *working = memory + 3 * whole, *sums = working + (size_t)threads * own;
#pragma omp parallel num_threads(threads)
    {
        tile_shapes found;
        tiles_begin(&found);
#pragma omp for schedule(static)
        for (int64_t thread = 0; thread < threads; thread++) {
            uint16_t *block_rows = (uint16_t *)(working + (size_t)thread * own);
            for (int64_t n = key_heads * blocks * thread / threads; n < key_heads * blocks * (thread + 1) / threads; n++) {
                take(keys, n / blocks, n % blocks, tokens, d, block_rows);
                lay_across(block_rows, k_across + n * block_values, d);
                lay_down(block_rows, k_down + n * block_values, d);
                take(values, n / blocks, n % blocks, tokens, d, block_rows);
                lay_across(block_rows, v_across + n * block_values, d);
            }
        }
#pragma omp for schedule(static)
        for (int64_t thread = 0; thread < threads; thread++) {
            view views[TOGETHER];
            uint8_t *at = working + (size_t)thread * own;
            for (int h = 0; h < together; h++) {
                uint16_t **places[] = {&views[h].rows, &views[h].dout, &views[h].rows_turned, &views[h].dout_turned};
                for (int n = 0; n < 4; n++, at += rows) *places[n] = (uint16_t *)at;
                views[h].shares = (uint16_t *)at, views[h].dscores = views[h].shares + AREA, views[h].dscores_rows = views[h].dscores + AREA;
                at += (2 + widest) * AREA * 2;
            }
            float *s = (float *)at, *dp = s + AREA, *dq_sums = dp + AREA;
            int64_t first = first_task(&given, key_heads, thread, threads), last = first_task(&given, key_heads, thread + 1, threads);
            // Parts are numbered by thread and head together: the next thread's first head may be this one's last.
            if (first < last) memset(sums + (size_t)(thread + first / blocks) * a_part, 0, (size_t)((last - 1) / blocks - first / blocks + 1) * a_part);
            for (int64_t task = first; task < last; task++) {
                int64_t key_head = task / blocks, block = task % blocks, from = starts[block], count = starts[block + 1] - from;
                float *dk_sums = (float *)(sums + (size_t)(thread + key_head) * a_part), *dv_sums = dk_sums + head_values;
                for (int64_t head = key_head * group; head < (key_head + 1) * group; head += together) {
                    int n = (key_head + 1) * group - head < together ? (int)((key_head + 1) * group - head) : together;
                    for (int h = 0; h < n; h++) {
                        take(queries, head + h, block, tokens, d, views[h].rows);
                        take(douts, head + h, block, tokens, d, views[h].dout);
                        turn(views[h].rows, views[h].rows_turned, d);
                        turn(views[h].dout, views[h].dout_turned, d);
                        views[h].logsumexp = logsumexp + ((head + h) * blocks + block) * SIDE;
                        for (int64_t i = 0; i < SIDE; i++) {
                            int64_t token = block * SIDE + i;
                            views[h].delta[i] = token < tokens ? inner_product(views[h].dout + i * d, out + (token * heads + head + h) * d, d) : 0.0f;
                        }
                    }
                    for (int64_t p = 0; p < count; p++) {
                        int64_t place = columns[from + p] * block_values;
                        for (int h = 0; h < n; h++) {
                            scores_of(views[h].rows, k_across + key_head * head_values + place, s, d);
                            scores_of(views[h].dout, v_across + key_head * head_values + place, dp, d);
                            derive(views + h, s, dp, bits + (from + p) * SIDE, scale, views[h].dscores_rows + p * AREA);
                        }
                        add_product(dk_sums + place, views, n, 0, d);
                        add_product(dv_sums + place, views, n, 1, d);
                    }
                    for (int h = 0; h < n; h++)
                        gather(views[h].dscores_rows, k_down + key_head * head_values, columns + from, count, 0, dq_sums, dq, head + h, heads, block,
                               tokens, d);
                }
            }
        }
#pragma omp for schedule(static)
        for (int64_t n = 0; n < key_heads * blocks; n++) {
            int64_t key_head = n / blocks, block = n % blocks, count = 0;
            float *of_keys[threads], *of_values[threads];
            for (int64_t thread = 0; thread < threads; thread++) {
                int64_t first = first_task(&given, key_heads, thread, threads), last = first_task(&given, key_heads, thread + 1, threads);
                if (first >= last || first / blocks > key_head || (last - 1) / blocks < key_head) continue;
                of_keys[count] = (float *)(sums + (size_t)(thread + key_head) * a_part) + block * block_values;
                of_values[count] = of_keys[count] + head_values;
                count++;
            }
            finish(of_keys, count, block, tokens, key_heads * d, d, dk + key_head * d);
            finish(of_values, count, block, tokens, key_heads * d, d, dv + key_head * d);
        }
        tiles_end(&found);
    }
    free(memory);
    return 0;
}
#endif
