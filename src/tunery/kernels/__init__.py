"""What surrounds the matrix products of a training step on a CPU, each in one pass over memory: C, compiled once on this machine.

torch makes a tensor for every sum and product and, in bfloat16, one in float32 besides: on a processor whose matrix unit is fast that
costs more than the products. The C code (`cpu.c`) needs a compiler; without one, and on a GPU, torch's own operations are used, and
`tunery doctor` says so.
"""
