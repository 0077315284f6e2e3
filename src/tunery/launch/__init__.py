"""The training of a run in the processes that its sharding asks for.

work.py        what one process does: data, model, training, and the first one's writing
processes.py   starting such processes on this machine, watching them, and saying why one failed
__main__.py    such a process: `python -m tunery.launch RUN`
outside.py     processes that a launcher such as torchrun has started, also on several machines
"""
