"""wav2vec2 as transformers has it, read as the published models read it, and the same for sound that goes on."""

import sys
from fractions import Fraction

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from conf.errors import UserError
from conf.schema import Wav2VecConfig
from stages.encode.wav2vec import HOP, RATE, Listening, Wav2Vec, WholeFile, nearest_read, parameter_count

CONFIG = Wav2VecConfig(layers=4, dim=32, window_s=1.2)
FPS = 25


def sound(seconds: float, seed: int = 0) -> np.ndarray:
    """Noise that swells, with an offset."""
    t = np.arange(round(seconds * RATE)) / RATE
    noise = np.random.default_rng(seed).standard_normal(len(t))
    return (0.1 * noise * (1 + np.sin(2 * np.pi * 3 * t)) + 0.02).astype(np.float32)


@pytest.fixture(scope="module")
def model() -> Wav2Vec:
    return Wav2Vec(CONFIG, None, 0, "cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory, model):
    """A published kind of folder: the model under a head for letters, with the extractor's settings beside it."""
    from transformers import Wav2Vec2FeatureExtractor, Wav2Vec2ForCTC

    path = tmp_path_factory.mktemp("wav2vec2")
    torch.manual_seed(3)
    Wav2Vec2ForCTC(model.model.config).save_pretrained(path)
    Wav2Vec2FeatureExtractor(do_normalize=True, return_attention_mask=True).save_pretrained(path)
    return path


def test_a_folder_gives_what_transformers_gives(folder):
    from transformers import Wav2Vec2FeatureExtractor, Wav2Vec2ForCTC

    extractor = Wav2Vec2FeatureExtractor.from_pretrained(folder)
    inputs = extractor(sound(1.0), sampling_rate=RATE, return_tensors="pt").input_values
    with torch.no_grad():
        expected = Wav2Vec2ForCTC.from_pretrained(folder).eval()(inputs, output_hidden_states=True).hidden_states
    found = Wav2Vec(CONFIG, folder, 0, "cpu").states(inputs[0])
    assert torch.equal(found, torch.cat(expected)) and found.shape == (4, 49, 32)


def test_a_whole_file_is_read_as_published(folder):
    """Normalised as a whole; states from 50 to 30 a second, ends on ends; video frame k takes reading round(1.2 k)."""
    from transformers import Wav2Vec2FeatureExtractor, Wav2Vec2Model

    samples = sound(2.3)
    inputs = Wav2Vec2FeatureExtractor.from_pretrained(folder)(samples, sampling_rate=RATE, return_tensors="pt")
    with torch.no_grad():
        states = Wav2Vec2Model.from_pretrained(folder).eval()(inputs.input_values, output_hidden_states=True)
    states = torch.cat(states.hidden_states).numpy()
    count = int(states.shape[1] / 50.0 * 30)
    at = np.linspace(0, states.shape[1] - 1, count)
    low = np.minimum(at.astype(int), states.shape[1] - 2)
    read = states[:, low] + (states[:, low + 1] - states[:, low]) * (at - low)[None, :, None]
    expected = np.zeros((60, 4, 32))
    for k, i in enumerate(np.round(np.arange(60) / 25 * 30).astype(int)):
        if i < count:
            expected[k] = read[:, i]

    features = WholeFile(lambda: Wav2Vec(CONFIG, folder, 0, "cpu"), CONFIG, FPS)
    for part in np.split(samples, [100, 20000]):
        assert features.needed(12) > 0
        features.push(part)
    features.finish()
    assert features.needed(12) == 0
    found = np.concatenate([features.frames(12) for _ in range(5)])
    assert np.abs(found - expected).max() <= 1e-4
    assert not found[58:].any() and found[:56].any((1, 2)).all()


def listened(model: Wav2Vec, samples: np.ndarray, chunks: int, lookahead_s: float = 0.0, step: int | None = None):
    """Hidden states of chunks of 12 frames, fed as they ask for it, or `step` samples at a time."""
    features, at, found, held = Listening(lambda: model, CONFIG, FPS, lookahead_s), 0, [], 0
    for _ in range(chunks):
        while missing := features.needed(12):
            part = samples[at : at + (step or missing)]
            features.push(part)
            at += len(part)
            if not len(part):
                features.finish()
        found.append(features.frames(12))
        held = max(held, len(features._buffer))
    return np.stack(found), held


def test_live_sound_is_heard_in_windows_that_overlap(model):
    """Every frame, the twelfth too, has its own states of a window that ends with the chunk, loudness as so far."""
    samples, window = sound(6.0), round(CONFIG.window_s * RATE)
    found, held = listened(model, samples, 12)
    for chunk in range(12):
        end = (chunk + 1) * 12 * RATE // FPS
        first = max(0, (end - window) // HOP * HOP)
        past = samples[:end].astype(np.float64)
        heard = (samples[first:end] - past.mean()) / np.sqrt(past.var() + 1e-7)
        states = model.states(torch.from_numpy(heard.astype(np.float32))).numpy()
        for frame in range(12):
            place = float(Fraction(nearest_read(12 * chunk + frame, Fraction(FPS)) * 5, 3)) - first / HOP
            low = min(int(place), states.shape[1] - 1)
            high = min(low + 1, states.shape[1] - 1)
            expected = states[:, low] + (states[:, high] - states[:, low]) * (place - int(place))
            assert np.abs(found[chunk, frame] - expected).max() <= 1e-4
    # What is kept does not grow.
    assert held <= window + 12 * RATE // FPS + HOP
    assert np.abs(np.diff(found.reshape(144, -1), axis=0)).max(1).min() > 0


def test_how_sound_arrives_changes_nothing(model):
    samples = sound(3.0)
    found, _ = listened(model, samples, 5, lookahead_s=0.08)
    for step in (777, 5000):
        assert np.array_equal(listened(model, samples, 5, lookahead_s=0.08, step=step)[0], found)
    # What a chunk looks ahead changes only what it is heard with.
    samples[5 * 12 * RATE // FPS :] += 0.1
    assert np.array_equal(listened(model, samples, 5)[0], listened(model, sound(3.0), 5)[0])
    assert not np.array_equal(listened(model, samples, 5, lookahead_s=0.08)[0], found)


def test_the_end_of_the_sound_and_what_is_skipped(model):
    samples = sound(1.0)
    found, _ = listened(model, samples, 4)
    assert np.isfinite(found).all() and np.array_equal(found[:2], listened(model, samples, 2)[0])
    features = Listening(lambda: model, CONFIG, FPS)
    features.push(samples)
    features.skip(12)
    assert np.array_equal(features.frames(12), found[1])
    long = Listening(lambda: model, CONFIG, FPS)
    for _ in range(50):
        long.push(sound(0.48))
        long.skip(12)
    assert len(long._buffer) <= round(CONFIG.window_s * RATE) + HOP


def test_sizes_are_known_without_a_model(model):
    assert sum(p.numel() for p in model.model.parameters()) == parameter_count(CONFIG)
    assert parameter_count(Wav2VecConfig()) == 315_438_720


def test_what_cannot_be_used_is_refused(folder, tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"gives 4 hidden states of width 32, the network takes 3 of 32"):
        Wav2Vec(Wav2VecConfig(layers=3, dim=32), folder, 0, "cpu")
    with pytest.raises(UserError, match=r"holds no config\.json"):
        Wav2Vec(CONFIG, tmp_path, 0, "cpu")
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    with pytest.raises(UserError, match=r"holds no \.safetensors"):
        Wav2Vec(CONFIG, tmp_path, 0, "cpu")
    pointer = tmp_path / "model.safetensors"
    pointer.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1261950180\n")
    with pytest.raises(UserError, match=r"wav2vec\.checkpoint=.*: model\.safetensors is a git-lfs pointer"):
        Wav2Vec(CONFIG, tmp_path, 0, "cpu")
    tensors = load_file(folder / "model.safetensors")
    key = next(key for key in tensors if key.endswith("feed_forward.output_dense.bias"))
    save_file(tensors | {key: torch.full_like(tensors[key], float("nan"))}, pointer, {"format": "pt"})
    with pytest.raises(UserError, match=r"output_dense\.bias holds values that are not finite"):
        Wav2Vec(CONFIG, tmp_path, 0, "cpu")
    with pytest.raises(UserError, match=r"Hugging Face cache; check it, or run: hf download no/such"):
        Wav2Vec(CONFIG, "no/such", 0, "cpu")
    for content in ("{", '{"hidden_size": "768"}'):
        (tmp_path / "config.json").write_text(content)
        with pytest.raises(UserError, match=r"config\.json cannot be read"):
            Wav2Vec(CONFIG, tmp_path, 0, "cpu")
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UserError, match=r"pip install 'everframe\[encoders\]'"):
        Wav2Vec(CONFIG, None, 0, "cpu")
