"""A model's arrays side by side in one buffer."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..arrays import checks, layout
from ..common.public import public
from ..common.trees import Structure
from ..common.validation import names_arguments

_ORDER = {dtype: i for i, dtype in enumerate(reversed(checks.DTYPES))}  # float64 first: no gap is needed behind it


@public
@names_arguments
def pack(params: Any) -> Any:
    """Copy a model's arrays into one aligned buffer; returns views of it in the same structure.

    A step over packed parameters and gradients is one contiguous run per dtype (optimizers lay the states of packed
    parameters side by side too), which pays for models of many small arrays. The model must then use the returned
    arrays; the old ones are left as they were.

    Parameters
    ----------
    params : array, sequence, mapping or nesting of these
        float32 or float64 arrays of any layout. Arrays that lie side by side already, in the order in which `pack`
        puts them (float64 before float32, else their own), are returned as they are.

    Returns
    -------
    same structure (dicts and lists)
        C-ordered views of the same shapes and dtypes, without gaps; the first begins at a multiple of 64 bytes.

    Raises
    ------
    TypeError
        An entry is not an array of native float32 or float64.

    Examples
    --------
    >>> import numpy as np, fastoptim as fo
    >>> packed = fo.pack({"w": np.ones((2, 3)), "b": np.zeros(3)})
    >>> packed["w"].shape, packed["w"].base is packed["b"].base
    ((2, 3), True)
    >>> fo.pack(packed)["w"] is packed["w"]
    True
    """
    structure = Structure(params)
    leaves = structure.leaves(params)
    for name, x in zip(structure.names, leaves, strict=True):
        if not isinstance(x, np.ndarray) or isinstance(x, np.ma.MaskedArray):
            raise TypeError(f"parameter {name!r}: expected a NumPy array, got {type(x).__name__}{checks.instead_of(x)}")
        checks.check_dtype(name, x.dtype)
    order = sorted(range(len(leaves)), key=lambda i: _ORDER[leaves[i].dtype])
    ordered = [leaves[i] for i in order]
    plain = all(type(x) is np.ndarray and x.flags.c_contiguous for x in ordered)
    if plain and len(layout.runs_side_by_side(ordered)) <= len({x.dtype for x in ordered}):
        return structure.rebuild(leaves)
    buffer = np.empty(sum(x.nbytes for x in ordered) + layout.CACHE_LINE, np.uint8)
    start = -buffer.__array_interface__["data"][0] % layout.CACHE_LINE
    views = layout.views_side_by_side(buffer, ordered, start)
    for view, x in zip(views, ordered, strict=True):
        view[...] = x
    packed = dict(zip(order, views, strict=True))
    return structure.rebuild([packed[i] for i in range(len(packed))])
