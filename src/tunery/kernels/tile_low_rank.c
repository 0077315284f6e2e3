// A frozen linear layer with a low-rank addition, in tiles of bfloat16 (Hu et al. 2021; Liu et al. 2024, section 4.3):
//
//     y  = gain ∘ (x Wᵀ + thin Mᵀ) + bias        thin = x Aᵀ, M = scale · B
//     dx = (gain ∘ dy) W + dthin A               dthin = (gain ∘ dy) M
//     dA = dthinᵀ x,   dB = scale · (gain ∘ dy)ᵀ thin,   dmagnitude = Σ dy ∘ (x Wᵀ + thin Mᵀ) / norm
//
// LoRA has no gain; DoRA's is magnitude / ‖W + scale · BA‖, row by row, a constant in the gradient. What the gain multiplies is kept for the
// magnitude's gradient only where it is not y / gain: where there is a bias, or a gain of 0.
//
// The thin products are summands of the thick one, so nothing is read or rounded twice. A and M, float32, take part as sums of two numbers of
// bfloat16, which is exact to 16 bits; thin and dthin are bfloat16. W is taken in slabs of 32 of the result's columns, laid out as products want
// them once for all rows; where it is stored in four bits they are written out then, and DoRA's norm is taken from them then. Sizes of W
// are multiples of 32, and there are at least 32 rows.
#include <math.h>

#include "tiles.h"

#ifdef TILES
#define PARTS 2   // numbers of bfloat16 for one of float32
#define DEPTH 576  // summands that are taken at a time: 32 rows of them are 36 KB, a core's first cache
#define AHEAD 16   // rows that are asked for before they are needed where a column of lines is read: processors foresee rows alone
#define PANEL 4    // slabs that are taken for each block of rows, which is read once for them

typedef struct {
    const uint16_t *values;
    int64_t width;  // a multiple of 32
} side;

// The frozen weight: bfloat16, or four-bit NormalFloat as kernels/cpu.c has it, with `scale` of each 64 values, or `fine` ones.
typedef struct {
    const uint16_t *values;
    const uint8_t *packed;
    const float *code, *scale;
    const uint8_t *fine;
    const float *fine_code, *coarse, *offset;
} frozen;

static inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

// 32 numbers, `gap` apart and times `by`, as bfloat16: the nearest, and of what is left the nearest.
static inline void split(const float *from, int64_t count, float by, uint16_t *high, uint16_t *low) {
    for (int64_t n = 0; n < count; n += TILE) {
        __mmask16 own = count - n < TILE ? (__mmask16)((1 << (count - n)) - 1) : 0xffff;
        __m512 f = _mm512_mul_ps(_mm512_maskz_loadu_ps(own, from + n), _mm512_set1_ps(by));
        __m256i near = (__m256i)_mm512_cvtneps_pbh(f);
        __m512 left = _mm512_sub_ps(f, (__m512)_mm512_slli_epi32(_mm512_cvtepu16_epi32(near), 16));
        _mm256_storeu_si256((__m256i *)(high + n), near);
        _mm256_storeu_si256((__m256i *)(low + n), (__m256i)_mm512_cvtneps_pbh(left));
    }
}

// `count` lines of 32 values; beyond the end of memory nothing happens.
static inline void prefetch(const uint16_t *line, int64_t count) {
    for (int64_t c = 0; c < count; c++) _mm_prefetch((const char *)(line + c * SIDE), _MM_HINT_T0);
}

