"""The training loop and what it is made of. Start reading in `loop.py`."""
