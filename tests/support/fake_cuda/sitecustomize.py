"""Python runs this when it starts: it puts the fake driver in the place of CUDA's, if the environment asks for it."""

import os
import sys
from pathlib import Path

if os.environ.get("FASTOPTIM_FAKE_CUDA"):
    sys.path.append(str(Path(__file__).resolve().parents[3]))
    from tests.support import fake_cuda

    fake_cuda.install()
