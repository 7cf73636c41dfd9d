"""Sequences: normalisation, padding, text files, and the systems compared with a unigram model."""

import math
from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from margins import within
from torch import Tensor, nn
from torch.distributions import Independent, Normal, kl_divergence

from experiments.systems_sequences import names
from gae import Autoencoder, systems
from gae.data import load
from gae.data.text import LONGEST, Vocabulary
from gae.inference import LBFGS, Ascent, Constant, Detach, GaussNewton, GradientAscent, Unroll, Zeros
from gae.likelihood import CategoricalSequence
from gae.nets.hierarchical import HierarchicalLSTMDecoder
from gae.nets.sequence import LSTMDecoder, LSTMEncoder, TransformerDecoder, TransformerEncoder, WordDropout
from gae.training import fit, restore

CLASSES, END = 4, 1
Decoder = Callable[..., nn.Module]

DECODERS: dict[str, Decoder] = {
    "lstm": partial(LSTMDecoder, 2, embedding=3, hidden=5),
    "transformer": partial(TransformerDecoder, 2, width=4, heads=2, layers=2),
    "hierarchical": partial(HierarchicalLSTMDecoder, 2, segment=2, embedding=3, hidden=5),
}
ENCODERS: dict[str, Decoder] = {
    "lstm": partial(LSTMEncoder, embedding=3, hidden=5),
    "bidirectional": partial(LSTMEncoder, embedding=3, hidden=5, bidirectional=True),
    "transformer": partial(TransformerEncoder, width=4, heads=2, layers=2),
}
every_decoder = pytest.mark.parametrize("name", DECODERS)
either_way = pytest.mark.parametrize("autoregressive", [True, False])


def sequence(
    name: str, autoregressive: bool = True, steps: int = 3, classes: int = CLASSES, end: int | None = END
) -> CategoricalSequence:
    """With weights large enough that no two sequences have nearly the same mass."""
    torch.manual_seed(0)
    decoder = DECODERS[name](classes=classes, autoregressive=autoregressive)
    for parameter in decoder.parameters():
        parameter.data += torch.randn_like(parameter)
    return CategoricalSequence(decoder, 2, steps, classes, end).double()


def ended(steps: int, classes: int = CLASSES) -> Tensor:
    """All sequences over 2 ... C-1 that are ended by 1 and padded by 0, and all that fill every step."""
    tokens = range(2, classes)
    found = [
        (*word, END, *[0] * (steps - length - 1)) for length in range(steps) for word in product(tokens, repeat=length)
    ]
    return torch.tensor([*found, *product(tokens, repeat=steps)]).double()


# Probabilities.


@every_decoder
@either_way
@pytest.mark.parametrize("steps", [1, 3, 4])
def test_masses_of_all_sequences_sum_to_one(name: str, autoregressive: bool, steps: int) -> None:
    model, x = sequence(name, autoregressive, steps), ended(steps)
    model.check(x)
    z = 2 * torch.randn(5, 1, 2).double()
    mass = model(z).log_prob(x).exp()
    assert mass.shape == (5, len(x))
    torch.testing.assert_close(mass.sum(1), torch.ones(5).double(), rtol=0, atol=1e-12)


@every_decoder
@either_way
def test_without_an_end_masses_of_each_length_sum_to_one(name: str, autoregressive: bool) -> None:
    model = sequence(name, autoregressive, end=None)
    for length in (1, 2, 3):
        x = torch.tensor([(*word, *[0] * (3 - length)) for word in product((1, 2, 3), repeat=length)]).double()
        model.check(x)
        assert float(model(torch.randn(2).double()).log_prob(x).detach().exp().sum()) == pytest.approx(1, abs=1e-12)


