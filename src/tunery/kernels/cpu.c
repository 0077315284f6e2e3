// What surrounds the matrix products of a training step, each in one pass over memory, computed in float32 whatever is stored.
//
// Every function exists twice, for bfloat16 (`_bf16`) and float32 (`_f32`) values: this file includes itself, with T, LOAD and STORE set.
// Matrices are row by row without gaps unless a stride (`ld...`, in values) says otherwise. `threads`: how many share the rows.
#ifndef T

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "tiles.h"

#define LANES 16  // values of a vector: 64 bytes of float32, in as many registers as the processor needs for them
#define ROWS 8    // rows whose sums stay in registers
#define DOTS 4    // rows and columns of a thin product, whose every element is a sum of its own
#define WIDEST 256  // values of an attention head, at most

typedef float vec __attribute__((vector_size(64), aligned(4)));
typedef uint32_t word __attribute__((vector_size(64)));
typedef uint16_t half __attribute__((vector_size(32), aligned(2)));

static inline float from_bf16(uint16_t v) {
    uint32_t bits = (uint32_t)v << 16;
    float f;
    memcpy(&f, &bits, 4);
    return f;
}

static inline uint16_t to_bf16(float f) {  // to the nearest, ties to even; a NaN stays one
    uint32_t bits;
    memcpy(&bits, &f, 4);
    uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    return f != f ? 0x7fc0 : (uint16_t)rounded;
}

static inline float exponential(float x) {  // Cody & Waite 1980: e^x = 2^n · e^r, |r| ≤ ln 2 / 2; off by at most 2 in the last place
    int tiny = x < -87.0f;  // 0, as numbers below the least normal one take a hundred times as long
    x = tiny ? -87.0f : x > 88.0f ? 88.0f : x;
    float n = rintf(x * 1.44269504088896341f);
    float r = x - n * 0.693359375f + n * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    float y = p * r * r + r + 1.0f;
    int32_t power = ((int32_t)n + 127) << 23;
    float scale;
    memcpy(&scale, &power, 4);
    return tiny ? 0.0f : y * scale;
}

static inline vec widen_bf16(const uint16_t *p) { return (vec)(__builtin_convertvector(*(const half *)p, word) << 16); }

static inline void narrow_bf16(uint16_t *p, vec f) {
    word bits = (word)f, number = (word)(f == f);
    bits = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    *(half *)p = __builtin_convertvector((bits & number) | (0x7fc0u & ~number), half);
}

static inline vec widen_f32(const float *p) { return *(const vec *)p; }
static inline void narrow_f32(float *p, vec f) { *(vec *)p = f; }

static inline float total(vec v) {
    const word places = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    for (uint32_t n = LANES / 2; n; n /= 2) v += __builtin_shuffle(v, places + n);  // places count round
    return v[0];
}

#define JOIN_(a, b) a##_##b
#define JOIN(a, b) JOIN_(a, b)
#define NAME(name) JOIN(name, SUFFIX)

#ifdef AMX
#define PARTS 3           // numbers of bfloat16 whose sum is one of float32
#define TALL (4 * TILE)   // rows of x whose sums stay in tiles

// One block of 32 values of row k of m, where tiles of 16 columns by 32 values want it: of each value the nearest bfloat16, then that of what
// is left, and again.
static inline void in_parts(const float *m, uint32_t *tiles, int64_t k) {
    uint16_t part[PARTS][32];
    for (int h = 0; h < 32; h += LANES) {
        vec left = *(const vec *)(m + h);
        for (int p = 0; p < PARTS; p++) {
            narrow_bf16(part[p] + h, left);
            left -= widen_bf16(part[p] + h);
        }
    }
    for (int p = 0; p < PARTS; p++)
        for (int r = 0; r < TILE; r++) memcpy(tiles + p * 256 + r * TILE + k % TILE, part[p] + 2 * r, 4);
}

