"""Advantages, losses and packing: pure functions of tensors, one small file each."""