@every_decoder
@either_way
def test_log_joint_is_the_chain_rule_by_hand(name: str, autoregressive: bool) -> None:
    """Step t from a decoder without the classes from t on; in parallel, without any classes."""
    model, x = sequence(name, autoregressive, 4), ended(4)
    z = torch.randn(len(x), 2).double()
    wanted = Independent(Normal(torch.zeros(2).double(), 1), 1).log_prob(z)
    for row, (code, word) in enumerate(zip(z, x.long().tolist(), strict=True)):
        for t, found in enumerate(word):
            before = word[:t] if autoregressive else [0] * t
            logits = model.decoder(code[None], torch.tensor([[*before, 3]]))[0, t]
            if found:
                wanted[row] += logits[found - 1] - logits.exp().sum().log()
    torch.testing.assert_close(model.log_joint(x, z.unsqueeze(0))[0], wanted, rtol=0, atol=1e-11)


@every_decoder
@either_way
def test_steps_see_what_they_may(name: str, autoregressive: bool) -> None:
    """A class reaches all later steps; in a hierarchy those of its segment, or if it is the last one, of the next."""
    model = sequence(name, autoregressive, 5)
    tokens, z = torch.tensor([[2, 3, 2, 3, 1]]), torch.randn(1, 2).double()
    logits = model.decoder(z, tokens)
    for t in range(5):
        changed = tokens.clone()
        changed[0, t] = 5 - changed[0, t] if t < 4 else 2
        moved = (model.decoder(z, changed) - logits).abs().amax((0, 2)) > 1e-6
        reach = 2 * ((t + 1) // 2) + 2 if name == "hierarchical" else 5
        assert moved.tolist() == [autoregressive and t < step < reach for step in range(5)]
    assert ((logits[0, 1:] - logits[0, :-1]).abs().amax(1) > 1e-6).all()  # in parallel, a step still knows its number
    assert ((model.decoder(z + 1, tokens) - logits).abs().amax((0, 2)) > 1e-6).all()


@either_way
@pytest.mark.parametrize("steps", [1, 2, 5, 6])
def test_the_hierarchy_cell_by_cell(autoregressive: bool, steps: int) -> None:
    """Cells without a batch of segments; the lower one starts anew at every second step."""
    decoder = sequence("hierarchical", autoregressive, steps).decoder
    z, tokens = torch.randn(4, 2).double(), torch.randint(1, CLASSES, (4, steps))
    conductor, lower = (nn.LSTMCell(lstm.input_size, 5).double() for lstm in (decoder.conductor, decoder.lstm))
    for cell, lstm in ((conductor, decoder.conductor), (lower, decoder.lstm)):
        cell.load_state_dict({name.removesuffix("_l0"): value for name, value in lstm.state_dict().items()})
    above = decoder.conductor_start(z).tanh().chunk(2, 1)
    wanted = []
    for t in range(steps):
        if t % 2 == 0:
            above = conductor(torch.ones(4, 1).double(), above)
            state = decoder.start(above[0]).tanh().chunk(2, 1)
        before = tokens[:, t - 1] if autoregressive and t else torch.zeros(4, dtype=torch.long)
        state = lower(torch.cat([decoder.embed(before), above[0]], 1), state)
        wanted.append(decoder.out(state[0]))
    torch.testing.assert_close(decoder(z, tokens), torch.stack(wanted, 1), rtol=0, atol=1e-12)


def test_a_bidirectional_encoder_by_torch() -> None:
    """One sequence at a time, without padding, through torch's own bidirectional LSTM."""
    network = ENCODERS["bidirectional"](5, 4).double()
    both = nn.LSTM(3, 5, bidirectional=True).double()
    both.load_state_dict(
        network.lstm.state_dict() | {f"{name}_reverse": v for name, v in network.backwards.state_dict().items()}
    )
    x = torch.tensor([[2, 3, 4, 1], [3, 1, 0, 0], [1, 0, 0, 0], [4, 2, 3, 0]])
    for row, found in zip(x, network(x), strict=True):
        _, (ends, _) = both(network.embed(row[row > 0]))
        torch.testing.assert_close(found, network.out(ends.flatten()), rtol=0, atol=1e-12)


class Shifted(nn.Module):
    """Logits with one offset, which changes no probability."""

    def __init__(self, decoder: nn.Module, offset: float):
        super().__init__()
        self.decoder, self.offset = decoder, offset

    def forward(self, z: Tensor, tokens: Tensor) -> Tensor:
        return torch.round(self.decoder(z, tokens)) + self.offset


@pytest.mark.parametrize("offset", [1e6, -1e6])
def test_an_offset_in_the_logits_changes_no_mass(offset: float) -> None:
    x, z = ended(3).float(), torch.randn(5, 1, 2)
    models = [
        CategoricalSequence(Shifted(sequence("lstm").float().decoder, c), 2, 3, CLASSES, END) for c in (0, offset)
    ]
    found, wanted = (model(z).log_prob(x) for model in models)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6)
    assert torch.equal(models[0](z).greedy(), models[1](z).greedy())


