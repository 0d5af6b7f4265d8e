"""The models that ship: by name, by class, as their files and cards say."""

import builtins
import math

import pytest
import torch

pytest.importorskip("safetensors")

from benchmarks.ship_card import write_card
from kanerva_ext import models, pretrained
from kanerva_ext._safetensors import MODEL, read_tensors, write_tensors
from kanerva_ext.data import load_omniglot
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
