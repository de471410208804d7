"""The pairs of `benchmarks.loading` from a plain PyTorch `DataLoader` with Pillow.

Written as repositories of person re-ID write theirs, without torchvision, whose
transforms of a Pillow image call the same functions of Pillow.
"""

import collections
import random

import numpy as np
import torch
from PIL import Image, ImageOps

PAD = 10


class Pairs(torch.utils.data.Dataset):
    """LR copy and original of each file, with the same flip and crop.

    Args:
      paths: of pictures called `0002_c1s1_000451_03.jpg`, identity and camera first.
      size: (height, width) of the pairs.
      scales: the rates of the LR copies.
    """

    def __init__(self, paths, size, scales):
        self.paths, self.scales = paths, scales
        self.height, self.width = size
        self.pids = [int(path.name[:4]) for path in paths]

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, index):
        hr = Image.open(self.paths[index]).convert("RGB")
        scale = random.choice(self.scales)
        size = hr.width // scale, hr.height // scale
        lr = hr.resize(size, Image.Resampling.BICUBIC)
        size = self.width, self.height
        pair = [image.resize(size, Image.Resampling.BICUBIC) for image in (lr, hr)]
        if random.random() < 0.5:
            pair = [ImageOps.mirror(image) for image in pair]
        left, top = random.randint(0, 2 * PAD), random.randint(0, 2 * PAD)
        box = left, top, left + self.width, top + self.height
        lr, hr = (_tensor(ImageOps.expand(image, PAD).crop(box)) for image in pair)
        return {"lr": lr, "hr": hr, "pid": self.pids[index], "scale": scale}


class IdentityBatches:
    """Indices of P random identities with K random pictures each, without end."""

    def __init__(self, pids, num_ids, num_instances):
        self.num_ids, self.num_instances = num_ids, num_instances
        self.indices = collections.defaultdict(list)
        for index, pid in enumerate(pids):
            self.indices[pid].append(index)

    def __iter__(self):
        while True:
            batch = []
            for pid in random.sample(list(self.indices), self.num_ids):
                again = self.num_instances  # where an identity has too few pictures
                batch += random.sample(self.indices[pid] * again, self.num_instances)
            yield batch


def load(paths, *, size, scales, num_ids, num_instances, num_workers):
    """Batches without end; the workers, if any, are started at once."""
    dataset = Pairs(paths, size, scales)
    return iter(
        torch.utils.data.DataLoader(
            dataset,
            batch_sampler=IdentityBatches(dataset.pids, num_ids, num_instances),
            num_workers=num_workers,
        )
    )


def _tensor(image):
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float().div(255)