@every_decoder
@either_way
@pytest.mark.parametrize("end", [END, None])
def test_padding_changes_no_log_joint_and_no_gradient(name: str, autoregressive: bool, end: int | None) -> None:
    short = sequence(name, autoregressive, 4, end=end)
    long = CategoricalSequence(short.decoder, 2, 9, CLASSES, end).double()
    x = torch.tensor([[2, 3, 2, 1], [3, 1, 0, 0], [1, 0, 0, 0]]).double()
    z = torch.randn(2, 3, 2).double().requires_grad_()
    found = [(m.log_joint(v, z), m.bind(v)(z)) for m, v in ((short, x), (long, nn.functional.pad(x, (0, 5))))]
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)
    slopes = [torch.autograd.grad(values[0].sum(), [z, *short.decoder.parameters()]) for values in found]
    torch.testing.assert_close(*slopes, rtol=0, atol=1e-11)


@pytest.mark.parametrize("name", ENCODERS)
def test_padding_and_company_change_no_code(name: str) -> None:
    network = ENCODERS[name](5, 4).double()
    for parameter in network.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    x = torch.tensor([[2, 3, 4, 1], [3, 1, 0, 0], [1, 0, 0, 0]]).double()
    codes = network(x)
    torch.testing.assert_close(network(nn.functional.pad(x, (0, 6))), codes, rtol=0, atol=1e-12)
    torch.testing.assert_close(network(x[1:2, :2]), codes[1:2], rtol=0, atol=1e-12)
    assert ((network(torch.tensor([[2, 4, 3, 1]]).double()) - codes[:1]).abs() > 1e-6).any()  # order matters
    assert ((network(torch.tensor([[2, 3, 4, 4]]).double()) - codes[:1]).abs() > 1e-6).any()  # the last token too


# Drawing and decoding.


@every_decoder
@either_way
@pytest.mark.parametrize("end", [END, None])
def test_draws_have_the_masses(name: str, autoregressive: bool, end: int | None) -> None:
    model, z = sequence(name, autoregressive, end=end), torch.tensor([1.0, -1.0]).double()
    drawn = model(z).sample((20_000,))
    model.check(drawn)
    kinds, counts = drawn.unique(dim=0, return_counts=True)
    expected = 20_000 * model(z).log_prob(kinds).detach().exp()
    statistic = ((counts - expected).square() / expected.clamp_min(1e-9))[expected > 5].sum()
    assert expected.sum() > 19_900
    assert statistic < 2 * len(expected) + 20


@every_decoder
@either_way
def test_point_is_greedy_step_by_step(name: str, autoregressive: bool) -> None:
    model, z = sequence(name, autoregressive, 6), 3 * torch.randn(2, 20, 2).double()
    found = model.point(model(z))
    assert found.shape == (2, 20, 6) and found.dtype == torch.float64
    for code, row in zip(z.flatten(0, 1), found.flatten(0, 1).tolist(), strict=True):
        word: list[int] = []
        while len(word) < 6 and END not in word:
            logits = model.decoder(code[None], torch.tensor([[*word, 2]]))[0, -1]
            word.append(int(logits.argmax()) + 1)
        assert row == [*word, *[0] * (6 - len(word))]
    model.check(found.flatten(0, 1))
    first = found[:1, :1].expand_as(found)
    assert model(z).log_prob(first).std() > 1e-3  # the laws differ, whether or not their points do


