import os

import torch

torch.set_num_threads(1)  # the tests are small; threads would only wait for each other
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # before triton is imported: its kernels run on the CPU then
