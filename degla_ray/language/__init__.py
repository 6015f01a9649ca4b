"""Analysis of captions: tagging, grammar, lexicon, phrases, edits and mentions."""
