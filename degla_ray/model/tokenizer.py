"""A small tokenizer of one's own, for small models: lower-casing byte-level BPE.

CLIP's 49,408 tokens at width 128 are 6.3 M parameters, more than twice a whole tiny model; 512 tokens of
BPE trained on the captions are 0.07 M. open_clip opens the folder through transformers
(`hf_tokenizer_name`).
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from degla_ray.errors import SettingError

PAD, START, END = "<pad>", "<start>", "<end>"
_BYTES = 256


def train_tokenizer(captions: Iterable[str], vocab_size: int, folder: str | Path) -> int:
    """Trains on `captions` and writes a folder that `AutoTokenizer.from_pretrained` opens.

    `<pad>` is 0 and `<end>` the highest number, where open_clip's argmax pooling looks for it. The same
    captions give the same files.

    Args:
        captions: training captions.
        vocab_size: tokens at most, the 256 bytes and three special ones included.
        folder: local folder, made if it does not exist.

    Returns:
        Tokens in the vocabulary (fewer than `vocab_size` where the captions hold no more pairs).

    Raises:
        SettingError: `vocab_size` has no room for the bytes.
    """
    if vocab_size < _BYTES + 3:
        raise SettingError(
            "vocab_size", vocab_size, f"at least {_BYTES + 3}: the bytes and three special tokens"
        )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - 2,  # <start> and <end> come last
        special_tokens=[PAD],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(captions, trainer)
    tokenizer.add_special_tokens([START, END])
    start, end = tokenizer.token_to_id(START), tokenizer.token_to_id(END)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{START} $A {END}", special_tokens=[(START, start), (END, end)]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=START,
        eos_token=END,
        pad_token=PAD,
        clean_up_tokenization_spaces=False,
    )
    fast.save_pretrained(folder)
    return len(fast)
