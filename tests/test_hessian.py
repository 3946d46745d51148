"""Extreme eigenvalues of the loss's curvature, each against a dense matrix, a library or a value worked out by hand."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from peft import GraloraConfig, LoraConfig, RandLoraConfig, get_peft_model
from scipy.sparse.linalg import LinearOperator, eigsh
from torch import nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention
from transformers import LlamaConfig, LlamaForCausalLM

from utils.errors import CourseError, UsageError
from utils.spectra.hessian import (
    GaussNewtonProduct,
    HessianProduct,
    adam_threshold,
    adapter_parameters,
    extremes,
    gradient_bound,
    gradient_bounds,
    module_parameters,
    preconditioned,
    preconditioned_extremes,
    second_moment,
)
from utils.spectra.lanczos import dense, lanczos

MODULE = "layers.0.self_attn.q_proj"
WIDTH, SIZE = 16, 64  # of the small model, and parameters of a module's adapter of rank 2: A and B alike


def symmetric(size: int, seed: int = 0) -> torch.Tensor:
    matrix = torch.randn(size, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (matrix + matrix.T) / math.sqrt(2 * size)


def of(matrix: torch.Tensor):
    return lambda vector: matrix.to(vector.dtype) @ vector


# --- Lanczos --------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("values, iterations", [
    ([3.0, -1.0, 0.5], 3), ([7.0], 1), ([-7.0], 1), ([0.0], 1), ([2.0] * 6, 1), ([0.0] * 5, 1),
    ([5.0, 5.0, 5.0, -2.0, -2.0], 2),  # two different values: an invariant subspace after two products
    ([4.0, 0.0, 0.0, 0.0, 0.0, 0.0], 2),
])
@pytest.mark.parametrize("dtype, digits", [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_lanczos_ends_at_an_invariant_subspace_with_both_ends(values, iterations, dtype, digits):
    found = lanczos(of(torch.diag(torch.tensor(values))), len(values), dtype=dtype, tolerance=0, residual_tolerance=0)
    assert found.largest == pytest.approx(max(values), abs=digits)
    assert found.smallest == pytest.approx(min(values), abs=digits)
    assert found.converged and found.iterations <= iterations + (dtype == torch.float32)
    assert found.relative_residual_largest <= 1e-5


@pytest.mark.parametrize("seed", range(3))
def test_lanczos_agrees_with_arpack(seed):
    matrix = symmetric(400, seed)
    library = eigsh(LinearOperator((400, 400), matvec=lambda vector: matrix.numpy() @ vector, dtype=np.float64), k=2,
                    which="BE", return_eigenvectors=False)
    found = lanczos(of(matrix), 400, dtype=torch.float64, tolerance=1e-9, residual_tolerance=1e-6, seed=seed)
    assert found.converged and found.iterations < 200
    assert [found.smallest, found.largest] == pytest.approx(sorted(library), rel=1e-8)


def test_a_residual_is_a_distance_within_which_an_eigenvalue_lies():
    matrix = symmetric(300)
    true = torch.linalg.eigvalsh(matrix)
    for limit in (3, 6, 12, 25):
        found = lanczos(of(matrix), 300, dtype=torch.float64, tolerance=0, residual_tolerance=0, max_iterations=limit)
        assert not found.converged and found.iterations == limit, "a run that is cut short says so"
        for value, residual in ((found.largest, found.residual_largest), (found.smallest, found.residual_smallest)):
            assert (true - value).abs().min() <= residual
        scale = max(abs(found.largest), abs(found.smallest))
        assert found.relative_residual_largest == pytest.approx(found.residual_largest / scale)


def test_both_ends_must_settle():
    """The large end is found in a few products; a rule for it alone would stop far from the small one."""
    values = torch.cat([torch.tensor([1.2]), torch.linspace(-1, -0.5, 500)]).double()
    found = lanczos(of(torch.diag(values)), 501, dtype=torch.float64, tolerance=1e-6, residual_tolerance=1e-3)
    assert found.largest == pytest.approx(1.2, abs=1e-6) and found.smallest == pytest.approx(-1, abs=1e-5)
    early = lanczos(of(torch.diag(values)), 501, dtype=torch.float64, max_iterations=8)
    assert early.largest == pytest.approx(1.2, abs=1e-6) and early.smallest > -0.999 and not early.converged


def test_convergence_does_not_depend_on_the_unit():
    """The study's absolute rule stops early on a small matrix and late on a large one."""
    first, small = (lanczos(of(scale * symmetric(200)), 200, dtype=torch.float64) for scale in (1, 1e-9))
    assert small.iterations == first.iterations and small.largest == pytest.approx(1e-9 * first.largest, rel=1e-9)


