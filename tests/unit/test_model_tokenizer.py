import open_clip
import pytest
import torch
from tiny_models import CAPTIONS, write_config
from transformers import AutoTokenizer

from degla_ray.config import ModelConfig
from degla_ray.errors import SettingError
from degla_ray.model.build import build, load
from degla_ray.model.export import export
from degla_ray.model.tokenizer import train_tokenizer


@pytest.fixture
def tokenizer(tmp_path):
    train_tokenizer(CAPTIONS, 300, tmp_path / "t")
    return open_clip.tokenizer.HFTokenizer(str(tmp_path / "t"), context_length=16)


def test_train_tokenizer_special_ids_are_where_open_clip_looks(tmp_path):
    size = train_tokenizer(CAPTIONS, 300, tmp_path / "t")
    opened = AutoTokenizer.from_pretrained(tmp_path / "t")
    assert size == len(opened) == 300
    assert (opened.pad_token_id, opened.bos_token_id, opened.eos_token_id) == (0, 298, 299)


def test_tokenizer_of_a_model_is_the_one_that_auto_tokenizer_opens():
    tokenizer = load("scenes-base").tokenizer.tokenizer
    auto = AutoTokenizer.from_pretrained(tokenizer.name_or_path, trust_remote_code=False)
    assert type(auto) is type(tokenizer)
    assert auto.init_kwargs == tokenizer.init_kwargs
    assert auto.get_vocab() == tokenizer.get_vocab()
    assert auto(CAPTIONS).input_ids == tokenizer(CAPTIONS).input_ids


def test_tokenizer_encodes_start_words_end_and_padding(tokenizer):
    tokens_BL = tokenizer(["a red circle", ""])
    assert tokens_BL.shape == (2, 16)
    assert tokens_BL.dtype == torch.int64
    assert tokens_BL[0, 0] == 298
    assert tokens_BL[1].tolist() == [298, 299] + [0] * 14
    end = tokens_BL[0].argmax()
    assert tokens_BL[0, end] == 299
    assert tokens_BL[0, end + 1 :].eq(0).all()
    assert tokenizer.tokenizer.decode(tokens_BL[0, 1:end]).strip() == "a red circle"


def test_tokenizer_long_caption_keeps_end_last(tokenizer):
    tokens_BL = tokenizer(["left of " * 50])
    assert tokens_BL.shape == (1, 16)
    assert tokens_BL[0, 0] == 298
    assert tokens_BL[0, -1] == 299
    assert tokens_BL[0].eq(299).sum() == 1


@pytest.mark.parametrize("text", ["Ein grüner Kreis", "日本語 🙂", "a\tb\n c", "<unk> & 'quoted' \"x\""])
def test_tokenizer_any_text_comes_back_in_lower_case(text, tmp_path):
    train_tokenizer(CAPTIONS, 300, tmp_path / "t")
    opened = AutoTokenizer.from_pretrained(tmp_path / "t")
    assert opened.decode(opened(text).input_ids, skip_special_tokens=True).strip() == text.lower().strip()


def test_tokenizer_ignores_case_and_surrounding_space(tokenizer):
    a, b = tokenizer(["A Red CIRCLE", "  a red   circle "])
    assert torch.equal(a, b)


def test_train_tokenizer_same_captions_same_bytes(tmp_path):
    for name in ("a", "b"):
        train_tokenizer(iter(CAPTIONS * 20), 320, tmp_path / name)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_train_tokenizer_more_tokens_shorten_captions(tmp_path):
    lengths = []
    for size in (259, 400):
        train_tokenizer(CAPTIONS, size, tmp_path / str(size))
        lengths.append(len(AutoTokenizer.from_pretrained(tmp_path / str(size))(CAPTIONS[0]).input_ids))
    assert lengths[1] < lengths[0] / 2


def test_train_tokenizer_too_small_vocabulary_names_the_setting(tmp_path):
    with pytest.raises(SettingError, match="vocab_size: found 258; expected at least 259"):
        train_tokenizer(CAPTIONS, 258, tmp_path / "t")


def test_open_clip_get_tokenizer_on_exported_folder_gives_the_same_tokens(tmp_path):
    loaded = build(ModelConfig(name=write_config(tmp_path / "config")))
    export(loaded, str(tmp_path / "export"))
    tokens_BL = open_clip.get_tokenizer(f"local-dir:{tmp_path / 'export'}")(CAPTIONS)
    assert torch.equal(tokens_BL, loaded.tokenizer(CAPTIONS))
