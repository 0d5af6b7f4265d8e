"""Episodes of random images: their shapes, values, random choices, and errors."""

import math

import pytest
import torch

from kanerva_ext.data import PIXELS, EpisodeSampler, load_omniglot, split_episodes


def rows(images):
    """The images as a set of bytes."""
    return {image.numpy().tobytes() for image in images}


def numbered(count, size=3):
    """Images (count, size, size) uint8, image i holding i everywhere."""
    return torch.arange(count, dtype=torch.uint8).view(-1, 1, 1).expand(-1, size, size)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def test_episodes():
    images, labels = load_omniglot("test")
    sampler = EpisodeSampler(images, labels, episode_length=7, batch_size=3)
    batch = next(iter(sampler))
    assert batch.shape == (3, 7, 1, 28, 28) and batch.dtype == torch.float32
    assert set(batch.unique().tolist()) == {0.0, 1.0}
    assert rows(batch.flatten(0, 2).bool()) <= rows(images)


def test_no_image_is_twice_in_an_episode():
    sampler = EpisodeSampler(numbered(12), episode_length=12, batch_size=50)
    assert (sampler.sample_rows().sort(dim=1).values == torch.arange(12)).all()


def test_every_image_is_as_likely():
    sampler = EpisodeSampler(numbered(10), episode_length=5, batch_size=4000, generator=seeded())
    share = sampler.sample_rows().flatten().bincount(minlength=10) / 4000
    assert (share - 0.5).abs().max() < 0.05


def test_few_classes():
    labels = torch.arange(60) % 6
    sampler = EpisodeSampler(numbered(60), labels, episode_length=15, batch_size=40, num_classes=2)
    drawn = sampler.sample_rows()
    assert all(len(labels[episode].unique()) == 2 for episode in drawn)
    assert all(len(episode.unique()) == 15 for episode in drawn)
    assert len(labels[drawn].unique()) == 6


def test_images_and_episodes_are_in_the_order_of_the_rows():
    """Uint8 images of three channels, told apart by level and channel."""
    images = torch.arange(40 * 3, dtype=torch.uint8).view(40, 3, 1, 1).expand(-1, -1, 5, 4)
    sampler = EpisodeSampler(images, episode_length=6, batch_size=4, generator=seeded(1))
    batch = sampler.sample()
    sampler.generator = seeded(1)
    assert batch.shape == (4, 6, 3, 5, 4)
    assert torch.equal(batch, images[sampler.sample_rows()].float() / 255)


def test_episodes_of_one_channel_are_those_of_none():
    images = load_omniglot("test")[0]

    def draw(images, **options):
        return EpisodeSampler(images, generator=seeded(), **options).sample()

    for options in ({}, {"augment": 0.7}, {"pixels": "sample"}):
        assert torch.equal(draw(images, **options), draw(images.unsqueeze(1), **options))


@pytest.mark.parametrize(
    ("images", "expected"),
    [
        (torch.tensor([False, True]), [0.0, 1.0]),
        (torch.tensor([0, 1, 51, 255], dtype=torch.uint8), [0.0, 1 / 255, 0.2, 1.0]),
        (torch.tensor([0.0, 0.3, 1.0], dtype=torch.float64), [0.0, 0.3, 1.0]),
        (torch.tensor([0.0, 0.25, 1.0], dtype=torch.bfloat16), [0.0, 0.25, 1.0]),
    ],
)
def test_levels_by_dtype(images, expected):
    episode = split_episodes(images.view(-1, 1, 1), episode_length=len(images))
    assert episode.dtype == torch.float32
    assert episode.flatten().sort().values.tolist() == torch.tensor(expected).tolist()


@pytest.mark.parametrize("floating", [False, True])
def test_sample_draws_ink_with_the_probability_of_the_level(floating):
    levels = torch.tensor([0, 51, 204, 255], dtype=torch.uint8).view(1, 1, 4)
    images = levels.float() / 255 if floating else levels
    images = images.expand(2, 100, 4)
    sampler = EpisodeSampler(
        images, episode_length=2, batch_size=200, pixels="sample", generator=seeded()
    )
    batch = sampler.sample()
    assert set(batch.unique().tolist()) == {0.0, 1.0}
    share = batch.mean((0, 1, 2, 3))
    # 40,000 pixels each: five standard errors.
    assert (share - torch.tensor([0, 0.2, 0.8, 1])).abs().max() < 5 * 0.4 / math.sqrt(40_000)
    assert share[0] == 0 and share[3] == 1
    assert not torch.equal(batch, sampler.sample())
    # No two pixels, images or episodes share their noise.
    middle = batch[..., 1].reshape(400, 100)
    assert len(rows(middle)) == 400


