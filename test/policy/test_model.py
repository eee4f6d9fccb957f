"""What the model promises, on a tiny one with random weights."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from vla_ros.policy.model import NAMED, ModelConfig, Policy  # noqa: E402
from vla_ros.policy.objectives import DDIM_START, OBJECTIVES, Ddim, Flow, Mip, draw_prefix, mean_over_free  # noqa: E402

pytestmark = pytest.mark.unit
TINY = ModelConfig(
    vocabulary=20,
    text_tokens=6,
    image_px=32,
    width=32,
    heads=2,
    layers=2,
    mlp_ratio=2,
    action_queries=2,
    stem=(8, 8, 8, 8),
    keypoints=4,
    keypoint_tokens=2,
    patch_grid=2,
    steps=3,
    expect=True,
)


def wake(model: Policy) -> Policy:
    """Zero-initialised outputs hide everything; give them values."""
    torch.manual_seed(1)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "leave" in name or "modulation" in name:
                p.normal_(std=0.3)
    return model.eval()


def inputs(batch=2, seed=0):
    g = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (batch, 2, 32, 32, 3), dtype=torch.uint8, generator=g)
    ids = torch.randint(2, 20, (batch, 6), generator=g)
    ids[:, 4:] = 0
    return images, ids, torch.randn(batch, 17, generator=g), torch.randn(batch, 16, 7, generator=g)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return wake(Policy(TINY))


@pytest.mark.parametrize("bridge", ["last", "pooled"])
def test_what_the_head_reads_is_a_setting_with_the_same_parameters(model, bridge):
    other = wake(Policy(dataclasses.replace(TINY, bridge=bridge)))
    assert {k: v.shape for k, v in other.state_dict().items()} == {k: v.shape for k, v in model.state_dict().items()}
    other.load_state_dict(model.state_dict())
    images, ids, state, noise = inputs()
    with torch.no_grad():
        ours, theirs = model(images, ids, state, noise)[0], other(images, ids, state, noise)[0]
        padded = ids.clone()
        padded[:, 2:] = 0
        assert not torch.allclose(ours, theirs) and torch.isfinite(other(images, padded, state, noise)[0]).all()
    read = other.observe(images, ids, state).raw[0][0].shape[2]
    assert read == (1 if bridge == "pooled" else model.observe(images, ids, state).raw[0][0].shape[2])


@torch.no_grad()
def test_words_point_by_themselves_and_add_up(model):
    """A colour and a shape that were never said together must find what is both: no word's map knows its neighbours."""
    images, ids, _, _ = inputs()
    stem, sentence = model.backbone.cameras[0], model.backbone.text(ids)
    assert torch.allclose(sentence.roles.sum(-1), torch.ones(2, NAMED))
    fine, coarse = stem.see(images[:, 0].permute(0, 3, 1, 2).float() / 127.5 - 1.0)
    length = ids.shape[1]
    alone = [
        stem.name(dataclasses.replace(sentence, roles=torch.eye(length)[k].expand(2, NAMED, length)), fine, coarse)
        for k in range(length)
    ]
    assert all((heat < 0).all() for heat in alone)  # a word can only say how badly a cell fits
    together = sum(sentence.roles[:, :, k, None] * heat for k, heat in enumerate(alone))
    assert torch.allclose(stem.name(sentence, fine, coarse), together, atol=1e-5)
    swapped = dataclasses.replace(sentence, words=torch.randn_like(sentence.words), summary=sentence.summary + 1)
    assert torch.equal(stem.name(swapped, fine, coarse), stem.name(sentence, fine, coarse))


@torch.no_grad()
def test_words_that_only_tell_things_apart_are_heard_by_the_naming_alone():
    model = Policy(dataclasses.replace(TINY, names=(2, 3))).eval()
    text = model.backbone.text
    one, other, third = (text(torch.tensor([[5, word, 6, 7, 0, 0]])) for word in (2, 3, 4))
    for field in ("words", "summary", "roles"):
        assert torch.equal(getattr(one, field), getattr(other, field))
        assert not torch.equal(getattr(one, field), getattr(third, field))
    images, _, _, _ = inputs()
    stem = model.backbone.cameras[0]
    fine, coarse = stem.see(images[:1, 0].permute(0, 3, 1, 2).float() / 127.5 - 1.0)
    assert not torch.allclose(stem.name(one, fine, coarse), stem.name(other, fine, coarse))
    with pytest.raises(ValueError, match=r"model\.names"):
        dataclasses.replace(TINY, names=(TINY.vocabulary,)).validate()