// 64 rows and 16 columns of x · mᵀ by the matrix unit.
static inline void tile_block(const uint16_t *x, const uint16_t *tiles, float *sums, int64_t width) {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int64_t j = 0; j < width; j += 32, tiles += PARTS * 512) {
        _tile_loadd(5, tiles, 64);
        _tile_loadd(6, tiles + 512, 64);
        _tile_loadd(7, tiles + 1024, 64);
#define TILE_ROWS(n)                                          \
    _tile_loadd(4, x + n * TILE * width + j, width * 2);      \
    _tile_dpbf16ps(n, 4, 7);                                  \
    _tile_dpbf16ps(n, 4, 6);                                  \
    _tile_dpbf16ps(n, 4, 5);
        TILE_ROWS(0)
        TILE_ROWS(1)
        TILE_ROWS(2)
        TILE_ROWS(3)
    }
    _tile_stored(0, sums, 64);
    _tile_stored(1, sums + 256, 64);
    _tile_stored(2, sums + 512, 64);
    _tile_stored(3, sums + 768, 64);
}

// As thin_product, by the matrix unit. Returns whether it was done: not for few rows, nor where a row is no whole number of tiles.
static int tile_product(const uint16_t *x, const float *m, float *thin, int64_t rows, int64_t width, int64_t rank, int threads) {
    if (rows < TALL || width % 32 || !tiles_allowed()) return 0;
    int64_t across = (rank + TILE - 1) / TILE, blocks = width / 32;
    uint16_t *tiles = aligned_alloc(64, (size_t)(across * blocks * PARTS * 1024));
    if (tiles == 0) return 0;
    if (rank % TILE) memset(tiles + (across - 1) * blocks * PARTS * 512, 0, (size_t)(blocks * PARTS * 1024));
#pragma omp parallel num_threads(threads)
    {
        tile_shapes found;
        float sums[TALL * TILE] __attribute__((aligned(64)));
        tiles_begin(&found);
#pragma omp for schedule(static)
        for (int64_t block = 0; block < blocks; block++)
            for (int64_t k = 0; k < rank; k++)
                in_parts(m + k * width + block * 32, (uint32_t *)(tiles + (k / TILE * blocks + block) * PARTS * 512), k);
#pragma omp for schedule(static)
        for (int64_t block = 0; block < (rows + TALL - 1) / TALL; block++) {
            int64_t i = (block + 1) * TALL > rows ? rows - TALL : block * TALL;  // the last rows once more, to the same sums
            for (int64_t k = 0; k < rank; k += TILE) {
                tile_block(x + i * width, tiles + k / TILE * blocks * PARTS * 512, sums, width);
                int64_t n = rank - k < TILE ? rank - k : TILE;
                for (int l = 0; l < TALL; l++) memcpy(thin + (i + l) * rank + k, sums + l * TILE, (size_t)n * 4);
            }
        }
        tiles_end(&found);
    }
    free(tiles);
    return 1;
}
#define TILE_PRODUCT_bf16(...) tile_product(__VA_ARGS__)
#else
#define TILE_PRODUCT_bf16(...) 0
#endif
#define TILE_PRODUCT_f32(...) 0

// Whether the kernels over blocks (`tiles.h`) may be called.
#ifdef TILES
int tiles_usable(void) { return tiles_allowed(); }
#else
int tiles_usable(void) { return 0; }
#endif

#define T uint16_t
#define SUFFIX bf16
#define LOAD(v) from_bf16(v)
#define STORE(f) to_bf16(f)
#include "cpu.c"
#undef T
#undef SUFFIX
#undef LOAD
#undef STORE
#define T float
#define ONCE
#define SUFFIX f32
#define LOAD(v) (v)
#define STORE(f) (f)
#include "cpu.c"

#else

// y = x · r · w with r = 1 / √(mean(x²) + eps), row by row (Zhang & Sennrich 2019). x, y: (rows, width), w: (width), r: (rows).
void NAME(rms_forward)(const T *x, const float *w, T *y, float *r, int64_t rows, int64_t width, float eps, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t i = 0; i < rows; i++) {
        const T *xi = x + i * width;
        T *yi = y + i * width;
        float squares = 0;
#pragma omp simd reduction(+ : squares)
        for (int64_t j = 0; j < width; j++) squares += LOAD(xi[j]) * LOAD(xi[j]);
        float k = 1.0f / sqrtf(squares / (float)width + eps);
        r[i] = k;
#pragma omp simd
        for (int64_t j = 0; j < width; j++) yi[j] = STORE(LOAD(xi[j]) * k * w[j]);
    }
}

