"""The card of a model that ships, from the metadata of its file alone."""

from __future__ import annotations

import math
import re
import textwrap
from pathlib import Path
from typing import Any

from kanerva_ext._safetensors import MODEL, read_tensors, with_prefix
from kanerva_ext.models import MODELS

LICENCES = {
    "omniglot": "MIT, Brenden Lake: `kanerva_ext/data/OMNIGLOT_LICENSE`",
    "cifar10-jpeg": "none stated by its authors, who ask that the report be cited",
}
_DATA = {
    "omniglot": "Omniglot (Lake, Salakhutdinov, Tenenbaum, Science 2015), the part that ships with "
    "the package. The test images are of characters that are not in the training images",
    "cifar10-jpeg": "CIFAR-10 (Krizhevsky, Learning Multiple Layers of Features from Tiny Images, "
    "2009), a part of it from a JPEG archive, `cifar10_jpeg_25k.zip`. **Its pixels are smoother "
    "than those of the original files**, so that its figures do not compare with others'",
}
_SETS = {"omniglot": "Omniglot", "cifar10-jpeg": "CIFAR-10 (JPEG)"}
_MODELS = {
    "kanerva": (
        "Kanerva Machine",
        "A Kanerva Machine: a generative model of episodes of images, with a Bayesian memory as "
        "its prior. An episode is written once, by one exact update; images are then read back, "
        "denoised or generated from it.",
        "Wu, Wayne, Graves, Lillicrap, The Kanerva Machine: A Generative Distributed Memory, "
        "ICLR 2018",
    ),
    "dynamic_kanerva": (
        "Dynamic Kanerva Machine",
        "A Dynamic Kanerva Machine: a generative model of episodes of images, whose memory finds "
        "the address of an image by least squares.",
        "Wu, Wayne, Gregor, Lillicrap, Learning Attractor Dynamics for Generative Memory, "
        "NeurIPS 2018",
    ),
    "vae": (
        "VAE",
        "A variational autoencoder with the coders of the Kanerva Machine and no memory: what that "
        "one is compared with.",
        "Kingma, Welling, Auto-Encoding Variational Bayes, ICLR 2014",
    ),
}
_TERMS = {
    "bound": "bound",
    "reconstruction": "-ln p(image \\| code)",
    "kl_y": "KL of the address",
    "kl_w": "KL of the address",
    "kl_z": "KL of the code",
    "kl_memory": "KL of the memory, not in the bound",
    "standard_error": "standard error of the bound",
}


def write_card(file: Path) -> str:
    """Markdown, of a file of `benchmarks.ship`."""
    tensors, metadata = read_tensors(file)
    about, config = metadata["pretrained"], metadata["config"]
    kind, data = config["model"]["type"], config["data"]
    name, (title, what, paper) = about["name"], _MODELS[kind]
    bound, by_length = _bound(about["test"]), about.get("bounds_by_length", {})
    if by_length:
        bound = f"{min(by_length.values()):.2f} to {max(by_length.values()):.2f} nats per image"
    numbers = sum(t.numel() for t in with_prefix(tensors, MODEL).values())
    images = metadata["step"] * data["batch_size"] * data["episode_length"]
    run = f"pretrained:{name}"
    root = "" if data["name"] == "omniglot" else " --root FOLDER"
    lines = [
        f"# {name}: {title} on {_SETS[data['name']]}, test bound {bound}",
        "",
        what,
        "",
        f"    kanerva generate {run}{root}",
        f'    {MODELS[kind].__name__}.from_pretrained("{name}")',
        "",
        f"{numbers:,} numbers, matrices stored as {about['dtype']}, in {file.stat().st_size:,} "
        f"bytes. Licence: {about['licence']}, the package's.",
        "",
        "## Data",
        "",
        f"{_DATA[data['name']]}. {about['images']['train']:,} training and "
        f"{about['images']['test']:,} test images. Licence: {about['data_licence']}.",
        "",
        "## Training",
        "",
        f"    {about['command']}",
        "",
        f"Seed {config['training']['seed']}, {metadata['step']:,} steps, {images:,} images in "
        f"episodes of {_episodes(data)}, {metadata['seconds'] / 60:.1f} minutes of a CPU on "
        f"{metadata['extra']['threads']} thread{'s' * (metadata['extra']['threads'] > 1)}, "
        f"{metadata['extra']['precision']}. Trained by commit `{about['commit'][:12]}`; this file "
        "and the model's were made by `python -m benchmarks.ship`.",
        "",
        "## On the test images",
        "",
        *_table(about),
        "",
        *_lengths(by_length),
        *_remarks(about, kind),
        "",
        "## Good for, bad for",
        "",
        *_uses(about, kind, data),
        "",
        "## Papers",
        "",
        f"{paper}. {_DATA[data['name']].partition('), ')[0]}).",
        "",
    ]
    return "\n".join(map(_wrapped, lines))


