"""Networks of sequences under every learner that adapts by gradients; the text domain of docs/text.md; whole runs of all these."""

import json
import re
import sys
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch

from distmeta import cli
from distmeta.assembly.build import model_description
from distmeta.assembly.domain import Domain, domain_of
from distmeta.assembly.run import Run
from distmeta.config import Config, load_config, validate, with_values
from distmeta.data.episodes import EpisodeBatch
from distmeta.errors import ConfigError, DataError, RegistryError
from distmeta.inference.tensors import TensorModel, build_tensor_model
from distmeta.learners.objective import CrossEntropy
from distmeta.registry.tensors import load_tensor_model
from distmeta.registry.versions import load_model
from distmeta.scale.run import run
from distmeta.seeds import generator

PAGE = (Path(__file__).parent.parent / "docs" / "text.md").read_text()
NETWORKS: dict[str, dict[str, Any]] = {
    "lstm": {"name": "lstm", "width": 6},
    "transformer": {"name": "transformer", "width": 8, "heads": 2, "depth": 1},
}
GRADIENT_LEARNERS = ["maml", "fomaml", "reptile", "anil", "transfer"]


def block(language: str, number: int = 0) -> str:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)[number]


def languages() -> str:
    """Forty invented languages: each strings together twelve syllables of its own, drawn as often as it likes them."""
    lines = []
    for language in range(40):
        random = generator(1, "language", language)
        syllables = ["".join(random.choice(list(letters)) for letters in ("bdfgklmnprst", "aeiou")) for _ in range(12)]
        shares = random.dirichlet([0.5] * 12)
        lines += [f"language-{language:02d}\t{''.join(random.choice(syllables, 10, p=shares))}\n" for _ in range(20)]
    return "".join(lines)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder with the page's files and a set of texts."""
    home = tmp_path_factory.mktemp("texts")
    (home / "texts.py").write_text(block("python"))
    (home / "texts.yaml").write_text(block("yaml"))
    (home / "languages.tsv").write_text(languages())
    sys.path.append(str(home))
    return home


@pytest.fixture
def texts(home: Path) -> Config:
    return load_config(home / "texts.yaml")


def sequences(network: str, learner: str, **sections: Any) -> Config:
    """A small run over sinusoids' sequences."""
    own: dict[str, Any] = {"tasks_per_chunk": 2} if learner == "in-context" else {"tasks_per_chunk": 2, "inner_lr": 0.05, "inner_steps": 2}
    content: dict[str, Any] = {
        "run_folder": "unused",
        "data": {"functions": "sinusoid-sequence", "way": 1, "shot": 4, "queries": 3, "eval": {"episodes": 6, "val_episodes": 6}},
        "model": NETWORKS[network],
        "learner": {"name": learner} | own,
        "outer": {"lr": 0.01, "steps": 3, "meta_batch_size": 5},
        "train": {"device": "cpu", "cpus_per_worker": 0.5, "checkpoint_every": 3, "validate_every": 3},
    }
    return validate(content | sections, "test")


def episodes(domain: Domain, count: int) -> Iterator[EpisodeBatch]:
    """The test's episodes, one by one."""
    for batch in domain.evaluation("test").evaluation(list(range(count))):
        for episode in batch.each():
            assert isinstance(episode, EpisodeBatch)
            yield episode


@pytest.mark.parametrize("learner", GRADIENT_LEARNERS)
@pytest.mark.parametrize("network", NETWORKS)
def test_a_slots_bits_do_not_depend_on_how_the_meta_batch_is_dealt(network: str, learner: str) -> None:
    """On 1, 2 and 3 workers, with tasks in chunks of two and one by one; and both ways agree in float64."""
    found = {}
    for batching, dtype in product(("loop", "vmap"), (torch.float32, torch.float64)):
        this = Run.of(with_values(sequences(network, learner), {"learner.task_batching": batching}, "test"), dtype=dtype)
        params = {name: value.to(dtype) for name, value in this.start().items()}
        batch = next(this.domain.training(range(5), 0)).like(next(iter(params.values())))
        together = this.learner.slot_gradients(params, batch)[0]
        for shares in ([[0, 1], [2, 3, 4]], [[0], [1, 2], [3, 4]]):
            dealt = torch.cat([this.learner.slot_gradients(params, batch.take(share))[0] for share in shares])
            assert torch.equal(dealt, together)
        found[batching, dtype] = together
    assert found["loop", torch.float64].abs().max() > 0
    torch.testing.assert_close(found["loop", torch.float64], found["vmap", torch.float64], rtol=1e-9, atol=1e-12)


