"""Steps on the GPU through numba-cuda."""

from .streams import on_stream
