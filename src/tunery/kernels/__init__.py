"""A training step's work on a CPU in C, compiled once on this machine: what surrounds the matrix products, each in one pass over memory, and
where the processor multiplies bfloat16 itself (by a matrix unit, AMX, or by AVX-512) the products themselves.

torch makes a tensor for every sum and product and, in bfloat16, one in float32 besides: on a processor whose matrix unit is fast that
costs more than the products. `cpu.c` has what is computed element by element, and attention of one new token; `tile_attention.c`,
`tile_low_rank.c` and `tile_head.c` have attention, adapted layers and the loss in tiles of bfloat16, over `tiles.h`, which has both ways to
multiply them. All need a compiler; without one, and on a GPU, torch's own operations are used, and `tunery doctor` says so.
"""
