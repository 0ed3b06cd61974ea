"Our masks and grids against those of torch, torch.ao and torchao, on the same tensors: equal to the bit at equal scales"

import logging, warnings

import pytest, torch
from torch.nn.utils import prune as torch_prune

from combcomp.spec import MP, QAT
from combcomp.compress.methods import encoder_linears
from combcomp.models.encoders import load_model
from combcomp.compress.pruning import Prune, keep_masks
from combcomp.compress.quantization import (
    Quantize,
    ActivationObserver,
    FakeQuantWeight,
    straight_through,
    qmax,
    fake_quantize_activations,
    fake_quantize_per_channel,
    channel_scales,
)

warnings.filterwarnings("ignore", category=DeprecationWarning)
warnings.filterwarnings("ignore", category=FutureWarning)
BITS = (2, 3, 4, 6, 8, 12, 16)


@pytest.fixture(scope="module")
def weights():
    "Real weights, 16 matrices of a BERT, and a row of zeros"
    real = [m.weight.detach().clone() for m in encoder_linears(load_model("minilm", "l2", None)).values()]
    real[0][3] = 0
    return real


def torchao_fake(x, block, scale, zero, low, high):
    "torchao's fake quantization"
    logging.getLogger("torchao").setLevel(logging.ERROR)
    from torchao.quantization.quant_primitives import _fake_quantize_affine

    return _fake_quantize_affine(x, block, scale, zero, torch.int32, low, high)


@pytest.mark.parametrize("bits", BITS)
def test_weights_are_rounded_as_torch_and_torchao_do(weights, bits):
    for w in weights:
        ours, scales = straight_through(w, bits)
        zeros = torch.zeros_like(scales, dtype=torch.int32)
        n = qmax(bits)
        assert torch.equal(
            ours.view(torch.int32),
            torch.fake_quantize_per_channel_affine(w, scales, zeros, 0, -n, n).view(torch.int32),
        )
        assert torch.equal(ours, torchao_fake(w, (1, w.shape[1]), scales, zeros, -n, n))
        assert not ours.view(torch.int32).eq(-(2**31)).any()  # no -0.0


@pytest.mark.parametrize("bits", BITS)
def test_gradients_of_weights_are_those_of_torch_and_torchao(weights, bits):
    n, upstream = qmax(bits), torch.randn_like(weights[1])

    def gradient(f):
        w = weights[1].clone().requires_grad_()
        f(w).backward(upstream)
        return w.grad

    scales = channel_scales(weights[1], bits)
    zeros = torch.zeros_like(scales, dtype=torch.int32)
    theirs = gradient(lambda w: torch.fake_quantize_per_channel_affine(w, scales, zeros, 0, -n, n))
    assert torch.equal(gradient(lambda w: straight_through(w, bits)[0]), theirs) and torch.equal(
        theirs, upstream
    )  # the grid follows: nothing is outside
    narrow = scales * 0.3  # now much is outside, and gets no gradient
    ours, torchs, torchaos = (
        gradient(f)
        for f in (
            lambda w: fake_quantize_per_channel(w, narrow, bits),
            lambda w: torch.fake_quantize_per_channel_affine(w, narrow, zeros, 0, -n, n),
            lambda w: torchao_fake(w, (1, w.shape[1]), narrow, zeros, -n, n),
        )
    )
    assert torch.equal(ours, torchs) and 0 < (ours == 0).float().mean() < 1
    torch.testing.assert_close(ours, torchaos, rtol=1e-6, atol=0)
    assert torch.equal(ours == 0, torchaos == 0)  # it multiplies by the scale and its inverse on the way back


