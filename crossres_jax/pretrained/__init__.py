"""Weights from elsewhere: safetensors files read and written without that library."""

from crossres_jax.pretrained.safetensors import read_safetensors, write_safetensors

__all__ = ["read_safetensors", "write_safetensors"]
