"""Writes tests/data/pytorch/small.bin with PyTorch itself: what a real checkpoint looks like.

Every tensor holds 0, 0.25, 0.5, ... in row-major order.
"""

import sys

import torch


def counted(*shape, dtype=torch.float32):
    count = 1
    for size in shape:
        count *= size
    return (torch.arange(count, dtype=torch.float32) / 4).to(dtype).reshape(shape)


class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = torch.nn.Parameter(counted(5, 4))
        self.head = self.embedding
        self.short = torch.nn.Parameter(counted(2, 3, dtype=torch.float16))
        self.brain = torch.nn.Parameter(counted(2, 3, dtype=torch.bfloat16))
        # A view into the middle of a larger storage.
        self.register_buffer("part", counted(4, 3)[1:3])
        self.register_buffer("mask", torch.ones(2, 2, dtype=torch.bool))


torch.save(Model().state_dict(), sys.argv[1])