// `count` values of W from the given one on, both multiples of 32: where they lie, or written out into `room`.
static inline const uint16_t *values_of(const frozen *w, int64_t from, int64_t count, uint16_t *room) {
    if (w->values) return w->values + from;
    __m512i table = _mm512_setzero_si512();
    for (int64_t n = from; n < from + count; n += SIDE) {
        if (n == from || n % 64 == 0) {
            int64_t b = n / 64;
            float size = w->scale ? w->scale[b] : w->fine_code[w->fine[b]] * w->coarse[b / 256] + *w->offset;
            table = _mm512_castsi256_si512((__m256i)_mm512_cvtneps_pbh(_mm512_mul_ps(_mm512_loadu_ps(w->code), _mm512_set1_ps(size))));
        }
        __m512i bytes = _mm512_cvtepu8_epi32(_mm_loadu_si128((const void *)(w->packed + n / 2)));  // two values each, the first in the high half
        __m512i places = _mm512_or_si512(_mm512_srli_epi32(bytes, 4), _mm512_slli_epi32(_mm512_and_si512(bytes, _mm512_set1_epi32(15)), 16));
        _mm512_storeu_si512(room + n - from, _mm512_permutexvar_epi16(places, table));
    }
    return room;
}

// Two rows of 32 values, each times a number, in turn.
static inline void both_scaled_in_turn(const uint16_t *a, const uint16_t *b, float by_a, float by_b, uint16_t *to) {
    for (int h = 0; h < 2; h++) {
        __m512 x = _mm512_mul_ps(widened(a + h * TILE), _mm512_set1_ps(by_a)), y = _mm512_mul_ps(widened(b + h * TILE), _mm512_set1_ps(by_b));
        _mm512_store_si512(to + h * 2 * QUARTER, turned_in(narrowed(x, y)));
    }
}

// Where a block of rows begins: the last one ends with the last row, and shares rows with the one before.
static inline int64_t block_start(int64_t block, int64_t rows) { return least(block * SIDE, rows - SIDE); }

// Thin (rows, rank) and twice side by side (rows, 2 · whole), with `whole` columns of which those after the rank are 0, of rows `first` on.
static void make_thin(const uint16_t *x, int64_t width, const uint16_t *laid, float *sums, int64_t first, int64_t rank, int64_t whole,
                      uint16_t *thin, uint16_t *twice) {
    for (int64_t k = 0; k < whole; k += TILE, laid += width * SIDE) {
        clear(sums);
        add_up(sums, x + first * width, width, laid, 0, width);
        put(sums);
        for (int64_t i = 0; i < SIDE; i++) {
            __m256i own = (__m256i)_mm512_cvtneps_pbh(_mm512_add_ps(lanes_of(sums, i, 0), lanes_of(sums, i, 1)));
            _mm256_storeu_si256((__m256i *)(twice + (first + i) * 2 * whole + k), own);
            _mm256_storeu_si256((__m256i *)(twice + (first + i) * 2 * whole + whole + k), own);
            if (thin) memcpy(thin + (first + i) * rank + k, &own, (size_t)least(rank - k, TILE) * 2);
        }
    }
}

// What `make_thin` takes on its right side for 32 of A's columns from j on, A (rank, width): for each 16 rows of A two tiles, of their parts.
static void lay_thin_across(const float *a, int64_t rank, int64_t whole, int64_t width, int64_t j, uint16_t *laid) {
    uint16_t part[PARTS][TILE * SIDE] __attribute__((aligned(64)));
    for (int64_t k = 0; k < whole; k += TILE) {
        memset(part, 0, sizeof part);
        for (int64_t i = 0; i < least(rank - k, TILE); i++) split(a + (k + i) * width + j, SIDE, 1.0f, part[0] + i * SIDE, part[1] + i * SIDE);
        for (int n = 0; n < PARTS; n++)
            lay_tile(part[n], SIDE, laid + k * width * PARTS + j * SIDE + n * 2 * QUARTER);
    }
}

