"""A training step's work on a CPU in C, compiled once on this machine: what surrounds the matrix products, each in one pass over memory, and
where the processor has a matrix unit (AMX) the products themselves.

torch makes a tensor for every sum and product and, in bfloat16, one in float32 besides: on a processor whose matrix unit is fast that
costs more than the products. `cpu.c` has what is computed element by element; `tile_attention.c`, `tile_low_rank.c` and `tile_head.c` have
attention, adapted layers and the loss by the matrix unit, over `tiles.h`. All need a compiler; without one, and on a GPU, torch's own
operations are used, and `tunery doctor` says so.
"""