@every_decoder
@either_way
def test_steps_are_those_of_the_whole_sequence(name: str, autoregressive: bool) -> None:
    decoder = sequence(name, autoregressive, 7).decoder
    z, tokens = torch.randn(4, 2).double(), torch.randint(1, CLASSES, (4, 7))
    state, before, logits = None, torch.zeros(4, dtype=torch.long), []
    for token in tokens.unbind(1):
        output, state = decoder.step(z, before, state)
        logits.append(output)
        before = token
    torch.testing.assert_close(torch.stack(logits, 1), decoder(z, tokens), rtol=0, atol=1e-12)


class Whole(nn.Module):
    """A decoder that cannot be evaluated step by step."""

    def __init__(self, decoder: nn.Module):
        super().__init__()
        self.decoder = decoder

    def forward(self, z: Tensor, tokens: Tensor) -> Tensor:
        return self.decoder(z, tokens)


@every_decoder
@either_way
@pytest.mark.parametrize("end", [END, None])
def test_samples_are_those_of_the_prefix(name: str, autoregressive: bool, end: int | None) -> None:
    """From the same random numbers, with a step for each class or with all classes so far at each step."""
    model, z = sequence(name, autoregressive, 7, end=end), 2 * torch.randn(5, 3, 2).double()
    whole = CategoricalSequence(Whole(model.decoder), 2, 7, CLASSES, end).double()
    drawn = []
    for likelihood in (model, whole):
        torch.manual_seed(0)
        law = likelihood(z)
        drawn.append((law.sample(), law.sample((2,)), law.expand((4, 5, 3)).sample(), law.greedy()))
    for found, wanted in zip(*drawn, strict=True):
        assert torch.equal(found, wanted)
    assert drawn[0][1].shape == (2, 5, 3, 7) and drawn[0][2].shape == (4, 5, 3, 7)


@pytest.mark.parametrize(
    ("name", "part", "steps"),
    [
        ("lstm", "lstm", 9),
        ("hierarchical", "lstm", 9),
        ("hierarchical", "conductor", 5),  # segments of two steps
        ("transformer", "blocks.layers.1.linear1", 9),
    ],
)
def test_a_sample_evaluates_each_step_once(name: str, part: str, steps: int) -> None:
    model = sequence(name, steps=9, end=None)
    seen: list[int] = []
    model.decoder.get_submodule(part).register_forward_hook(lambda module, given, _: seen.append(given[0].shape[1]))
    model(torch.zeros(3, 2).double()).sample()
    assert sum(seen) == steps


# Engines.


@every_decoder
@either_way
def test_second_derivatives_in_the_code(name: str, autoregressive: bool) -> None:
    model, x = sequence(name, autoregressive), ended(3)[[0, 2, 5]]
    z = torch.randn(2, 3, 2).double().requires_grad_()
    assert torch.autograd.gradgradcheck(lambda z: model.log_joint(x, z), z)


@every_decoder
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_unrolled_ascent_trains(name: str, dtype: torch.dtype) -> None:
    """The fused kernels that have no second derivative differ by type."""
    model = Autoencoder(sequence(name).to(dtype), Ascent(Zeros(), GradientAscent(0.1), 3, adjoint=Unroll()))
    model(ended(3).to(dtype)).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@every_decoder
def test_ascent_finds_the_mode_on_the_same_decoder(name: str) -> None:
    """No point of a grid, and none nearby, is better than where the ascent from the best point of the grid ends."""
    model, x = sequence(name), ended(3)
    grid = torch.cartesian_prod(*2 * [torch.linspace(-4, 4, 41)]).double()
    value, index = model.log_joint(x, grid.unsqueeze(1).expand(-1, len(x), -1)).detach().max(0)
    encoding = Autoencoder(model, Ascent(Constant(grid[index]), LBFGS(), 60, grad_tol=1e-6, adjoint=Detach())).encode(x)
    near = encoding.z + 0.01 * torch.randn(200, len(x), 2).double()
    assert (encoding.log_joint[0] > value).all()
    assert (encoding.log_joint[0] > model.log_joint(x, near)).all()
    assert encoding.solve is not None and encoding.solve.grad_norm.max() < 1e-5