// The same for 32 of B's rows from j on, B (width, rank); gain, if any, is of the rows.
static void lay_thin_down(const float *b, float scale, const float *gain, int64_t rank, int64_t whole, int64_t width, int64_t j, uint16_t *laid) {
    uint16_t part[PARTS][SIDE * TILE] __attribute__((aligned(64)));
    for (int64_t k = 0; k < whole; k += TILE) {
        for (int64_t i = 0; i < SIDE; i++)
            split(b + (j + i) * rank + k, least(rank - k, TILE), gain ? scale * gain[j + i] : scale, part[0] + i * TILE, part[1] + i * TILE);
        for (int n = 0; n < PARTS; n++)
            for (int i = 0; i < TILE; i++)
                _mm512_store_si512(laid + k * width * PARTS + j * SIDE + n * 2 * QUARTER + i * SIDE,
                                   in_turn(part[n] + 2 * i * TILE, part[n] + (2 * i + 1) * TILE));
    }
}

// Rows of 32 sums, done: what is kept of them, and the result. Past the caches: a line that is written whole need not be read before.
static inline void finish(const float *sums, int64_t first, int64_t column, int64_t width, const float *gain, const float *bias, uint16_t *y,
                          uint16_t *kept) {
    for (int64_t i = 0; i < SIDE; i++) {
        __m512 low = lanes_of(sums, i, 0), high = lanes_of(sums, i, 1);
        int64_t at = (first + i) * width + column;
        if (kept) _mm512_stream_si512((void *)(kept + at), narrowed(low, high));
        if (gain) low = _mm512_mul_ps(low, _mm512_loadu_ps(gain + column)), high = _mm512_mul_ps(high, _mm512_loadu_ps(gain + column + TILE));
        if (bias) low = _mm512_add_ps(low, _mm512_loadu_ps(bias + column)), high = _mm512_add_ps(high, _mm512_loadu_ps(bias + column + TILE));
        _mm512_stream_si512((void *)(y + at), narrowed(low, high));
    }
}

// 32 · count columns of y = x · panel + twice · (what follows in each slab), over all rows. partial: count sums.
static void product(side x, side twice, const uint16_t *panel, int64_t count, float *partial, int64_t rows, int64_t column, int64_t width,
                    const float *gain, const float *bias, uint16_t *y, uint16_t *kept) {
    int64_t blocks = (rows + SIDE - 1) / SIDE, slab_values = (x.width + twice.width) * SIDE;
    int64_t depths = (x.width + DEPTH - 1) / DEPTH, depth = (x.width / SIDE + depths - 1) / depths * SIDE;
    for (int64_t block = 0; block < blocks; block++) {
        int64_t first = block_start(block, rows);
        for (int64_t from = 0; from < x.width; from += depth) {
            int64_t to = least(from + depth, x.width);
            for (int64_t n = 0; n < count; n++) {
                float *sums = partial + n * AREA;
                const uint16_t *slab = panel + n * slab_values;
                if (from)
                    fetch(sums);
                else
                    clear(sums);
                add_up(sums, x.values + first * x.width, x.width, slab, from, to);
                if (to == x.width) add_up(sums, twice.values + first * twice.width, twice.width, slab + x.width * SIDE, 0, twice.width);
                put(sums);
                if (to == x.width) finish(sums, first, column + n * SIDE, width, gain, bias, y, kept);
            }
        }
    }
}

