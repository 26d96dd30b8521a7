import os

# before any hub client is imported: no test may need the network
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch

torch.set_num_threads(1)