def test_engines_that_need_one_output_refuse() -> None:
    model, x = sequence("lstm"), ended(3)
    with pytest.raises(TypeError, match="CategoricalSequence"):
        Ascent(step=GaussNewton(), max_steps=1)(model, x)


def test_ascent_refuses_word_dropout_in_training_mode() -> None:
    decoder = LSTMDecoder(2, CLASSES, 3, 5, word_dropout=0.5)
    model, x = CategoricalSequence(decoder, 2, 3, CLASSES, END), ended(3).float()
    with pytest.raises(ValueError, match=r"WordDropout \('decoder.word_dropout'\) has no fixed objective"):
        Ascent()(model, x)
    assert Ascent()(model.eval(), x).z.isfinite().all()


@pytest.mark.parametrize("rate", [0.0, 0.3, 1.0])
def test_word_dropout(rate: float) -> None:
    layer, tokens = WordDropout(rate), torch.randint(1, 5, (200, 100))
    seen = layer(tokens)
    hidden = seen == 0
    assert torch.equal(seen[~hidden], tokens[~hidden])
    assert float(hidden.double().mean()) == pytest.approx(rate, abs=0.01)
    assert torch.equal(layer.eval()(tokens), tokens)


def test_full_word_dropout_is_the_parallel_decoder() -> None:
    hiding, parallel = LSTMDecoder(2, CLASSES, word_dropout=1.0), LSTMDecoder(2, CLASSES, autoregressive=False)
    parallel.load_state_dict(hiding.state_dict())
    z, tokens = torch.randn(3, 2), torch.randint(1, 4, (3, 5))
    assert torch.equal(hiding(z, tokens), parallel(z, tokens))


# Errors.


