"""Where the time and the memory of a run went: `tunery train --profile`.

record.py    profile.json in the run: whether a profile is wanted, and what is known of it by now
stages.py    seconds and resident memory of each stage of the job
parts.py     the parts into which a training step is divided, in words
_watch.py    a few training steps under torch.profiler, begun and ended by the training loop
_scopes.py   names on the parts of a step, put there from outside while it is profiled; scope.py is what a name says
spent.py     from the profiler's tree of operations to seconds and floating point operations of each part
alive.py     from its allocations to what was alive at the height of a step

`report/profile_page.py` makes the page of it. Nothing here changes a result: a run gives the same losses with it and without.
"""
