"""Stage two: log-probabilities of what was drawn, with gradient; and what it is compared with."""