@torch.no_grad()
def test_a_further_camera_expects_what_the_first_one_found(model):
    images, ids, state, _ = inputs()
    pictures = images.permute(0, 1, 4, 2, 3).float() / 127.5 - 1.0
    here, there = model.point(pictures, ids, state), model.point(pictures, ids, state + 0.5)
    assert torch.equal(here[:, 0], there[:, 0]), "the first camera expects nothing"
    assert not torch.allclose(here[:, 1], there[:, 1])
    last = model.backbone.expect[0].guess[-1]
    last.weight.zero_()
    last.bias.copy_(torch.tensor([-1.0, 1.0, 9.0] * NAMED))  # far left, far down, very sure
    side = TINY.image_px // 4
    assert (model.point(pictures, ids, state)[:, 1].argmax(-1) == side * (side - 1)).all()
    blind = Policy(dataclasses.replace(TINY, expect=False)).eval()
    assert torch.equal(blind.point(pictures, ids, state), blind.point(pictures, ids, state + 0.5))


@torch.no_grad()
def test_the_summary_may_ask_instead():
    other = Policy(dataclasses.replace(TINY, naming="summary")).eval()
    images, ids, state, noise = inputs()
    assert torch.isfinite(other(images, ids, state, noise)[0]).all()
    assert not any("ask_word" in name or "roles" in name for name in other.state_dict())


@torch.no_grad()
def test_a_closed_gate_makes_the_raw_tokens_irrelevant(model):
    images, ids, state, noise = inputs()
    memory = model.observe(images, ids, state)
    tau = torch.full((2, 1), 0.3)
    replaced = dataclasses.replace(memory, raw=[(torch.randn_like(k), torch.randn_like(v)) for k, v in memory.raw])
    assert not torch.equal(model.head(noise[:, None], tau, memory), model.head(noise[:, None], tau, replaced))
    for block in model.head.blocks:
        block.gate.zero_()
    assert torch.equal(model.head(noise[:, None], tau, memory), model.head(noise[:, None], tau, replaced))


@torch.no_grad()
def test_rows_of_a_chunk_differ_even_without_noise(model):
    images, ids, state, _ = inputs()
    chunk = model.head(torch.zeros(2, 1, 16, 7), torch.zeros(2, 1), model.observe(images, ids, state))[:, 0]
    assert (chunk[:, 1:] - chunk[:, :-1]).abs().amax((0, 2)).min() > 1e-4


@torch.no_grad()
def test_words_and_pictures_and_state_change_the_chunk(model):
    images, ids, state, noise = inputs()
    chunk = model(images, ids, state, noise)[0]
    other_ids = ids.clone()
    other_ids[:, 1] = (ids[:, 1] - 2 + 1) % 18 + 2
    for changed in (
        model(images, other_ids, state, noise)[0],
        model(255 - images, ids, state, noise)[0],
        model(images, ids, state + 0.5, noise)[0],
    ):
        assert (changed - chunk).abs().max() > 1e-5


@torch.no_grad()
def test_padding_does_not_change_the_chunk(model):
    """What stands in the embedding of the padding word must not matter."""
    images, ids, state, noise = inputs()
    chunk = model(images, ids, state, noise)[0]
    model.backbone.text.words.weight[0] += 3.0
    assert torch.allclose(model(images, ids, state, noise)[0], chunk, atol=1e-6)


@torch.no_grad()
def test_noise_draws_that_share_a_backbone_pass_do_not_see_each_other(model):
    images, ids, state, _ = inputs()
    memory = model.observe(images, ids, state)
    x, tau = torch.randn(2, 3, 16, 7), torch.rand(2, 3)
    together = model.head(x, tau, memory)
    for d in range(3):
        assert torch.allclose(model.head(x[:, d : d + 1], tau[:, d : d + 1], memory), together[:, d : d + 1], atol=1e-5)


