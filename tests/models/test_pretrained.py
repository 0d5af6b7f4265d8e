"""The models that ship: by name, by class, as their files and cards say."""

import builtins
import copy
import math
import pickle
import shutil

import pytest
import torch

pytest.importorskip("safetensors")

from benchmarks.ship_card import write_card
from kanerva_ext import models, pretrained
from kanerva_ext._safetensors import MODEL, read_tensors, write_tensors
from kanerva_ext.data import load_omniglot, split_episodes
from kanerva_ext.models import KanervaMachine, MatchedVAE, evaluate

NAMES = pretrained.available()
OMNIGLOT = ("omniglot-kanerva", "omniglot-vae")
MEGABYTES = 5  # of a file, at most


def model_class(name):
    return models.MODELS[read_tensors(pretrained.find(name))[1]["config"]["model"]["type"]]


def test_what_ships():
    assert {"omniglot-kanerva", "omniglot-vae"} <= set(NAMES)
    assert list(pretrained.describe()) == NAMES
    for name, what in pretrained.describe().items():
        assert "test bound" in what and pretrained.card(name).startswith(f"# {name}: {what}\n")


def test_a_model_without_its_card_is_listed(tmp_path, monkeypatch):
    shutil.copy(pretrained.find("omniglot-vae"), tmp_path)
    monkeypatch.setattr(pretrained, "FOLDER", tmp_path)
    assert pretrained.describe() == {"omniglot-vae": ""}


@pytest.mark.parametrize("name", NAMES)
def test_a_model_is_what_its_file_says(name):
    file = pretrained.find(name)
    tensors, metadata = read_tensors(file)
    model = model_class(name).from_pretrained(name)
    options = metadata["config"]["model"]
    assert options.pop("type") == type(model).TYPE and not model.training
    assert options.items() <= model.config.items()
    state = model.state_dict()
    assert {f"{MODEL}{key}" for key in state} == set(tensors)
    for key, tensor in state.items():
        saved = tensors[f"{MODEL}{key}"]
        if key.endswith("_extra_state"):  # files know only the settings of their time
            tensor = tensor[: len(saved)]
        assert tensor.isfinite().all() and torch.equal(tensor, saved.to(tensor.dtype)), key
    assert {tensor.dtype for tensor in model.parameters()} == {torch.float32}
    assert file.stat().st_size < MEGABYTES * 10**6


@pytest.mark.parametrize("name", NAMES)
def test_a_file_says_how_it_was_made(name):
    tensors, metadata = read_tensors(pretrained.find(name))
    about, training = metadata["pretrained"], metadata["config"]["training"]
    assert about["name"] == name and len(about["commit"]) == 40
    assert metadata["step"] == training["steps"] and metadata["seconds"] > 0
    assert about["command"].startswith("kanerva train ") and about["data_licence"]
    assert metadata["config"]["data"]["root"] is None  # a folder of nobody else's machine
    matrices = {str(t.dtype) for t in tensors.values() if t.ndim > 1 and t.is_floating_point()}
    assert matrices == {f"torch.{about['dtype']}"}
    before, after = about["test_float32"]["bound"], about["test"]["bound"]
    assert math.isfinite(after) and abs(after - before) < 1e-3 * abs(before)


@pytest.mark.parametrize("name", NAMES)
def test_a_card_is_made_of_its_file(name):
    assert pretrained.card(name) == write_card(pretrained.find(name))


@pytest.mark.parametrize("name", OMNIGLOT)
def test_the_bound_is_the_one_of_the_card(name):
    _, metadata = read_tensors(pretrained.find(name))
    model = model_class(name).from_pretrained(name)
    seed = metadata["config"]["training"]["seed"]
    terms = evaluate(model, load_omniglot("test")[0], seed=seed)
    assert terms["bound"] == pytest.approx(metadata["pretrained"]["test"]["bound"], rel=1e-4)
    assert f"test bound {terms['bound']:.2f} nats" in pretrained.card(name)


# Names, classes, errors


def test_a_model_goes_by_its_name_with_and_without_the_prefix_and_by_its_file():
    file = pretrained.find("omniglot-vae")
    for name in ("omniglot-vae", "pretrained:omniglot-vae", str(file), file):
        model = MatchedVAE.from_pretrained(name)
        assert torch.equal(
            next(model.parameters()),
            next(MatchedVAE.from_pretrained("omniglot-vae").parameters()),
        )


def test_a_run_is_loaded_from_its_folder_or_its_checkpoint(runs):
    from kanerva_ext.cli._loaded_run import load_run

    expected = load_run(runs["kanerva"]).model.state_dict()
    for path in (runs["kanerva"], str(runs["kanerva"] / "checkpoint.safetensors")):
        state = KanervaMachine.from_pretrained(path).state_dict()
        assert all(torch.equal(state[name], tensor) for name, tensor in expected.items())


def test_the_random_numbers_go_on_as_they_were():
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    KanervaMachine.from_pretrained("omniglot-kanerva")
    assert torch.equal(torch.rand(4), expected)


@pytest.mark.parametrize("name", ["omniglot", "nowhere/at/all"])
def test_a_name_that_there_is_not(name):
    message = rf"must be the name of a model that ships \({', '.join(NAMES)}\).*got '{name}'"
    with pytest.raises(ValueError, match=message):
        KanervaMachine.from_pretrained(name)
    with pytest.raises(ValueError, match=rf"no model '{name}' ships.*there is {', '.join(NAMES)}"):
        KanervaMachine.from_pretrained(f"pretrained:{name}")