def _wrapped(line: str) -> str:
    """A paragraph or an item of a list in lines of 100; titles, tables and commands as they are."""
    if line.startswith(("#", "|", "    ")):
        return line
    hang = "  " if line.startswith("- ") else ""
    whole = re.sub("`.*?`", lambda code: code[0].replace(" ", "\0"), line)  # code is not broken
    options = {"break_long_words": False, "break_on_hyphens": False}
    return textwrap.fill(whole, 100, subsequent_indent=hang, **options).replace("\0", " ")


def _bound(terms: dict[str, float]) -> str:
    if "bits_per_dim" in terms:
        return f"{terms['bits_per_dim']:.2f} bits per dimension"
    return f"{terms['bound']:.2f} nats per image"


def _table(about: dict[str, Any]) -> list[str]:
    columns = {"as it ships": about["test"]}
    if about["dtype"] != "float32":
        columns["before, in float32"] = about["test_float32"]
    if "test_other_memory" in about:
        columns["read from another episode's memory"] = about["test_other_memory"]
    rows = [f"| nats per image | {' | '.join(columns)} |", f"|---|{'---|' * len(columns)}"]
    names = [(n, text) for n, text in _TERMS.items() if n in about["test"]]
    for name, text in names:
        cells = [f"{terms[name]:.2f}" if name in terms else "-" for terms in columns.values()]
        rows.append(f"| {text} | {' | '.join(cells)} |")
    if "bits_per_dim" in about["test"]:
        cells = [f"{terms['bits_per_dim']:.3f}" for terms in columns.values()]
        rows.append(f"| bound, bits per dimension | {' | '.join(cells)} |")
    return rows


def _episodes(data: dict[str, Any], about: str = "") -> str:
    shortest, longest = data.get("shortest_episode"), data["episode_length"]
    return f"{about}{longest}" if shortest is None else f"{shortest} to {longest}"


def _lengths(bounds: dict[str, float]) -> list[str]:
    """The bound at each length of an episode, where a model was trained at many."""
    if not bounds:
        return []
    return [
        f"| images in an episode | {' | '.join(bounds)} |",
        f"|---|{'---|' * len(bounds)}",
        f"| bound, nats per image | {' | '.join(f'{b:.2f}' for b in bounds.values())} |",
        "",
        "The first table is of the longest episodes.",
        "",
    ]


def _remarks(about: dict[str, Any], kind: str) -> list[str]:
    """What the table means, and the errors of reads."""
    lower = "Lower is better; each image once in each of four random partitions into episodes."
    if kind == "kanerva":
        lower += (
            " It bounds -ln p(image | memory), and the memory was written from the same episode: "
            "what that holds is not charged, so that it is no bound on -ln p(image), as a VAE's is."
        )
    elif kind == "vae":
        lower += " It bounds -ln p(image)."
    reads = about["reads"]
    percent = reads["measure"] == "share of wrong pixels"
    errors = [f"{e:.2%}" if percent else f"{e:.3f}" for e in reads["after_read"]]
    before = f"{reads['corrupted']:.2%}" if percent else f"{reads['corrupted']:.3f}"
    *first, last = errors
    text = (
        f"Queries with {reads['share']:.0%} of the pixels replaced: {reads['measure']} {before} "
        f"before, {', '.join(first)} and {last} after reading once, twice and so on "
        f"(`kanerva denoise`{'; with `--aware` the model is told the share' if percent else ''})."
    )
    return [lower, "", text]


def _uses(about: dict[str, Any], kind: str, data: dict[str, Any]) -> list[str]:
    """What the figures let one say, and what the data does."""
    reads = about["reads"]["after_read"]
    length = data["episode_length"]
    improves = reads[-1] < min(reads[:-1]) and math.isfinite(reads[-1])
    good, bad = [], []
    if kind == "vae":
        good.append("A baseline for the memory models: same coders, same data, same training.")
        bad.append("Samples of one's own classes: it has no memory to write them to.")
    else:
        more = " Generating more of the few classes in them." if data["name"] == "omniglot" else ""
        good.append(
            f"Episodes of {_episodes(data, 'about ')} images as in the data: storing them, "
            f"reading them back.{more}"
        )
        bad.append(
            f"Many more than {length} images in one memory: `kanerva capacity pretrained:"
            f"{about['name']}` shows how the bound rises."
        )
    if reads[0] < about["reads"]["corrupted"]:
        good.append("Denoising: a read has fewer errors than its query.")
    else:
        bad.append("Denoising: a read has more errors than its query.")
    if not improves:
        bad.append(
            "Reading again and again, not told of the noise: the last of the reads above is not "
            "the best."
        )
    if data["name"] == "cifar10-jpeg":
        bad.append(
            "Pictures of objects: what it generates has the colours and blotches of the images "
            "written, no more. The images do not ship: the commands need `--root`."
        )
    else:
        bad.append("Images other than 28 x 28, dark strokes as ones, like Omniglot's.")
    return [*(f"- Good: {each}" for each in good), *(f"- Bad: {each}" for each in bad)]
