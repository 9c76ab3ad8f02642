"""Planted bugs that the tests must catch: python -m tests.proofs.mutants."""