def test_a_model_of_another_class():
    with pytest.raises(
        ValueError,
        match=r"omniglot-vae is a MatchedVAE, not a KanervaMachine: MatchedVAE\.from_pretrained",
    ):
        KanervaMachine.from_pretrained("omniglot-vae")


def test_a_run_of_a_class_that_is_not_the_package_s(own_run):
    with pytest.raises(ValueError, match=r"'own_model:MeanImage', and cannot be loaded as Matched"):
        MatchedVAE.from_pretrained(own_run)


def test_a_subclass_loads_what_its_base_does():
    class Own(MatchedVAE):
        pass

    assert type(Own.from_pretrained("omniglot-vae")) is Own


def test_files_that_are_no_models(tmp_path):
    broken, other, short = (tmp_path / name for name in ("broken", "other", "short"))
    broken.write_bytes(b"no safetensors at all")
    write_tensors(other, {"x": torch.zeros(1)}, {})
    tensors, metadata = read_tensors(pretrained.find("omniglot-vae"))
    tensors.pop("model.code.out.bias")
    write_tensors(short, tensors, metadata)
    for path, message in (
        (broken, "is no checkpoint of a run"),
        (other, "is no checkpoint of a run"),
        (short, "does not fit MatchedVAE"),
    ):
        with pytest.raises(ValueError, match=f"{path} {message}"):
            MatchedVAE.from_pretrained(path)
    with pytest.raises(TypeError, match="name_or_path must be a str or a path, got bytes"):
        MatchedVAE.from_pretrained(b"omniglot-vae")


def test_without_safetensors(monkeypatch):
    real = builtins.__import__

    def missing(name, *args, **options):
        if name.startswith("safetensors"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return real(name, *args, **options)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(ModuleNotFoundError, match="pip install safetensors"):
        MatchedVAE.from_pretrained("omniglot-vae")
    assert list(pretrained.describe()) == NAMES


@pytest.mark.parametrize("name", [None, 3, b"omniglot-vae"])
def test_a_name_of_another_type(name):
    message = f"name_or_path must be a str or a path, got {type(name).__name__}"
    with pytest.raises(TypeError, match=message):
        MatchedVAE.from_pretrained(name)


@pytest.mark.parametrize("name", ["", "x" * 5000, "a\0b", "../x", "."])
def test_a_name_that_no_file_has(name):
    with pytest.raises(ValueError, match="name_or_path must be the name of a model that ships"):
        MatchedVAE.from_pretrained(name)


def damaged(tmp_path, **entries):
    """A file of the VAE that ships with other metadata; None: without."""
    tensors, metadata = read_tensors(pretrained.find("omniglot-vae"))
    metadata = {key: value for key, value in (metadata | entries).items() if value is not None}
    write_tensors(tmp_path / "damaged.safetensors", tensors, metadata)
    return tmp_path / "damaged.safetensors"


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (None, "is no checkpoint of a run: its metadata has no 'config'"),
        ([1], r"'config' of its metadata must be of type dict, got \[1\]"),
        ({}, "its metadata has no 'model'"),
        ({"model": {}}, "its metadata has no 'type'"),
        (
            {"model": {"type": ["vae"]}},
            r"'type' of its metadata must be of type str, got \['vae'\]",
        ),
        ({"model": {"type": "vae", "code_size": -1}}, "does not fit MatchedVAE: code_size must be"),
    ],
)
def test_metadata_that_are_damaged(config, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        MatchedVAE.from_pretrained(damaged(tmp_path, config=config))


def test_metadata_of_a_later_version(tmp_path):
    _, metadata = read_tensors(pretrained.find("omniglot-vae"))
    file = damaged(tmp_path, kanerva_ext="99.0", future={"a": 1})
    MatchedVAE.from_pretrained(file)  # what is new does no harm where it is not needed
    config = {"model": metadata["config"]["model"] | {"new_option": 1}}
    file = damaged(tmp_path, kanerva_ext="99.0", config=config)
    with pytest.raises(ValueError, match=r"new_option.*\(kanerva_ext 99\.0 wrote it, not "):
        MatchedVAE.from_pretrained(file)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_the_default_dtype_does_not_matter(dtype):
    before = torch.get_default_dtype()
    expected = MatchedVAE.from_pretrained("omniglot-vae").state_dict()
    torch.set_default_dtype(dtype)
    try:
        state = MatchedVAE.from_pretrained("omniglot-vae").state_dict()
    finally:
        torch.set_default_dtype(before)
    assert {name: tensor.dtype for name, tensor in state.items()} == {
        name: tensor.dtype for name, tensor in expected.items()
    }
    assert all(torch.equal(state[name], tensor) for name, tensor in expected.items())


def test_the_default_device_does_not_matter():
    with torch.device("meta"):
        model = MatchedVAE.from_pretrained("omniglot-vae")
    assert {tensor.device.type for tensor in model.parameters()} == {"cpu"}


def test_a_loaded_model_is_copied_and_trained_like_any_other():
    images = split_episodes(load_omniglot("test")[0][:8], episode_length=8)
    model = KanervaMachine.from_pretrained("omniglot-kanerva")

    def read(model):
        torch.manual_seed(0)
        with torch.no_grad():
            return model.reconstruct(images, model.write(images).state)

    expected = read(model)
    same = KanervaMachine(**model.config).eval()
    same.load_state_dict(model.state_dict())
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), same):
        assert torch.equal(read(other), expected)
    optimizer = torch.optim.Adam(model.train().parameters(), lr=1e-3)
    model(images).bound.mean().backward()
    optimizer.step()
    assert not torch.equal(read(model.eval()), expected)
    again = KanervaMachine.from_pretrained("omniglot-kanerva")
    assert torch.equal(read(again), expected)  # the file is as it was