@pytest.mark.parametrize("objective", sorted(OBJECTIVES))
@torch.no_grad()
def test_a_committed_prefix_comes_out_as_it_went_in_and_changes_the_rest(objective):
    torch.manual_seed(0)
    model = wake(Policy(dataclasses.replace(TINY, objective=objective)))
    images, ids, state, noise = inputs()
    free = model(images, ids, state, noise)[0]
    prefix = torch.full((2, 16, 7), 0.5)
    chunk = model(images, ids, state, noise, prefix, torch.tensor([4, 4]))[0]
    assert torch.allclose(chunk[:, :4], prefix[:, :4], atol=1e-6)
    assert (chunk[:, 4:] - free[:, 4:]).abs().max() > 1e-4
    none = model(images, ids, state, noise, prefix, torch.tensor([0, 0]))[0]
    assert torch.equal(none, free)


def test_everything_that_cannot_work_is_named_at_once():
    with pytest.raises(ValueError, match=r"model\.width.*model\.objective.*model\.prefix_max") as error:
        ModelConfig(width=0, objective="guess", prefix_max=99).validate()
    assert "flow, ddim, l1, mip" in str(error.value)


def test_sizes_that_cannot_work_are_refused():
    for change in (
        {"width": 30, "heads": 4},
        {"image_px": 50},
        {"prefix_max": 16},
        {"bridge": "first"},
        {"objective": "guess"},
        {"prediction": "future"},
        {"action_space": "nowhere"},
        {"backbone": "smolvlm"},
        {"vlm": "folder"},
        {"layers": 0},
    ):
        with pytest.raises(ValueError, match="model\\."):
            ModelConfig(**change).validate()


# ------------------------------------------------------------------------------------------------ objectives


class GaussianVelocity(torch.nn.Module):
    """The exact velocity of straight-line flow from N(0, 1) to N(mean, std^2), which a trained head approximates."""

    def __init__(self, mean: float, std: float) -> None:
        super().__init__()
        self.mean, self.std = mean, std

    def forward(self, x, tau, memory, prefix=None):
        t = tau[..., None, None]
        variance = (1 - t) ** 2 + (t * self.std) ** 2
        return self.mean + (t * self.std**2 - (1 - t)) / variance * (x - t * self.mean)


class GaussianDenoiser(GaussianVelocity):
    """The exact answers of a variance-preserving diffusion of the same Gaussian."""

    def __init__(self, mean: float, std: float, prediction: str) -> None:
        super().__init__(mean, std)
        self.prediction = prediction

    def forward(self, x, tau, memory, prefix=None):
        angle = (DDIM_START * (1 - tau))[..., None, None]
        a, s = angle.cos(), angle.sin()
        off = (x - a * self.mean) / ((a * self.std) ** 2 + s**2)
        data, noise = self.mean + a * self.std**2 * off, s * off
        return noise if self.prediction == "epsilon" else a * noise - s * data


class GaussianGuess(GaussianVelocity):
    """The chunk that is most likely, seen from nothing (time 0) or from near it (MIP_TIME)."""

    def forward(self, x, tau, memory, prefix=None):
        t = tau[..., None, None]
        gain = t * self.std**2 / ((t * self.std) ** 2 + (1 - t) ** 2)
        return self.mean + torch.where(t > 0, gain, 0.0) * (x - t * self.mean)


TRUTHS = {
    "flow": (Flow, TINY, GaussianVelocity),
    "ddim v": (Ddim, TINY, lambda m, s: GaussianDenoiser(m, s, "v")),
    "ddim epsilon": (
        Ddim,
        dataclasses.replace(TINY, prediction="epsilon"),
        lambda m, s: GaussianDenoiser(m, s, "epsilon"),
    ),
    "mip": (Mip, TINY, GaussianGuess),
}


@pytest.mark.parametrize("name", TRUTHS)
@torch.no_grad()
def test_the_sampler_turns_noise_into_the_gaussian_it_should(name):
    """One convention: noise at time 0, data at time 1. A sign error would still run, but not land here."""
    objective, config, truth = TRUTHS[name]
    noise = torch.randn(1000, 16, 7, generator=torch.Generator().manual_seed(0))
    sample = objective(config).sample(truth(2.0, 0.5), None, noise, 100, None, None)
    assert abs(float(sample.mean()) - 2.0) < 0.03  # diffusion begins at a cosine of 0.02, not of 0
    expected = 0.0 if name == "mip" else 0.5  # two regressions give the middle, and no spread
    assert abs(float(sample.std()) - expected) < 0.03