# Text


def test_the_pages_network_is_exact_to_second_order_on_token_ids(texts: Config) -> None:
    this = Run.of(with_values(texts, {"train.precision": "float64"}, "test"), dtype=torch.float64)
    this.check()
    assert this.learner.no_vmap is None
    params = {name: value.double() for name, value in this.start().items()}
    batch = next(this.domain.training([0], 7)).like(next(iter(params.values())))
    assert isinstance(batch, EpisodeBatch)
    assert batch.support_images.dtype == torch.int64
    gradients = this.learner.slot_gradients(params, batch)[0][0].split([value.numel() for value in params.values()])
    for (name, value), gradient in zip(params.items(), gradients, strict=True):
        direction = torch.randn(value.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
        width = 1e-7
        up, down = (
            this.learner.slot_gradients(params | {name: value + sign * width * direction}, batch)[1].loss.item() for sign in (1, -1)
        )
        assert (up - down) / (2 * width) == pytest.approx((gradient.view(value.shape) * direction).sum().item(), rel=1e-5, abs=1e-8), name


def test_the_page_trains_and_its_model_adapts_to_new_classes(
    home: Path, address: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By the command line, as the page says; two workers end in the bits of one; and what is loaded answers as the test says."""
    monkeypatch.chdir(home)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)

    def call(*arguments: str) -> dict[str, Any]:
        monkeypatch.setattr("sys.argv", ["distmeta", *arguments, "--json", "--address", address])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        out, err = capsys.readouterr()
        assert not stopped.value.code, err
        return json.loads(out.splitlines()[-1])

    alone = call("train", "texts.yaml")
    assert alone["test"]["accuracy"] > alone["test"]["random_init"] + 2 * alone["test"]["ci95"]
    two = call("train", "texts.yaml", "--set", "run_folder=runs/two", "--set", "train.workers=2", "--set", "train.cpus_per_worker=0.5")
    assert two["weights_sha256"] == alone["weights_sha256"]

    uri, name = f"sqlite:///{home / 'mlflow.db'}", "models:/languages-5way-5shot@champion"
    with pytest.raises(ConfigError, match=r"was trained on languages, a domain of your own\ngive objective="):
        load_tensor_model(uri, name, ["texts.Bytes"])
    model = load_tensor_model(uri, name, ["texts.Bytes"], CrossEntropy())
    domain = domain_of(load_config(home / "texts.yaml"))
    right = []
    for episode in episodes(domain, 200):
        adapted = model.adapt(episode.support_images[0], episode.support_labels[0])
        right.append((adapted.predict(episode.query_images[0]).argmax(1) == episode.query_labels[0]).double().mean().item())
    assert sum(right) / len(right) == pytest.approx(alone["test"]["accuracy_inductive"], abs=1e-3)
    names = {
        "examples": [text_of(ids) for ids in episode.support_images[0].tolist()],
        "classes": episode.support_labels[0].tolist(),
        "others": [text_of(ids) for ids in episode.query_images[0].tolist()],
    }
    exec(block("python", 1), names)
    assert torch.equal(names["probabilities"], adapted.predict(episode.query_images[0]).softmax(1))


def text_of(ids: list[int]) -> str:
    return bytes(number for number in ids if number < 256).decode()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"data.settings.file": "few.tsv"},
            r"split train of few has 4 classes of \[12, 12, 12, 12\]; 5 classes of 10 texts are needed\nadd texts",
        ),
        ({"data.way": 9}, r"split val of languages has 8 classes"),
        ({"learner.name": "in-context", "learner.inner_lr": None, "learner.inner_steps": None}, r"model.name=texts.Bytes"),
    ],
)
def test_what_the_texts_cannot_serve_is_refused(home: Path, texts: Config, values: dict[str, Any], message: str) -> None:
    (home / "few.tsv").write_text("".join(f"class {number}\ttext {i}\n" for number in range(8) for i in range(12)))
    with pytest.raises((ConfigError, DataError), match=message):
        Run.of(with_values(texts, values, "test")).check()


# Models of sequences and texts in use


def untrained(config: Config) -> TensorModel:
    """The model that `config` starts from, as a registry would build it."""
    this = Run.of(config)
    description = model_description(config, this.domain, this.learner)
    own = [description["model"]["name"]]
    return build_tensor_model("models:/it/1", description, this.learner.whole(this.start()), own, this.domain.objective)


def of_sinusoids(learner: str) -> tuple[TensorModel, torch.Tensor, torch.Tensor]:
    config = sequences("transformer", learner)
    (episode,) = episodes(domain_of(config), 1)
    return untrained(config), episode.support_images[0], episode.support_labels[0]


NAN = float("nan")
WRONG_EXAMPLES: list[tuple[Callable[..., tuple[Any, Any]], str]] = [
    (lambda x, y: (x[:0], y[:0]), r"0 inputs but targets \(0, 1\)"),
    (lambda x, y: (x, y[:2]), r"4 inputs but targets \(2, 1\)"),
    (lambda x, y: (x, y[:, 0]), r"targets are float32 \(4,\); real numbers \(4, 1\) are needed"),
    (lambda x, y: (x, y.expand(4, 2)), r"targets are float32 \(4, 2\); real numbers \(4, 1\)"),
    (lambda x, y: (x, y.long()), r"targets are int64 \(4, 1\); real numbers"),
    (lambda x, y: (x, y * NAN), r"target 0 holds values that are not finite"),
    (lambda x, y: (x, y.tolist()), r"4 inputs but targets of type list"),
    (lambda x, y: (x.tolist(), y), r"inputs are list; a tensor"),
    (lambda x, y: (x * NAN, y), r"input 0 holds values that are not finite"),
    (lambda x, y: (x.expand(4, 6, 2), y), r"does not read inputs float32 \(4, 6, 2\)"),
    (lambda x, y: (x[0, 0, 0], y), r"inputs are a single number; a tensor"),
]


@pytest.mark.parametrize("learner", ["maml", "in-context"])
@pytest.mark.parametrize(("change", "message"), WRONG_EXAMPLES)
def test_examples_that_do_not_fit_are_refused_in_our_words(learner: str, change: Callable[..., Any], message: str) -> None:
    model, inputs, targets = of_sinusoids(learner)
    with pytest.raises(DataError, match=message):
        model.adapt(*change(inputs, targets))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: x.expand(4, 6, 2), r"does not read inputs float32 \(4, 6, 2\)"),
        (lambda x: x * NAN, r"input 0 holds"),
        (lambda x: x.numpy(), r"inputs are ndarray; a tensor"),
        (lambda x: (x * 1e38) * torch.tensor([[[1.0]], [[0.0]], [[0.0]], [[0.0]]]), r"the network's output for input 0 holds"),
    ],
)
def test_queries_that_do_not_fit_are_refused_in_our_words(change: Callable[..., Any], message: str) -> None:
    model, inputs, targets = of_sinusoids("maml")
    adapted = model.adapt(inputs, targets)
    assert adapted.predict(inputs[:0]).shape == (0, 1)
    with pytest.raises(DataError, match=message):
        adapted.predict(change(inputs))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x, y: (x.float(), y), r"does not read inputs float32 \(25, 24\)"),
        (lambda x, y: (x + 300, y), r"does not read inputs int64 \(25, 24\): .*out of range"),
        (lambda x, y: (x - 300, y), r"does not read inputs int64 \(25, 24\): .*out of range"),
        (lambda x, y: (x, y.float()), r"targets are float32 \(25,\); class numbers \(M,\) are needed"),
        (lambda x, y: (x, y[:, None]), r"targets are int64 \(25, 1\); class numbers"),
        (lambda x, y: (x, y + 1), r"the class numbers are 1, 2, 3, 4, 5; 0..4 are needed"),
        (lambda x, y: (x, torch.where(y > 0, y, -100)), r"the class numbers are -100, 1, 2, 3, 4; 0..4"),
        (lambda x, y: (x[:10], y[:10]), r"the class numbers are 0, 1; 0..4 are needed"),
    ],
)
def test_texts_that_do_not_fit_are_refused_in_our_words(texts: Config, change: Callable[..., Any], message: str) -> None:
    (episode,) = episodes(domain_of(texts), 1)
    with pytest.raises(DataError, match=message):
        untrained(texts).adapt(*change(episode.support_images[0], episode.support_labels[0]))


def test_a_metric_learner_takes_any_number_of_classes_of_texts(texts: Config) -> None:
    values = {"learner.name": "protonet", "learner.inner_lr": None, "learner.inner_steps": None}
    model = untrained(with_values(texts, values, "test"))
    (episode,) = episodes(domain_of(texts), 1)
    inputs, targets = episode.support_images[0], episode.support_labels[0]
    assert model.adapt(inputs[:10], targets[:10]).predict(inputs).shape == (25, 2)
    with pytest.raises(DataError, match=r"the class numbers are 1, 2, 3, 4, 5; 0, 1, … without gaps"):
        model.adapt(inputs, targets + 1)


# Whole runs


CASES = [("lstm", "maml"), ("transformer", "fomaml"), ("transformer", "in-context"), ("lstm", "anil"), ("transformer", "reptile")]


def kept(home: Path, network: str, learner: str, workers: int, **sections: Any) -> Config:
    """The run of one case, in a folder and under a name of its own."""
    name = f"{network}-{learner}"
    made = sequences(network, learner, **sections).model_dump(exclude_none=True)
    made["run_folder"] = str(home / f"{name}-{workers}")
    made["train"]["workers"] = workers
    made["tracking"] |= {"uri": f"sqlite:///{home / 'runs.db'}", "model": name}
    return validate(made, "test")


@pytest.mark.parametrize(("network", "learner"), [CASES[0], *(pytest.param(*case, marks=pytest.mark.slow) for case in CASES[1:])])
def test_any_number_of_workers_ends_in_the_same_weights_and_the_model_predicts(
    network: str, learner: str, home: Path, address: str
) -> None:
    results = [run(kept(home, network, learner, workers), address=address) for workers in (1, 2, 3)]
    assert len({result["weights_sha256"] for result in results}) == 1
    assert results[0]["test"] == results[1]["test"] == results[2]["test"]

    uri = f"sqlite:///{home / 'runs.db'}"
    with pytest.raises(RegistryError, match=r"reads no images.*\nload it in Python with distmeta.registry.tensors.load_tensor_model"):
        load_model(uri, results[0]["model"])
    model = load_tensor_model(uri, results[0]["model"])
    domain = domain_of(kept(home, network, learner, 1))
    errors = []
    for episode in episodes(domain, 6):
        adapted, queries = model.adapt(episode.support_images[0], episode.support_labels[0]), episode.query_images[0]
        answers = adapted.predict(queries)
        torch.testing.assert_close(adapted.predict(queries[1:2]), answers[1:2], rtol=1e-5, atol=1e-6)  # whoever else is asked
        errors.append((answers - episode.query_labels[0]).square().mean().item())
    assert sum(errors) / len(errors) == pytest.approx(results[0]["test"]["measurement"]["values"][-1], rel=1e-4)


def test_what_a_tensor_model_cannot_adapt_to_is_refused() -> None:
    this = Run.of(sequences("lstm", "maml"))
    model = TensorModel("models:/x/1", this.description, this.learner, this.start())
    inputs, targets = torch.zeros(4, 6, 1), torch.zeros(4, 1)
    with pytest.raises(DataError, match=r"4 inputs but targets \(3, 1\)"):
        model.adapt(inputs, targets[:3])
    with pytest.raises(DataError, match="input 2 holds values that are not finite"):
        model.adapt(torch.cat([inputs[:2], inputs[2:] * torch.nan]), targets)
    with pytest.raises(DataError, match=r"adapting by 2 inner steps diverged"):
        model.adapt(inputs, targets + 1e30)
    with pytest.raises(ConfigError, match="0 inner steps: at least one is needed"):
        model.adapt(inputs, targets, inner_steps=0)
    longer = model.adapt(inputs, targets + 1, inner_steps=4).predict(inputs)
    assert (longer - 1).abs().mean() < (model.adapt(inputs, targets + 1).predict(inputs) - 1).abs().mean()
