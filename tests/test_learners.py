"""Laws of the learners, each over the table of all of them: a learner that is added cannot skip one."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, hessian
from torch.nn.functional import cross_entropy

from distmeta.data.episodes import Batch, EpisodeBatch, LabelledBatch
from distmeta.errors import ConfigError
from distmeta.learners import LEARNERS, build_learner, check_settings, settings_of
from distmeta.learners.learner import Learner
from distmeta.learners.maml import ANIL, MAMLPlusPlus
from distmeta.learners.memory import predicted_bytes
from distmeta.learners.params import Params, flatten, trainable, unflatten, weights_sha256
from distmeta.models import build_model
from distmeta.models.head import name_head
from distmeta.models.norm import NORMS
from distmeta.training.outer import OuterUpdate, schedule

WAY, SHOT, QUERIES = 3, 2, 2
NAMES = sorted(LEARNERS.keys() - {"in-context"})  # it reads sequences: tests/test_in_context.py holds it to the same laws
ENGINES = [(batching, gradient) for batching in ("loop", "vmap") for gradient in ("unrolled", "checkpointed")]
NO_GRADIENT_OF_A_LOSS = {"fomaml", "reptile"}  # by definition; each has a law of its own below
ADAPTS = [name for name in NAMES if "inner_lr" in settings_of(name)]
THROUGH_INNER_LOOP = [name for name in NAMES if "gradient" in settings_of(name)]


def network(kind: str = "conv4", norm: str = "batch", dtype: torch.dtype = torch.float64, seed: int = 1) -> nn.Module:
    own: dict[str, Any] = {"filters": 4, "downsample": "stride"} if kind == "conv4" else {"widths": [6], "activation": "tanh"}
    return build_model(kind, (1, 16, 16), WAY, norm, seed=seed, **own).to(dtype)


def learner(name: str, model: nn.Module, **settings: Any) -> Learner:
    """The learner with those of `settings` that it takes, and something for each of its own."""
    own = {"inner_lr": 0.1, "inner_steps": 2, "multi_step_loss": 10, "inner_batch": 4, "images_per_slot": 6, "tasks_per_chunk": 2}
    return build_learner(name, model, **{key: value for key, value in (own | settings).items() if key in settings_of(name)})


def batch(slots: int, dtype: torch.dtype = torch.float64, step: int = 0) -> EpisodeBatch:
    random = torch.Generator().manual_seed(0)
    images = torch.randn(slots, WAY * (SHOT + QUERIES), 1, 16, 16, generator=random, dtype=torch.float64).to(dtype)
    labels = torch.arange(WAY).expand(slots, WAY)
    support, queries = images[:, : WAY * SHOT], images[:, WAY * SHOT :]
    return EpisodeBatch(
        step=step,
        slots=list(range(slots)),
        support_images=support,
        support_labels=labels.repeat_interleave(SHOT, 1),
        query_images=queries,
        query_labels=labels.repeat_interleave(QUERIES, 1),
    )


def batch_for(name: str, slots: int, dtype: torch.dtype = torch.float64) -> Batch:
    """Episodes, or the same images as labelled batches for a learner that trains on those."""
    episodes = batch(slots, dtype)
    if LEARNERS[name].trains_on == "episodes":
        return episodes
    images = torch.cat([episodes.support_images, episodes.query_images], 1)
    return LabelledBatch(0, episodes.slots, images, torch.cat([episodes.support_labels, episodes.query_labels], 1))


@pytest.mark.parametrize("steps", [1, 2, 3])
@pytest.mark.parametrize("name", [name for name in NAMES if name not in NO_GRADIENT_OF_A_LOSS])
def test_meta_gradient_against_finite_differences(name: str, steps: int) -> None:
    """Conv-4 with batch norm in float64: central differences of the meta-loss along a direction in every meta-parameter."""
    made = learner(name, network(), inner_steps=steps)
    theta, one = made.initial_params(), batch_for(name, 1)
    gradient = unflatten(made.slot_gradients(theta, one)[0][0], theta)
    random = torch.Generator().manual_seed(3)
    width = 1e-6
    for key, value in theta.items():
        direction = torch.randn(value.shape, generator=random, dtype=torch.float64)
        direction /= direction.norm()
        up, down = (made.slot_gradients(theta | {key: value + sign * width * direction}, one)[1].loss[0].item() for sign in (1, -1))
        assert (up - down) / (2 * width) == pytest.approx((gradient[key] * direction).sum().item(), rel=2e-5, abs=2e-8), key


@pytest.mark.parametrize("gradient", ["unrolled", "checkpointed"])
@pytest.mark.parametrize("steps", [1, 2, 3])
def test_maml_against_explicit_hessians(steps: int, gradient: str) -> None:
    """(I - αH₀)(I - αH₁)…(I - αH₍ₖ₋₁₎) ∇L_query(φₖ), with Hessians written out; its loss and its counts by hand."""
    model, alpha = network("mlp", "none"), 0.3
    maml = learner("maml", model, inner_lr=alpha, inner_steps=steps, gradient=gradient)
    theta, episodes = maml.initial_params(), batch(1)
    support, labels = episodes.support_images[0], episodes.support_labels[0]
    queries, query_labels = episodes.query_images[0], episodes.query_labels[0]

    def loss(vector: Tensor, images: Tensor, targets: Tensor) -> Tensor:
        return cross_entropy(functional_call(model, unflatten(vector, theta), (images,)), targets)

    phi = flatten(theta)
    hessians = []
    for _ in range(steps):
        hessians.append(hessian(loss)(phi, support, labels))
        phi = phi - alpha * torch.func.grad(loss)(phi, support, labels)
    expected = torch.func.grad(loss)(phi, queries, query_labels)
    ours, metrics = maml.slot_gradients(theta, episodes)
    first_order, _ = learner("fomaml", model, inner_lr=alpha, inner_steps=steps).slot_gradients(theta, episodes)
    torch.testing.assert_close(first_order[0], expected, rtol=1e-9, atol=1e-12)
    for h in reversed(hessians):
        expected = expected - alpha * h @ expected
    torch.testing.assert_close(ours[0], expected, rtol=1e-9, atol=1e-12)
    assert metrics.loss.item() == pytest.approx(loss(phi, queries, query_labels).item())
    right = functional_call(model, unflatten(phi, theta), (queries,)).argmax(1) == query_labels
    assert metrics.score.item() == right.double().mean().item()


def test_reptile_is_the_sum_of_its_inner_gradients() -> None:
    """(θ - φ)/α = Σ gᵢ with SGD over minibatches in which classes take turns; with Adam, what torch's own does with β1 = 0."""
    model, alpha, steps, size = network("mlp", "none"), 0.2, 5, 4
    episodes = batch(1)
    images = torch.cat([episodes.support_images[0], episodes.query_images[0]])
    labels = torch.cat([episodes.support_labels[0], episodes.query_labels[0]])
    order = [0, 2, 4, 1, 3, 5, 6, 8, 10, 7, 9, 11]  # class 0, 1, 2, 0, 1, 2, … (two support images a class, then two queries)
    assert labels[order].tolist() == [0, 1, 2] * 4
    for optimizer, torchs in (
        ("sgd", torch.optim.SGD),
        ("adam", lambda values, lr: torch.optim.Adam(values, lr, betas=(0.0, 0.999), eps=1e-30)),
    ):
        reptile = learner(
            "reptile", model, inner_lr=alpha, inner_steps=steps, inner_batch=size, inner_optimizer=optimizer, inner_epsilon=1e-30
        )
        theta = reptile.initial_params()
        ours = reptile.slot_gradients(theta, episodes)[0][0]
        phi = {name: value.clone().requires_grad_() for name, value in theta.items()}
        stepper = torchs(list(phi.values()), lr=alpha)
        total = torch.zeros_like(ours)
        for step in range(steps):
            chosen = [order[(step * size + i) % len(order)] for i in range(size)]
            loss = cross_entropy(functional_call(model, phi, (images[chosen],)), labels[chosen])
            for value, gradient in zip(phi.values(), torch.autograd.grad(loss, list(phi.values())), strict=True):
                value.grad = gradient
            total += flatten({name: value.grad for name, value in phi.items()})  # type: ignore[misc]
            stepper.step()
        torch.testing.assert_close(ours, flatten(theta) - flatten(phi).detach(), rtol=1e-7, atol=1e-9)
        if optimizer == "sgd":
            torch.testing.assert_close(ours / alpha, total, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("norm", sorted(NORMS))
@pytest.mark.parametrize("name", NAMES)
def test_all_engines_agree(name: str, norm: str) -> None:
    """unrolled = checkpointed, loop = vmap, to 1e-10 in float64, over three slots in chunks of two."""
    model = network(norm=norm)
    found = []
    for batching, gradient in ENGINES:
        made = learner(name, model, task_batching=batching, gradient=gradient)
        found.append(made.slot_gradients(made.initial_params(), batch_for(name, 3)))
    for gradients, metrics in found[1:]:
        torch.testing.assert_close(gradients, found[0][0], rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(metrics.loss, found[0][1].loss, rtol=1e-10, atol=1e-12)
        assert torch.equal(metrics.score, found[0][1].score)


@pytest.mark.parametrize("name", NAMES)
def test_all_engines_agree_in_float32_on_a_smooth_network(name: str) -> None:
    model = network("mlp", "none", torch.float32)
    exact = learner(name, network("mlp", "none"))
    truth = exact.slot_gradients(exact.initial_params(), batch_for(name, 3))[0]
    for batching, gradient in ENGINES:
        made = learner(name, model, task_batching=batching, gradient=gradient)
        theta = {key: value.float() for key, value in exact.initial_params().items()}
        ours = made.slot_gradients(theta, batch_for(name, 3, torch.float32))[0]
        assert (ours - truth).norm() <= 1e-5 * truth.norm()


@pytest.mark.parametrize("name", [name for name in NAMES if name != "reptile"])  # whose outer pass is a subtraction
def test_the_outer_pass_in_bfloat16(name: str) -> None:
    """Near the exact gradient on a smooth network, by bfloat16's eight bits; not equal, so it was used; inner steps are left alone."""
    model = network("mlp", "none", torch.float32)
    exact, rounded = (build_learner(name, model, bfloat16=on) for on in (False, True))
    theta, slots = exact.initial_params(), batch_for(name, 2, torch.float32)
    truth, ours = (made.slot_gradients(theta, slots)[0] for made in (exact, rounded))
    assert ours.dtype == torch.float32
    assert 0 < (ours - truth).norm() < 0.02 * truth.norm()
    if isinstance(slots, EpisodeBatch):
        ends = (made.adapt(theta, slots.take([0])) for made in (exact, rounded))
        assert len({weights_sha256(end) for end in ends}) == 1


@pytest.mark.parametrize("batching", ["loop", "vmap"])
@pytest.mark.parametrize("norm", sorted(NORMS))
@pytest.mark.parametrize("name", NAMES)
def test_a_slots_bits_do_not_depend_on_its_neighbours(name: str, norm: str, batching: str) -> None:
    """What the order-free reduction needs for any number of workers to end in the same bits."""
    made = learner(name, network(norm=norm, dtype=torch.float32), task_batching=batching)
    theta, slots = made.initial_params(), batch_for(name, 5, torch.float32)
    together, metrics = made.slot_gradients(theta, slots)
    for chosen in ([2], [3, 1], [1, 0, 3], [4, 3, 2]):
        gradients, own = made.slot_gradients(theta, slots.take(chosen))
        assert torch.equal(gradients, together[chosen])
        assert torch.equal(own.loss, metrics.loss[chosen])
        assert torch.equal(own.score, metrics.score[chosen])


@pytest.mark.parametrize("width", [3, 5, 7, 13])
@pytest.mark.parametrize("name", NAMES)
def test_a_slots_bits_do_not_depend_on_its_neighbours_where_sizes_are_odd(name: str, width: int) -> None:
    """Vectorised operations take a tensor's last few values one by one, by other formulas: no slot may come to be there by chance."""
    model = build_model("mlp", (1, 16, 16), WAY, "none", seed=1, widths=[width], activation="tanh")
    made = learner(name, model, task_batching="vmap", tasks_per_chunk=3)
    theta, slots = made.initial_params(), batch_for(name, 5, torch.float32)
    together, _ = made.slot_gradients(theta, slots)
    for chosen in ([2], [3, 1], [1, 0, 3], [4, 3, 2], [1, 2, 3]):
        assert torch.equal(made.slot_gradients(theta, slots.take(chosen))[0], together[chosen])


def test_dropout_noise_belongs_to_the_slot() -> None:
    """Law 3 with DropBlock: the same bits in any company and any engine, others at another step or seed."""
    model = build_model("resnet12", (1, 16, 16), WAY, widths=[4, 4, 4, 4], drop_rate=0.3).double()

    def gradient(step: int = 3, seed: int = 0, chosen: tuple[int, ...] = (0, 1), engine: str = "unrolled") -> Tensor:
        made = learner("maml", model, seed=seed, task_batching="loop", gradient=engine)
        made.seed = seed
        return made.slot_gradients(made.initial_params(), batch(2, step=step).take(chosen))[0]

    both = gradient()
    assert torch.equal(gradient(chosen=(1,))[0], both[1])
    torch.testing.assert_close(gradient(engine="checkpointed"), both, rtol=1e-9, atol=1e-11)
    assert not torch.allclose(gradient(step=4), both)
    assert not torch.allclose(gradient(seed=1), both)


@pytest.mark.parametrize("norm", sorted(NORMS))
@pytest.mark.parametrize("name", NAMES)
def test_inductive_prediction_does_not_depend_on_company(name: str, norm: str) -> None:
    """Law 8: alone, shuffled and in chunks a query gets the same output. Transductive ones do depend with batch norm, so this can fail."""
    made = learner(name, network(norm=norm))
    episodes = batch(1)
    adapted = made.adapt(made.initial_params(), episodes)
    queries = episodes.query_images[0]
    together = made.predict(adapted, queries)
    order = torch.randperm(len(queries), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(made.predict(adapted, queries[order]).inductive, together.inductive[order], rtol=0, atol=1e-11)
    for i in range(len(queries)):
        alone = made.predict(adapted, queries[i : i + 1])
        torch.testing.assert_close(alone.inductive, together.inductive[i : i + 1], rtol=0, atol=1e-11)
        same = torch.allclose(alone.transductive, together.transductive[i : i + 1], atol=1e-3)
        assert same == (norm != "batch")


def test_inductive_statistics_are_the_support_sets() -> None:
    """On the support set itself, support statistics and batch statistics are the same thing."""
    made, episodes = learner("maml", network()), batch(1)
    support = episodes.support_images[0]
    both = made.predict(made.adapt(made.initial_params(), episodes), support)
    torch.testing.assert_close(both.inductive, both.transductive, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ADAPTS)
def test_adaptation_takes_the_steps_that_training_takes(name: str) -> None:
    """After inner_steps on the support set the network is where training's inner loop was; none of them changes meta_params."""
    made = learner(name, network("mlp", "none"), inner_steps=3, inner_batch=None)
    theta, episodes = made.initial_params(), batch(1)
    before = weights_sha256(theta)
    support, labels = episodes.support_images[0], episodes.support_labels[0]
    queries, query_labels = episodes.query_images[0], episodes.query_labels[0]
    curve = list(made.adaptation(theta, episodes))
    assert len(curve) == 4
    assert weights_sha256(theta) == before
    losses = [cross_entropy(functional_call(made.model, adapted, (support,)), labels).item() for adapted in curve]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < losses[0]
    if name in {"maml", "fomaml", "anil", "meta-sgd"}:
        trained = made.slot_gradients(theta, episodes)[1].loss.item()
        assert cross_entropy(functional_call(made.model, curve[-1], (queries,)), query_labels).item() == pytest.approx(trained)


def test_without_an_inner_lr_all_are_plain_multi_task_learning() -> None:
    model, episodes = network(), batch(2)
    expected = []
    theta = trainable(model)
    for queries, labels in zip(episodes.query_images, episodes.query_labels, strict=True):
        leaves = {name: value.requires_grad_() for name, value in theta.items()}
        loss = cross_entropy(functional_call(model, leaves, (queries,)), labels)
        expected.append(flatten(dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True))))
    for name in ("maml", "fomaml", "anil"):
        made = learner(name, model, inner_lr=0.0)
        torch.testing.assert_close(made.slot_gradients(made.initial_params(), episodes)[0], torch.stack(expected), rtol=1e-9, atol=1e-12)
    all_images = replace(episodes, query_images=episodes.support_images, query_labels=episodes.support_labels)
    transfer, maml = (learner(name, model, inner_lr=0.0) for name in ("transfer", "maml"))
    given, wanted = (made.slot_gradients(theta, all_images)[0] for made in (transfer, maml))
    # Support and queries together are each image twice: the same mean loss and the same batch statistics.
    torch.testing.assert_close(given, wanted, rtol=1e-8, atol=1e-11)


def test_reptile_adapts_at_test_in_batches_of_their_own() -> None:
    model, episode = network("mlp", "none"), batch(1)
    theta = learner("reptile", model).initial_params()
    own, all_alike, other = (
        learner("reptile", model, inner_batch=size, inner_batch_eval=of_eval) for size, of_eval in ((4, 3), (3, None), (4, None))
    )
    adapted = [flatten(list(made.adaptation(theta, episode))[-1]) for made in (own, all_alike, other)]
    torch.testing.assert_close(adapted[0], adapted[1], rtol=0, atol=0)
    assert not torch.equal(adapted[0], adapted[2])
    trained = [made.slot_gradients(theta, batch(1))[0] for made in (own, all_alike, other)]
    torch.testing.assert_close(trained[0], trained[2], rtol=0, atol=0)
    assert not torch.equal(trained[0], trained[1])


@pytest.mark.parametrize("name", NAMES)
def test_permuting_labels_and_head_rows_permutes_the_gradient(name: str) -> None:
    made = learner(name, network("mlp", "batch"))
    theta, slots = made.initial_params(), batch_for(name, 2)
    order = torch.tensor([2, 0, 1])
    renamed = slots.map(lambda tensor: tensor if tensor.is_floating_point() else order[tensor])
    if name == "reptile":
        made.inner_batch = None  # type: ignore[attr-defined]  # minibatches follow the labels' order

    def permuted(params: Params) -> Params:
        inverse = order.argsort()
        turns = {key: value[inverse] for key, value in params.items() if "head." in key and value.dim() and len(value) == WAY}
        return params | (turns if name != "maml++" else {key: turns[key] for key in turns if not key.startswith("inner_lr")})

    plain = [unflatten(gradient, theta) for gradient in made.slot_gradients(theta, slots)[0]]
    turned = [unflatten(gradient, theta) for gradient in made.slot_gradients(permuted(theta), renamed)[0]]
    for a, b in zip(plain, turned, strict=True):
        torch.testing.assert_close(flatten(permuted(a)), flatten(b), rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("name", [name for name in NAMES if LEARNERS[name].any_way])
def test_centroids_serve_any_number_of_classes(name: str) -> None:
    made = learner(name, network())
    images = torch.randn(10, 1, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 0, 0, 1, 1, 2, 2, 3, 3, 4])  # as many images of a class as one likes
    logits = made.predict(made.adapt(made.initial_params(), EpisodeBatch.of_support(images, labels)), images).transductive
    assert logits.shape == (10, 5)
    assert logits[-1].argmax() == 4, "a class's only image lies on its centroid"


@pytest.mark.parametrize("name", NAMES)
def test_running_statistics_follow_the_slots(name: str) -> None:
    """Their entries pull towards what the slots saw, by a tenth a step, whatever the optimiser does; the network is left as it was."""
    model = network(norm="running")
    buffers = {key: value.clone() for key, value in model.named_buffers()}
    made = learner(name, model)
    theta = made.initial_params()
    gradient = made.slot_gradients(theta, batch_for(name, 2))[0].mean(0)
    outer = OuterUpdate({k: v.clone() for k, v in theta.items()}, "adam", schedule("constant", 0.5, 1), statistics=made.statistics)
    outer.update(gradient, 0)
    assert made.statistics
    for key in made.statistics:
        seen = theta[key] - unflatten(gradient, theta)[key]
        torch.testing.assert_close(outer.meta_params[key], 0.9 * theta[key] + 0.1 * seen)
        assert not torch.allclose(seen, theta[key], atol=1e-3)
    assert all(torch.equal(value, buffers[key]) for key, value in model.named_buffers())


@pytest.mark.parametrize("name", ["protonet", "meta-baseline"])
def test_joint_normalisation_is_one_forward_pass_over_the_whole_episode(name: str) -> None:
    """The meta-gradient is that of a loss written with plain torch; without batch statistics both ways are the same."""
    model = network()
    made, episodes = learner(name, model, normalisation="joint"), batch(2)
    theta = made.initial_params()
    found = unflatten(made.slot_gradients(theta, episodes)[0][1], theta)
    values = {key: value.clone().requires_grad_() for key, value in theta.items()}
    images = torch.cat([episodes.support_images[1], episodes.query_images[1]])
    network_values = {key: value for key, value in values.items() if key != "temperature"}
    with torch.enable_grad():
        features = functional_call(FeaturesOf(model), {f"model.{key}": value for key, value in network_values.items()}, images)
        support, queries = features[: WAY * SHOT], features[WAY * SHOT :]
        centroids = support.view(WAY, SHOT, -1).mean(1)
        if name == "protonet":
            logits = -(queries[:, None] - centroids).square().sum(2)
        else:
            logits = values["temperature"] * torch.nn.functional.cosine_similarity(queries[:, None], centroids, dim=2)
        cross_entropy(logits, episodes.query_labels[1]).backward()
    for key, value in values.items():
        torch.testing.assert_close(found[key], value.grad, rtol=1e-9, atol=1e-12)
    separate = learner(name, network()).slot_gradients(theta, episodes)[0]
    assert not torch.allclose(separate, made.slot_gradients(theta, episodes)[0], rtol=1e-3)
    plain = [learner(name, network(norm="none"), normalisation=kind) for kind in ("separate", "joint")]
    first, second = (one.slot_gradients(one.initial_params(), episodes)[0] for one in plain)
    torch.testing.assert_close(first, second, rtol=1e-9, atol=1e-12)


class FeaturesOf(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        return self.model.features(images)


def test_rates_for_each_tensor_are_learned_apart() -> None:
    by_layer, by_tensor = (learner("maml++", network(), rates_per=kind) for kind in ("layer", "tensor"))
    rates = [{key for key in made.initial_params() if key.startswith("inner_lr.")} for made in (by_layer, by_tensor)]
    assert {"inner_lr.head"} < rates[0]
    assert {"inner_lr.head.weight", "inner_lr.head.bias"} < rates[1]
    assert len(rates[1]) == len(by_tensor.adapted)
    gradients = [made.slot_gradients(made.initial_params(), batch(1))[0][0] for made in (by_layer, by_tensor)]
    layer, tensor = (unflatten(found, made.initial_params()) for found, made in zip(gradients, (by_layer, by_tensor), strict=True))
    parts = tensor["inner_lr.head.weight"] + tensor["inner_lr.head.bias"]
    torch.testing.assert_close(layer["inner_lr.head"], parts, rtol=1e-9, atol=1e-12)


def test_multi_step_weights_change_in_stairs() -> None:
    stairs, slope = (learner("maml++", network(), inner_steps=3, multi_step_loss=100, multi_step_stair=size) for size in (20, 1))
    assert isinstance(stairs, MAMLPlusPlus)
    assert isinstance(slope, MAMLPlusPlus)
    for step in (0, 19, 20, 39, 99, 100, 150):
        assert stairs.loss_weights(step) == slope.loss_weights(step // 20 * 20)


def test_multi_step_loss_fades_and_always_sums_to_one() -> None:
    made = learner("maml++", network(), inner_steps=4, multi_step_loss=100)
    assert isinstance(made, MAMLPlusPlus)
    assert made.loss_weights(0) == pytest.approx([0, 0.25, 0.25, 0.25, 0.25])
    for step in (0, 37, 99, 100, 5000):
        assert sum(made.loss_weights(step)) == pytest.approx(1)
    assert made.loss_weights(100) == [0, 0, 0, 0, 1]


@pytest.mark.parametrize("name", THROUGH_INNER_LOOP)
def test_checkpointed_memory_does_not_grow_with_inner_steps(name: str) -> None:
    """Predicted peak bytes: unrolled grows by a graph a step, checkpointed by a copy of the parameters."""
    model = build_model("conv4", (3, 32, 32), 5, filters=8)
    one = EpisodeBatch(
        step=0,
        slots=[0],
        support_images=torch.zeros(1, 5, 3, 32, 32),
        support_labels=torch.arange(5)[None],
        query_images=torch.zeros(1, 75, 3, 32, 32),
        query_labels=torch.arange(75)[None] % 5,
    )

    def peak(gradient: str, steps: int) -> int:
        made = learner(name, model, gradient=gradient, inner_steps=steps, task_batching="loop", multi_step_loss=0)
        return predicted_bytes(made, made.initial_params(), one)

    few, many = peak("checkpointed", 3), peak("checkpointed", 9)
    size = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    assert many - few <= 7 * size
    if name not in ("fomaml", "anil"):
        assert peak("unrolled", 9) - peak("unrolled", 3) > 3 * (many - few)


@pytest.mark.parametrize("norm", NORMS)
def test_anil_adapts_the_same_from_features_computed_once(norm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made = learner("anil", network(norm=norm, dtype=torch.float32), inner_steps=3)
    episode = batch(1, torch.float32)
    given = made.initial_params(), episode
    once = list(made.adaptation(*given))
    monkeypatch.setattr(ANIL, "splits", lambda *_: False)
    each_step = list(made.adaptation(*given))
    assert [weights_sha256(params) for params in once] == [weights_sha256(params) for params in each_step]
    assert len({weights_sha256(params) for params in once}) == 4


@pytest.mark.parametrize("name", NAMES)
def test_initial_params_come_from_the_seed_alone(name: str) -> None:
    first = weights_sha256(learner(name, network(seed=5)).initial_params())
    torch.manual_seed(99)
    assert weights_sha256(learner(name, network(seed=5)).initial_params()) == first
    assert weights_sha256(learner(name, network(seed=6)).initial_params()) != first


def test_starting_from_other_weights() -> None:
    """Classifier-Baseline → MAML and Meta-Baseline: the body is taken over, a head of another width is not, another body is refused."""
    wide = build_model("conv4", (1, 16, 16), 11, filters=4, downsample="stride", seed=7).double()
    given = learner("classifier-baseline", wide).initial_params()
    for name in NAMES:
        made = learner(name, network())
        fresh = made.initial_params()
        started, loaded = made.start_from(given, "models:/base@champion")
        assert started.keys() == fresh.keys()
        for key, value in started.items():
            source = given if key.startswith("blocks.") else fresh
            assert torch.equal(value, source[key]), key
        assert loaded.drawn == ["head.weight", "head.bias"]
    other = learner("maml", build_model("conv4", (1, 16, 16), WAY, filters=5, downsample="stride"))
    with pytest.raises(ConfigError, match=r"init_from=x does not fit Conv4: of another shape: blocks.0.conv.weight \(5, 1, 3, 3\) \(t"):
        other.start_from(given, "x")


class Leftover(nn.Module):
    """A network with a parameter that its output does not depend on."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(256, WAY)
        self.spare = nn.Parameter(torch.zeros(3))

    def forward(self, images: Tensor) -> Tensor:
        return self.head(images.flatten(1))


def test_what_a_learner_cannot_use_is_refused() -> None:
    maml = learner("maml", Leftover().double())
    with pytest.raises(ConfigError, match=r"parameter spare of the network does not reach the loss\nremove it"):
        maml.slot_gradients(maml.initial_params(), batch(1))
    headless = name_head(Leftover(), "top")
    for name in ("protonet", "anil"):
        with pytest.raises(ConfigError, match=r"Leftover has no layer 'top', which model.head names\nset model.head .* such as head"):
            learner(name, headless)
    with pytest.raises(ConfigError, match="0 inner steps: at least one"):
        learner("maml", network(), inner_steps=0)
    with pytest.raises(
        ConfigError, match=r"learner.inner_lr is not a setting of learner protonet\nremove it, or choose from: normalisation, task_"
    ):
        check_settings("protonet", {"inner_lr": 0.1})
    with pytest.raises(ConfigError, match=r"learner.iner_lr is not a setting of learner maml\nremove it, or choose from: inner_lr"):
        check_settings("maml", {"iner_lr": 0.1})
    with pytest.raises(ConfigError, match=r"learner.inner_lr=-1: input should be greater than 0"):
        check_settings("maml", {"inner_lr": -1})
    with pytest.raises(ConfigError, match=r"learner.name='mamal' is not a learner of distmeta\nchoose one of .*maml"):
        check_settings("mamal", {})
