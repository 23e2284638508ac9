"""Print the hours of training, over all restarts, that a fairseq checkpoint records."""

import argparse
import sys

import torch

with torch.serialization.safe_globals([argparse.Namespace]):  # fairseq's checkpoints hold one
    checkpoint = torch.load(sys.argv[1], map_location="cpu")
print(f"{checkpoint['extra_state']['previous_training_time'] / 3600:.4f}")