@pytest.mark.parametrize("bits", (8, 16))
def test_activations_are_rounded_as_torch_does(bits):
    torch.manual_seed(0)
    r = ActivationObserver(bits)
    for _ in range(5):
        r(torch.nn.functional.gelu(torch.randn(8, 40, 64) * 2))
    scale, zero = r.qparams()
    x = torch.cat([torch.randn(500) * 4, torch.tensor([0.0, -0.0, 1e9, -1e9, r.low.item(), r.high.item()])])
    grads = []
    from torch.ao.quantization import FakeQuantize

    theirs = (
        FakeQuantize(
            quant_min=0,
            quant_max=2**bits - 1,
            dtype=torch.qint32,
            observer=torch.ao.quantization.MinMaxObserver,
        )
        if bits == 16
        else FakeQuantize(quant_min=0, quant_max=255)
    )
    theirs.disable_observer()
    theirs.scale, theirs.zero_point = scale.reshape(1), zero.reshape(1)
    for f in (
        r.eval(),
        lambda v: fake_quantize_activations(v, scale, zero, bits),
        theirs,
        lambda v: torchao_fake(v, (len(v),), scale.reshape(1), zero.reshape(1), 0, 2**bits - 1),
    ):
        v = x.clone().requires_grad_()
        y = f(v)
        y.sum().backward()
        grads.append((y.detach(), v.grad))
    for y, g in grads[1:3]:
        assert torch.equal(y, grads[0][0]) and torch.equal(g, grads[0][1])
    y, g = grads[
        3
    ]  # torchao adds the zero point after rounding and not before: they may differ at ties, by one step
    assert (
        (y - grads[0][0]).abs().max() <= scale * 1.01
        and (y != grads[0][0]).float().mean() < 0.02
        and torch.equal(g, grads[0][1])
    )


def test_a_quantized_layer_is_torch_aos_at_equal_scales(weights):
    "A whole linear layer under QAT, forward and backward, against torch.ao.nn.qat.Linear with our scales in its fake quantizers"
    from torch.ao.nn.qat import Linear
    from torch.ao.quantization import FakeQuantize, PerChannelMinMaxObserver, QConfig, default_fake_quant

    theirs = Linear(
        384,
        384,
        qconfig=QConfig(
            activation=default_fake_quant,
            weight=FakeQuantize.with_args(
                observer=PerChannelMinMaxObserver,
                quant_min=-127,
                quant_max=127,
                dtype=torch.qint8,
                qscheme=torch.per_channel_symmetric,
                ch_axis=0,
            ),
        ),
    )
    ours = torch.nn.Linear(384, 384)
    for layer in (theirs, ours):
        layer.load_state_dict({"weight": weights[2], "bias": torch.zeros(384)}, strict=False)
    torch.nn.utils.parametrize.register_parametrization(ours, "weight", FakeQuantWeight(8))
    x = torch.randn(5, 384)
    theirs(x)  # shapes its buffers
    theirs.weight_fake_quant.disable_observer()
    theirs.weight_fake_quant.scale.copy_(channel_scales(weights[2], 8))
    a, b = theirs(x), ours(x)
    assert torch.equal(a, b)
    a.square().sum().backward()
    b.square().sum().backward()
    assert torch.equal(theirs.weight.grad, ours.parametrizations.weight.original.grad)


@pytest.mark.parametrize("scope", ("layer", "global"))
@pytest.mark.parametrize("sparsity", (0.1, 0.4, 0.6, 0.9))
def test_masks_are_torchs(weights, sparsity, scope):
    modules = []
    for w in weights[1:]:
        modules.append(torch.nn.Linear(*w.shape[::-1]))
        modules[-1].weight.data = w.clone()
    if scope == "layer":
        for m in modules:
            torch_prune.l1_unstructured(m, "weight", amount=sparsity)
    else:
        torch_prune.global_unstructured(
            [(m, "weight") for m in modules], torch_prune.L1Unstructured, amount=sparsity
        )
    for ours, m in zip(keep_masks(weights[1:], sparsity, scope), modules):
        assert torch.equal(ours, m.weight_mask.bool())


@pytest.mark.parametrize("order", ("mp,qat", "qat,mp"))
def test_attached_in_either_order_a_pruned_weight_stays_zero(order):
    model = load_model("minilm", "l1", None)
    methods = {"mp": Prune(MP(sparsity=0.5)), "qat": Quantize(QAT(bits=4))}
    for name in order.split(","):
        methods[name].prepare(model)
    methods["mp"].step(1.0)
    for name, m in methods["mp"].modules.items():
        assert (m.weight[~methods["mp"].masks[name].keep] == 0).all() and int(
            (~methods["mp"].masks[name].keep).sum()
        ) == round(0.5 * m.weight.numel())
