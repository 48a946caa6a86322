"""One experiment: settings, environments, agents, training, playing, and what a run leaves behind."""

import os

# Has to be said before torch is imported. Its threads wait by spinning otherwise, and take the processors from the
# threads of the compiled scan, and from other runs on the machine (benchmarks/speed/threads.py).
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
