"""One experiment: settings, environments, agents, training, playing, and what a run leaves behind."""

import os

# Has to be said before torch is imported. Its threads wait by spinning otherwise, and take the processors from the
# threads of the compiled scan, and from other runs on the machine. GNU's OpenMP spins a little all the same,
# so that one small operation after the other finds its threads awake (benchmarks/speed/threads.py).
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ["OMP_WAIT_POLICY"] = "passive"
    os.environ.setdefault("GOMP_SPINCOUNT", "2000")
