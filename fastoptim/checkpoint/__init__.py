"""Checkpoints: one safetensors file that is either whole or refused, and never a reason to run code.

Format (version 1). A safetensors file: 8 bytes of header length, a JSON header, the arrays' bytes, all in C order and
little-endian. The header begins with ``{"__metadata__":{"sha256":"<64 hex digits>"``, the SHA-256 of the whole file
with these digits as zeros. The other metadata are "format" ("fastoptim"), "version", "kind", "software" and "tree": the
saved tree as JSON, in which ``{"$tensor": name}`` stands for an array of the file. A header has at most 8 MiB, or as
much as the arrays if they have more.

A file is written beside its target, synced, and renamed; the target's last content stays as ``<name>.previous``. So at
every moment, whatever happens to the process, the target is a whole checkpoint, the new one or the last one. Loading
reads the file (no memory map), checks all of it before anything is built from it, and allocates no more than a multiple
of the file's size: 16 times as much, or 256 MiB for a small file, if every byte is chosen to cost as much as it can.

`format` knows the bytes of a file, `encoding` how a tree becomes JSON and arrays, `files` how a file is replaced,
`matching` what fits into which arrays, `slices` the checkpoints that several processes write together.
"""

from .files import CheckpointError

__all__ = ["CheckpointError"]
