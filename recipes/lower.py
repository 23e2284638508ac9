"""Standard input in lower case, line by line (Unicode's, whatever the locale)."""

import sys

sys.stdin.reconfigure(encoding="utf-8", newline="\n")  # type: ignore[union-attr]
sys.stdout.reconfigure(encoding="utf-8", newline="\n")  # type: ignore[union-attr]
for line in sys.stdin:
    sys.stdout.write(line.lower())
