"""The Arrow schemas of every dataset that crosses a stage: the project's data contracts.

Every arrow of the pipeline (sources -> negatives -> training -> evaluation) is a folder of Parquet
parts with one of these schemas. Changing a column here changes a contract with users' files.
"""

from __future__ import annotations

from enum import StrEnum

import pyarrow as pa


class Kind(StrEnum):
    """The five kinds of negative caption (paper, section 3.1)."""

    RESHUFFLE = "reshuffle"
    SWAP_NOUNS = "swap_nouns"
    SWAP_ADJECTIVES = "swap_adjectives"
    REPLACE_ADJECTIVES = "replace_adjectives"
    REPLACE_NOUNS = "replace_nouns"


class RejectReason(StrEnum):
    """The closed list of reasons for which a row may be left out. A new one is a decision."""

    # images
    UNREADABLE = "unreadable"
    TRUNCATED = "truncated"
    ZERO_BYTE = "zero_byte"
    OVERSIZED = "oversized"
    ANIMATED = "animated"
    OUTSIDE_FOLDER = "outside_folder"
    MISSING_IMAGE = "missing_image"
    IMAGE_WITHOUT_CAPTION = "image_without_caption"
    FURTHER_IMAGE = "further_image"  # beside the one of its sample that is used, e.g. a segmentation map
    # captions
    EMPTY_CAPTION = "empty_caption"
    NOT_A_STRING = "not_a_string"
    MALFORMED_ROW = "malformed_row"
    DUPLICATE_ID = "duplicate_id"
    CAPTION_WITHOUT_IMAGE = "caption_without_image"
    # negatives
    SAME_AS_CAPTION = "same_as_caption"
    SAME_MEANING = "same_meaning"
    SYNONYM = "synonym"
    DUPLICATE_NEGATIVE = "duplicate_negative"
    TRUE_OF_IMAGE = "true_of_image"
    WRONG_KIND = "wrong_kind"  # another edit than was asked for
    # answers of a language model
    NO_TEXT = "no_text"
    CUT_OFF = "cut_off"  # the answer reached its token limit
    REASONING_ONLY = "reasoning_only"  # a thought and no answer
    COMMENTARY = "commentary"  # a refusal, an explanation, a question
    SEVERAL_SENTENCES = "several_sentences"
    MARKUP = "markup"
    WRONG_LANGUAGE = "wrong_language"
    NON_PRINTABLE = "non_printable"
    GIVE_AWAY = "give_away"  # an emoji, a dash, capitals ... that its caption lacks
    TOO_LONG = "too_long"  # far more words than the caption
    # answers that never came
    TIMEOUT = "timeout"
    ENGINE_ERROR = "engine_error"


IMAGES = pa.schema(
    [("image_id", pa.string()), ("image", pa.binary()), ("width", pa.int32()), ("height", pa.int32())]
)
CAPTIONS = pa.schema(
    [("sample_id", pa.string()), ("image_id", pa.string()), ("caption", pa.string()), ("split", pa.string())]
)
NEGATIVES = pa.schema(
    [
        ("sample_id", pa.string()),
        ("kind", pa.string()),
        ("negative", pa.string()),
        ("engine", pa.string()),
        ("model", pa.string()),
        ("prompt_sha", pa.string()),
        ("attempt", pa.int8()),
    ]
)
GIVEN_KIND = "given"
GIVEN = pa.schema(  # negatives that came with the source, as found; kind is GIVEN_KIND
    [("sample_id", pa.string()), ("kind", pa.string()), ("negative", pa.string())]
)
REJECTS = pa.schema(
    [
        ("stage", pa.string()),
        ("sample_id", pa.string()),  # or the image_id, or "file:line" where a row has no id yet
        ("kind", pa.string()),  # of a negative; "image" or "caption" at stage prepare; "" elsewhere
        ("text", pa.string()),
        ("reason", pa.string()),
        ("detail", pa.string()),
    ]
)
ATTEMPTS = pa.schema(  # every question put to a language model and what became of it: the ledger
    [
        ("key", pa.string()),  # of the caption's text: captions that read alike are asked for once
        ("kind", pa.string()),
        ("attempt", pa.int8()),
        ("state", pa.string()),  # ok, rejected, error or not_applicable
        ("text", pa.string()),  # the negative, the rejected answer, or the error's message
        ("reason", pa.string()),
        ("detail", pa.string()),
        ("engine", pa.string()),
        ("model", pa.string()),
        ("prompt_tokens", pa.int32()),
        ("completion_tokens", pa.int32()),
        ("cached_tokens", pa.int32()),  # of the prompt, found in the prefix cache
        ("seconds", pa.float32()),
    ]
)
NEIGHBOURS = pa.schema([("image_id", pa.string()), ("neighbours", pa.list_(pa.string()))])  # nearest first
SCORES = pa.schema(
    [
        ("benchmark", pa.string()),
        ("subset", pa.string()),
        ("item_id", pa.string()),
        (
            "image",
            pa.string(),
        ),  # whose items stand or fall together: one key, whatever crops or copies it has
        ("group", pa.string()),  # class or relation where the accuracy is the mean over groups, else null
        ("candidate_scores", pa.list_(pa.float32())),
        ("correct", pa.bool_()),
    ]
)
ITEMS = pa.schema(  # what an item of SCORES shows; the true image and the true text come first
    [
        ("benchmark", pa.string()),
        ("subset", pa.string()),
        ("item_id", pa.string()),
        ("images", pa.list_(pa.string())),  # SOURCE:ID
        ("texts", pa.list_(pa.string())),
    ]
)

# Evaluation items that the project writes itself (scenes), in the shape every benchmark loads into.
CHOICE_ITEMS = pa.schema(  # texts[0] is the true caption
    [
        ("benchmark", pa.string()),
        ("subset", pa.string()),
        ("item_id", pa.string()),
        ("image_id", pa.string()),
        ("texts", pa.list_(pa.string())),
    ]
)
CLASS_ITEMS = pa.schema(  # label indexes the `classes` list of the benchmark's JSON file
    [("benchmark", pa.string()), ("item_id", pa.string()), ("image_id", pa.string()), ("label", pa.int32())]
)
SCENE_GRAPHS = pa.schema([("image_id", pa.string()), ("graph", pa.string())])  # JSON of a scene graph
