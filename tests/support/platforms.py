"""What tests ask of the operating system."""

from __future__ import annotations

import os

import pytest

needs_posix = pytest.mark.skipif(os.name != "posix", reason="NOT TESTED: modes, links and locks of files are POSIX's")
