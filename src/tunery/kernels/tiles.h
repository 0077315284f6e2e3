// The matrix unit (AMX; Intel's architecture manual, volume 1, chapter 18): eight tiles of 16 rows of 64 bytes.
#pragma once
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#ifdef __AMX_BF16__
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

#define TILE 16

typedef struct {
    uint8_t palette, start, reserved[14];
    uint16_t bytes[16];
    uint8_t rows[16];
} __attribute__((aligned(64))) tile_shapes;

static int tiles_allowed(void) {  // Linux hands the tiles out to those who ask
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
#endif