// DoRA's gain and norm for 32 rows of W + scale · BA (Liu et al. 2024, section 4.3): ‖W‖² is known, and ‖W + sBA‖² = ‖W‖² + 2s · Σ WAᵀ ∘ B +
// s² · Σ B(AAᵀ) ∘ B. gram: A Aᵀ (rank, whole). A length of 0 becomes 1.
static void gains(const uint16_t *w, int64_t width, const uint16_t *laid, const float *b, const float *gram, int64_t rank, int64_t whole, float scale,
                  const float *magnitude, const float *square, float *sums, float *gain, float *norm) {
    float cross[SIDE] = {0}, own[SIDE] = {0};
    for (int64_t k = 0; k < whole; k += TILE, laid += width * SIDE) {
        __mmask16 there = rank - k < TILE ? (__mmask16)((1 << (rank - k)) - 1) : 0xffff;
        clear(sums);
        add_up(sums, w, width, laid, 0, width);
        put(sums);
        for (int64_t i = 0; i < SIDE; i++) {
            __m512 part = _mm512_maskz_loadu_ps(there, b + i * rank + k), turned = _mm512_setzero_ps();
            cross[i] += _mm512_reduce_add_ps(_mm512_mul_ps(part, _mm512_add_ps(lanes_of(sums, i, 0), lanes_of(sums, i, 1))));
            for (int64_t l = 0; l < rank; l++) turned = _mm512_fmadd_ps(_mm512_set1_ps(b[i * rank + l]), _mm512_load_ps(gram + l * whole + k), turned);
            own[i] += _mm512_reduce_add_ps(_mm512_mul_ps(part, turned));
        }
    }
    for (int64_t i = 0; i < SIDE; i++) {
        float length = sqrtf(square[i] + 2 * scale * cross[i] + scale * scale * own[i]);
        norm[i] = length == 0 ? 1.0f : length;
        gain[i] = magnitude[i] / norm[i];
    }
}

// x: (rows, in), w: (out, in), a: (rank, in), b: (out, rank); with a rank of 0 nothing is added. bias: (out) or null, y: (rows, out), thin: (rows, rank). For DoRA magnitude and
// square ‖W‖²: (out), and what is made: gain, norm, and kept x Wᵀ + thin Mᵀ or null; else all null. Returns 0, or 1 where there is no memory.
int tile_low_rank_bf16(const uint16_t *x, const uint16_t *values, const uint8_t *packed, const float *code, const float *scales, const uint8_t *fine,
                       const float *fine_code, const float *coarse, const float *offset, const float *a, const float *b, float scale,
                       const float *magnitude, const float *square, const float *bias, uint16_t *y, uint16_t *thin, uint16_t *kept, float *gain,
                       float *norm, int64_t rows, int64_t in, int64_t out, int64_t rank, int threads) {
    frozen w = {values, packed, code, scales, fine, fine_code, coarse, offset};
    int64_t whole = (rank + TILE - 1) / TILE * TILE, blocks = (rows + SIDE - 1) / SIDE, twice_width = 2 * whole;
    size_t laid_size = (size_t)(whole * in * PARTS * 2), twice_size = ROUND((size_t)(rows * twice_width * 2)), gram_size = (size_t)(rank * whole * 4);
    size_t slab_size = (size_t)((in + twice_width) * SIDE * 2), parts_size = (size_t)(SIDE * twice_width * 2), sums_size = PANEL * AREA * 4;
    size_t own = PANEL * slab_size + parts_size + sums_size + (size_t)(SIDE * in * 2), common = laid_size + twice_size + gram_size;
    uint8_t *memory = aligned_alloc(64, common + (size_t)threads * own);
    if (memory == 0) return 1;
    uint16_t *laid = (uint16_t *)memory, *twice = (uint16_t *)(memory + laid_size);
    float *gram = (float *)(memory + laid_size + twice_size);
#pragma omp parallel num_threads(threads)
    {
        tile_shapes found;
        tiles_begin(&found);
#pragma omp for schedule(static)
        for (int64_t j = 0; j < in; j += SIDE) lay_thin_across(a, rank, whole, in, j, laid);
        if (magnitude)
#pragma omp for schedule(static) nowait
            for (int64_t n = 0; n < rank * whole; n++) {
                float sum = 0;
                const float *left = a + n / whole * in, *right = a + n % whole * in;
                if (n % whole < rank)
#pragma omp simd reduction(+ : sum)
                    for (int64_t j = 0; j < in; j++) sum += left[j] * right[j];
                gram[n] = sum;
            }
#pragma omp for schedule(static)
        for (int64_t thread = 0; thread < threads; thread++) {
            float *sums = (float *)(memory + common + (size_t)thread * own);
            for (int64_t n = blocks * thread / threads; n < blocks * (thread + 1) / threads; n++)
                make_thin(x, in, laid, sums, block_start(n, rows), rank, whole, thin, twice);
        }
#pragma omp for schedule(static)
        for (int64_t thread = 0; thread < threads; thread++) {
            uint8_t *at = memory + common + (size_t)thread * own;
            float *sums = (float *)at;
            uint16_t *parts = (uint16_t *)(at + sums_size), *panel = (uint16_t *)(at + sums_size + parts_size);
            uint16_t *room = panel + PANEL * slab_size / 2;
            memset(parts, 0, parts_size);
            int64_t last = out / SIDE * (thread + 1) / threads;
            for (int64_t n = out / SIDE * thread / threads, count; n < last; n += count) {
                count = least(PANEL, last - n);
                for (int64_t c = 0; c < count; c++) {
                    uint16_t *slab = panel + c * slab_size / 2;
                    int64_t first = (n + c) * SIDE;
                    const uint16_t *own_rows = values_of(&w, first * in, SIDE * in, room);
                    lay_across(own_rows, slab, in);
                    for (int64_t i = 0; i < SIDE; i++) split(b + (first + i) * rank, rank, scale, parts + i * twice_width, parts + i * twice_width + whole);
                    lay_across(parts, slab + in * SIDE, twice_width);
                    if (magnitude)
                        gains(own_rows, in, laid, b + first * rank, gram, rank, whole, scale, magnitude + first, square + first, sums, gain + first, norm + first);
                }
                product((side){x, in}, (side){twice, twice_width}, panel, count, sums, rows, n * SIDE, out, magnitude ? gain : 0, bias, y, kept);
            }
        }
        _mm_sfence();
        tiles_end(&found);
    }
    free(memory);
    return 0;
}