// dx = r · (dy·w) - x · r³ / width · Σ(dy·w·x)
void NAME(rms_backward)(const T *dy, const T *x, const float *w, const float *r, T *dx, int64_t rows, int64_t width, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t i = 0; i < rows; i++) {
        const T *xi = x + i * width, *gi = dy + i * width;
        T *di = dx + i * width;
        float sum = 0, k = r[i];
#pragma omp simd reduction(+ : sum)
        for (int64_t j = 0; j < width; j++) sum += LOAD(gi[j]) * w[j] * LOAD(xi[j]);
        float c = sum * k * k * k / (float)width;
#pragma omp simd
        for (int64_t j = 0; j < width; j++) di[j] = STORE(LOAD(gi[j]) * w[j] * k - LOAD(xi[j]) * c);
    }
}

// y = silu(gate) · up (Shazeer 2020, SwiGLU). gate, up: rows of stride ld; y: (rows, width).
void NAME(swiglu_forward)(const T *gate, const T *up, T *y, int64_t rows, int64_t width, int64_t ld, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t i = 0; i < rows; i++) {
        const T *gi = gate + i * ld, *ui = up + i * ld;
        T *yi = y + i * width;
#pragma omp simd
        for (int64_t j = 0; j < width; j++) {
            float g = LOAD(gi[j]);
            yi[j] = STORE(g / (1.0f + exponential(-g)) * LOAD(ui[j]));
        }
    }
}

void NAME(swiglu_backward)(const T *dy, const T *gate, const T *up, T *dgate, T *dup, int64_t rows, int64_t width, int64_t ld, int64_t ldd,
                           int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t i = 0; i < rows; i++) {
        const T *gi = gate + i * ld, *ui = up + i * ld, *di = dy + i * width;
        T *dgi = dgate + i * ldd, *dui = dup + i * ldd;
#pragma omp simd
        for (int64_t j = 0; j < width; j++) {
            float g = LOAD(gi[j]), d = LOAD(di[j]), s = 1.0f / (1.0f + exponential(-g));
            dui[j] = STORE(d * g * s);
            dgi[j] = STORE(d * LOAD(ui[j]) * s * (1.0f + g * (1.0f - s)));
        }
    }
}

// Rotary positions (Su et al. 2021): y = x·cos + rotate_half(x)·sin. x: rows of stride ld with `heads` heads of d values each; cos, sin:
// (rows, d); y: (rows, heads, d). With `back` the gradient: dx from dy.
void NAME(rotary)(const T *x, const T *cosine, const T *sine, T *y, int64_t rows, int64_t heads, int64_t d, int64_t ld, int64_t back, int threads) {
    int64_t half = d / 2;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t i = 0; i < rows; i++) {
        const T *c = cosine + i * d, *s = sine + i * d;
        for (int64_t h = 0; h < heads; h++) {
            const T *xi = x + i * ld + h * d;
            T *yi = y + (i * heads + h) * d;
            if (back) {
#pragma omp simd
                for (int64_t j = 0; j < half; j++) {
                    float a = LOAD(xi[j]), b = LOAD(xi[j + half]);
                    yi[j] = STORE(a * LOAD(c[j]) + b * LOAD(s[j + half]));
                    yi[j + half] = STORE(b * LOAD(c[j + half]) - a * LOAD(s[j]));
                }
            } else {
#pragma omp simd
                for (int64_t j = 0; j < half; j++) {
                    float a = LOAD(xi[j]), b = LOAD(xi[j + half]);
                    yi[j] = STORE(a * LOAD(c[j]) - b * LOAD(s[j]));
                    yi[j + half] = STORE(b * LOAD(c[j + half]) + a * LOAD(s[j + half]));
                }
            }
        }
    }
}