@pytest.mark.parametrize("name", TRUTHS)
@torch.no_grad()
def test_the_loss_is_lowest_for_the_true_answer(name):
    objective, config, truth = TRUTHS[name]
    g = torch.Generator()
    data = 2.0 + 0.5 * torch.randn(1000, 16, 7, generator=g.manual_seed(0))
    losses = {
        m: float(objective(config).loss(truth(m, 0.5), data, None, g.manual_seed(1), 2, 0.0).mean())
        for m in (2.0, 1.6, 2.4, -2.0)
    }
    assert min(losses, key=losses.get) == 2.0


@torch.no_grad()
def test_few_steps_of_diffusion_stay_near_the_data():
    """Five steps are what a robot has time for; the first divides by a small cosine and must not blow up."""
    noise = torch.randn(1000, 16, 7, generator=torch.Generator().manual_seed(0))
    for prediction in ("v", "epsilon"):
        ddim = Ddim(dataclasses.replace(TINY, prediction=prediction))
        sample = ddim.sample(GaussianDenoiser(0.5, 0.5, prediction), None, noise, 5, None, None)
        assert abs(float(sample.mean()) - 0.5) < 0.05 and 0.3 < float(sample.std()) < 0.6


@pytest.mark.parametrize("change", [{"objective": name} for name in sorted(OBJECTIVES)] + [{"prediction": "epsilon"}])
def test_every_objective_is_sampled_inside_the_exported_graph(change, tmp_path):
    pytest.importorskip("onnx")
    from vla_ros.policy.export import parity, write_graph
    from vla_ros.policy.onnx_graph import OnnxGraph

    torch.manual_seed(0)
    model = wake(Policy(dataclasses.replace(TINY, **({"objective": "ddim"} | change))))
    feeds = []
    for rows in (0, 3):
        images, ids, state, noise = (t.numpy() for t in inputs(1, seed=rows))
        feeds.append(
            {"images": images, "text": ids, "state": state, "noise": noise}
            | {"prefix": np.full_like(noise, 0.3), "prefix_rows": np.array([rows])}
        )
    write_graph(model, feeds[0], tmp_path / "graph.onnx")
    assert parity(model, OnnxGraph(tmp_path / "graph.onnx"), feeds) < 1e-3


def test_only_free_rows_count_and_the_prefix_is_clean():
    prefix = draw_prefix(400, 2, 16, 6, 0.5, torch.Generator().manual_seed(0))
    length = prefix.sum((2, 3))
    assert int(length.max()) == 6 and 0.5 < float((length == 0).float().mean()) < 0.65
    assert bool((prefix[:, :, :-1] >= prefix[:, :, 1:]).all()), "a prefix is a leading run of rows"
    error = torch.where(prefix, torch.tensor(1e9), torch.tensor(2.0)).expand(-1, -1, -1, 7)
    assert torch.allclose(mean_over_free(error, prefix), torch.full((400,), 2.0))

    seen = []

    class Spy(torch.nn.Module):
        def forward(self, x, tau, memory, prefix=None):
            seen.append((x, prefix))
            return torch.zeros_like(x)

    data = torch.randn(50, 16, 7)
    Flow(TINY).loss(Spy(), data, None, torch.Generator().manual_seed(0), 2, 1.0)
    x, given = seen[0]
    assert torch.equal(torch.where(given, x, torch.tensor(0.0)), torch.where(given, data[:, None], torch.tensor(0.0)))


@pytest.mark.parametrize("objective", sorted(OBJECTIVES))
def test_every_objective_trains_every_part_of_the_head(objective):
    config = dataclasses.replace(TINY, objective=objective)
    model = wake(Policy(config)).train()
    images, ids, state, noise = inputs(4)
    loss = OBJECTIVES[objective](config).loss(
        model.head, noise, model.observe(images, ids, state), torch.Generator().manual_seed(0), 2, 0.5
    )
    assert loss.shape == (4,)
    loss.mean().backward()
    silent = [n for n, p in model.named_parameters() if p.grad is None or not bool(p.grad.abs().sum() > 0)]
    other_outputs = ("where", "done", "sure", "summary")  # trained by losses of their own
    other_outputs += ("backbone.text.pool.bias",)  # a softmax does not see what is added to all of its scores
    assert not [n for n in silent if not n.startswith(other_outputs)], silent
    assert np.isfinite(float(loss.sum().detach()))