@pytest.mark.parametrize(
    ("end", "row", "message"),
    [
        (END, [2, 4, 1], r"needs x in the classes 0 ... 3, got 4 at index \(1, 1\).*set `classes`"),
        (END, [2, 2.5, 1], r"needs x in the classes 0 ... 3, got 2.5 at index \(1, 1\)"),
        (END, [2, 0, 0], r"needs the class 1 that ends it before its padding.*at index \(1, 1\) \(2 such"),
        (END, [2, 1, 3], r"only padding after it, got 3 at index \(1, 2\).*Add the end, or build the model with end="),
        (END, [0, 0, 0], r"needs the class 1 that ends it"),
        (None, [2, 0, 3], r"Padding must follow the tokens, got 3 at index \(1, 2\)"),
        (None, [0, 0, 0], r"A sequence needs a first token, got 0 at index \(1, 0\)"),
    ],
)
def test_sequences_that_are_none(end: int | None, row: list[float], message: str) -> None:
    x = torch.tensor([[2.0, 3.0, 1.0], row]).double()
    with pytest.raises(ValueError, match=message):
        Autoencoder(sequence("lstm", end=end), Zeros()).encode(x)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "at least 1 step and 2 classes"),
        ({"classes": 1}, "at least 1 step and 2 classes"),
        ({"end": 0}, r"end must be one of the classes 1 ... 3 or None, got 0"),
        ({"end": 4}, r"end must be one of the classes 1 ... 3 or None, got 4"),
        ({"classes": 6}, r"for one code and one step \(1, 1, 5\), got \(1, 1, 3\)"),
    ],
)
def test_sizes_that_do_not_fit(options: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CategoricalSequence(LSTMDecoder(2, CLASSES), 2, **({"steps": 3, "classes": CLASSES} | options))


@pytest.mark.parametrize("width", [6, 5])
def test_heads_divide_the_width(width: int) -> None:
    with pytest.raises(ValueError, match=f"even and a multiple of heads, got width={width} and heads=4"):
        TransformerEncoder(5, 4, width=width)


@pytest.mark.parametrize("system", ["sequence-vae", "attention-vae", "music-vae"])
def test_images_are_no_sequences(system: str) -> None:
    with pytest.raises(ValueError, match=r"event shape \(T,\), got \(1, 8, 8\)"):
        systems.build(system, (1, 8, 8))


def test_a_segment_fits_into_the_sequence() -> None:
    """By default the root of the length, rounded up."""
    lengths = {1: 1, 2: 2, 4: 2, 5: 3, 9: 3, 10: 4, 256: 16, 257: 17}
    built = {steps: systems.build("music-vae", (steps,), classes=CLASSES, hidden=2) for steps in lengths}
    assert {steps: model.likelihood.decoder.segment for steps, model in built.items()} == lengths
    assert systems.build("music-vae", (8,), segment=8, hidden=2).likelihood.decoder.segment == 8
    with pytest.raises(ValueError, match="segment must be at most the length of a sequence, T = 8, got 9"):
        systems.build("music-vae", (8,), segment=9)


# Text.


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "names.txt"
    file.write_text("\n".join(names(400)) + "\n", encoding="utf-8")
    return file


def test_text_becomes_classes_and_back(path: Path) -> None:
    data = load(path)
    vocabulary = data.vocabulary
    assert vocabulary is not None and not vocabulary.words
    assert vocabulary.tokens == tuple("abdeiklmnorstu")
    assert data.train.shape == (320, 10) and data.test.shape == (80, 10)  # 4 syllables, an ending, the end
    assert data.value_range == (0.0, vocabulary.classes - 1.0)
    lines = vocabulary.decode(torch.cat([data.train, data.test]))
    assert sorted(lines) == sorted(names(400))
    assert torch.equal(torch.from_numpy(vocabulary.encode(lines, 10)).float(), torch.cat([data.train, data.test]))
    assert "train (320, 10)" in repr(data)
    assert ((data.test == END).sum(1) == 1).all()
    path.write_bytes(b"ab\r\nba\r\n")
    assert load(path).vocabulary == Vocabulary(("a", "b"))


def test_words_are_tokens(tmp_path: Path) -> None:
    file = tmp_path / "sentences.txt"
    file.write_bytes(b"\xef\xbb\xbfthe  cat sat\r\n\r\n  \nthe dog\nd\xc3\xa9j\xc3\xa0 vu")
    data = load(file, words=True)
    assert data.vocabulary == Vocabulary(("cat", "dog", "déjà", "sat", "the", "vu"), words=True)
    assert data.train.shape[1:] == (4,)
    assert sorted(data.vocabulary.decode(torch.cat([data.train, data.test]))) == ["déjà vu", "the cat sat", "the dog"]


def test_the_hash_tells_texts_apart(tmp_path: Path) -> None:
    """The same classes, of other letters."""
    hashes = set()
    for letters in ("ab", "cd"):
        file = tmp_path / f"{letters}.txt"
        file.write_text(f"{letters}\n{letters[::-1]}\n{letters}{letters}\n")
        hashes.add(load(file).hash)
    assert len(hashes) == 2


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "holds no text: it is empty, or all of its lines are blank"),
        (b" \n\r\n\n", "holds no text"),
        (b"ab\ncd\xffe\n", "is not UTF-8 text: byte 0xff in line 2. Save it as UTF-8"),
        ("ab\ncd\n".encode("utf-16"), "is not UTF-8 text: byte 0xff in line 1"),
        ("ab\ncd\n".encode("utf-16-le"), "is not text: line 1 has a NUL"),
        (b"only one\n", "data have one observation"),
        (b"ab\n" + b"x" * LONGEST, f"has a line of {LONGEST} characters, line 2 .'xxx.*At most 511 are read"),
    ],
)
def test_text_that_cannot_be_used(tmp_path: Path, content: bytes, message: str) -> None:
    file = tmp_path / "bad.txt"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        load(file)


def test_text_errors_name_the_way_out(tmp_path: Path, path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"No file .*gone\.txt"):
        load(tmp_path / "gone.txt")
    with pytest.raises(ValueError, match=r"words=True is for \.txt files only, got 'digits'"):
        load("digits", words=True)
    with pytest.raises(ValueError, match=r"needs training values in \[0, 1\]"):
        load(path, binarize="threshold")
    vocabulary = Vocabulary.of(["ab"])
    with pytest.raises(
        ValueError, match=r"line 1 \('abc'\) has 'c' \(U\+0063\) at column 3, which is not in the vocabulary"
    ):
        vocabulary.encode(["abc"], 4)
    with pytest.raises(ValueError, match=r"line 1 \('aba'\) has 3 tokens and an end, which do not fit into 3 steps"):
        vocabulary.encode(["aba"], 3)
    assert vocabulary.decode(torch.tensor([[2.0, 9.0, 3.0], [1.0, 0.0, 0.0]])) == ["a\N{REPLACEMENT CHARACTER}b", ""]