def test_threshold():
    levels = torch.tensor([0, 127, 128, 255], dtype=torch.uint8).view(1, 1, 1, 4).expand(3, 2, 1, 4)
    episode = split_episodes(levels, episode_length=3, pixels="threshold")
    assert torch.equal(episode, torch.tensor([0.0, 0, 1, 1]).expand(1, 3, 2, 1, 4))
    half = split_episodes(torch.full((1, 1, 1), 0.5), episode_length=1, pixels="threshold")
    assert half.item() == 0


def test_dequantize_fills_every_level_evenly():
    images = torch.arange(256, dtype=torch.uint8).view(1, 1, 256).expand(1, 3000, 256)
    values = split_episodes(images, episode_length=1, pixels="dequantize", generator=seeded())
    scaled = values.double() * 256
    assert values.min() >= 0 and values.max() < 1
    assert torch.equal(scaled.floor().to(torch.uint8).view_as(images), images)
    noise = scaled - scaled.floor()
    assert abs(noise.mean() - 0.5) < 5 * 0.2887 / math.sqrt(noise.numel())
    assert abs(noise.std() - 0.2887) < 0.001
    assert len(noise[..., 255].unique()) > 2800  # of 65,536 steps


def test_dequantized_bits():
    """A density that is flat within each level: its bits are those of the levels, plus 8 less 8."""
    levels = torch.tensor([0, 255], dtype=torch.uint8).repeat(50).view(100, 1, 1)
    values = split_episodes(levels, episode_length=100, pixels="dequantize")
    density = torch.where((values < 1 / 256) | (values >= 255 / 256), 128.0, 0.0)
    assert (8 - density.log2().mean()).item() == 1  # one of two levels


@pytest.mark.parametrize("pixels", ["as_is", "sample", "threshold"])
def test_bool_images_stay_what_they_are(pixels):
    images = load_omniglot("test")[0]

    def draw(pixels):
        return split_episodes(images, pixels=pixels, generator=seeded(2))

    assert torch.equal(draw(pixels), draw("as_is"))


@pytest.mark.parametrize("pixels", ["sample", "threshold"])
def test_augment_follows_pixels(pixels):
    images = 255 * load_omniglot("test")[0].to(torch.uint8)
    batch = EpisodeSampler(images, augment=1.0, pixels=pixels).sample()
    assert set(batch.unique().tolist()) == {0.0, 1.0}
    assert rows(batch.flatten(0, 2).bool()).isdisjoint(rows(images.bool()))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_augment_takes_images_that_are_binary_by_their_values(dtype):
    images = load_omniglot("test")[0].to(dtype) * (255 if dtype == torch.uint8 else 1)
    batch = EpisodeSampler(images, augment=0.5, generator=seeded()).sample()
    same = EpisodeSampler(images.bool(), augment=0.5, generator=seeded()).sample()
    assert torch.equal(batch, same)


@pytest.mark.parametrize(
    "options",
    [
        {"augment": 0.5, "pixels": "sample"},
        {"pixels": "sample"},
        {"pixels": "dequantize"},
        {"num_classes": 3},
    ],
)
def test_a_seed_repeats_a_batch_within_an_endless_iteration(options):
    """As a training that resumes does: every step seeds the sampler's generator anew."""
    images = torch.randint(256, (60, 6, 6), dtype=torch.uint8)
    labels = torch.arange(60) % 4
    options |= {"episode_length": 8, "batch_size": 3}
    sampler = EpisodeSampler(images, labels, generator=torch.Generator(), **options)
    batches = iter(sampler)

    def step(number):
        sampler.generator.manual_seed(number)
        return next(batches)

    first = [step(number) for number in range(4)]
    assert not torch.equal(first[0], first[1])
    assert torch.equal(step(2), first[2])  # out of order
    sampler.generator = seeded(3)  # or another generator
    assert torch.equal(next(batches), first[3])
    resumed = EpisodeSampler(images, labels, generator=seeded(1), **options)
    assert torch.equal(resumed.sample(), first[1])


def test_without_a_generator_the_global_seed_repeats():
    sampler = EpisodeSampler(numbered(40), pixels="sample")
    assert sampler.generator is None
    torch.manual_seed(5)
    first = sampler.sample()
    assert not torch.equal(sampler.sample(), first)
    torch.manual_seed(5)
    assert torch.equal(sampler.sample(), first)


