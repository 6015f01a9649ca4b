"""What a caption says: tagging, grammar, words, phrases, edits and what is mentioned."""
