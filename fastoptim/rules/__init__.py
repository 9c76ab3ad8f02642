"""The update rules: each stated once, in NumPy terms, with its coefficients and the norm.

`updates` holds the equations, `coefficients` what hyperparameters come to, `table` the rows that all else goes
through, `norm` the gradient norm and the clip factor; `reference` runs them with NumPy, `lowering` rewrites them for
Numba and CUDA.
"""
