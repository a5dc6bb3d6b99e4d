"""The worker's line: poll, decode, batch, score, segment, commit, summary. Knows no Ray."""
