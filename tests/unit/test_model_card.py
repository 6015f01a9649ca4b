"""The model card: metadata that Hugging Face's own reader takes, and what made the model."""

from __future__ import annotations

from huggingface_hub import ModelCard

from degla_ray.model.card import card

OPENING = "# A CLIP model for open_clip\n\n    import open_clip\n"


def test_card_metadata_and_scores_are_read_by_huggingface() -> None:
    made = {
        "run": "first",
        "fingerprint": "00ff",
        "objective": {"name": "degla", "lambda_igc": 0.1},
        "steps": 40,
        "data": "12 captions of source csv, fingerprint aa",
        "scores": {
            "composition": {"value": 0.70314, "low": 0.65, "high": 0.75, "items": 500},
            "scenes/a": 0.5,
            "scenes/b": 0.6,
        },
    }
    text = card(OPENING, "open_clip", "trained from scenes-base", made)
    data = ModelCard(text).data
    assert (data.library_name, data.license, data.language) == ("open_clip", "other", "en")
    assert {r.dataset_name: r.metric_value for r in data.eval_results} == {
        "composition": 0.7031,
        "scenes/a": 0.5,
        "scenes/b": 0.6,
    }
    for line in (
        "- weights: trained from scenes-base",
        "- objective: degla (lambda_igc 0.1)",
        "- steps: 40",
        "- data: 12 captions of source csv, fingerprint aa",
        "| composition | 70.3 | 65.0–75.0 | 500 |",
        "| scenes/a | 50.0 |  |  |",
    ):
        assert line in text.splitlines()


def test_card_without_scores_says_how_to_add_them() -> None:
    text = card(OPENING, "transformers", "random weights", {})
    assert ModelCard(text).data.eval_results is None
    assert "degla export --evaluations FOLDER" in text
    assert "- weights: random weights" in text
    assert "- objective" not in text