def test_split_episodes_is_a_partition():
    episodes = split_episodes(numbered(70), episode_length=32)
    assert episodes.shape == (2, 32, 1, 3, 3)
    assert len(episodes[:, :, 0, 0, 0].unique()) == 64


def test_split_episodes_of_colours():
    images = torch.randint(256, (10, 3, 4, 5), dtype=torch.uint8)
    episodes = split_episodes(images, episode_length=5, generator=seeded())
    assert episodes.shape == (2, 5, 3, 4, 5)
    assert rows((episodes * 255).round().to(torch.uint8).flatten(0, 1)) == rows(images)
    again = split_episodes(images, episode_length=5, generator=seeded())
    assert torch.equal(again, episodes)


def test_the_images_are_not_changed():
    images = torch.rand(6, 3, 3).round()
    before = images.clone()
    for pixels in PIXELS[:3]:
        sampler = EpisodeSampler(images, episode_length=6, augment=1.0, pixels=pixels)
        sampler.sample().add_(1)
        split_episodes(images, episode_length=6, pixels=pixels).add_(1)
    assert torch.equal(images, before)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"images": torch.zeros(4, 3)},
            r"images must have shape \(N, H, W\) or \(N, C, H, W\), got \(4, 3\)",
        ),
        ({"images": torch.full((40, 2, 2), 1.5)}, r"images must be in \[0, 1\].* to 1.5"),
        ({"images": torch.full((40, 2, 2), -1.0)}, r"images must be in \[0, 1\].* from -1"),
        ({"images": torch.full((40, 2, 2), math.nan)}, r"images must be in \[0, 1\]"),
        ({"labels": torch.zeros(3)}, r"labels must have shape \(40,\), got \(3,\)"),
        ({"episode_length": 41}, "episode_length must be at most the number of images, 40, got 41"),
        ({"episode_length": 0}, "episode_length must be at least 1, got 0"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"augment": 1.5}, r"augment must be in \[0, 1\], got 1.5"),
        ({"augment": math.nan}, r"augment must be in \[0, 1\], got nan"),
        ({"augment": 0.5}, "augment must be 0 for images that are not binary, got 0.5"),
        (
            {"augment": 0.5, "images": torch.full((40, 2, 2), 0.5)},
            "augment must be 0 for images that are not binary",
        ),
        (
            {"augment": 0.5, "pixels": "dequantize"},
            "augment must be 0 for images that are not binary.*pixels='dequantize'",
        ),
        (
            {"augment": 0.5, "images": torch.zeros(40, 3, 2, 2, dtype=torch.bool)},
            "augment must be 0 for images of more than one channel, got 0.5 and 3 channels",
        ),
        ({"pixels": "binary"}, "pixels must be one of 'as_is', 'sample', .*, got 'binary'"),
        ({"num_classes": 2, "labels": None}, "labels must be given with num_classes"),
        ({"num_classes": 5}, r"num_classes must be in \[1, 4\], got 5"),
        ({"num_classes": 0}, r"num_classes must be in \[1, 4\], got 0"),
        (
            {"num_classes": 1, "episode_length": 11},
            "at most the images of any 1 classes, 10, got 11",
        ),
    ],
)
def test_bad_sampler_arguments(arguments, message):
    good = {"images": numbered(40), "labels": torch.arange(40) % 4, "episode_length": 8}
    EpisodeSampler(**good)
    with pytest.raises(ValueError, match=message):
        EpisodeSampler(**(good | arguments))


@pytest.mark.parametrize("call", [EpisodeSampler, split_episodes])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"images": [[[0]]]}, "images must be a tensor, got list"),
        ({"images": numbered(40).long()}, "images must be bool, uint8 or .* got torch.int64"),
        ({"images": numbered(40) * 1j}, "images must be bool, uint8 or .* got torch.complex64"),
        (
            {"images": torch.zeros(40, 2, 2), "pixels": "dequantize"},
            "images must be uint8 with pixels='dequantize', got torch.float32",
        ),
    ],
)
def test_bad_types(call, arguments, message):
    with pytest.raises(TypeError, match=message):
        call(**arguments)


def test_labels_must_be_a_tensor():
    with pytest.raises(TypeError, match="labels must be a tensor, got list"):
        EpisodeSampler(numbered(40), list(range(40)))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"episode_length": 5}, r"in \[1, 4\].*got 5"),
        ({"episode_length": 0}, r"in \[1, 4\].*got 0"),
        ({"pixels": "grey"}, "pixels must be one of .* got 'grey'"),
    ],
)
def test_bad_arguments_of_split_episodes(arguments, message):
    with pytest.raises(ValueError, match=message):
        split_episodes(numbered(4), **arguments)
