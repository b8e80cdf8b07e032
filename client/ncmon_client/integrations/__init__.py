"""Adapters: one line for users of Lightning, Transformers and Accelerate.

Rules of this package
- An adapter finds out logits and labels and says them (`observe`); it measures nothing and sends nothing itself.
- A module here imports its framework; nothing else of the client does, and this file imports none.
- A validation or sanity pass is no training: only training batches are said.
"""
