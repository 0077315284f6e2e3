// What the kernels over blocks of bfloat16 are made of: products of blocks by the matrix unit (AMX; Intel's architecture manual, volume 1,
// chapter 18: eight tiles of 16 rows of 64 bytes), and where there is none by AVX-512's own sums of pairs (AVX512-BF16), from the same layouts.
#pragma once
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#if defined(__AVX512BF16__) && defined(__AVX512BW__)
#define TILES
#include <immintrin.h>
#ifdef __AMX_BF16__
#define AMX
#include <sys/syscall.h>
#include <unistd.h>
#endif

#define TILE 16
#define SIDE 32             // rows and columns of a block of sums
#define AREA (SIDE * SIDE)  // a block's sums: four tiles of float32, one after the other
#define QUARTER (TILE * TILE)
#define ROUND(n) (((n) + 63) / 64 * 64)

// 16 × 16 words, rows for columns, by exchanging ever smaller squares.
static inline __attribute__((always_inline)) void transpose(__m512i row[TILE]) {
    const __m512i lane = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
#pragma GCC unroll 4
    for (int s = 8; s; s /= 2) {
        __mmask16 upper = s == 8 ? 0xff00 : s == 4 ? 0xf0f0 : s == 2 ? 0xcccc : 0xaaaa;
        __m512i low = _mm512_mask_add_epi32(lane, upper, lane, _mm512_set1_epi32(16 - s));
        __m512i high = _mm512_mask_add_epi32(_mm512_add_epi32(lane, _mm512_set1_epi32(s)), upper, lane, _mm512_set1_epi32(16));
#pragma GCC unroll 16
        for (int i = 0; i < TILE; i++)
            if (!(i & s)) {
                __m512i a = row[i], b = row[i + s];
                row[i] = _mm512_permutex2var_epi32(a, low, b);
                row[i + s] = _mm512_permutex2var_epi32(a, high, b);
            }
    }
}

// 16 values of each of two rows, in turn: as the unit wants what is summed over rows.
static inline __m512i in_turn(const uint16_t *a, const uint16_t *b) {
    __m512i low = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const void *)a)), high = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const void *)b));
    return _mm512_or_si512(low, _mm512_slli_epi32(high, 16));
}

// 16 numbers of each of two rows as bfloat16, the first row's in the lower half.
static inline __m512i narrowed(__m512 low, __m512 high) { return (__m512i)_mm512_cvtne2ps_pbh(high, low); }

// Two rows that `narrowed` made one of, their values in turn.
static inline __m512i turned_in(__m512i both) {
    const __m512i turns = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2,
                                           17, 1, 16, 0);
    return _mm512_permutexvar_epi16(turns, both);
}

static inline __m512 widened(const uint16_t *p) { return (__m512)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const void *)p)), 16); }

// Of row `row` of a block of sums, the first (h = 0) or the last 16.
static inline __m512 lanes_of(const float *sums, int64_t row, int h) {
    return _mm512_load_ps(sums + row / TILE * 2 * QUARTER + h * QUARTER + row % TILE * TILE);
}

// Of 16 rows, `gap` values apart, 32 values as a tile of 16 pairs by 16 rows.
static inline void lay_tile(const uint16_t *rows, int64_t gap, uint16_t *to) {
#pragma GCC unroll 4
    for (int q = 0; q < 4; q++) {  // four words of every row: a lane holds those of four rows, which are then turned within it
        __m512i t[4];
#pragma GCC unroll 4
        for (int i = 0; i < 4; i++) {
            const uint16_t *at = rows + i * gap + q * 8;
            t[i] = _mm512_castsi128_si512(_mm_loadu_si128((const void *)at));
            t[i] = _mm512_inserti32x4(t[i], _mm_loadu_si128((const void *)(at + 4 * gap)), 1);
            t[i] = _mm512_inserti32x4(t[i], _mm_loadu_si128((const void *)(at + 8 * gap)), 2);
            t[i] = _mm512_inserti32x4(t[i], _mm_loadu_si128((const void *)(at + 12 * gap)), 3);
        }
        __m512i a = _mm512_unpacklo_epi32(t[0], t[1]), b = _mm512_unpackhi_epi32(t[0], t[1]);
        __m512i c = _mm512_unpacklo_epi32(t[2], t[3]), d = _mm512_unpackhi_epi32(t[2], t[3]);
        _mm512_store_si512(to + (4 * q + 0) * SIDE, _mm512_unpacklo_epi64(a, c));
        _mm512_store_si512(to + (4 * q + 1) * SIDE, _mm512_unpackhi_epi64(a, c));
        _mm512_store_si512(to + (4 * q + 2) * SIDE, _mm512_unpacklo_epi64(b, d));
        _mm512_store_si512(to + (4 * q + 3) * SIDE, _mm512_unpackhi_epi64(b, d));
    }
}

