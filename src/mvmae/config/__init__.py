"""Frozen dataclasses with the options of every command; nothing here imports torch.

Each command loads only its own module. A value that cannot work raises `UserError` when the
config is built, before a model is made or a file is written.
"""
