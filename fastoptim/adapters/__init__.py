"""Adapters for NumPy code bases that have optimizers of their own; each is imported by name and loads nothing else.

=====================================  ==============================================================================
`fastoptim.adapters.sklearn`           scikit-learn's ``MLPClassifier`` and ``MLPRegressor``
`fastoptim.adapters.autograd`          ``autograd.misc.optimizers`` of HIPS autograd
`fastoptim.adapters.thinc`             an ``Optimizer`` for thinc and spaCy
`fastoptim.adapters.cs231n`            ``rule(w, dw, config) -> (w, config)``
`fastoptim.adapters.dicts`             ``update(params, grads)`` over dicts ("Deep Learning from Scratch")
`fastoptim.adapters.objects`           objects with ``.data`` and ``.grad`` (DeZero, micro-frameworks)
`fastoptim.adapters.numpy_ml`          ``optimizer(param, grad, name)``, which returns the new array
`fastoptim.adapters.per_array`         ``update(p, g, m, v, ...)`` for code that keeps its own states
=====================================  ==============================================================================
"""
