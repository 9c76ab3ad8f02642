"""Host arrays: what may be handed in, and how odd layouts become plain ones."""
