"""The module under casts, compilation, export, torch.func and checkpointing."""

import io

import pytest
import torch
import torch.utils.checkpoint
from memory_cases import C, each_config, episode, loss, make


@each_config
def test_double_and_half(config):
    module = make(**config).double()
    values, keys = episode(module, torch.float64)
    out = module(values, **keys)
    assert out.values.dtype == out.state.cov.dtype == torch.float64
    loss(out).backward()
    half = make(**config).bfloat16()
    values, keys = episode(half, torch.bfloat16)
    out = half(values, **keys)
    assert out.values.dtype == out.state.mean.dtype == torch.float32
    loss(out).backward()
    assert half.prior_mean.grad.dtype == torch.bfloat16


@each_config
def test_autocast(config):
    module = make(**{k: v for k, v in config.items() if not k.startswith("sample")})
    values, keys = episode(module)
    want = module(values, **keys)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = module(values.bfloat16(), **keys)
    assert out.values.dtype == torch.float32
    tolerance = 1e-4 if module.key_size is None else 0.1  # keys @ A is a matrix product of its own
    again = module(values.bfloat16(), **keys)
    torch.testing.assert_close(out.values, again.values, rtol=tolerance, atol=tolerance)
    assert torch.isfinite(want.values).all()


@each_config
def test_compile_and_functional_call(config):
    torch._dynamo.reset()
    module = make(**{k: v for k, v in config.items() if not k.startswith("sample")})
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    with torch._dynamo.config.patch(error_on_recompile=True):
        for _ in range(3):
            values, keys = episode(module)
            out, want = compiled(values, **keys), module(values, **keys)
            torch.testing.assert_close(out.values, want.values)
            torch.testing.assert_close(out.kl_memory, want.kl_memory)
            got = torch.autograd.grad(loss(out), list(module.parameters()))
            for a, b in zip(
                got, torch.autograd.grad(loss(want), list(module.parameters())), strict=True
            ):
                torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
    torch._dynamo.reset()
    parameters = dict(module.named_parameters())

    def functional(p, v):
        return loss(torch.func.functional_call(module, p, (v,), keys))

    grads = torch.func.grad(functional)(parameters, values)
    for name, want in zip(
        parameters,
        torch.autograd.grad(functional(parameters, values), list(parameters.values())),
        strict=True,
    ):
        torch.testing.assert_close(grads[name], want)


def test_compile_with_sampling_runs():
    torch._dynamo.reset()
    module = make(sample_weights=True, sample_memory=True)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    loss(compiled(episode(module)[0])).backward()
    torch._dynamo.reset()


def test_export():
    module = make(learn_noise=True)
    values, _ = episode(module)
    for strict in (False, True):
        exported = torch.export.export(module, (values,), strict=strict).module()
        torch.testing.assert_close(exported(values), module(values))


def test_activation_checkpointing():
    module = make()
    values = episode(module)[0].requires_grad_()
    again = torch.utils.checkpoint.checkpoint(module, values, use_reentrant=False)
    for got, want in zip(
        torch.autograd.grad(loss(again), (values, *module.parameters())),
        torch.autograd.grad(loss(module(values)), (values, *module.parameters())),
        strict=True,
    ):
        torch.testing.assert_close(got, want)


def test_ensemble_by_vmap():
    modules = [make() for _ in range(3)]
    values, _ = episode(modules[0])
    parameters, _ = torch.func.stack_module_state(modules)
    out = torch.vmap(
        lambda p, v: torch.func.functional_call(modules[0], p, (v,)).values, in_dims=(0, None)
    )(parameters, values)
    torch.testing.assert_close(out, torch.stack([m(values).values for m in modules]))


def test_inference_mode():
    module = make()
    values, _ = episode(module)
    with torch.inference_mode():
        out = module(values)
    torch.testing.assert_close(out.values, module(values).values)


def test_gradcheck_through_the_module():
    module = make(learn_noise=True, num_write_iters=2).double()
    values = torch.randn(2, 3, C, dtype=torch.float64, requires_grad=True)
    names = [n for n, _ in module.named_parameters()]

    def function(values, *parameters):
        out = torch.func.functional_call(module, dict(zip(names, parameters, strict=True)), values)
        return out.values, out.var, out.kl_weights, out.kl_memory, out.log_evidence

    assert torch.autograd.gradcheck(function, (values, *module.parameters()), fast_mode=True)


def test_exported_programs_are_saved_and_loaded():
    module = make().eval()
    values, _ = episode(module)
    file = io.BytesIO()
    torch.export.save(torch.export.export(module, (values,)), file)
    file.seek(0)
    out = torch.export.load(file).module()(values)
    assert type(out) is type(module(values))
    torch.testing.assert_close(out, module(values))


@pytest.mark.slow
def test_compiled_ahead_of_time(tmp_path):
    module = make().eval()
    values, _ = episode(module)
    program = torch.export.export(module, (values,)).run_decompositions()
    path = str(tmp_path / "memory.pt2")
    torch._inductor.aoti_compile_and_package(program, package_path=path)
    torch.testing.assert_close(torch._inductor.aoti_load_package(path)(values), module(values))