// to (rank, width) = by · turnedᵀ x for 32 · count columns of x (rows, width): turned (blocks, whole, 32) are the thin matrix's columns. gain, if
// any, is of the columns.
static void outer(const uint16_t *x, int64_t rows, int64_t width, int64_t column, int64_t count, const uint16_t *turned, int64_t rank,
                  int64_t whole, float by, const float *gain, uint16_t *panel, float *sums, float *to, int64_t row_gap, int64_t column_gap) {
    static const uint16_t zeros[SIDE * PANEL];
    int64_t blocks = (rows + SIDE - 1) / SIDE;
    if (rank == 0) return;
    for (int64_t at = 0; at < blocks * SIDE; at += 2) {
        const uint16_t *a = at < rows ? x + at * width + column : zeros, *b = at + 1 < rows ? x + (at + 1) * width + column : zeros;
        prefetch(a + AHEAD * width, count), prefetch(b + AHEAD * width, count);
        for (int64_t c = 0; c < count; c++) both_in_turn(a + c * SIDE, b + c * SIDE, panel + (c * blocks + at / SIDE) * AREA + at % SIDE / 2 * SIDE);
    }
    for (int64_t c = 0; c < count; c++, column += SIDE, panel += blocks * AREA)
        for (int64_t k = 0; k < whole; k += TILE) {
            multiply_half(sums, turned + k * SIDE, whole * SIDE, panel, AREA, blocks);
            for (int64_t i = 0; i < least(rank - k, TILE); i++)
                for (int64_t j = 0; j < SIDE; j++)
                    to[(k + i) * row_gap + (column + j) * column_gap] = by * (gain ? gain[column + j] : 1.0f) * sums[j / TILE * QUARTER + i * TILE + j % TILE];
        }
}

// The columns of a thin matrix (rows, gap), `whole` of them of which those after the rank are 0: (blocks, whole, 32).
static void turn_thin(const uint16_t *thin, int64_t gap, int64_t rank, int64_t whole, int64_t rows, int64_t block, uint16_t *turned) {
    turned += block * whole * SIDE;
    memset(turned, 0, (size_t)(whole * SIDE * 2));
    for (int64_t i = 0; i < least(rows - block * SIDE, SIDE); i++)
        for (int64_t k = 0; k < rank; k++) turned[k * SIDE + i] = thin[(block * SIDE + i) * gap + k];
}

