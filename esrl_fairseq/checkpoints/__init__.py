"""Files that a run goes on from: what they may hold."""