# Text for an existing model: the oracle is the position of each letter among the sorted letters.


def written(folder: Path, name: str, *lines: str) -> Path:
    path = folder / f"{name}.txt"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_the_model_s_vocabulary_decides(tmp_path: Path) -> None:
    model = load(written(tmp_path, "known", "abcde", "edcba", "bad")).preparation
    data = load(written(tmp_path, "new", "bdec", "", "d", "ed"), like=model)
    b, c, d, e = (2 + "abcde".index(letter) for letter in "bcde")
    assert data.rows().x.tolist() == [[b, d, e, c, END, 0], [d, END, 0, 0, 0, 0], [e, d, END, 0, 0, 0]]
    assert data.rows().row.tolist() == [0, 2, 3]  # lines of the file, of which one is blank
    assert data.vocabulary == model.vocabulary and data.value_range == model.value_range == (0.0, 6.0)
    lone = load(written(tmp_path, "lone", "cab"), like=model)
    assert data.vocabulary.decode(lone.rows().x) == ["cab"]


def test_words_of_the_model(tmp_path: Path) -> None:
    model = load(written(tmp_path, "known", "the cat sat", "a dog"), words=True).preparation
    data = load(written(tmp_path, "new", "a cat", "sat the dog"), like=model)
    assert data.rows().x.tolist() == [[2, 3, END, 0], [5, 6, 4, END]]
    with pytest.raises(ValueError, match=r"new\.txt, line 3 \('the  dogs'\) has 'dogs' at word 2, which is not in the"):
        load(written(tmp_path, "new", "a cat", "", "the  dogs"), like=model)
    with pytest.raises(ValueError, match=r"line of 4 words, line 1 \('a cat sat a'\)\. At most 3"):
        load(written(tmp_path, "new", "a cat sat a"), like=model)


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (
            ("ab", "", "axd"),
            r"new\.txt, line 3 \('axd'\) has 'x' \(U\+0078\) at column 2, which is not in the vocabulary",
        ),
        (("ab", "e\u0301"), r"line 2 \(.*\) has '\u0301' \(U\+0301\) at column 2"),
        (("ab", "A"), r"line 2 \('A'\) has 'A' \(U\+0041\) at column 1"),
        (
            ("ab", "abcdea"),
            r"new\.txt has a line of 6 characters, line 2 \('abcdea'\)\. At most 5 are read, because the mod",
        ),
        (("ab", "\u200b"), r"line 2 \(.*\) has .* \(U\+200B\) at column 1"),
    ],
)
def test_text_that_the_model_cannot_read(tmp_path: Path, lines: tuple[str, ...], said: str) -> None:
    model = load(written(tmp_path, "known", "abcde", "edcba")).preparation
    with pytest.raises(ValueError, match=said):
        load(written(tmp_path, "new", *lines), like=model)


def test_text_and_other_data_are_not_mixed_up(tmp_path: Path) -> None:
    text = written(tmp_path, "known", "abcde", "edcba")
    np.save(tmp_path / "a.npy", np.ones((4, 6)))
    classes = load(tmp_path / "a.npy").preparation
    with pytest.raises(
        ValueError, match=r"known\.txt is text, but the model has no vocabulary.*Train it again on text"
    ):
        load(text, like=classes)
    with pytest.raises(ValueError, match=r"The model was trained on text, but .*a\.npy is not text"):
        load(tmp_path / "a.npy", like=load(text).preparation)


# The systems.

SMALL = {
    "sequence-vae": {"latent": 4, "embedding": 16, "hidden": 48},
    "attention-vae": {"latent": 4, "width": 32, "heads": 4, "layers": 1},
    "music-vae": {"latent": 4, "embedding": 16, "hidden": 48},
}


