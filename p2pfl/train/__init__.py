"""All tensor work of a run: plan code, local steps, update rules, mixing, the worker process.

Importing this package loads no torch; its modules do, except ``frames``.
"""
