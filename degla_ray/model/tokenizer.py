"""Train a lower-casing byte-level BPE tokenizer for small models.

CLIP's 49,408 tokens at width 128 take 6.3 M parameters, more than twice an entire tiny model; 512 BPE tokens
trained on the captions take 0.07 M. open_clip opens the folder through transformers (`hf_tokenizer_name`).
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
    """Train on `captions` and write a folder that `AutoTokenizer.from_pretrained` opens.

    `<pad>` has id 0 and `<end>` the highest id, as open_clip's argmax pooling requires. The same captions
    give the same files.

    Args:
        captions: training captions.
        vocab_size: maximum number of tokens, including the 256 bytes and three special tokens.
        folder: local folder, created if it does not exist.

    Returns:
        Number of tokens in the vocabulary (below `vocab_size` if the captions contain too few pairs).

    Raises:
        SettingError: `vocab_size` is below 259, the bytes and special tokens.
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
