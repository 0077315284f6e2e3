// Cross-entropy behind an output layer and its gradient, in tiles of bfloat16, without the logits ever lying in memory:
//
//     logits = factor · x Wᵀ      nats[s] = log Σ exp(logits[s]) - logits[s, targets[s]]
//     dx[s]  = weights[s] · factor · (softmax(logits[s]) W - W[targets[s]])
//
// As attention computes its output (Dao et al. 2022, algorithm 1), with the rows of W as keys and as values: tokens of the vocabulary are taken
// in panels, and what earlier panels added is scaled when a row's largest logit grows. Each thread has a part of the vocabulary; at the end the
// parts are added in the threads' order. The target's own share, p - 1, is kept apart: as a difference in float32 it stays exact where p nears 1.
#include <math.h>

#include "tiles.h"

#ifdef TILES
#define SLABS 8        // of 32 tokens in a panel: laid out twice, W's rows of it stay in a core's second cache
#define GROWN 8.0f     // how far above a row's known largest logit another may lie before what was added is scaled: exp(8) loses nothing

// What a thread knows of each row, after `largest` was taken out: Σ exp, the same without the target, and Σ exp · W without the target.
typedef struct {
    float *largest, *sum, *others, *added;
} share;

// One row of a panel's logits: exponentials as bfloat16 into `shares`, the target's left out.
static void take_row(const float *logits, int64_t count, int64_t i, int64_t row, int64_t target, float factor, share own, uint16_t *shares,
                     float *added, int64_t width, float *at) {
    __m512 by = _mm512_set1_ps(factor), most = _mm512_set1_ps(-INFINITY), sum = _mm512_setzero_ps(), others = _mm512_setzero_ps();
    for (int64_t c = 0; c < count; c++)
        for (int h = 0; h < 2; h++) most = _mm512_max_ps(most, _mm512_mul_ps(lanes_of(logits + c * AREA, i, h), by));
    float largest = _mm512_reduce_max_ps(most), before = own.largest[row];
    if (largest > before + GROWN) {
        float less = before == -INFINITY ? 0.0f : expf(before - largest);
        own.largest[row] = largest, own.sum[row] *= less, own.others[row] *= less;
        if (added && less)
            for (int64_t k = 0; k < width; k += SIDE)
                for (int h = 0; h < 2; h++) {
                    float *to = added + k * SIDE + i / TILE * 2 * QUARTER + h * QUARTER + i % TILE * TILE;
                    _mm512_store_ps(to, _mm512_mul_ps(_mm512_load_ps(to), _mm512_set1_ps(less)));
                }
    }
    __m512 known = _mm512_set1_ps(own.largest[row]);
    for (int64_t c = 0; c < count; c++) {
        __m512 e[2];
        for (int h = 0; h < 2; h++) {
            __m512 logit = _mm512_mul_ps(lanes_of(logits + c * AREA, i, h), by);
            e[h] = exponentials(_mm512_sub_ps(logit, known), 0xffff);
            sum = _mm512_add_ps(sum, e[h]);
            int64_t lane = target - c * SIDE - h * TILE;
            if (lane >= 0 && lane < TILE) {
                *at = _mm512_mask_reduce_add_ps((__mmask16)(1 << lane), logit);
                e[h] = _mm512_maskz_mov_ps((__mmask16)~(1 << lane), e[h]);
            }
            others = _mm512_add_ps(others, e[h]);
        }
        _mm512_store_si512(shares + c * AREA + i * SIDE, narrowed(e[0], e[1]));
    }
    own.sum[row] += _mm512_reduce_add_ps(sum), own.others[row] += _mm512_reduce_add_ps(others);
}

// W's rows `first` to first + 32 · count, laid for the logits and, where `down` is there, for the gradient: for each 32 columns, each slab.
static void lay(const uint16_t *w, int64_t first, int64_t count, int64_t width, uint16_t *across, uint16_t *down) {
    for (int64_t c = 0; c < count; c++) {
        const uint16_t *rows = w + (first + c * SIDE) * width;
        lay_across(rows, across + c * SIDE * width, width);
        if (down)
            for (int64_t i = 0; i < TILE; i++)
                for (int64_t k = 0; k < width; k += SIDE)
                    both_in_turn(rows + 2 * i * width + k, rows + (2 * i + 1) * width + k, down + (k / SIDE * SLABS + c) * AREA + i * SIDE);
    }
}