@pytest.mark.parametrize("system", SMALL)
def test_loss_is_the_elbo_by_hand(system: str) -> None:
    model = systems.build(system, (4,), classes=CLASSES, word_dropout=0.0, beta=1.0, **SMALL[system]).double()
    x = ended(4)[::3]
    torch.manual_seed(1)
    loss = model(x)
    torch.manual_seed(1)
    encoder = model.inference.guide.network
    loc, log_scale = encoder(x).chunk(2, 1)
    z = loc + log_scale.exp() * torch.randn_like(loc)
    entropy = nn.functional.cross_entropy(
        model.likelihood.decoder(z, x.long()).flatten(0, 1), x.long().flatten() - 1, ignore_index=-1, reduction="sum"
    )
    divergence = kl_divergence(Normal(loc, log_scale.exp()), Normal(0.0, 1.0)).sum()
    torch.testing.assert_close(loss, (entropy + divergence) / len(x), rtol=1e-12, atol=0)


def unigram(train: Tensor, test: Tensor, classes: int) -> tuple[float, float]:
    """Held-out nats per token of class frequencies (one added to each count), and the share of the commonest class."""
    share = (train[train > 0].long().bincount(minlength=classes)[1:] + 1.0).double()
    tokens = test[test > 0].long() - 1
    log_share = (share / share.sum()).log()
    return float(-log_share[tokens].mean()), float((tokens == share.argmax()).double().mean())


def truth(lines: list[str]) -> float:
    """-log p of names in nats under their true distribution: vowel, number of syllables, consonants, ending."""
    return sum(math.log(5 * 3 * 3) + (len(line) - 1) // 2 * math.log(9) for line in lines)


def vowels(line: str) -> set[str]:
    return {*line} & {*"aeiou"}


@pytest.mark.slow
@pytest.mark.parametrize("system", SMALL)
def test_system_on_text(system: str, path: Path, tmp_path: Path) -> None:
    data = load(path)
    assert data.vocabulary is not None
    classes, x, written = data.vocabulary.classes, data.test, data.vocabulary.decode(data.test)
    build = partial(systems.build, system, data.event_shape, classes=classes, **SMALL[system])
    model, adam = build(), partial(torch.optim.Adam, lr=1e-2)
    fit(model, data, epochs=15, batch_size=32, optimizer=adam, out=tmp_path / "run", progress=False)
    model.eval()
    with torch.no_grad():
        encoding = model.encode(x)
        entropy, commonest = unigram(data.train, x, classes)
        tokens = (x > 0).sum()
        at_mean = -model.decode(encoding.point).log_prob(x).sum() / tokens
        evidence = -model.log_evidence(x, 200).log_p.sum() / tokens
        found = model.reconstruct(x)
        drawn = model.sample(20)
        other = build()
        restore(other, tmp_path / "run")
        assert torch.equal(other.eval().encode(x).point, encoding.point)
    within("nats per token, unigram - at the mean", entropy - at_mean, above=1.2)
    within("nats per token, model - law", evidence - truth(written) / tokens, above=-0.02, below=0.2)
    within("nats per token, unigram - model", entropy - evidence, above=1.0)
    within("tokens restored, more than the commonest", ((found == x) & (x > 0)).sum() / tokens - commonest, above=0.08)
    within("KL", kl_divergence(encoding.q, model.likelihood.prior).mean(), above=0.5)
    read = data.vocabulary.decode(found)
    restored = sum(vowels(a) == vowels(b) for a, b in zip(read, written, strict=True))
    within("vowels restored", restored, above=50)  # of 80; by chance 16 ± 4, and 64 if two vowels share their codes
    model.likelihood.check(drawn)
    within("distinct draws", len(set(data.vocabulary.decode(drawn))), above=10)
    climbed = model.encode(x, Ascent(model.inference, LBFGS(), 10, tol=1e-3, adjoint=Detach()))
    assert climbed.log_joint.mean() > model.likelihood.log_joint(x, encoding.point[None]).mean()