// Of a block's rows (32, d), what a product over d takes on its right side: `d / 32` times two tiles, each of 16 rows of `rows` across.
static inline void lay_across(const uint16_t *rows, uint16_t *to, int64_t d) {
    for (int64_t j = 0; j < d; j += SIDE)
        for (int n = 0; n < 2; n++, to += 2 * QUARTER) lay_tile(rows + n * TILE * d + j, d, to);
}

// Two rows of 32 values in turn, as two tiles want them.
static inline void both_in_turn(const uint16_t *a, const uint16_t *b, uint16_t *to) {
    _mm512_store_si512(to, in_turn(a, b));
    _mm512_store_si512(to + 2 * QUARTER, in_turn(a + TILE, b + TILE));
}

// e^x for 16 numbers (Cody & Waite 1980), 0 for those not in `seen` and where it would be below the least normal number.
static inline __m512 exponentials(__m512 x, __mmask16 seen) {
    seen &= _mm512_cmp_ps_mask(x, _mm512_set1_ps(-87.0f), _CMP_GE_OQ);
    __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504088896341f)), 8);
    __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693359375f), x);
    r = _mm512_fmadd_ps(n, _mm512_set1_ps(2.12194440e-4f), r);
    __m512 p = _mm512_set1_ps(1.9875691500e-4f);
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.3981999507e-3f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(8.3334519073e-3f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(4.1665795894e-2f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.6666665459e-1f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(5.0000001201e-1f));
    p = _mm512_fmadd_ps(_mm512_mul_ps(p, r), r, _mm512_add_ps(r, _mm512_set1_ps(1.0f)));
    return _mm512_maskz_scalef_ps(seen, p, n);
}

// A block of sums (32, 32) is begun by `clear`, or goes on by `fetch`; then any number of products is added, and `put` ends it.
#ifdef AMX
typedef struct {
    uint8_t palette, start, reserved[14];
    uint16_t bytes[16];
    uint8_t rows[16];
} __attribute__((aligned(64))) tile_shapes;

static inline int tiles_allowed(void) {  // Linux hands the tiles out to those who ask
    static int known = -1;
    if (known < 0) known = syscall(SYS_arch_prctl, 0x1023 /* ARCH_REQ_XCOMP_PERM */, 18) == 0;
    return known;
}

// In each thread, before its first tile: all eight whole. found: what whoever had them before set.
static inline void tiles_begin(tile_shapes *found) {
    tile_shapes own = {.palette = 1};
    for (int n = 0; n < 8; n++) own.bytes[n] = 64, own.rows[n] = TILE;
    _tile_storeconfig(found);
    _tile_loadconfig(&own);
}

static inline void tiles_end(const tile_shapes *found) {
    if (found->palette)
        _tile_loadconfig(found);
    else
        _tile_release();
}

static inline void clear(float *sums) {
    (void)sums;
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
}

static inline void fetch(const float *sums) {
    _tile_loadd(0, sums, 64);
    _tile_loadd(1, sums + QUARTER, 64);
    _tile_loadd(2, sums + 2 * QUARTER, 64);
    _tile_loadd(3, sums + 3 * QUARTER, 64);
}

static inline void put(float *sums) {
    _tile_stored(0, sums, 64);
    _tile_stored(1, sums + QUARTER, 64);
    _tile_stored(2, sums + 2 * QUARTER, 64);
    _tile_stored(3, sums + 3 * QUARTER, 64);
}

// Sums += a (32 rows, `gap` values apart, of 32 values) · b (two tiles), `count` times, each a_step and b_step after the one before.
static inline void multiply(float *sums, const uint16_t *a, int64_t gap, int64_t a_step, const uint16_t *b, int64_t b_step, int64_t count) {
    (void)sums;
    for (int64_t n = 0; n < count; n++, a += a_step, b += b_step) {
        _tile_loadd(4, a, gap * 2);
        _tile_stream_loadd(6, b, 64);  // past the first cache, which the rows of a stay in
        _tile_stream_loadd(7, b + 2 * QUARTER, 64);
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        _tile_loadd(5, a + TILE * gap, gap * 2);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
    }
}

