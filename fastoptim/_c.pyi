"""The C extension, built by cffi: C's functions, and what turns Python objects into their arguments."""

from typing import Any

ffi: Any
lib: Any