def test_the_start_is_seeded():
    matrix = symmetric(100)
    first, again, other = (lanczos(of(matrix), 100, seed=seed, max_iterations=5) for seed in (0, 0, 1))
    assert first == again and first != other


def test_a_product_that_is_no_number_is_one_sentence():
    with pytest.raises(CourseError, match="product 2 holds NaN"):
        count = iter((1.0, math.nan))
        lanczos(lambda vector: vector.flip(0) * next(count), 5)
    with pytest.raises(UsageError, match="one or more parameters"):
        lanczos(lambda vector: vector, 0)


# --- a model worked out by hand -------------------------------------------------------------------------------------

class OneToken(nn.Module):
    """Logits W x of one token with x = (1, 1) and W = 0: both words have a chance of one half."""

    def __init__(self):
        super().__init__()
        self.embedding, self.head = nn.Embedding(2, 2), nn.Linear(2, 2, bias=False)
        nn.init.ones_(self.embedding.weight)
        nn.init.zeros_(self.head.weight)
        self.config = SimpleNamespace(_attn_implementation="eager", to_dict=dict, get=lambda *_: None)

    def forward(self, input_ids, attention_mask=None, use_cache=None):
        return SimpleNamespace(logits=self.head(self.embedding(input_ids)))


def by_hand(scale: float = 1.0, **config):
    """LoRA of rank one with B = 0 and A = (sqrt 3 / s, 0), and one predicted token."""
    model = get_peft_model(OneToken(), LoraConfig(r=1, lora_alpha=scale, target_modules=["head"], **config)).double()
    with torch.no_grad():
        adapter_parameters(model)[0].copy_(torch.tensor([[math.sqrt(3) / scale, 0.0]]))
    ids = torch.zeros(1, 2, dtype=torch.long)
    return model, [{"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}]


def test_hessian_and_its_parts_by_hand():
    """Along u = (1, -1) / sqrt 2, with b = u^T dB and c = dA x / |x|: the block is [[k, -g], [-g, 0]].

    k = s^2 (A x)^2 / 2 = 3 / 2, since diag(p) - p p^T is 1/2 along u, and g = s |x| |p - y| = sqrt 2 / sqrt 2 = 1.
    Its eigenvalues are 3/4 +- sqrt(9/16 + 1): 2 and -1/2.
    """
    model, batches = by_hand()
    row = extremes(model, batches, adapter_parameters(model))
    assert (row["largest"], row["smallest"]) == pytest.approx((2, -0.5))
    assert row["parameters"] == 4 and row["converged"] and row["seconds"] > 0
    assert gradient_bound(model, "head", batches) == pytest.approx(1)
    newton = extremes(model, batches, adapter_parameters(model), kind="gauss_newton")
    assert (newton["largest"], newton["smallest"]) == pytest.approx((1.5, 0), abs=1e-6)


def test_the_gradient_bound_grows_with_the_scale_and_stands_alone_without_curvature():
    model, batches = by_hand(scale=4)
    assert gradient_bound(model, "head", batches) == pytest.approx(4)
    with torch.no_grad():
        adapter_parameters(model)[0].zero_()  # A x = 0: no curvature is left, and the spectrum is symmetric
    row = extremes(model, batches, adapter_parameters(model))
    assert (row["largest"], row["smallest"]) == pytest.approx((4, -4))


def test_second_moment_and_preconditioned_sharpness_by_hand():
    """dL/dB = s (p - y) (A x) = (-sqrt 3 / 2, sqrt 3 / 2) and dL/dA = 0: v is 3/4 for B, and A is left out.

    In B alone the Hessian is 3/2 along u, so over sqrt(v) = sqrt(3)/2 it is sqrt 3.
    """
    model, batches = by_hand()
    parameters = adapter_parameters(model)
    assert second_moment(model, batches * 2, parameters).tolist() == pytest.approx([0, 0, 0.75, 0.75])
    row = preconditioned_extremes(model, batches, parameters, training_batches=batches)
    assert row["largest"] == pytest.approx(math.sqrt(3), rel=1e-6) and row["excluded"] == 2 and row["parameters"] == 2
    kept = preconditioned_extremes(model, batches, parameters, training_batches=batches, keep_zeros=True)
    assert kept["largest"] > 1e3, "divided by epsilon, A would hide everything else"
    with pytest.raises(CourseError, match="exactly zero"):
        preconditioned_extremes(model, batches, parameters[:1], training_batches=batches)


# --- a small model against dense matrices ---------------------------------------------------------------------------

def llama(attention: str = "eager", dtype=torch.float64, config=None) -> nn.Module:
    torch.manual_seed(0)
    shape = LlamaConfig(vocab_size=64, hidden_size=WIDTH, intermediate_size=24, num_hidden_layers=2,
                        num_attention_heads=2, num_key_value_heads=2, initializer_range=0.2,
                        attn_implementation=attention)
    config = config or LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj", "down_proj"])
    return get_peft_model(LlamaForCausalLM(shape), config).to(dtype)


def with_b(model: nn.Module) -> nn.Module:
    """Away from B = 0, where half of the terms vanish."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in adapter_parameters(model):
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def batches_of(*counts: int, length: int = 10) -> list[dict]:
    """Batches of so many texts; the first text of each has only four labels."""
    made, chance = [], torch.Generator().manual_seed(2)
    for count in counts:
        ids = torch.randint(64, (count, length), generator=chance)
        labels = ids.clone()
        labels[0, 4:] = -100
        made.append({"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels})
    return made


def joined(batches: list[dict]) -> dict:
    return {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}


def library_hessian(model: nn.Module, batch: dict, parameters: list) -> torch.Tensor:
    """Torch's dense Hessian of transformers' own mean loss over one batch."""
    names = [name for name, one in model.named_parameters() if any(one is wanted for wanted in parameters)]
    shapes = [one.shape for one in parameters]

    def loss(flat: torch.Tensor) -> torch.Tensor:
        pieces = flat.split([shape.numel() for shape in shapes])
        values = {name: piece.view(shape) for name, piece, shape in zip(names, pieces, shapes, strict=True)}
        return functional_call(model, values, kwargs=batch).loss
    flat = torch.cat([one.detach().flatten() for one in parameters])
    return torch.autograd.functional.hessian(loss, flat)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("keep_graphs", [True, False])
def test_products_are_the_dense_hessian_of_all_batches_together(attention, keep_graphs):
    """Two batches of unequal tokens, weighted to the exact mean over all of them."""
    model, batches = with_b(llama(attention)), batches_of(1, 2)
    parameters = module_parameters(model, MODULE)
    found = dense(HessianProduct(model, batches, parameters, keep_graphs=keep_graphs), SIZE, dtype=torch.float64)
    plain = with_b(llama()).eval()
    true = library_hessian(plain, joined(batches), module_parameters(plain, MODULE))
    assert true.abs().max() > 0.1
    torch.testing.assert_close(found, true, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype, asked, digits", [(torch.float64, (1e-3, 1e-2), 1e-3), (torch.float32, (1e-3, 1e-2),
                                                                                      1e-3),
                                                  (torch.float64, (1e-8, 1e-5), 1e-6)])
@pytest.mark.parametrize("block", ["module", "adapter"])
def test_extremes_agree_with_the_dense_spectrum(dtype, asked, digits, block):
    config = LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj"])
    model, batches = with_b(llama(dtype=dtype, config=config)), batches_of(3)
    parameters = module_parameters(model, MODULE) if block == "module" else adapter_parameters(model)
    product = HessianProduct(model, batches, parameters)
    assert product.size == {"module": SIZE, "adapter": 2 * SIZE}[block]
    matrix = dense(product, product.size, dtype=dtype).double()
    true = torch.linalg.eigvalsh((matrix + matrix.T) / 2)
    row = extremes(model, batches, parameters, tolerance=asked[0], residual_tolerance=asked[1])
    scale = true.abs().max()
    assert row["converged"] and row["iterations"] < product.size
    assert abs(row["largest"] - true[-1]) <= digits * scale
    assert abs(row["smallest"] - true[0]) <= digits * scale


def test_the_gradient_part_is_exact_at_vanilla_initialisation():
    """At B = 0: no AA block, an AB block with the singular values s sigma(G), r times each, and B's curvature."""
    model, batches = llama(), batches_of(2, 2)
    matrix = dense(HessianProduct(model, batches, module_parameters(model, MODULE)), SIZE, dtype=torch.float64)
    a = slice(0, SIZE // 2)  # PEFT puts A first
    b = slice(SIZE // 2, SIZE)
    assert matrix[a, a].abs().max() < 1e-14
    cross = torch.linalg.svdvals(matrix[a, b])
    assert cross[0] == pytest.approx(gradient_bound(model, MODULE, batches), rel=1e-5)
    assert cross[0] > 0.01
    assert cross[::2] == pytest.approx(cross[1::2].numpy(), abs=1e-6), "each r = 2 times"
    newton = dense(GaussNewtonProduct(model, batches, module_parameters(model, MODULE)), SIZE, dtype=torch.float64)
    assert newton[a, :].abs().max() < 1e-14, "Gauss and Newton's matrix has no gradient part"


def test_the_gradient_part_of_a_whole_adapter_is_that_of_its_steepest_module():
    model, batches = llama(), batches_of(3)
    names = [f"layers.{layer}.{kind}" for layer in (0, 1) for kind in ("self_attn.q_proj", "mlp.down_proj")]
    parameters = adapter_parameters(model)
    product = HessianProduct(model, batches, parameters)
    matrix = dense(product, product.size, dtype=torch.float64)
    is_a = torch.cat([torch.full((one.numel(),), "lora_A" in name) for name, one in model.named_parameters()
                      if one.requires_grad])
    assert matrix[is_a][:, is_a].abs().max() < 1e-14
    bounds = gradient_bounds(model, batches, names)
    assert torch.linalg.svdvals(matrix[is_a][:, ~is_a])[0] == pytest.approx(max(bounds.values()), rel=1e-5)
    assert bounds[MODULE] == pytest.approx(gradient_bound(model, MODULE, batches)) and len(set(bounds.values())) == 4


def test_gauss_newton_is_the_hessian_without_the_logits_bend():
    """J^T H_out J from torch's dense Jacobian; it never has a negative eigenvalue, the Hessian does."""
    model, batches = with_b(llama()), batches_of(2, 1)
    parameters = module_parameters(model, MODULE)
    found = dense(GaussNewtonProduct(model, batches, parameters), SIZE, dtype=torch.float64)
    batch, names = joined(batches), [name for name, one in model.named_parameters()
                                     if any(one is wanted for wanted in parameters)]
    kept = batch["labels"][:, 1:] != -100
    model.eval()

    def logits(*values):
        return functional_call(model, dict(zip(names, values, strict=True)), kwargs=batch).logits[:, :-1][kept]
    parts = torch.autograd.functional.jacobian(logits, tuple(one.detach() for one in parameters))
    jacobian = torch.cat([part.flatten(2) for part in parts], dim=2)  # (n, V, parameters)
    chances = logits(*[one.detach() for one in parameters]).softmax(-1).detach()
    middle = torch.diag_embed(chances) - chances[:, :, None] * chances[:, None, :]
    true = torch.einsum("nvi,nvw,nwj->ij", jacobian, middle, jacobian) / kept.sum()
    assert true.abs().max() > 0.01
    torch.testing.assert_close(found, true, rtol=1e-5, atol=1e-6)
    assert extremes(model, batches, parameters)["smallest"] < -1e-3
    row = extremes(model, batches, parameters, kind="gauss_newton", tolerance=1e-8, residual_tolerance=1e-5)
    assert row["largest"] == pytest.approx(torch.linalg.eigvalsh(true)[-1].item(), rel=1e-6)
    assert row["smallest"] > -1e-6 * row["largest"]


# --- other adapters -------------------------------------------------------------------------------------------------

CONFIGS = {
    "pissa": (LoraConfig(r=2, init_lora_weights="pissa", target_modules=["q_proj"]), {"lora_A", "lora_B"}),
    "gralora": (GraloraConfig(r=4, gralora_k=2, target_modules=["q_proj"]), {"gralora_A", "gralora_B"}),
    "randlora": (RandLoraConfig(r=8, target_modules=["q_proj"]), {"randlora_lambda", "randlora_gamma"}),
    "dora": (LoraConfig(r=2, use_dora=True, target_modules=["q_proj"]),
             {"lora_A", "lora_B", "lora_magnitude_vector"}),
}


def bent(model, batches, parameters, direction, step: float = 1e-4) -> torch.Tensor:
    """The gradient's change along a direction, by central differences."""
    ends = []
    for side in (step, -step):
        pieces = direction.split([one.numel() for one in parameters])
        with torch.no_grad():
            for one, piece in zip(parameters, pieces, strict=True):
                one.add_(piece.view_as(one), alpha=side)
        loss = model.eval()(**joined(batches)).loss
        ends.append(torch.cat([one.flatten() for one in torch.autograd.grad(loss, parameters)]))
        with torch.no_grad():
            for one, piece in zip(parameters, pieces, strict=True):
                one.sub_(piece.view_as(one), alpha=side)
    return (ends[0] - ends[1]) / (2 * step)


@pytest.mark.parametrize("name", CONFIGS)
def test_every_adapter_gives_its_own_parameters_and_a_symmetric_hessian(name):
    config, kinds = CONFIGS[name]
    model, batches = with_b(llama(config=config)), batches_of(2, 1)
    parameters = module_parameters(model, MODULE)
    assert {next(kind for kind in kinds if kind in one) for one, parameter in model.named_parameters()
            if any(parameter is wanted for wanted in parameters)} == kinds
    assert len(adapter_parameters(model)) == 2 * len(parameters), "two layers"
    product = HessianProduct(model, batches, parameters)
    direction = torch.randn(product.size, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    other = torch.randn(product.size, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    image = product(direction)
    assert float(other @ image) == pytest.approx(float(direction @ product(other)), rel=1e-5)
    change = bent(model, batches, parameters, direction)
    error = (image - change).norm() / change.norm()
    if name == "dora":
        assert error > 0.05, "PEFT's gradient takes DoRA's norms as constants, so its field is not a true gradient"
    else:
        assert error < 4e-3, "Llama computes its norms and softmax in float32, which bounds the differences"


def test_doras_cross_block_is_the_gradient_too():
    model, batches = llama(config=CONFIGS["dora"][0]), batches_of(2, 1)
    parameters = module_parameters(model, MODULE)
    assert [len(one.shape) for one in parameters] == [2, 2, 1], "A, B, magnitudes"
    matrix = dense(HessianProduct(model, batches, parameters), SIZE + WIDTH, dtype=torch.float64)  # and magnitudes
    bound = gradient_bound(model, MODULE, batches)
    assert torch.linalg.svdvals(matrix[:SIZE // 2, SIZE // 2:SIZE])[0] == pytest.approx(bound, rel=1e-5)
    with pytest.raises(UsageError, match="LoRA's A and B"):
        gradient_bound(llama(config=CONFIGS["gralora"][0]), MODULE, batches)


# --- Adam -----------------------------------------------------------------------------------------------------------

def test_preconditioning_a_quadratic_by_hand():
    """H = diag(4, -1, 9) and v = (4, 1/4, 0): over sqrt(v) = (2, 1/2) it is 2 and -2, and the third is left out."""
    curvature, moment = torch.tensor([4.0, -1, 9]).double(), torch.tensor([4, 0.25, 0]).double()
    operator, size = preconditioned(lambda vector: curvature * vector, moment, epsilon=0)
    assert dense(operator, size, dtype=torch.float64).flatten().tolist() == pytest.approx([2, 0, 0, -2], abs=1e-12)
    operator, size = preconditioned(lambda vector: curvature * vector, moment, epsilon=0.5, keep_zeros=True)
    assert dense(operator, size, dtype=torch.float64).diagonal().tolist() == pytest.approx([1.6, -1, 18])


@pytest.mark.parametrize("factor, diverges", [(0.97, False), (1.03, True)])
def test_adam_diverges_above_its_threshold(factor, diverges):
    """Adam with a settled v on x^2 h / 2, where h / sqrt(v) is a little below or above 38 / learning rate."""
    rate, v, beta = 1e-2, 4.0, 0.9
    assert adam_threshold(rate) == pytest.approx(38 / rate)
    h = factor * adam_threshold(rate) * math.sqrt(v)
    x, momentum = 1.0, 0.0
    for _ in range(2000):
        momentum = beta * momentum + (1 - beta) * h * x
        x -= rate * momentum / math.sqrt(v)
    assert (abs(x) > 1e3) if diverges else (abs(x) < 1e-3)


# --- what it refuses, and what it leaves as it was ------------------------------------------------------------------

def test_an_attention_without_a_second_derivative_is_one_sentence():
    model, batches = llama(), batches_of(1)
    model.config._attn_implementation = "flash_attention_2"
    with pytest.raises(CourseError, match="got 'flash_attention_2'; do load it with attn_implementation='eager'"):
        HessianProduct(model, batches, adapter_parameters(model))


@pytest.mark.parametrize("keep_graphs", [True, False])
def test_a_fused_layer_inside_is_one_sentence_too(keep_graphs):
    class Fused(OneToken):
        def forward(self, input_ids, attention_mask=None, use_cache=None):
            value = self.head(self.embedding(input_ids))[:, None].repeat(1, 1, 1, 4)
            with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
                return SimpleNamespace(logits=scaled_dot_product_attention(value, value, value)[:, 0])
    model = get_peft_model(Fused(), LoraConfig(r=1, target_modules=["head"]))
    with torch.no_grad():
        for parameter in adapter_parameters(model):
            parameter.fill_(0.3)
    with pytest.raises(CourseError, match="attn_implementation='eager'"):
        extremes(model, by_hand()[1], adapter_parameters(model), keep_graphs=keep_graphs)


def test_the_model_is_left_as_it_was():
    model, batches = llama().train(), batches_of(1)
    before = [one.requires_grad for one in model.parameters()]
    weights = [one.detach().clone() for one in model.parameters()]
    extremes(model, batches, module_parameters(model, MODULE), max_iterations=2)
    gradient_bounds(model, batches, [MODULE])
    second_moment(model, batches, module_parameters(model, MODULE))
    assert model.training and [one.requires_grad for one in model.parameters()] == before
    assert all(one.grad is None for one in model.parameters())
    assert all(torch.equal(one, old) for one, old in zip(model.parameters(), weights, strict=True))
    with pytest.raises(CourseError):
        extremes(model, [{**batches[0], "labels": torch.full_like(batches[0]["labels"], -100)}],
                 adapter_parameters(model))
    assert [one.requires_grad for one in model.parameters()] == before


def test_dropout_is_off():
    config = LoraConfig(r=2, lora_dropout=0.5, target_modules=["q_proj"])
    model, batches = with_b(llama(config=config)).train(), batches_of(2)
    first, second = (extremes(model, batches, adapter_parameters(model)) for _ in range(2))
    assert first["largest"] == second["largest"]


def test_weights_that_changed_since_are_refused():
    """A kept graph knows the weights it was built with; torch itself notices only those that it saved, not A."""
    model, batches = with_b(llama()), batches_of(1)
    kept, anew = (HessianProduct(model, batches, module_parameters(model, MODULE), keep_graphs=keep)
                  for keep in (True, False))
    direction = torch.ones(kept.size, dtype=torch.float64)
    torch.testing.assert_close(kept(direction), anew(direction))
    with torch.no_grad():
        module_parameters(model, MODULE)[0].mul_(2)
    with pytest.raises(CourseError, match="do build the product anew"):
        kept(direction)
    assert anew(direction).isfinite().all()


@pytest.mark.parametrize("name", ["layers.7.self_attn.q_proj", "q_proj", "layers.0.self_attn.k_proj"])
def test_a_name_must_mean_one_adapted_module(name):
    with pytest.raises(UsageError, match="Expected one module"):
        module_parameters(llama(), name)


def test_an_unknown_kind_and_an_empty_block_are_refused():
    model, batches = llama(), batches_of(1)
    with pytest.raises(UsageError, match="hessian or gauss_newton, got 'fisher'"):
        extremes(model, batches, adapter_parameters(model), kind="fisher")
    with pytest.raises(UsageError, match="one or more parameters"):
        extremes(model, batches, [])
    diverged = with_b(llama())
    with torch.no_grad():
        adapter_parameters(diverged)[0].fill_(math.nan)
    with pytest.raises(CourseError, match="holds NaN"):
        extremes(diverged, batches, adapter_parameters(diverged))