// `n` rows (at most ROWS) of 2 vectors: p = gain · (p + thin · m) + bias, and what is in brackets in `kept`.
static inline __attribute__((always_inline)) void NAME(add_block)(T *p, const float *thin, const float *m, const float *gain, const float *bias,
                                                                 T *kept, int n, int64_t width, int64_t rank) {
    vec sum[ROWS][2];
    for (int i = 0; i < n; i++)
        for (int h = 0; h < 2; h++) sum[i][h] = NAME(widen)(p + i * width + h * LANES);
    for (int64_t k = 0; k < rank; k++) {
        vec m0 = *(const vec *)(m + k * width), m1 = *(const vec *)(m + k * width + LANES);
        for (int i = 0; i < n; i++) {
            float t = thin[i * rank + k];
            sum[i][0] += t * m0;
            sum[i][1] += t * m1;
        }
    }
    for (int i = 0; i < n; i++)
        for (int h = 0; h < 2; h++) {
            vec s = sum[i][h];
            if (kept) NAME(narrow)(kept + i * width + h * LANES, s);
            if (gain) s *= *(const vec *)(gain + h * LANES);
            if (bias) s += *(const vec *)(bias + h * LANES);
            NAME(narrow)(p + i * width + h * LANES, s);
        }
}

// p = gain · (p + thin · m) + bias, in place; kept = p + thin · m. p, kept: (rows, width), thin: (rows, rank), m: (rank, width); kept, gain
// and bias may be null.
void NAME(add_low_rank)(T *p, const float *thin, const float *m, const float *gain, const float *bias, T *kept, int64_t rows, int64_t width,
                        int64_t rank, int threads) {
    int64_t whole = width / (2 * LANES) * (2 * LANES);
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t i = 0; i < rows; i += ROWS) {
        int n = rows - i < ROWS ? (int)(rows - i) : ROWS;
        for (int64_t j = 0; j < whole; j += 2 * LANES) {
            T *pi = p + i * width + j, *ki = kept ? kept + i * width + j : 0;
            const float *gj = gain ? gain + j : 0, *bj = bias ? bias + j : 0;
            if (n == ROWS)
                NAME(add_block)(pi, thin + i * rank, m + j, gj, bj, ki, ROWS, width, rank);
            else
                NAME(add_block)(pi, thin + i * rank, m + j, gj, bj, ki, n, width, rank);
        }
        for (int64_t l = i; l < i + n; l++)
            for (int64_t j = whole; j < width; j++) {
                float s = LOAD(p[l * width + j]);
                for (int64_t k = 0; k < rank; k++) s += thin[l * rank + k] * m[k * width + j];
                if (kept) kept[l * width + j] = STORE(s);
                p[l * width + j] = STORE((gain ? gain[j] : 1.0f) * s + (bias ? bias[j] : 0.0f));
            }
    }
}

// `n` rows and `c` columns (at most DOTS each) of thin = x · mᵀ.
static inline __attribute__((always_inline)) void NAME(dots)(const T *x, const float *m, float *thin, int n, int c, int64_t width, int64_t rank) {
    vec sum[DOTS][DOTS];
    for (int i = 0; i < n; i++)
        for (int k = 0; k < c; k++) sum[i][k] = (vec){0};
    int64_t whole = width / LANES * LANES;
    for (int64_t j = 0; j < whole; j += LANES) {
        vec row[DOTS];
        for (int i = 0; i < n; i++) row[i] = NAME(widen)(x + i * width + j);
        for (int k = 0; k < c; k++) {
            vec column = *(const vec *)(m + k * width + j);
            for (int i = 0; i < n; i++) sum[i][k] += row[i] * column;
        }
    }
    for (int i = 0; i < n; i++)
        for (int k = 0; k < c; k++) {
            float s = 0;
            for (int l = 0; l < LANES; l++) s += sum[i][k][l];
            for (int64_t j = whole; j < width; j++) s += LOAD(x[i * width + j]) * m[k * width + j];
            thin[i * rank + k] = s;
        }
}

