"""Probabilistic PCA on CIFAR-10: the exact likelihood of the best linear model of a code size."""

from __future__ import annotations

import math

import torch

from kanerva_ext.data import ImageSet
from kanerva_ext.models.likelihoods import bits_per_dim
from kanerva_ext.models.linear_path import PrincipalComponents, principal_components

SIZES = (50, 100, 200, 400, 800)


def measure(train: ImageSet, test: ImageSet, sizes: tuple[int, ...] = SIZES, seed: int = 0) -> list:
    """One row for each number of components: bits per dimension of the test images.

    Maximum likelihood on the training images with uniform noise added, taken exactly; each test
    image once, with noise drawn. ``autoencoder`` is what the components' squared error would give
    with the codes known for nothing: what an exact memory of the codes approaches.
    """
    generator = torch.Generator().manual_seed(seed)
    noise = torch.rand(test.images.shape, generator=generator, dtype=torch.float64)
    images = ((test.images + noise) / 256).flatten(1)
    whole = principal_components(train.images, max(sizes))
    num_dims = images.shape[1]
    total = whole.variances.sum().item() + (num_dims - max(sizes)) * whole.noise_var
    rows = []
    for size in sizes:
        kept = whole.variances[:size]
        noise_var = (total - kept.sum().item()) / (num_dims - size)
        part = PrincipalComponents(whole.mean, whole.directions[:size], kept, noise_var)
        nats = -part.log_likelihood(images)
        centred = images - part.mean
        error = centred.square().sum(1) - (centred @ part.directions.mT).square().sum(1)
        var = error.mean().item() / num_dims
        bound = 0.5 * num_dims * (1 + math.log(2 * math.pi * var))
        rows.append(
            {
                "components": size,
                "nats": nats.mean().item(),
                "standard_error": nats.std().item() / math.sqrt(len(nats)),
                "bits_per_dim": bits_per_dim(nats.mean().item(), num_dims),
                "autoencoder": bits_per_dim(bound, num_dims),
            }
        )
    return rows
