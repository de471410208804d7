"""Weights from elsewhere: PyTorch and safetensors files read without either of them."""

from crossres_jax.pretrained.merge import merge
from crossres_jax.pretrained.safetensors import read_safetensors, write_safetensors
from crossres_jax.pretrained.torch_file import load_torch

__all__ = ["load_torch", "merge", "read_safetensors", "write_safetensors"]