// thin = x · mᵀ. x: (rows, width), m: (rank, width), thin: (rows, rank).
void NAME(thin_product)(const T *x, const float *m, float *thin, int64_t rows, int64_t width, int64_t rank, int threads) {
    if (JOIN(TILE_PRODUCT, SUFFIX)(x, m, thin, rows, width, rank, threads)) return;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t i = 0; i < rows; i += DOTS) {
        int n = rows - i < DOTS ? (int)(rows - i) : DOTS;
        for (int64_t k = 0; k < rank; k += DOTS) {
            int c = rank - k < DOTS ? (int)(rank - k) : DOTS;
            if (n == DOTS && c == DOTS)
                NAME(dots)(x + i * width, m + k * width, thin + i * rank + k, DOTS, DOTS, width, rank);
            else
                NAME(dots)(x + i * width, m + k * width, thin + i * rank + k, n, c, width, rank);
        }
    }
}

// The middle of attention's backward pass (Dao et al. 2022, algorithm 4): p = exp(scale · scores + mask - logsumexp), ds = scale · p · (dp -
// delta). scores, dp, p, ds: (blocks, heads, rows, keys); mask: (blocks, rows, keys); logsumexp, delta: (blocks, heads, rows).
void NAME(attention_backward)(const float *scores, const float *dp, const T *mask, const float *logsumexp, const float *delta, T *p, T *ds,
                              int64_t blocks, int64_t heads, int64_t rows, int64_t keys, float scale, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t r = 0; r < blocks * heads * rows; r++) {
        const float *s = scores + r * keys, *d = dp + r * keys;
        const T *m = mask + (r / (heads * rows) * rows + r % rows) * keys;
        T *pr = p + r * keys, *dsr = ds + r * keys;
        float lse = logsumexp[r], de = delta[r];
#pragma omp simd
        for (int64_t j = 0; j < keys; j++) {
            float e = exponential(s[j] * scale + LOAD(m[j]) - lse);
            pr[j] = STORE(e);
            dsr[j] = STORE(e * (d[j] - de) * scale);
        }
    }
}

// One query of `attend_one`: over keys in two parts, of counts[0] and counts[1]. shares: room for as many numbers.
static inline __attribute__((always_inline)) void NAME(attend_query)(const T *q, const T *const *k, const T *const *v, const int64_t *counts,
                                                                    const float *mask, float *shares, T *out, int64_t d, float scale, float cap) {
    vec query[WIDEST / LANES], found[WIDEST / LANES];
    for (int64_t j = 0; j < d / LANES; j++) query[j] = NAME(widen)(q + j * LANES) * scale, found[j] = (vec){0};
    float largest = -INFINITY, sum = 0;
    int64_t keys = 0;
    for (int part = 0; part < 2; part++)
        for (const T *key = k[part]; key < k[part] + counts[part] * d; key += d, keys++) {
            vec products = (vec){0};
            for (int64_t j = 0; j < d / LANES; j++) products += query[j] * NAME(widen)(key + j * LANES);
            float score = total(products);
            if (cap) score = cap * tanhf(score / cap);
            shares[keys] = score += mask[keys];
            largest = score > largest ? score : largest;
        }
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < keys; i++) {
        shares[i] = exponential(shares[i] - largest);
        sum += shares[i];
    }
    for (int part = 0; part < 2; part++)
        for (const T *value = v[part]; value < v[part] + counts[part] * d; value += d, shares++)
            for (int64_t j = 0; j < d / LANES; j++) found[j] += *shares * NAME(widen)(value + j * LANES);
    for (int64_t j = 0; j < d / LANES; j++) NAME(narrow)(out + j * LANES, found[j] / sum);
}

