import os
import sys
import tempfile

# before any hub client is imported: no test may need the network
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# what tests name as their code is no word of the user's
os.environ.setdefault("MATTA_CACHE", tempfile.mkdtemp(prefix="matta-tests-"))

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def imports(tmp_path_factory):
    """What a test has Python import, and from where, is another test's no longer."""
    path, modules, made = list(sys.path), {*sys.modules}, str(tmp_path_factory.getbasetemp())
    yield
    sys.path[:] = path
    for name in {*sys.modules} - modules:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(made):
            del sys.modules[name]