// The upper half of a block alone, from nothing: sums (16, 32) = a (16 rows, 32 values each, without gaps) · b, `count` times.
static inline void multiply_half(float *sums, const uint16_t *a, int64_t a_step, const uint16_t *b, int64_t b_step, int64_t count) {
    _tile_zero(0);
    _tile_zero(1);
    for (int64_t n = 0; n < count; n++, a += a_step, b += b_step) {
        _tile_loadd(4, a, 64);
        _tile_loadd(6, b, 64);
        _tile_loadd(7, b + 2 * QUARTER, 64);
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
    }
    _tile_stored(0, sums, 64);
    _tile_stored(1, sums + QUARTER, 64);
}
#else
typedef int tile_shapes;

static inline int tiles_allowed(void) { return 1; }
static inline void tiles_begin(tile_shapes *found) { (void)found; }
static inline void tiles_end(const tile_shapes *found) { (void)found; }

static inline void zero(float *sums, int64_t count) {  // memset begins slowly
#pragma GCC unroll 8
    for (int64_t i = 0; i < count; i += TILE) _mm512_store_ps(sums + i, _mm512_setzero_ps());
}

static inline void clear(float *sums) { zero(sums, AREA); }
static inline void fetch(const float *sums) { (void)sums; }
static inline void put(float *sums) { (void)sums; }

#define TOGETHER_ROWS 8  // rows whose sums, two vectors each, stay in registers: enough that none waits for its last addition

// Of a block, the sums of eight rows += as `multiply` says. Rows are found from three of them: eight addresses would not stay in registers.
static __attribute__((noinline)) void multiply_rows(float *sums, const uint16_t *a, int64_t gap, int64_t a_step, const uint16_t *b,
                                                    int64_t b_step, int64_t count) {
    __m512 low[TOGETHER_ROWS], high[TOGETHER_ROWS];
#pragma GCC unroll 8
    for (int i = 0; i < TOGETHER_ROWS; i++) low[i] = _mm512_load_ps(sums + i * TILE), high[i] = _mm512_load_ps(sums + QUARTER + i * TILE);
    for (int64_t n = 0; n < count; n++, a += a_step, b += b_step) {
        const uint16_t *rows[] = {a, a + 3 * gap, a + 6 * gap}, *at = b;
        for (int k = 0; k < TILE; k += 4, at += 4 * SIDE, rows[0] += 8, rows[1] += 8, rows[2] += 8)
#pragma GCC unroll 4
            for (int l = 0; l < 4; l++) {
                __m512bh left = (__m512bh)_mm512_load_si512(at + l * SIDE), right = (__m512bh)_mm512_load_si512(at + 2 * QUARTER + l * SIDE);
#pragma GCC unroll 8
                for (int i = 0; i < TOGETHER_ROWS; i++) {
                    int32_t pair;
                    memcpy(&pair, rows[i / 3] + i % 3 * gap + 2 * l, sizeof pair);
                    __m512bh both = (__m512bh)_mm512_set1_epi32(pair);
                    low[i] = _mm512_dpbf16_ps(low[i], both, left);
                    high[i] = _mm512_dpbf16_ps(high[i], both, right);
                }
            }
    }
#pragma GCC unroll 8
    for (int i = 0; i < TOGETHER_ROWS; i++) _mm512_store_ps(sums + i * TILE, low[i]), _mm512_store_ps(sums + QUARTER + i * TILE, high[i]);
}

// Sums += a (32 rows, `gap` values apart, of 32 values) · b (two tiles), `count` times, each a_step and b_step after the one before.
static inline void multiply(float *sums, const uint16_t *a, int64_t gap, int64_t a_step, const uint16_t *b, int64_t b_step, int64_t count) {
    for (int64_t i = 0; i < SIDE; i += TOGETHER_ROWS)
        multiply_rows(sums + i / TILE * 2 * QUARTER + i % TILE * TILE, a + i * gap, gap, a_step, b, b_step, count);
}

// The upper half of a block alone, from nothing: sums (16, 32) = a (16 rows, 32 values each, without gaps) · b, `count` times.
static inline void multiply_half(float *sums, const uint16_t *a, int64_t a_step, const uint16_t *b, int64_t b_step, int64_t count) {
    zero(sums, AREA / 2);
    for (int64_t i = 0; i < TILE; i += TOGETHER_ROWS) multiply_rows(sums + i * TILE, a + i * SIDE, SIDE, a_step, b, b_step, count);
}
#endif

// A block of sums += x (32 rows) · what `slab` was laid from, summands `from` to `to`.
static inline void add_up(float *sums, const uint16_t *x, int64_t width, const uint16_t *slab, int64_t from, int64_t to) {
    multiply(sums, x + from, width, SIDE, slab + from * SIDE, AREA, (to - from) / SIDE);
}
#endif
