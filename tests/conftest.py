import os
import tempfile

# before any hub client is imported: no test may need the network
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# what tests name as their code is no word of the user's
os.environ.setdefault("MATTA_CACHE", tempfile.mkdtemp(prefix="matta-tests-"))

import torch

torch.set_num_threads(1)