// The parts of all threads together: a row's nats and its gradient.
static void finish(const share *parts, int threads, const uint16_t *w_of_target, int64_t row, float at, float weight, float factor,
                   int64_t width, float *nats, uint16_t *dx) {
    float largest = -INFINITY, sum = 0, others = 0, by[threads];
    for (int n = 0; n < threads; n++) largest = fmaxf(largest, parts[n].largest[row]);
    for (int n = 0; n < threads; n++) {
        by[n] = parts[n].largest[row] == -INFINITY ? 0.0f : expf(parts[n].largest[row] - largest);
        sum += by[n] * parts[n].sum[row], others += by[n] * parts[n].others[row];
    }
    *nats = largest + logf(sum) - at;
    if (dx == 0) return;
    float scale = weight * factor / sum;
    for (int64_t k = 0; k < width; k += SIDE) {
        __m512 half[2];
        for (int h = 0; h < 2; h++) {
            half[h] = _mm512_mul_ps(widened(w_of_target + k + h * TILE), _mm512_set1_ps(-others));
            for (int n = 0; n < threads; n++)
                if (by[n]) half[h] = _mm512_fmadd_ps(lanes_of(parts[n].added + row / SIDE * SIDE * width + k * SIDE, row % SIDE, h), _mm512_set1_ps(by[n]), half[h]);
            half[h] = _mm512_mul_ps(half[h], _mm512_set1_ps(scale));
        }
        _mm512_storeu_si512(dx + k, narrowed(half[0], half[1]));
    }
}

// x: (rows, width), w: (vocabulary, width), targets: (rows), weights: (rows), nats: (rows), dx: (rows, width) or null, with weights null.
// Width and vocabulary are multiples of 32. Returns 0, or 1 where there is no memory.
int tile_head_bf16(const uint16_t *x, const uint16_t *w, const int64_t *targets, const float *weights, float factor, float *nats, uint16_t *dx,
                   int64_t rows, int64_t width, int64_t vocabulary, int threads) {
    int64_t blocks = (rows + SIDE - 1) / SIDE;
    size_t added_size = dx ? (size_t)(blocks * SIDE * width * 4) : 0, figures = (size_t)(blocks * SIDE * 4), x_size = (size_t)(blocks * SIDE * width * 2);
    size_t laid = (size_t)(SLABS * SIDE * width * 2), own = added_size + 3 * figures + (dx ? 2 : 1) * laid + SLABS * AREA * 6;
    uint8_t *memory = aligned_alloc(64, x_size + figures + (size_t)threads * own);
    if (memory == 0) return 1;
    uint16_t *filled = (uint16_t *)memory;
    float *at = (float *)(memory + x_size);
    memcpy(filled, x, (size_t)(rows * width * 2));
    memset(filled + rows * width, 0, x_size - (size_t)(rows * width * 2));
    share parts[threads];
    for (int n = 0; n < threads; n++) {
        float *from = (float *)(memory + x_size + figures + (size_t)n * own);
        parts[n].added = from;
        parts[n].largest = from + added_size / 4, parts[n].sum = parts[n].largest + blocks * SIDE, parts[n].others = parts[n].sum + blocks * SIDE;
    }
#pragma omp parallel num_threads(threads)
    {
        tile_shapes found;
        tiles_begin(&found);
#pragma omp for schedule(static)
        for (int64_t thread = 0; thread < threads; thread++) {
            share own_share = parts[thread];
            uint16_t *across = (uint16_t *)(own_share.others + blocks * SIDE), *down = dx ? across + laid / 2 : 0;
            float *logits = (float *)((uint8_t *)across + (dx ? 2 : 1) * laid);
            uint16_t *shares = (uint16_t *)(logits + SLABS * AREA);
            memset(own_share.added, 0, added_size + 3 * figures);
            for (int64_t row = 0; row < blocks * SIDE; row++) own_share.largest[row] = -INFINITY;
            int64_t slabs = vocabulary / SIDE, last = slabs * (thread + 1) / threads;
            for (int64_t slab = slabs * thread / threads, count; slab < last; slab += count) {
                count = last - slab < SLABS ? last - slab : SLABS;
                lay(w, slab * SIDE, count, width, across, down);
                for (int64_t block = 0; block < blocks; block++) {
                    float *added = own_share.added + block * SIDE * width;
                    for (int64_t c = 0; c < count; c++) {
                        clear(logits + c * AREA);
                        add_up(logits + c * AREA, filled + block * SIDE * width, width, across + c * SIDE * width, 0, width);
                        put(logits + c * AREA);
                    }
                    for (int64_t i = 0; i < SIDE; i++) {
                        int64_t row = block * SIDE + i, target = row < rows ? targets[row] - slab * SIDE : -1;
                        take_row(logits, count, i, row, target, factor, own_share, shares, dx ? added : 0, width, at + row);
                    }
                    for (int64_t k = 0; dx && k < width / SIDE; k++) {
                        fetch(added + k * AREA);
                        multiply(added + k * AREA, shares, SIDE, AREA, down + k * SLABS * AREA, AREA, count);
                        put(added + k * AREA);
                    }
                }
            }
        }
        tiles_end(&found);
#pragma omp for schedule(static)
        for (int64_t row = 0; row < rows; row++)
            finish(parts, threads, w + targets[row] * width, row, at[row], weights ? weights[row] : 0.0f, factor, width, nats + row,
                   dx ? dx + row * width : 0);
    }
    free(memory);
    return 0;
}
#endif