int any_zero_f32(const float *x, int64_t count, int threads) {
    (void)threads;
    for (int64_t n = 0; n < count; n++)
        if (x[n] == 0) return 1;
    return 0;
}

// Σ over the rows of dy ∘ kept, for 32 · count columns.
static inline __attribute__((always_inline)) void sums_of_columns(const uint16_t *dy, const uint16_t *kept, int64_t rows, int64_t width, int count, float *to) {
    __m512 sums[2 * PANEL];
    for (int c = 0; c < 2 * count; c++) sums[c] = _mm512_setzero_ps();
    for (int64_t i = 0; i < rows; i++, dy += width, kept += width) {
        prefetch(kept + AHEAD * width, count);
        for (int c = 0; c < 2 * count; c++) sums[c] = _mm512_fmadd_ps(widened(dy + c * TILE), widened(kept + c * TILE), sums[c]);
    }
    for (int c = 0; c < 2 * count; c++) _mm512_storeu_ps(to + c * TILE, sums[c]);
}

static void column_sums(const uint16_t *dy, const uint16_t *kept, int64_t rows, int64_t width, int64_t column, int64_t count, float *to) {
    if (count == PANEL) {
        sums_of_columns(dy + column, kept + column, rows, width, PANEL, to + column);
        return;
    }
    for (; count > 0; count--, column += SIDE) sums_of_columns(dy + column, kept + column, rows, width, 1, to + column);
}

