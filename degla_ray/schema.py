"""Arrow schemas of the datasets passed between pipeline stages.

Each stage (sources -> negatives -> training -> evaluation) writes folders of Parquet files with these
schemas. Changing a column breaks compatibility with users' existing files.
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
    """Reasons for rejecting a row. The list is closed: adding one is a design decision."""

    # images
    UNREADABLE = "unreadable"
    TRUNCATED = "truncated"
    ZERO_BYTE = "zero_byte"
    OVERSIZED = "oversized"
    ANIMATED = "animated"
    OUTSIDE_FOLDER = "outside_folder"
    MISSING_IMAGE = "missing_image"
    IMAGE_WITHOUT_CAPTION = "image_without_caption"
    FURTHER_IMAGE = "further_image"  # an additional image of a sample, e.g. a segmentation map
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
    WRONG_KIND = "wrong_kind"  # an edit of another kind than requested
    GUESSABLE = "guessable"  # its text alone would tell it from its caption
    # answers of a language model
    NO_TEXT = "no_text"
    CUT_OFF = "cut_off"  # the answer reached its token limit
    REASONING_ONLY = "reasoning_only"  # reasoning without an answer
    COMMENTARY = "commentary"  # a refusal, an explanation, a question
    SEVERAL_SENTENCES = "several_sentences"
    MARKUP = "markup"
    WRONG_LANGUAGE = "wrong_language"
    NON_PRINTABLE = "non_printable"
    GIVE_AWAY = "give_away"  # an emoji, a dash, capitals ... absent from its caption
    TOO_LONG = "too_long"  # far more words than its caption
    # requests without an answer
    TIMEOUT = "timeout"
    ENGINE_ERROR = "engine_error"


IMAGES = pa.schema(
    [("image_id", pa.string()), ("image", pa.binary()), ("width", pa.int32()), ("height", pa.int32())]
)
IMAGE_INDEX = pa.schema(  # where an image's bytes are in its part of IMAGES; in the order of its rows
    [
        ("image_id", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("offset", pa.int64()),
        ("length", pa.int64()),
        ("crc32", pa.int64()),
    ]
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
        ("plausibility", pa.float32()),  # log-probability a word minus the caption's; null: not scored
    ]
)
GIVEN_KIND = "given"
GIVEN = pa.schema(  # negatives supplied by the source, unchanged; kind is GIVEN_KIND
    [("sample_id", pa.string()), ("kind", pa.string()), ("negative", pa.string())]
)
REJECTS = pa.schema(
    [
        ("stage", pa.string()),
        ("sample_id", pa.string()),  # or image_id, or "file:line" if the row has no id yet
        ("kind", pa.string()),  # of a negative; "image" or "caption" at stage prepare; "" elsewhere
        ("text", pa.string()),
        ("reason", pa.string()),
        ("detail", pa.string()),
    ]
)
ATTEMPTS = pa.schema(  # ledger of all requests to a language model and their outcomes
    [
        ("key", pa.string()),  # hash of the caption's text: identical captions share a request
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
        ("cached_tokens", pa.int32()),  # prompt tokens found in the prefix cache
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
        ),  # unit of resampling; crops and copies of an image share its key
        ("group", pa.string()),  # class or relation if the accuracy is a mean over groups, else null
        ("candidate_scores", pa.list_(pa.float32())),
        ("correct", pa.bool_()),
        ("rival", pa.string()),  # best wrong candidate, a text or SOURCE:ID, where ITEMS does not list it
    ]
)
ITEMS = pa.schema(  # images and texts of each item in SCORES, the true ones first
    [
        ("benchmark", pa.string()),
        ("subset", pa.string()),
        ("item_id", pa.string()),
        ("images", pa.list_(pa.string())),  # SOURCE:ID
        ("texts", pa.list_(pa.string())),
    ]
)

# Evaluation items that the project generates (scenes), in the form that every benchmark is loaded into.
CHOICE_ITEMS = pa.schema(  # texts[0] is the true caption
    [
        ("benchmark", pa.string()),
        ("subset", pa.string()),
        ("item_id", pa.string()),
        ("image_id", pa.string()),
        ("texts", pa.list_(pa.string())),
    ]
)
CLASS_ITEMS = pa.schema(  # label: index into `classes` of the benchmark's JSON file
    [("benchmark", pa.string()), ("item_id", pa.string()), ("image_id", pa.string()), ("label", pa.int32())]
)
SCENE_GRAPHS = pa.schema([("image_id", pa.string()), ("graph", pa.string())])  # JSON of a scene graph


def with_large_text(schema: pa.Schema) -> pa.Schema:
    """Return a schema with 64-bit offsets for text and lists, which in memory may exceed 2 GiB."""
    return pa.schema([(field.name, _large(field.type)) for field in schema])


def _large(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_list(kind):
        return pa.large_list(_large(kind.value_type))
    return pa.large_string() if pa.types.is_string(kind) else kind