// Attention of one new token in each of several rows, over keys that all rows share and over each row's own. q, out: (rows, heads, d), d a
// multiple of 16, at most 256; shared_k, shared_v: (key heads, shared, d); own_k, own_v: (key heads, rows, room, d), of which `count` are
// there; mask: (rows, shared + count), added to the scores, which `cap` bounds if it is not 0. Returns 0, or 1 where there is no memory.
int NAME(attend_one)(const T *q, const T *shared_k, const T *shared_v, const T *own_k, const T *own_v, const float *mask, T *out, int64_t rows,
                     int64_t heads, int64_t key_heads, int64_t d, int64_t shared, int64_t room, int64_t count, float scale, float cap, int threads) {
    int64_t keys = shared + count, group = heads / key_heads, counts[] = {shared, count};
    float *memory = malloc((size_t)(threads * keys) * sizeof *memory);
    if (memory == 0) return 1;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t thread = 0; thread < threads; thread++)
        for (int64_t n = rows * heads * thread / threads; n < rows * heads * (thread + 1) / threads; n++) {
            int64_t row = n / heads, key_head = n % heads / group, own = (key_head * rows + row) * room * d;
            const T *k[] = {shared_k + key_head * shared * d, own_k + own}, *v[] = {shared_v + key_head * shared * d, own_v + own};
            const float *added = mask + row * keys;
            float *shares = memory + thread * keys;
            if (d == 64)  // with a size known beforehand the query and the sums stay in registers
                NAME(attend_query)(q + n * d, k, v, counts, added, shares, out + n * d, 64, scale, cap);
            else if (d == 128)
                NAME(attend_query)(q + n * d, k, v, counts, added, shares, out + n * d, 128, scale, cap);
            else
                NAME(attend_query)(q + n * d, k, v, counts, added, shares, out + n * d, d, scale, cap);
        }
    free(memory);
    return 0;
}

// What DoRA's gain does on the way back: dsum = dy · gain, dgain += dy · sum, each thread into a copy of its own: (threads, width) of zeros.
void NAME(gain_backward)(const T *dy, const T *sum, const float *gain, T *dsum, float *dgain, int64_t rows, int64_t width, int threads) {
    int64_t share = (rows + threads - 1) / threads;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int n = 0; n < threads; n++) {
        float *own = dgain + n * width;
        int64_t to = (n + 1) * share < rows ? (n + 1) * share : rows;
        for (int64_t i = n * share; i < to; i++)
#pragma omp simd
            for (int64_t j = 0; j < width; j++) {
                float d = LOAD(dy[i * width + j]);
                own[j] += d * LOAD(sum[i * width + j]);
                dsum[i * width + j] = STORE(d * gain[j]);
            }
    }
}

#ifdef ONCE
// Lengths of the rows of W + scale · BA (Liu et al. 2024, section 4.3): square: ‖W‖² of each, wa: W Aᵀ (rows, rank), gram: A Aᵀ (rank, rank),
// b: (rows, rank). A length of 0 becomes 1.
void dora_norm_f32(const float *square, const float *wa, const float *gram, const float *b, float scale, float *norm, int64_t rows, int64_t rank,
                   int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t i = 0; i < rows; i++) {
        const float *bi = b + i * rank, *wi = wa + i * rank;
        float cross = 0, own = 0;
        for (int64_t k = 0; k < rank; k++) {
            const float *row = gram + k * rank;
            float sum = 0;
#pragma omp simd reduction(+ : sum)
            for (int64_t l = 0; l < rank; l++) sum += row[l] * bi[l];
            cross += wi[k] * bi[k];
            own += sum * bi[k];
        }
        float length = sqrtf(square[i] + 2 * scale * cross + scale * scale * own);
        norm[i] = length == 0 ? 1.0f : length;
    }
}
#endif

// Four-bit NormalFloat values written out (Dettmers et al. 2023): each byte holds two, the first in its high half; 64 values share a scale.
// code: the 16 values. scale: of each block; or null, and it is fine_code[fine[b]] · coarse[b / 256] + offset.
void NAME(nf4)(const uint8_t *packed, const float *code, const float *scale, const uint8_t *fine, const float *fine_code, const float *coarse,
               float offset, T *y, int64_t values, int threads) {
    int64_t blocks = (values + 63) / 64;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t b = 0; b < blocks; b++) {
        float size = scale ? scale[b] : fine_code[fine[b]] * coarse[b / 256] + offset;
        T table[16];
        for (int k = 0; k < 16; k++) table[k] = STORE(code[k] * size);
        int64_t n = values - b * 64 < 64 ? values - b * 64 : 64;
        const uint8_t *from = packed + b * 32;
        T *to = y + b * 64;
        for (int64_t k = 0; k < n / 2; k++) {
            to[2 * k] = table[from[k] >> 4];
            to[2 * k + 1] = table[from[k] & 15];
        }
    }
}

#endif
