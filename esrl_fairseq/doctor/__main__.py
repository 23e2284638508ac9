"""``python -m esrl_fairseq.doctor``."""

import sys

from esrl_fairseq.doctor.command import main

if __name__ == "__main__":
    sys.exit(main())