// dx: (rows, in) or null, da: (rank, in), db: (out, rank); for DoRA gain, norm, dmagnitude: (out) and kept: (rows, out), which is y with
// `of_result`, else null. Returns 0, or 1 where there is no memory.
int tile_low_rank_backward_bf16(const uint16_t *dy, const uint16_t *x, const uint16_t *values, const uint8_t *packed, const float *code,
                                const float *scales, const uint8_t *fine, const float *fine_code, const float *coarse, const float *offset,
                                const float *a, const float *b, float scale, const uint16_t *thin, const float *gain, const float *norm,
                                const uint16_t *kept, uint16_t *dx, float *da, float *db, float *dmagnitude, int64_t of_result, int64_t rows, int64_t in, int64_t out,
                                int64_t rank, int threads) {
    frozen w = {values, packed, code, scales, fine, fine_code, coarse, offset};
    int64_t whole = (rank + TILE - 1) / TILE * TILE, blocks = (rows + SIDE - 1) / SIDE, twice_width = 2 * whole;
    size_t laid_size = (size_t)(whole * out * PARTS * 2), twice_size = ROUND((size_t)(rows * twice_width * 2));
    size_t turned_size = (size_t)(blocks * whole * SIDE * 2), slab_size = (size_t)((out + twice_width) * SIDE * 2);
    size_t rows_size = (size_t)(PANEL * blocks * AREA * 2), panel_size = rows_size > PANEL * slab_size ? rows_size : PANEL * slab_size;
    size_t parts_size = (size_t)(SIDE * twice_width * 2), sums_size = PANEL * AREA * 4, own = panel_size + parts_size + sums_size;
    size_t common = laid_size + twice_size + 2 * turned_size;
    uint8_t *memory = aligned_alloc(64, common + (size_t)threads * own);
    if (memory == 0) return 1;
    uint16_t *laid = (uint16_t *)memory, *twice = (uint16_t *)(memory + laid_size), *thin_turned = (uint16_t *)(memory + laid_size + twice_size);
    uint16_t *dthin_turned = thin_turned + turned_size / 2;
#pragma omp parallel num_threads(threads)
    {
        tile_shapes found;
        tiles_begin(&found);
#pragma omp for schedule(static)
        for (int64_t j = 0; j < out; j += SIDE) lay_thin_down(b, scale, gain, rank, whole, out, j, laid);
#pragma omp for schedule(static)
        for (int64_t thread = 0; thread < threads; thread++) {
            float *sums = (float *)(memory + common + (size_t)thread * own);
            for (int64_t n = blocks * thread / threads; n < blocks * (thread + 1) / threads; n++) {
                make_thin(dy, out, laid, sums, block_start(n, rows), rank, whole, 0, twice);
                turn_thin(thin, rank, rank, whole, rows, n, thin_turned);
            }
        }
#pragma omp for schedule(static)
        for (int64_t n = 0; n < blocks; n++) turn_thin(twice, twice_width, rank, whole, rows, n, dthin_turned);
#pragma omp for schedule(static)
        for (int64_t thread = 0; thread < threads; thread++) {
            uint8_t *at = memory + common + (size_t)thread * own;
            float *sums = (float *)at;
            uint16_t *parts = (uint16_t *)(at + sums_size), *panel = (uint16_t *)(at + sums_size + parts_size), room[2][PANEL * SIDE];
            memset(parts, 0, parts_size);
            int64_t last = in / SIDE * (thread + 1) / threads;
            for (int64_t n = in / SIDE * thread / threads, count; n < last; n += count) {
                count = least(PANEL, last - n);
                outer(x, rows, in, n * SIDE, count, dthin_turned, rank, whole, 1.0f, 0, panel, sums, da, in, 1);
                if (dx == 0) continue;
                for (int64_t j = 0; j < out; j += 2) {
                    const uint16_t *rows_of_w[2];
                    if (w.values) prefetch(w.values + (j + AHEAD) * in + n * SIDE, count), prefetch(w.values + (j + AHEAD + 1) * in + n * SIDE, count);
                    for (int h = 0; h < 2; h++) rows_of_w[h] = values_of(&w, (j + h) * in + n * SIDE, count * SIDE, room[h]);
                    for (int64_t c = 0; c < count; c++) {
                        uint16_t *to = panel + c * slab_size / 2 + j / SIDE * AREA + j % SIDE / 2 * SIDE;
                        if (gain)
                            both_scaled_in_turn(rows_of_w[0] + c * SIDE, rows_of_w[1] + c * SIDE, gain[j], gain[j + 1], to);
                        else
                            both_in_turn(rows_of_w[0] + c * SIDE, rows_of_w[1] + c * SIDE, to);
                    }
                }
                for (int64_t c = 0; c < count; c++) {
                    uint16_t *rest = panel + c * slab_size / 2 + out * SIDE;
                    for (int64_t k = 0; k < rank; k++) split(a + k * in + (n + c) * SIDE, SIDE, 1.0f, parts + k * SIDE, parts + (whole + k) * SIDE);
                    for (int64_t j = 0; j < whole; j++)
                        both_in_turn(parts + 2 * j * SIDE, parts + (2 * j + 1) * SIDE, rest + j / TILE * AREA + j % TILE * SIDE);
                }
                product((side){dy, out}, (side){twice, twice_width}, panel, count, sums, rows, n * SIDE, in, 0, 0, dx, 0);
            }
            last = out / SIDE * (thread + 1) / threads;
            for (int64_t n = out / SIDE * thread / threads, count; n < last; n += count) {
                count = least(PANEL, last - n);
                outer(dy, rows, out, n * SIDE, count, thin_turned, rank, whole, scale, gain, panel, sums, db, 1, rank);
                if (gain) column_sums(dy, kept, rows, out, n * SIDE, count, dmagnitude);
                for (int64_t j = n * SIDE; gain && j < (n + count) * SIDE; j++) dmagnitude[j] /= of_result ? gain[j] * norm[j] : norm[j];
            }
        }
        _mm_sfence();
        tiles_end(&found);
    }
    free(memory);
    return 0;
}
#endif
